//! Commands that use wasi:config, wasi:keyvalue and wasi:logging, as a component of WASI 0.2.
//! README.md in the folder above lists what they print.
use std::{env, process::ExitCode};

mod commands;

fn main() -> ExitCode {
    match commands::run(env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tool: {error}");
            ExitCode::FAILURE
        }
    }
}
