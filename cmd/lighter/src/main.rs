//! `lighter`, the people's tool beside the shim.
#![forbid(unsafe_code)]

mod build;
mod containerd;
mod docker;
mod layout;
mod wasm;

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
    Build(build::Build),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Build(build) => build.run(),
    }
}
