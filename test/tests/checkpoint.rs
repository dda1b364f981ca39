//! Checkpoint and restore, of Linux containers with criu, as under runc.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use containerd_client::{tonic::Code, types::v1::Status};
use lighter_test::{
    Builder, Container, Containerd, Output, RUNC, Rootfs, Settings, WASMTIME, built_programs, code,
    each_containerd, eventually, leaks::ensure_dead, options::CheckpointOptions, tools,
};
use nix::sys::signal::Signal;

each_containerd!(
    goes_on_and_is_restored,
    ends_and_is_restored,
    while_paused,
    with_files_of_the_host,
    beside_others,
    of_a_guest,
    without_criu,
    that_criu_refuses,
    from_another_runtime
);

/// A daemon like `like` whose PATH has criu on it.
fn with_criu(like: &Containerd) -> Result<Containerd> {
    let criu = tools().join("criu/bin");
    ensure!(
        criu.join("criu").exists(),
        "criu is missing in {}: run `make test`, or `test/setup/engines criu`",
        criu.display()
    );
    let settings = Settings {
        path: vec![criu],
        // containerd leaves folders of restores there.
        environment: vec![(
            "XDG_RUNTIME_DIR".to_owned(),
            like.folder().display().to_string(),
        )],
        ..Settings::default()
    };
    Containerd::start_with(like.version(), &settings)
}

/// Counts from 1 on, in its memory, until it is killed.
const COUNTER: [&str; 3] = [
    "/bin/sh",
    "-c",
    "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done",
];

fn counter<'a>(engine: &'a Containerd, runtime: &str) -> Builder<'a> {
    engine
        .container(&Rootfs::busybox())
        .runtime(runtime)
        .args(COUNTER)
}

/// What was counted, whose last line may not be whole.
fn numbers(text: &str) -> Vec<u32> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map_while(|line| line.parse().ok()).collect()
}

fn last(container: &Container) -> u32 {
    numbers(&container.stdout()).last().copied().unwrap_or(0)
}

fn wait_for_count(container: &Container, beyond: u32) -> Result<()> {
    eventually("it counts on", || (last(container) > beyond).then_some(()))
        .with_context(|| format!("{}{}", container.stdout(), container.stderr()))
}

fn kill(container: Container) -> Result<Output> {
    container.kill(Signal::SIGKILL)?;
    let output = container.finish()?;
    assert_eq!(output.status, 137);
    let numbers = numbers(&output.text());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    Ok(output)
}

/// Starts a restored counter and makes sure that it goes on, where it was when it had counted to
/// `counted`.
fn expect_restored(container: Container, counted: u32) -> Result<()> {
    assert_eq!(container.state()?.status(), Status::Created);
    container.start()?;
    wait_for_count(&container, counted + 3)?;
    let state = container.state()?;
    assert_eq!(state.status(), Status::Running);
    assert!(state.pid != 0);
    let numbers = numbers(&kill(container)?.text());
    assert!(numbers[0] >= counted, "it began anew: {numbers:?}");
    Ok(())
}

fn exit() -> CheckpointOptions {
    CheckpointOptions {
        exit: true,
        ..CheckpointOptions::default()
    }
}

fn goes_on_and_is_restored(like: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let engine = with_criu(like)?;
        let container = counter(&engine, runtime).create()?;
        container.start()?;
        wait_for_count(&container, 3)?;
        let counted = last(&container);
        let checkpoint = container.checkpoint(&CheckpointOptions::default())?;
        wait_for_count(&container, last(&container) + 3)?;
        assert_eq!(container.state()?.status(), Status::Running, "{runtime}");
        let restored = counter(&engine, runtime).restore(&checkpoint).create()?;
        expect_restored(restored, counted)?;
        kill(container)?;
        engine.ensure_clean().context(runtime)?;
    }
    Ok(())
}

fn ends_and_is_restored(like: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let engine = with_criu(like)?;
        let container = counter(&engine, runtime).create()?;
        container.start()?;
        wait_for_count(&container, 3)?;
        let counted = last(&container);
        let checkpoint = container.checkpoint(&exit())?;
        assert_eq!(container.finish()?.status, 137, "{runtime}");
        let restored = counter(&engine, runtime).restore(&checkpoint).create()?;
        expect_restored(restored, counted)?;
        if runtime == RUNC {
            continue;
        }
        // As often as one likes; until its start it stands still, and can be deleted.
        let mut restored = counter(&engine, runtime).restore(&checkpoint).create()?;
        let pid = restored.pid();
        let state = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        assert!(state.contains("State:\tT"), "{state}");
        restored.delete()?;
        restored.remove()?;
        ensure_dead(pid)?;
        engine.ensure_clean().context(runtime)?;
    }
    Ok(())
}

/// As containerd's Go client does it for every checkpoint.
fn while_paused(like: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let engine = with_criu(like)?;
        let container = counter(&engine, runtime).create()?;
        container.start()?;
        wait_for_count(&container, 3)?;
        container.pause()?;
        let checkpoint = container.checkpoint(&CheckpointOptions::default())?;
        assert_eq!(container.state()?.status(), Status::Paused, "{runtime}");
        let counted = last(&container);
        container.resume()?;
        wait_for_count(&container, counted)?;
        let restored = counter(&engine, runtime).restore(&checkpoint).create()?;
        expect_restored(restored, counted)?;
        kill(container)?;
        engine.ensure_clean().context(runtime)?;
    }
    Ok(())
}

/// Bind mounts are made anew, of what the new container's configuration names. Processes that were
/// added are no children of the init, so no part of what criu saves, with any runtime.
fn with_files_of_the_host(like: &Containerd) -> Result<()> {
    let parent = tempfile::tempdir_in(like.folder())?;
    let [before, after] = ["before", "after"].map(|name| parent.path().join(name));
    for folder in [&before, &after] {
        std::fs::create_dir(folder)?;
        let name = folder.file_name().context("a name")?;
        std::fs::write(folder.join("name"), name.as_encoded_bytes())?;
    }
    let script = "sleep 1000 & while :; do echo $(cat /of/host/name); sleep 0.05; done";
    let mut sleepers = Vec::new();
    for runtime in [RUNC, WASMTIME] {
        let engine = with_criu(like)?;
        let builder = |folder: &PathBuf| {
            engine
                .container(&Rootfs::busybox())
                .runtime(runtime)
                .bind(folder, "/of/host", &["ro"])
                .args(["/bin/sh", "-c", script])
        };
        let container = builder(&before).create()?;
        container.start()?;
        container.wait_for_output("before\n")?;
        let exec = container.exec(["/bin/sleep", "1000"])?.start()?;
        let checkpoint = container.checkpoint(&exit())?;
        assert_eq!(exec.finish()?.status, 137);
        container.finish()?;
        let restored = builder(&after).restore(&checkpoint).create()?;
        restored.start()?;
        // In the middle of a line, perhaps.
        restored.wait_for_output("after\nafter\n")?;
        let commands = restored.pids()?.into_iter().map(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            line.unwrap_or_default()
        });
        sleepers.push(commands.filter(|line| line.contains("\x001000")).count());
        restored.kill(Signal::SIGKILL)?;
        assert_eq!(restored.finish()?.status, 137);
        engine.ensure_clean().context(runtime)?;
    }
    assert_eq!(sleepers, [1, 1]);
    Ok(())
}

/// A restore makes the container's cgroups, and not those that others had on the machine at the time
/// of the checkpoint. runc puts its containers into every hierarchy there is.
fn beside_others(like: &Containerd) -> Result<()> {
    let engine = with_criu(like)?;
    let other = counter(&engine, RUNC).create()?;
    other.start()?;
    let container = counter(&engine, WASMTIME).create()?;
    container.start()?;
    wait_for_count(&container, 3)?;
    let counted = last(&container);
    let checkpoint = container.checkpoint(&exit())?;
    container.finish()?;
    kill(other)?;
    engine.ensure_clean()?;
    let restored = counter(&engine, WASMTIME).restore(&checkpoint).create()?;
    let id = restored.id().to_owned();
    let others = engine
        .remains()
        .into_iter()
        .filter(|line| !line.contains(&id));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
    expect_restored(restored, counted)?;
    engine.ensure_clean()
}

fn of_a_guest(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    container.start()?;
    let error = container
        .checkpoint(&CheckpointOptions::default())
        .err()
        .context("there is one")?;
    assert_eq!(code(&error), Code::Unimplemented);
    let error = format!("{error:#}");
    assert!(error.contains("WebAssembly"), "{error}");
    assert_eq!(container.state()?.status(), Status::Running);
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    Ok(())
}

fn without_criu(like: &Containerd) -> Result<()> {
    let path = format!(
        "{}:{}:/usr/bin:/bin",
        built_programs()?.display(),
        like.version().programs()?.display()
    );
    let settings = Settings {
        environment: vec![("PATH".to_owned(), path)],
        ..Settings::default()
    };
    let engine = Containerd::start_with(like.version(), &settings)?;
    let container = counter(&engine, WASMTIME).create()?;
    container.start()?;
    let error = container
        .checkpoint(&CheckpointOptions::default())
        .err()
        .context("there is one")?;
    let error = format!("{error:#}");
    assert!(error.contains("install the package criu"), "{error}");
    assert!(error.contains(":/usr/bin:/bin)"), "{error}");
    wait_for_count(&container, last(&container) + 1)?;
    kill(container)?;
    engine.ensure_clean()
}

/// What criu refuses goes on, and its reason is told; options are passed on to it.
fn that_criu_refuses(like: &Containerd) -> Result<()> {
    let engine = with_criu(like)?;
    let connects = "
        here() { cat /proc/net/tcp /proc/net/tcp6 | grep -q \":0063 .* $1 \"; }
        ip link set lo up
        sleep 1000 | nc -l -p 99 &
        until here 0A; do sleep 0.05; done
        sleep 1000 | nc 127.0.0.1 99 &
        until here 01; do sleep 0.05; done
        echo connected
        while :; do sleep 0.05; done";
    let container = engine
        .container(&Rootfs::busybox())
        .args(["/bin/sh", "-c", connects])
        .spec(|spec| {
            let sets = spec["process"]["capabilities"].as_object_mut();
            for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
                let set = set.as_array_mut().expect("a set of capabilities");
                set.push("CAP_NET_ADMIN".into());
            }
        })
        .create()?;
    container.start()?;
    container.wait_for_output("connected")?;
    let error = container
        .checkpoint(&CheckpointOptions::default())
        .err()
        .context("it took the connection along")?;
    let error = format!("{error:#}");
    assert!(error.contains("--tcp-established"), "{error}");
    let log = container.bundle().join("criu-dump.log");
    assert!(error.contains(&log.display().to_string()), "{error}");
    assert!(log.exists() && !container.bundle().join("criu-work").exists());
    assert_eq!(container.state()?.status(), Status::Running);
    let exec = container.exec(["/bin/echo", "there"])?.run()?;
    assert_eq!(exec.text(), "there\n");

    let work = engine.folder().join("work");
    let options = CheckpointOptions {
        open_tcp: true,
        work_path: work.display().to_string(),
        ..CheckpointOptions::default()
    };
    // Whether criu then masters the sockets is between it and the kernel.
    if let Err(error) = container.checkpoint(&options) {
        let error = format!("{error:#}");
        assert!(!error.contains("--tcp-established"), "{error}");
    }
    assert!(work.join("dump.log").exists());
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    engine.ensure_clean()
}

/// A restore that fails says why and leaves nothing: the notes beside criu's images are missing here.
fn from_another_runtime(like: &Containerd) -> Result<()> {
    let engine = with_criu(like)?;
    let container = counter(&engine, RUNC).create()?;
    container.start()?;
    wait_for_count(&container, 1)?;
    let checkpoint = container.checkpoint(&CheckpointOptions::default())?;
    let error = counter(&engine, WASMTIME).restore(&checkpoint).refused()?;
    assert!(error.contains("no checkpoint of this shim"), "{error}");
    kill(container).map(drop)
}
