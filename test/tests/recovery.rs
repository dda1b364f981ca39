//! A process of the shim or of the container is killed, at whatever moment: containerd tells of
//! the exit once, everything is freed, and what need not end goes on.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Container, Containerd, Input, Rootfs, cgroup, each_containerd, events::Event, eventually,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_containerd!(
    while_it_runs,
    before_the_start,
    after_the_exit,
    at_any_moment,
    of_a_pod,
    zygote,
    zygote_of_a_pod,
    zygote_and_then_the_daemon,
    zygote_at_any_moment,
    helper_at_any_moment,
    init_at_any_moment,
    init_with_processes,
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
    let daemon = pids
        .iter()
        .filter(|pid| !name_of(**pid).starts_with("lighter-"))
        .find(|&&pid| parent(pid).is_some_and(|parent| !pids.contains(&parent)))
        .with_context(|| format!("no daemon of {id} among {pids:?}"))?;
    kill(Pid::from_raw(*daemon as i32), Signal::SIGKILL)?;
    Ok(pids.len() == 1)
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Kills one of the shim's processes by its name, and returns its pid.
fn kill_named(engine: &Containerd, id: &str, name: &str) -> Result<u32> {
    let pids = engine.shims_of(id);
    let found = pids.iter().find(|pid| name_of(**pid) == name);
    let pid = *found.with_context(|| format!("no {name} of {id} among {pids:?}"))?;
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    Ok(pid)
}

fn kill_zygote(engine: &Containerd, id: &str) -> Result<u32> {
    kill_named(engine, id, "lighter-zygote")
}

/// How often the events tell of the end of the container's init.
fn exits(events: &[Event], id: &str) -> usize {
    let told = |event: &&Event| matches!(event, Event::Exit(exit) if exit.id == id);
    events.iter().filter(told).count()
}

/// Ends a running container, and sees to it that its end is told once and nothing of it stays.
fn end(engine: &Containerd, container: Container) -> Result<()> {
    let id = container.id().to_owned();
    container.kill(Signal::SIGKILL)?;
    ensure!(container.finish()?.status == 137);
    let events = engine.recorder().wait_for(&id, "delete")?;
    ensure!(exits(&events, &id) == 1, "{events:?}");
    engine.ensure_gone(&id)
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
            Event::Exit(exit) => Some(exit),
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
                    // There was nobody yet to remove its socket, and containerd does not call
                    // `delete` for it; the next start of this id takes the socket over.
                    let _ = fs::remove_file(engine.shim_socket(&id));
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

/// The containers of a zygote that is killed go on, and another one does its work.
fn zygote(engine: &Containerd) -> Result<()> {
    for args in PROGRAMS {
        let create = || engine.container(&Rootfs::guests()?).args(args).create();
        let container = create()?;
        let id = container.id().to_owned();
        // At once after each death, before anybody can have noticed.
        let first = kill_zygote(engine, &id)?;
        container.start()?;
        let second = eventually("another zygote", || kill_zygote(engine, &id).ok())?;
        ensure!(first != second);
        let exec = container.exec(["/bin/sh", "-c", "exit 5"])?.run()?;
        ensure!(exec.status == 5, "{exec:?}");
        // And while nobody asks for anything.
        for _ in 0..3 {
            let killed = eventually("another zygote", || kill_zygote(engine, &id).ok())?;
            eventually("one more", || {
                let pids = engine.shims_of(&id);
                let zygote = pids.iter().find(|pid| name_of(**pid) == "lighter-zygote")?;
                (*zygote != killed).then_some(())
            })?;
        }
        let guest = container.exec(["/tool.wasm", "exit", "6"])?.run()?;
        ensure!(guest.status == 6, "{guest:?}");
        ensure!(container.state()?.pid == container.pid());
        kill_zygote(engine, &id)?;
        end(engine, container)?;
    }
    Ok(())
}

/// A pod goes on to get containers.
fn zygote_of_a_pod(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let create = |number: usize| -> Result<Container<'_>> {
        let mut builder = engine.container(&Rootfs::guests()?).pod(&pod);
        if number == 0 {
            builder = builder.id(&pod);
        }
        let member = builder.args(PROGRAMS[number % 2]).create()?;
        member.start()?;
        Ok(member)
    };
    let mut members = vec![create(0)?, create(1)?];
    for number in 2..6 {
        kill_zygote(engine, &pod)?;
        members.push(create(number)?);
        eventually("another zygote", || {
            let pids = engine.shims_of(&pod);
            pids.iter()
                .find(|pid| name_of(**pid) == "lighter-zygote")
                .map(drop)
        })?;
    }
    while let Some(member) = members.pop() {
        end(engine, member)?;
    }
    Ok(())
}

/// The second zygote does for a daemon that dies what the first would have done.
fn zygote_and_then_the_daemon(engine: &Containerd) -> Result<()> {
    for args in PROGRAMS {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        let id = container.id().to_owned();
        let killed = kill_zygote(engine, &id)?;
        container.start()?;
        eventually("another zygote", || {
            let pids = engine.shims_of(&id);
            let zygote = pids.iter().find(|pid| name_of(**pid) == "lighter-zygote")?;
            (*zygote != killed).then_some(())
        })?;
        let socket = engine.shim_socket(&id);
        ensure!(socket.exists());
        kill_daemon(engine, &id)?;
        let events = container.wait_for_event("exit")?;
        ensure!(exits(&events, &id) == 1, "{events:?}");
        ensure_dead(container.pid())?;
        drop(container);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// Runs a container's life in one thread while `kill` is called in another, first after the delay
/// and twice at most. Returns how often something was killed.
fn disturbed_life(
    engine: &Containerd,
    rootfs: &Rootfs,
    args: &[&str],
    delay: u64,
    kill_one: impl Fn(&str) -> Result<()>,
) -> Result<usize> {
    let builder = engine.container(rootfs).args(args);
    let id = builder.get_id().to_owned();
    let mut killed = 0;
    let created = thread::scope(|scope| -> Result<bool> {
        let life = scope.spawn(|| {
            let mut container = match builder.create() {
                Ok(container) => container,
                Err(error) => return (false, Err(error)),
            };
            let run = |container: &mut Container| -> Result<()> {
                // It may have ended, or its start or exec have been cut short.
                let _ = container.start();
                let _ = container
                    .exec(["/bin/sh", "-c", "exit 5"])
                    .and_then(|exec| exec.run());
                let _ = container.kill(Signal::SIGKILL);
                let exit = container.wait()?;
                ensure!(exit.status == 137, "{exit:?}");
                eventually("it can be deleted", || container.delete().ok()).map(drop)
            };
            (true, run(&mut container))
        });
        thread::sleep(Duration::from_millis(delay));
        eventually("an end", || {
            // Killed again and again, it would never come to an end.
            if killed < 2 && kill_one(&id).is_ok() {
                killed += 1;
            }
            life.is_finished().then_some(())
        })?;
        let (created, ended) = life.join().expect("the client does not panic");
        if created {
            ended?;
        }
        Ok(created)
    })
    .with_context(|| format!("{id}: {args:?} after {delay} ms"))?;
    if created {
        engine.recorder().wait_for(&id, "delete")?;
    }
    engine
        .ensure_gone(&id)
        .with_context(|| format!("{args:?} after {delay} ms"))?;
    let events = engine.recorder().of(&id);
    ensure!(
        exits(&events, &id) == usize::from(created),
        "{args:?} after {delay} ms, created: {created}: {events:?}"
    );
    Ok(killed)
}

fn zygote_at_any_moment(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let mut killed = 0;
    for args in PROGRAMS {
        for delay in (0..40).step_by(4) {
            killed += disturbed_life(engine, &rootfs, &args, delay, |id| {
                kill_zygote(engine, id).map(drop)
            })?;
        }
    }
    ensure!(killed >= 10, "only {killed} zygotes were killed");
    Ok(())
}

fn helper_at_any_moment(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let mut killed = 0;
    for args in PROGRAMS {
        for delay in (0..40).step_by(2) {
            killed += disturbed_life(engine, &rootfs, &args, delay, |id| {
                kill_named(engine, id, "lighter-helper").map(drop)
            })?;
        }
    }
    ensure!(killed >= 10, "only {killed} helpers were killed");
    Ok(())
}

/// The processes in the container's cgroup are killed, from the first on.
fn init_at_any_moment(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let mut killed = 0;
    for args in PROGRAMS {
        for delay in (0..40).step_by(2) {
            killed += disturbed_life(engine, &rootfs, &args, delay, |id| {
                let members = cgroup::folder("pids")
                    .join(engine.namespace())
                    .join(id)
                    .join("cgroup.procs");
                let members = fs::read_to_string(members)?;
                let member = members.lines().next().context("nobody yet")?;
                Ok(kill(Pid::from_raw(member.parse()?), Signal::SIGKILL)?)
            })?;
        }
    }
    ensure!(killed >= 10, "only {killed} processes were killed");
    Ok(())
}

/// An init that is killed from outside takes its added processes with it; every one's end is told
/// once, the init's last.
fn init_with_processes(engine: &Containerd) -> Result<()> {
    for args in PROGRAMS {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        container.start()?;
        let id = container.id().to_owned();
        let mut execs = Vec::new();
        for _ in 0..3 {
            execs.push(container.exec(["/bin/cat"])?.input(Input::Fed).start()?);
        }
        kill(Pid::from_raw(container.pid() as i32), Signal::SIGKILL)?;
        for exec in &execs {
            ensure!(exec.wait()?.status == 137);
        }
        ensure!(container.wait()?.status == 137);
        drop(execs);
        container.finish()?;
        let events = engine.recorder().wait_for(&id, "delete")?;
        let ended: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                Event::Exit(exit) => Some(exit.id.as_str()),
                _ => None,
            })
            .collect();
        ensure!(ended.len() == 4 && ended[3] == id, "{ended:?}");
        engine.ensure_gone(&id)?;
    }
    Ok(())
}
