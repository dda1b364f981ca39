//! The events of a task: which, in what order, with what in them. The same
//! checks run for containerd's own runtime, which says what is right.

use anyhow::{Context, Result, ensure};
use lighter_test::{Containerd, RUNC, Rootfs, WASMTIME, each_containerd, events::Event};
use nix::sys::signal::Signal;

each_containerd!(
    of_a_life,
    of_a_killed_task,
    of_a_task_that_never_started,
    of_many_at_once
);

/// What runs: under runc, and what must look the same.
const LIVES: [(&str, [&str; 3]); 4] = [
    (RUNC, ["/bin/sh", "-c", "exit 7"]),
    (WASMTIME, ["/bin/sh", "-c", "exit 7"]),
    (WASMTIME, ["/tool.wasm", "exit", "7"]),
    (WASMTIME, ["/reactor.wasm#quit", "-", "-"]),
];

/// Waits for the last event. runc's shim, under containerd 2.1, sometimes ends before it has handed
/// that over; nothing is asked of it then.
fn wait_for_delete(engine: &Containerd, runtime: &str, id: &str) -> Result<()> {
    match engine.recorder().wait_for(id, "delete") {
        Err(error) if runtime != RUNC => Err(error),
        _ => Ok(()),
    }
}

/// The events of a whole life, or what runc's shim sometimes leaves of them.
fn is_whole(runtime: &str, events: &[&str]) -> bool {
    let whole = ["create", "start", "exit", "delete"];
    events == whole || (runtime == RUNC && events == &whole[..3])
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(Event::name).collect()
}

fn of_a_life(engine: &Containerd) -> Result<()> {
    for (runtime, args) in LIVES {
        let mut container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .create()?;
        let (id, pid, bundle) = (
            container.id().to_owned(),
            container.pid(),
            container.bundle(),
        );
        container.wait_for_event("create")?;
        container.start()?;
        let exit = container.wait()?;
        container.wait_for_event("exit")?;
        let deleted = container.delete()?;
        wait_for_delete(engine, runtime, &id).with_context(|| format!("{runtime} {args:?}"))?;
        let events = container.events();
        let told = names(&events);
        assert!(is_whole(runtime, &told), "{runtime} {args:?}: {told:?}");
        ensure!((exit.status, deleted.status) == (7, 7));
        ensure!(deleted.at == exit.at, "{deleted:?} {exit:?}");
        for event in &events {
            match event {
                Event::Create(create) => {
                    ensure!(create.container_id == id && create.pid == pid, "{create:?}");
                    ensure!(create.bundle == bundle.display().to_string(), "{create:?}");
                    ensure!(create.checkpoint.is_empty(), "{create:?}");
                    ensure!(create.rootfs.len() == 1, "{create:?}");
                    let io = create.io.as_ref().context("streams in the create event")?;
                    ensure!(io.stdin.is_empty() && !io.terminal, "{io:?}");
                    ensure!(
                        io.stdout.ends_with("/stdout") && io.stderr.ends_with("/stderr"),
                        "{io:?}"
                    );
                }
                Event::Start(start) => {
                    ensure!(start.container_id == id && start.pid == pid, "{start:?}");
                }
                Event::Exit(told) => {
                    ensure!(told.container_id == id && told.id == id, "{told:?}");
                    ensure!(told.pid == pid && told.exit_status == 7, "{told:?}");
                    ensure!(
                        told.exited_at == exit.at && exit.at.is_some(),
                        "{told:?} {exit:?}"
                    );
                }
                Event::Delete(told) => {
                    ensure!(told.container_id == id && told.pid == pid, "{told:?}");
                    ensure!(told.id.is_empty() && told.exit_status == 7, "{told:?}");
                    ensure!(told.exited_at == exit.at, "{told:?} {exit:?}");
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
        // The time of exit lies between the two calls around it.
        let times = engine.recorder().with_times(&id);
        let published = |name: &str| {
            let found = times.iter().find(|(event, _)| event.name() == name);
            found
                .and_then(|(_, time)| time.as_ref())
                .map(|time| (time.seconds, time.nanos))
        };
        let at = exit.at.map(|time| (time.seconds, time.nanos));
        ensure!(
            published("create") < at && at <= published("exit"),
            "{times:?} {at:?}"
        );
        container.remove()?;
    }
    Ok(())
}

fn of_a_killed_task(engine: &Containerd) -> Result<()> {
    for (runtime, args) in [
        (RUNC, ["/bin/sleep", "1000"]),
        (WASMTIME, ["/bin/sleep", "1000"]),
        (WASMTIME, ["/tool.wasm", "loop"]),
    ] {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .create()?;
        container.start()?;
        container.kill(Signal::SIGKILL)?;
        let id = container.id().to_owned();
        container.finish()?;
        wait_for_delete(engine, runtime, &id)?;
        let events = engine.recorder().of(&id);
        let told = names(&events);
        assert!(is_whole(runtime, &told), "{runtime} {args:?}: {told:?}");
        let Event::Exit(exit) = &events[2] else {
            unreachable!("the names say so")
        };
        assert_eq!(exit.exit_status, 137, "{args:?}");
    }
    Ok(())
}

/// A task that was created and never started is killed by deleting it. (runc's
/// shim tells of the exit before, after or not at all.)
fn of_a_task_that_never_started(engine: &Containerd) -> Result<()> {
    for args in [["/bin/true", "-"], ["/tool.wasm", "loop"]] {
        let mut container = engine.container(&Rootfs::guests()?).args(args).create()?;
        let id = container.id().to_owned();
        let deleted = container.delete()?;
        assert_eq!(deleted.status, 137, "{args:?}");
        engine.recorder().wait_for(&id, "delete")?;
        assert_eq!(
            names(&container.events()),
            ["create", "exit", "delete"],
            "{args:?}"
        );
        container.remove()?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

fn of_many_at_once(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    std::thread::scope(|scope| {
        let lives: Vec<_> = (0..8_u32)
            .map(|number| {
                let rootfs = &rootfs;
                scope.spawn(move || -> Result<()> {
                    let container = engine
                        .container(rootfs)
                        .args(["/tool.wasm", "exit", &number.to_string()])
                        .create()?;
                    let id = container.id().to_owned();
                    container.start()?;
                    assert_eq!(container.finish()?.status, number);
                    engine.recorder().wait_for(&id, "delete")?;
                    let events = engine.recorder().of(&id);
                    assert_eq!(names(&events), ["create", "start", "exit", "delete"]);
                    Ok(())
                })
            })
            .collect();
        lives
            .into_iter()
            .try_for_each(|life| life.join().expect("no life panics"))
    })
}
