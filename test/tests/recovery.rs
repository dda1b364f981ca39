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

/// Kills the shim's daemon: the one of the shim's processes that another than them has started,
/// and not a zygote that is left. Returns whether it was alone, without a zygote yet.
fn kill_daemon(engine: &Containerd, id: &str) -> Result<bool> {
    let pids = engine.shims_of(id);
    let parent = |pid: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse().ok()
    };
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let daemon = pids
        .iter()
        .filter(|pid| !name(**pid).starts_with("lighter-"))
        .find(|&&pid| parent(pid).is_some_and(|parent| !pids.contains(&parent)))
        .with_context(|| format!("no daemon of {id} among {pids:?}"))?;
    kill(Pid::from_raw(*daemon as i32), Signal::SIGKILL)?;
    Ok(pids.len() == 1)
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
                let mut newborn = false;
                // Killed until the container has come to its end.
                eventually("an end", || {
                    if let Ok(alone) = kill_daemon(engine, &id) {
                        killed += 1;
                        newborn |= alone;
                    }
                    life.is_finished().then_some(())
                })?;
                // How it ended for the client depends on the moment.
                drop(life.join().expect("the client does not panic"));
                if newborn {
                    // There was nobody yet to remove its socket, and containerd may have removed
                    // the bundle that names it before it called `delete`; the next start of
                    // this id takes the socket over.
                    let _ = std::fs::remove_file(engine.shim_socket(&id));
                }
                Ok(())
            })?;
            engine
                .ensure_gone(&id)
                .with_context(|| format!("{args:?} after {delay} ms"))?;
        }
    }
    assert!(killed >= 20, "only {killed} daemons were killed");
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
