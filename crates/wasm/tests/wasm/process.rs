//! What the shim does with this crate, without containers: the program behind the tests.
//!
//! `wasm-process compile-worker` is the compile worker. `wasm-process run OPTIONS ARTIFACT
//! [ARGUMENT...]` runs a guest as a container's init would, and exits with its code.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::signal::raise;
use nix::unistd::{Gid, Uid, chdir, chroot, setgid, setgroups, setuid};
use wasm::{Host, Invocation, Settings, WORKER_ACTION, worker_main};

/// How to run a guest.
#[derive(Default)]
struct Options {
    /// `--function NAME`: what to call.
    function: Option<String>,
    /// `--cwd DIRECTORY`: the working directory.
    cwd: Option<String>,
    /// `--root DIRECTORY`: the root to change to before the guest is loaded.
    root: Option<String>,
    /// `--id NUMBER`: the user and group to become before the guest is loaded.
    id: Option<u32>,
    /// `--hold`: stop the process when the guest is loaded, as a container that is created.
    hold: bool,
    /// `--times`: print how long each step took, in microseconds.
    times: bool,
    artifact: String,
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(WORKER_ACTION) => worker_main(),
        Some("run") => run(Options::parse(arguments)),
        other => panic!("unknown action {other:?}"),
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        loop {
            let mut value = || arguments.next().expect("an argument is missing");
            match value().as_str() {
                "--function" => options.function = Some(value()),
                "--cwd" => options.cwd = Some(value()),
                "--root" => options.root = Some(value()),
                "--id" => options.id = Some(value().parse().expect("a number")),
                "--hold" => options.hold = true,
                "--times" => options.times = true,
                artifact => {
                    options.artifact = artifact.to_owned();
                    options.arguments = arguments.collect();
                    return options;
                }
            }
        }
    }
}

fn run(options: Options) -> ExitCode {
    let begin = Instant::now();
    let host = Host::new().expect("a host");
    let made = begin.elapsed();
    let artifact = File::open(&options.artifact).expect("an artifact");
    if let Some(root) = &options.root {
        chroot(root.as_str()).expect("chroot");
        chdir("/").expect("chdir");
    }
    if let Some(id) = options.id {
        setgroups(&[]).expect("setgroups");
        setgid(Gid::from_raw(id)).expect("setgid");
        setuid(Uid::from_raw(id)).expect("setuid");
    }
    let begin = Instant::now();
    let guest = match host.load(artifact, options.function.as_deref(), Settings::default()) {
        Ok(guest) => guest,
        Err(error) => {
            eprintln!("not loaded: {error}");
            return ExitCode::from(100);
        }
    };
    let loaded = begin.elapsed();
    if options.hold {
        raise(nix::sys::signal::Signal::SIGSTOP).expect("stop");
    }
    let invocation = Invocation {
        args: options.arguments,
        env: std::env::vars()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        cwd: options.cwd.unwrap_or_else(|| "/".into()),
    };
    let begin = Instant::now();
    let mut calls = 0;
    let code = guest.run(invocation, &mut |result| {
        calls += 1;
        if let Err(reason) = result {
            eprintln!("not started: {reason}");
        }
    });
    assert_eq!(calls, 1, "started is called once");
    if options.times {
        let [made, loaded, ran] =
            [made, loaded, begin.elapsed()].map(|duration| duration.as_micros());
        writeln!(std::io::stderr(), "host {made} load {loaded} run {ran}").expect("stderr");
    }
    ExitCode::from(u8::try_from(code).expect("an exit code"))
}
