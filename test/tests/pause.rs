//! Pause and Resume. What they answer in which state is asked of containerd's own runtime too.

use std::fs;

use anyhow::{Context, Result, ensure};
use containerd_client::types::v1::Status;
use lighter_test::{
    Builder, Container, Containerd, RUNC, Rootfs, WASMTIME, cgroup, code, each_containerd,
    eventually, leaks::ensure_dead,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

each_containerd!(
    stand_still,
    wrong_states,
    killed,
    all_killed,
    signals_wait,
    in_a_shared_pid_namespace,
    without_a_daemon,
);

const FORKS: &str = "echo looping; while :; do (:); done";

/// A guest that computes, and a Linux container that does and forks all the time.
fn busy(engine: &Containerd) -> Result<[Builder<'_>; 2]> {
    Ok([
        engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "loop"]),
        engine
            .container(&Rootfs::guests()?)
            .args(["/bin/sh", "-c", FORKS]),
    ])
}

fn started<'a>(builder: Builder<'a>) -> Result<Container<'a>> {
    let container = builder.create()?;
    container.start()?;
    container.wait_for_output("looping")?;
    Ok(container)
}

/// Whether the kernel says that all of a container's processes have stopped.
fn is_frozen(container: &Container<'_>) -> Result<bool> {
    Ok(if cgroup::unified() {
        let events = container.cgroup_file("", "cgroup.events")?;
        events.lines().any(|line| line == "frozen 1")
    } else {
        container.cgroup_file("freezer", "freezer.state")? == "FROZEN"
    })
}

/// Processor time that the container has used, in the kernel's words.
fn time(container: &Container<'_>) -> Result<String> {
    if cgroup::unified() {
        let stat = container.cgroup_file("", "cpu.stat")?;
        let usage = stat.lines().find(|line| line.starts_with("usage_usec"));
        usage.map(str::to_owned).context(stat)
    } else {
        container.cgroup_file("cpuacct", "cpuacct.usage")
    }
}

fn status(container: &Container<'_>) -> Result<Status> {
    Ok(container.state()?.status())
}

fn count(container: &Container<'_>, name: &str) -> usize {
    let events = container.events();
    events.iter().filter(|event| event.name() == name).count()
}

fn stand_still(engine: &Containerd) -> Result<()> {
    for builder in busy(engine)? {
        let container = started(builder)?;
        for round in 1..=3 {
            container.pause()?;
            assert_eq!(status(&container)?, Status::Paused);
            ensure!(is_frozen(&container)?);
            container.wait_for_event("paused")?;
            let before = time(&container)?;
            // What else is asked of it meanwhile.
            ensure!(container.pids()?.contains(&container.pid()));
            container.stats()?;
            engine
                .container(&Rootfs::guests()?)
                .args(["/hello.wasm"])
                .run()?
                .success()?;
            assert_eq!(time(&container)?, before, "time used while paused");

            container.resume()?;
            assert_eq!(status(&container)?, Status::Running);
            ensure!(!is_frozen(&container)?);
            eventually("it goes on", || {
                (time(&container).ok()? != before).then_some(())
            })?;
            eventually("an event for each", || {
                (count(&container, "paused") == round && count(&container, "resumed") == round)
                    .then_some(())
            })?;
        }
        container.kill(Signal::SIGKILL)?;
        assert_eq!(container.finish()?.status, 137);
    }
    Ok(())
}

/// The answer's code, and its words without those of containerd and of the test.
fn answer<T>(given: Result<T>) -> Result<String> {
    match given {
        Ok(_) => Ok("done".to_owned()),
        Err(error) => {
            let status = error.root_cause().to_string();
            let words = status.split("message: \"").nth(1).unwrap_or(&status);
            let words = words.split('"').next().unwrap_or(words);
            // containerd before 2.0 says twice that a code is unknown.
            let words = words.trim_end_matches(": unknown");
            Ok(format!("{:?} {words}", code(&error)))
        }
    }
}

fn wrong_states(engine: &Containerd) -> Result<()> {
    let answers = |runtime: &str, args: &[&str]| -> Result<Vec<(&'static str, String)>> {
        let mut container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .create()?;
        let mut answers = vec![
            ("pause created", answer(container.pause())?),
            ("resume created", answer(container.resume())?),
        ];
        container.start()?;
        answers.push(("resume running", answer(container.resume())?));
        container.pause()?;
        answers.push(("pause paused", answer(container.pause())?));
        answers.push(("start paused", answer(container.start())?));
        answers.push(("delete paused", answer(container.delete())?));
        let exec = container.exec(["/bin/true"])?.add();
        answers.push(("exec paused", answer(exec)?));
        container.resume()?;
        container.pause()?;
        container.resume()?;
        container.kill(Signal::SIGKILL)?;
        container.wait()?;
        answers.push(("pause stopped", answer(container.pause())?));
        answers.push(("resume stopped", answer(container.resume())?));
        container.delete()?;
        answers.push(("pause deleted", answer(container.pause())?));
        container.remove()?;
        Ok(answers)
    };
    let right = answers(RUNC, &["/bin/sleep", "1000"])?;
    assert!(
        right[..right.len() - 1]
            .iter()
            .all(|(_, answer)| answer.starts_with("Unknown ") && answer.contains("cannot")),
        "{right:?}"
    );
    assert_eq!(answers(WASMTIME, &["/bin/sleep", "1000"])?[..9], right[..9]);
    let guest = answers(WASMTIME, &["/tool.wasm", "sleep", "1000"])?;
    assert_eq!(guest[..9], right[..9]);
    assert!(guest[9].1.starts_with("NotFound"), "{guest:?}");
    Ok(())
}

fn killed(engine: &Containerd) -> Result<()> {
    for builder in busy(engine)? {
        let container = started(builder)?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        container.pause()?;
        container.kill(Signal::SIGKILL)?;
        assert_eq!(container.wait()?.status, 137);
        assert_eq!(status(&container)?, Status::Stopped);
        container.finish()?;
        ensure_dead(pid)?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

fn all_killed(engine: &Containerd) -> Result<()> {
    for builder in busy(engine)? {
        let container = started(builder)?;
        let id = container.id().to_owned();
        container.pause()?;
        container.signal(Signal::SIGKILL as u32, true)?;
        assert_eq!(container.finish()?.status, 137);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// A paused process gets what is not SIGKILL when it is resumed.
fn signals_wait(engine: &Containerd) -> Result<()> {
    let script = "trap 'exit 5' TERM; echo looping; while :; do :; done";
    let [guest, _] = busy(engine)?;
    let shell = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sh", "-c", script]);
    for (builder, end) in [(guest, 143), (shell, 5)] {
        let container = started(builder)?;
        container.pause()?;
        container.kill(Signal::SIGTERM)?;
        assert_eq!(status(&container)?, Status::Paused);
        ensure!(is_frozen(&container)?);
        container.resume()?;
        assert_eq!(container.finish()?.status, end);
    }
    Ok(())
}

/// The end of the init is that of processes which are paused in a namespace that lives on.
fn in_a_shared_pid_namespace(engine: &Containerd) -> Result<()> {
    for all in [false, true] {
        let container = engine
            .container(&Rootfs::guests()?)
            .args(["/bin/sh", "-c", "sleep 1000 & echo looping; wait"])
            .spec(|spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut();
                namespaces.into_iter().for_each(|namespaces| {
                    namespaces.retain(|namespace| namespace["type"] != "pid");
                });
            });
        let container = started(container)?;
        let id = container.id().to_owned();
        let pids = container.pids()?;
        assert_eq!(pids.len(), 2);
        container.pause()?;
        container.signal(Signal::SIGKILL as u32, all)?;
        assert_eq!(container.wait()?.status, 137);
        for pid in pids {
            ensure_dead(pid)?;
        }
        container.finish()?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// A daemon that is killed takes its paused containers with it.
fn without_a_daemon(engine: &Containerd) -> Result<()> {
    for builder in busy(engine)? {
        let container = started(builder)?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        container.pause()?;
        let daemon = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = daemon.rsplit_once(')').context("a name")?.1;
        let parent: i32 = parent.split(' ').nth(2).context("a parent")?.parse()?;
        kill(Pid::from_raw(parent), Signal::SIGKILL)?;
        container.wait_for_event("exit")?;
        ensure_dead(pid)?;
        drop(container);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}
