//! The end of containers under Docker: stop, kill, wait, restart policies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    dockerd::{Container, Dockerd, Image},
    each_store, eventually,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_store!(
    stop,
    killed,
    signal_of_client,
    remove,
    start_again,
    on_failure,
    always,
    unless_stopped,
);

const STATE: &str = "{{.State.Status}} {{.State.Running}} {{.State.ExitCode}} {{.State.OOMKilled}}";

/// Guests that compute and guests that wait in the host end in well under the
/// ten seconds after which Docker would kill them.
fn stop(engine: &Dockerd) -> Result<()> {
    for command in [
        ["/tool.wasm", "loop"].as_slice(),
        &["/tool.wasm", "sleep", "1000"],
        &["/tool-component.wasm", "loop"],
        &["/tool-component.wasm", "sleep", "1000"],
    ] {
        let guest = engine.launch(Image::Guests, &[], command)?;
        guest.wait_for_log(if command[1] == "loop" {
            "looping"
        } else {
            "sleeping"
        })?;
        assert_eq!(guest.inspect(STATE)?, "running true 0 false");
        let asked = Instant::now();
        engine.docker(&["stop", guest.id()])?.success()?;
        let took = asked.elapsed();
        ensure!(took < Duration::from_secs(1), "{command:?}: {took:?}");
        assert_eq!(guest.inspect(STATE)?, "exited false 143 false");
        assert_eq!(guest.wait()?, 143);
    }
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let linux = engine.launch(Image::Linux, &[], &["sh", "-c", script])?;
    linux.wait_for_log("ready")?;
    engine.docker(&["stop", linux.id()])?.success()?;
    assert_eq!(linux.inspect(STATE)?, "exited false 5 false");
    Ok(())
}

fn killed(engine: &Dockerd) -> Result<()> {
    for (options, code) in [
        ([].as_slice(), 137),
        (&["--signal", "INT"], 130),
        (&["--signal", "HUP"], 129),
    ] {
        let guest = engine.launch(Image::Guests, &[], &["/tool-component.wasm", "loop"])?;
        guest.wait_for_log("looping")?;
        engine
            .docker(&[&["kill"], options, &[guest.id()]].concat())?
            .success()?;
        assert_eq!(guest.wait()?, code);
        guest.wait_for(STATE, &format!("exited false {code} false"))?;
    }
    let linux = engine.launch(Image::Linux, &[], &["sleep", "1000"])?;
    engine.docker(&["kill", linux.id()])?.success()?;
    assert_eq!(linux.wait()?, 137);
    let reply = engine.docker(&["kill", linux.id()])?;
    ensure!(
        reply.code != 0 && reply.errors.contains("is not running"),
        "{reply:?}"
    );
    Ok(())
}

/// What reaches an attached client reaches the guest.
fn signal_of_client(engine: &Dockerd) -> Result<()> {
    let args = engine.run_args(Image::Guests, &["--rm"], &["/tool.wasm", "loop"]);
    let mut client = engine.command(&args).spawn()?;
    let mut output = std::io::BufReader::new(client.stdout.take().context("its output")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    assert_eq!(line, "looping\n");
    kill(Pid::from_raw(client.id() as i32), Signal::SIGTERM)?;
    // timeout(1), which passes the signal on, ends as its command does.
    assert_eq!(client.wait()?.code(), Some(143));
    Ok(())
}

fn remove(engine: &Dockerd) -> Result<()> {
    for (image, command) in [
        (Image::Guests, ["/tool.wasm", "loop"].as_slice()),
        (Image::Linux, &["sleep", "1000"]),
    ] {
        let container = engine.launch(image, &[], command)?;
        let reply = engine.docker(&["rm", container.id()])?;
        ensure!(
            reply.code == 1 && reply.errors.contains("running"),
            "{reply:?}"
        );
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
        ensure!(container.inspect(STATE).is_err());
    }
    Ok(())
}

/// The same container once more, with the files that it has written.
fn start_again(engine: &Dockerd) -> Result<()> {
    let guest = engine.launch(
        Image::Guests,
        &[],
        &["/tool.wasm", "append", "/tmp/log", "x"],
    )?;
    assert_eq!(guest.wait()?, 0);
    for _ in 0..2 {
        engine
            .docker(&["start", "--attach", guest.id()])?
            .success()?;
    }
    let folder = tempfile::tempdir_in(engine.folder())?;
    let copy = folder.path().join("log");
    let from = format!("{}:/tmp/log", guest.id());
    engine
        .docker(&["cp", &from, &copy.display().to_string()])?
        .success()?;
    assert_eq!(std::fs::read_to_string(copy)?, "xxx");
    Ok(())
}

fn on_failure(engine: &Dockerd) -> Result<()> {
    for (image, command, line) in [
        (
            Image::Guests,
            ["/tool.wasm", "trap"].as_slice(),
            "wasm trap",
        ),
        (
            Image::Linux,
            &["sh", "-c", "echo once >&2; exit 134"],
            "once",
        ),
    ] {
        let container = engine.launch(image, &["--restart", "on-failure:2"], command)?;
        let state = "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}";
        container.wait_for(state, "2 exited 134")?;
        let errors = container.logs()?.errors;
        assert_eq!(errors.matches(line).count(), 3, "{errors}");
    }
    let success = engine.launch(
        Image::Guests,
        &["--restart", "on-failure:2"],
        &["/tool.wasm", "exit", "0"],
    )?;
    success.wait_for("{{.RestartCount}} {{.State.Status}}", "0 exited")
}

fn always(engine: &Dockerd) -> Result<()> {
    let guest = engine.launch(
        Image::Guests,
        &["--restart", "always"],
        &["/tool.wasm", "loop"],
    )?;
    restarted_when_killed(&guest)?;
    stays_stopped(engine, &guest)
}

fn unless_stopped(engine: &Dockerd) -> Result<()> {
    for (image, command) in [
        (
            Image::Guests,
            ["/tool-component.wasm", "sleep", "1000"].as_slice(),
        ),
        (
            Image::Linux,
            &[
                "sh",
                "-c",
                "trap 'exit 5' TERM; while :; do sleep 0.1; done",
            ],
        ),
    ] {
        let container = engine.launch(image, &["--restart", "unless-stopped"], command)?;
        restarted_when_killed(&container)?;
        stays_stopped(engine, &container)?;
    }
    Ok(())
}

/// Kills the process behind Docker's back, twice.
fn restarted_when_killed(container: &Container<'_>) -> Result<()> {
    for count in 1..=2 {
        let init = eventually("a process in the container", || {
            let pids = container.cgroup_file("pids", "cgroup.procs").ok()?;
            pids.lines().next()?.parse().ok()
        })?;
        kill(Pid::from_raw(init), Signal::SIGKILL)?;
        container.wait_for(
            "{{.RestartCount}} {{.State.Status}}",
            &format!("{count} running"),
        )?;
    }
    Ok(())
}

/// `docker stop` counts as the user's wish.
fn stays_stopped(engine: &Dockerd, container: &Container<'_>) -> Result<()> {
    engine.docker(&["stop", container.id()])?.success()?;
    // What it will start again is `restarting` from the moment of its exit.
    assert_eq!(
        container.inspect("{{.RestartCount}} {{.State.Status}}")?,
        "2 exited"
    );
    Ok(())
}
