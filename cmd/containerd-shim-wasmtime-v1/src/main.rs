//! containerd's shim for the runtime `io.containerd.wasmtime.v1`. The command line is that of
//! containerd's runtime v2 contract; what each action does is told in the crate `task`.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    // Not for people: the shim runs itself as the compile worker.
    if args.first().is_some_and(|arg| arg == wasm::WORKER_ACTION) {
        return wasm::worker_main();
    }
    let done = containerd_shim::parse(&args)
        .map_err(io::Error::other)
        .and_then(|flags| match flags.action.as_str() {
            _ if flags.version => task::print_version(),
            _ if flags.info => task::print_info(),
            "start" => task::start(&flags),
            "delete" => task::delete(&flags),
            // Not for people either: the shim puts itself between a container and its hook.
            container::HOOK_ACTION => container::run_hook(&hook_args()),
            // What a daemon starts when its zygote has died.
            container::ZYGOTE_ACTION => task::zygote(&flags),
            other => Err(io::Error::other(format!(
                "there is no action {other:?}: containerd calls start and delete"
            ))),
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code tells as much where nobody reads.
            let _ = writeln!(io::stderr(), "containerd-shim-wasmtime-v1: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What comes after the action: the hook and its arguments, which are no flags of ours.
fn hook_args() -> Vec<String> {
    env::args().skip(2).collect()
}
