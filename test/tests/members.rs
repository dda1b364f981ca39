//! The processes of a task: who they are, and signals to all of them. What containerd's own runtime
//! does is right.

use std::process::Command;

use anyhow::{Result, ensure};
use lighter_test::{
    Builder, Container, Containerd, RUNC, Rootfs, WASMTIME, cgroup, each_containerd, eventually,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::os::unix::process::ExitStatusExt;

each_containerd!(
    exec_ids,
    all_are_killed,
    all_get_a_signal,
    one_is_killed,
    who_comes_after_the_end,
);

/// A signal without a name.
const REAL_TIME: u32 = 40;

/// A shell with a child, which ends by SIGTERM with 3.
const SHELL: &str = "trap 'exit 3' TERM; sleep 1000 & echo ready; wait";

fn shell<'a>(engine: &'a Containerd, runtime: &str, own_pids: bool) -> Result<Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .runtime(runtime)
        .args(["/bin/sh", "-c", SHELL])
        .spec(|spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| own_pids || namespace["type"] != "pid");
            }
        }))
}

fn started<'a>(builder: Builder<'a>) -> Result<Container<'a>> {
    let container = builder.create()?;
    container.start()?;
    container.wait_for_output("ready")?;
    Ok(container)
}

fn exec_ids(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let container = started(shell(engine, runtime, true)?)?;
        let sleep = container.exec(["/bin/sleep", "1000"])?.add()?;
        // One that has not been started is nobody's process.
        assert_eq!(container.processes()?.len(), 2, "{runtime}");
        let pid = sleep.start()?;
        let mut processes = container.processes()?;
        processes.retain(|(_, exec)| exec.is_some());
        assert_eq!(processes, [(pid, Some(sleep.id().to_owned()))], "{runtime}");
        assert_eq!(container.pids()?.len(), 3, "{runtime}");
        sleep.kill(Signal::SIGKILL)?;
        assert_eq!(sleep.finish()?.status, 137);
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    let guest = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    guest.start()?;
    let exec = guest.exec(["/tool.wasm", "sleep", "1000"])?.start()?;
    let mut expected = [
        (guest.pid(), None),
        (exec.state()?.pid, Some(exec.id().to_owned())),
    ];
    expected.sort();
    let mut processes = guest.processes()?;
    processes.sort();
    assert_eq!(processes, expected);
    exec.kill(Signal::SIGKILL)?;
    exec.finish()?;
    guest.kill(Signal::SIGKILL)?;
    guest.finish()?;
    Ok(())
}

fn all_are_killed(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        for own_pids in [true, false] {
            let container = started(shell(engine, runtime, own_pids)?)?;
            let id = container.id().to_owned();
            let exec = container.exec(["/bin/sleep", "1000"])?.start()?;
            let pids = container.pids()?;
            assert_eq!(pids.len(), 3);
            container.signal(Signal::SIGKILL as u32, true)?;
            assert_eq!(exec.wait()?.status, 137, "{runtime}");
            assert_eq!(container.wait()?.status, 137, "{runtime}");
            for pid in pids {
                ensure_dead(pid)?;
            }
            exec.finish()?;
            container.finish()?;
            engine.ensure_gone(&id)?;
        }
    }
    Ok(())
}

fn all_get_a_signal(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        for own_pids in [true, false] {
            let container = started(shell(engine, runtime, own_pids)?)?;
            let exec = container.exec(["/bin/sleep", "1000"])?.start()?;
            let pids = container.pids()?;
            container.signal(Signal::SIGTERM as u32, true)?;
            // The shell may have gone first, and the rest been killed for that.
            let status = exec.wait()?.status;
            ensure!([143, 137].contains(&status), "{runtime}: {status}");
            assert_eq!(container.wait()?.status, 3, "{runtime}");
            for pid in pids {
                ensure_dead(pid)?;
            }
            exec.finish()?;
            container.finish()?;
        }
    }
    // The children of a shell that minds no signal get theirs all the same.
    for (runtime, signal) in [
        (RUNC, Signal::SIGTERM as u32),
        (WASMTIME, Signal::SIGTERM as u32),
        (RUNC, REAL_TIME),
        (WASMTIME, REAL_TIME),
    ] {
        let script = "sleep 1000 & sleep 1000 & echo ready; wait; echo over; exec sleep 1000";
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(["/bin/sh", "-c", script]);
        let container = started(container)?;
        container.signal(signal, true)?;
        container.wait_for_output("over")?;
        eventually("the init is left alone", || {
            (container.pids().ok()? == [container.pid()]).then_some(())
        })?;
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

/// A signal that is not to all goes to the init alone.
fn one_is_killed(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let script = "trap 'echo hit' TERM; sleep 1000 & echo ready; wait; wait";
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(["/bin/sh", "-c", script]);
        let container = started(container)?;
        let pids = container.pids()?;
        container.kill(Signal::SIGTERM)?;
        container.wait_for_output("hit")?;
        assert_eq!(container.pids()?, pids, "{runtime}");
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

/// Who comes into the cgroup of a container that has ended, another container perhaps, is not its process.
fn who_comes_after_the_end(engine: &Containerd) -> Result<()> {
    for args in [&["/hello.wasm"][..], &["/bin/true"]] {
        let mut container = engine.container(&Rootfs::guests()?).args(args).create()?;
        let mut other = Command::new("sleep").arg("1000").spawn()?;
        let other_id = Pid::from_raw(other.id() as i32);
        let folders = cgroup::of(container.pid())?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0);
        cgroup::enter(other.id(), &folders)?;
        // containerd may say that there is nobody.
        let _ = container.signal(Signal::SIGKILL as u32, true);
        assert_eq!(container.delete()?.status, 0);
        drop(container);
        kill(other_id, Signal::SIGTERM)?;
        assert_eq!(other.wait()?.signal(), Some(Signal::SIGTERM as i32));
        for folder in &folders {
            cgroup::remove(folder)?;
        }
    }
    Ok(())
}
