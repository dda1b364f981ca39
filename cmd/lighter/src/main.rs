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

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Build(build) => build.run(),
            Self::Cache(cache) => cache.run(),
        }
    }
}

fn main() -> ExitCode {
    // Not for people: `lighter cache warm` runs itself as the compile worker.
    if env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == wasm::WORKER_ACTION)
    {
        return wasm::worker_main();
    }
    let done = match Cli::try_parse() {
        Ok(cli) => cli.command.run(),
        Err(mistake) if mistake.use_stderr() => mistake.exit(),
        // Help, or the version.
        Err(text) => {
            say::check(text.print(), text.to_string().trim_end());
            Ok(())
        }
    };
    match done {
        Ok(()) if say::is_lost() => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::note(format_args!("Error: {}", say::whole(&error)));
            ExitCode::FAILURE
        }
    }
}
