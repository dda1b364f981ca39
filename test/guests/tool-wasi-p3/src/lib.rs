//! The commands of tool-wasi as a component of WASI 0.3: a mixture, since Rust's library prints by
//! WASI 0.2.
use wasip3::cli::environment;

#[path = "../../tool-wasi/src/commands.rs"]
mod commands;

struct Tool;

wasip3::cli::command::export!(Tool);

impl wasip3::exports::cli::run::Guest for Tool {
    async fn run() -> Result<(), ()> {
        let words = environment::get_arguments().into_iter().skip(1);
        commands::run(words).map_err(|error| eprintln!("tool: {error}"))
    }
}
