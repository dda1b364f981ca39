//! dockerd with `live-restore` is stopped or killed and started again while containers are there.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    dockerd::{Container, Dockerd, Image},
    each_store,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_store!(live_restore);

/// Programs that give back what they read until SIGTERM ends them, and their exit codes then.
const PROGRAMS: [(Image, &[&str], i32); 2] = [
    (
        Image::Linux,
        &[
            "/bin/sh",
            "-c",
            "trap 'exit 3' TERM; while read line; do echo $line; done",
        ],
        3,
    ),
    (Image::Guests, &["/tool.wasm", "cat"], 143),
];

/// A container of each program.
fn programs(engine: &Dockerd) -> Result<Vec<(Container<'_>, i32)>> {
    PROGRAMS
        .into_iter()
        .map(|(image, args, code)| {
            let container = engine.launch(image, &["--interactive"], args)?;
            say(engine, &container, "before")?;
            container.wait_for_log("before")?;
            Ok((container, code))
        })
        .collect()
}

/// Writes a line to the container's standard input, whether dockerd is there or not.
fn say(engine: &Dockerd, container: &Container, line: &str) -> Result<()> {
    let mut fifo = fs::File::options()
        .write(true)
        .open(fifo(engine, container, "stdin")?)?;
    Ok(writeln!(fifo, "{line}")?)
}

fn fifo(engine: &Dockerd, container: &Container, stream: &str) -> Result<PathBuf> {
    let name = format!("{}-{stream}", container.id());
    find(&engine.folder().join("exec"), &name).with_context(|| format!("the FIFO {name}"))
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        }
    })
}

/// The init, as seen from here.
fn init(container: &Container) -> Result<u32> {
    let pids = container.cgroup_file("pids", "cgroup.procs")?;
    pids.lines()
        .next()
        .context("no process")?
        .parse()
        .context(pids)
}

fn live_restore(engine: &Dockerd) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let living = programs(engine)?;
        let ending = programs(engine)?;
        engine.stop(signal)?;
        for (container, _) in &living {
            say(engine, container, "meanwhile")?;
        }
        for (container, _) in &ending {
            let init = init(container)?;
            kill(Pid::from_raw(init as i32), Signal::SIGTERM)?;
            ensure_dead(init)?;
        }
        engine.restart()?;

        for (container, code) in &living {
            ensure!(container.inspect("{{.State.Status}}")? == "running");
            container.wait_for_log("meanwhile")?;
            say(engine, container, "after")?;
            container.wait_for_log("after")?;
            let program: &[&str] = match code {
                3 => &["/bin/sh", "-c", "exit 5"],
                _ => &["/tool.wasm", "exit", "5"],
            };
            let exec = engine.docker(&[&["exec", container.id()], program].concat())?;
            ensure!(exec.code == 5, "{exec:?}");
            engine.docker(&["stop", container.id()])?.success()?;
            ensure!(container.wait()? == *code);
        }
        for (container, code) in &ending {
            container.wait_for("{{.State.Status}}", "exited")?;
            ensure!(container.inspect("{{.State.ExitCode}}")? == code.to_string());
            ensure!(container.wait()? == *code);
            // What it wrote while nobody read goes with its end, as with runc's shim.
            ensure!(container.logs()?.text().starts_with("before\n"));
        }
        drop((living, ending));
        engine.ensure_clean()?;
    }
    Ok(())
}
