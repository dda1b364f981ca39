//! The shim's daemon is killed: containerd tells of the exit and `delete`
//! cleans up, at whatever moment it happens.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use lighter_test::{Containerd, Rootfs, each_containerd, eventually, leaks::ensure_dead};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_containerd!(
    while_it_runs,
    before_the_start,
    after_the_exit,
    at_any_moment,
    of_a_pod
);

const PROGRAMS: [[&str; 3]; 2] = [
    ["/tool.wasm", "sleep", "1000"],
    ["/bin/sh", "-c", "sleep 1000 & sleep 1000"],
];

/// Kills every process of a container's shim: the daemon and what it keeps.
/// The zygote may end with the daemon before its turn comes.
fn kill_shim(engine: &Containerd, id: &str) -> usize {
    // Not the actions `start` and `delete`: containerd calls them once, and what they leave when
    // they are killed nobody is called to clean up.
    let serves = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        !line
            .split(|&byte| byte == 0)
            .any(|word| word == b"start" || word == b"delete")
    };
    let pids: Vec<u32> = engine.shims_of(id).into_iter().filter(serves).collect();
    for &pid in &pids {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
    pids.len()
}

/// Kills only the daemon: the one of the shim's processes that another than
/// them has started.
fn kill_daemon(engine: &Containerd, id: &str) -> Result<()> {
    let pids = engine.shims_of(id);
    let parent = |pid: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse().ok()
    };
    let daemon = pids
        .iter()
        .find(|&&pid| parent(pid).is_some_and(|parent| !pids.contains(&parent)))
        .with_context(|| format!("no daemon of {id} among {pids:?}"))?;
    kill(Pid::from_raw(*daemon as i32), Signal::SIGKILL)?;
    Ok(())
}

fn while_it_runs(engine: &Containerd) -> Result<()> {
    for args in PROGRAMS {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        container.start()?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        let events = {
            kill_daemon(engine, &id)?;
            container.wait_for_event("exit")?
        };
        let exit = events.iter().find_map(|event| match event {
            lighter_test::events::Event::Exit(exit) => Some(exit),
            _ => None,
        });
        assert_eq!(exit.map(|exit| exit.exit_status), Some(137), "{args:?}");
        ensure_dead(pid)?;
        eventually("containerd has forgotten the task", || {
            container.state().err().map(drop)
        })?;
        drop(container);
        engine.ensure_gone(&id)?;
        // The machine is as before: the next container runs.
        let next = engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "exit", "6"])
            .run()?;
        assert_eq!(next.status, 6);
    }
    Ok(())
}

fn before_the_start(engine: &Containerd) -> Result<()> {
    for args in PROGRAMS {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        kill_daemon(engine, &id)?;
        ensure_dead(pid)?;
        eventually("containerd has forgotten the task", || {
            container.state().err().map(drop)
        })?;
        assert!(container.start().is_err());
        drop(container);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

fn after_the_exit(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "exit", "3"])
        .create()?;
    container.start()?;
    assert_eq!(container.wait()?.status, 3);
    let id = container.id().to_owned();
    kill_daemon(engine, &id)?;
    eventually("containerd has forgotten the task", || {
        container.state().err().map(drop)
    })?;
    drop(container);
    engine.ensure_gone(&id)
}

/// Create and start go on in one thread while the shim is killed after ever
/// longer times.
fn at_any_moment(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let mut killed = 0;
    for args in PROGRAMS {
        for delay in (0..60).step_by(3) {
            let builder = engine.container(&rootfs).args(args);
            let id = builder.get_id().to_owned();
            thread::scope(|scope| -> Result<()> {
                let life = scope.spawn(|| {
                    let container = builder.create()?;
                    container.start()?;
                    container.wait()
                });
                thread::sleep(Duration::from_millis(delay));
                // Killed until the container has come to its end.
                eventually("an end", || {
                    killed += kill_shim(engine, &id);
                    life.is_finished().then_some(())
                })?;
                // How it ended for the client depends on the moment.
                let ended = life.join().expect("the client does not panic");
                // Before the daemon has answered once containerd knows of no
                // shim and calls no `delete`; the next start takes the name over.
                let unknown = |error: anyhow::Error| format!("{error:#}").contains("start shim");
                if ended.is_err_and(unknown) {
                    // A daemon that its `start` has spawned in its last moment.
                    kill_shim(engine, &id);
                    let _ = std::fs::remove_file(engine.shim_socket(&id));
                }
                Ok(())
            })?;
            engine
                .ensure_gone(&id)
                .with_context(|| format!("{args:?} after {delay} ms"))?;
        }
    }
    assert!(killed >= 20, "only {killed} processes were killed");
    Ok(())
}

/// All containers of a pod end with its daemon.
fn of_a_pod(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let mut members = Vec::new();
    for (number, args) in [PROGRAMS[1], PROGRAMS[0], PROGRAMS[1]]
        .into_iter()
        .enumerate()
    {
        let mut builder = engine.container(&Rootfs::guests()?).pod(&pod).args(args);
        if number == 0 {
            builder = builder.id(&pod);
        }
        let member = builder.create()?;
        member.start()?;
        members.push(member);
    }
    kill_daemon(engine, &pod)?;
    for member in members {
        let (id, pid) = (member.id().to_owned(), member.pid());
        member.wait_for_event("exit")?;
        ensure_dead(pid)?;
        drop(member);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}
