//! `lighter`, the people's tool beside the shim.
#![forbid(unsafe_code)]

mod build;
mod cache;
mod containerd;
mod docker;
mod inspect;
mod layout;
mod say;

use std::{env, process::ExitCode};

use clap::{Parser, Subcommand};

/// Tools for running WebAssembly in containers with Lighter.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(Box<build::Build>),
    Cache(cache::Cache),
}

fn main() -> ExitCode {
    // Not for people: `lighter cache warm` runs itself as the compile worker.
    if env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == wasm::WORKER_ACTION)
    {
        return wasm::worker_main();
    }
    let done = match Cli::parse().command {
        Command::Build(build) => build.run(),
        Command::Cache(cache) => cache.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", say::whole(&error));
            ExitCode::FAILURE
        }
    }
}
