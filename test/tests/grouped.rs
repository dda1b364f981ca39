//! The containers of a containerd namespace in one daemon.

use std::sync::atomic::{AtomicU32, Ordering};
use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Builder, Container, Containerd, Input, Rootfs,
    dockerd::{Dockerd, Image},
    each_containerd, each_store,
    events::Event,
    eventually,
    leaks::ensure_dead,
    options::RuntimeOptions,
    shim,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

// All containers of an engine are of one namespace.
each_containerd!(own: share, come_and_go, never_meet_an_end, restart, daemon_killed, one_given_up);

each_store!(of_docker);

/// The id in the arguments of a namespace's daemon, and of its zygote.
const NAMESPACE: &str = "*";

const GROUPED: &str = "group_by = 'namespace'";

/// A container that gives back what it reads; even ones are guests.
fn echo(engine: &Containerd, number: usize) -> Result<Builder<'_>> {
    let args = match number % 2 {
        0 => ["/tool.wasm", "cat"],
        _ => ["/bin/cat", "-"],
    };
    let builder = engine.container(&Rootfs::guests()?).args(args);
    Ok(builder
        .stdin(Input::Fed)
        .options(RuntimeOptions::body(GROUPED)))
}

/// `count` of them, started.
fn several(engine: &Containerd, count: usize) -> Result<Vec<Container<'_>>> {
    (0..count).map(|number| started(engine, number)).collect()
}

fn started(engine: &Containerd, number: usize) -> Result<Container<'_>> {
    let container = echo(engine, number)?.create()?;
    container.start()?;
    ensure_answers(&container, "began")?;
    Ok(container)
}

fn ensure_answers(container: &Container, line: &str) -> Result<()> {
    container.feed(format!("{line}\n").as_bytes());
    container.wait_for_output(&format!("{line}\n"))
}

/// The namespace's daemon and its zygote.
fn daemon(engine: &Containerd) -> BTreeSet<u32> {
    engine.shims_of(NAMESPACE).into_iter().collect()
}

fn end(engine: &Containerd, container: Container) -> Result<()> {
    let id = container.id().to_owned();
    container.kill(Signal::SIGKILL)?;
    ensure!(container.finish()?.status == 137);
    ensure!(exits(engine, &id)? == 1);
    engine.ensure_gone(&id)
}

/// How often the end of a container that has been deleted was told.
fn exits(engine: &Containerd, id: &str) -> Result<usize> {
    let events = engine.recorder().wait_for(id, "delete")?;
    let told = |event: &&Event| matches!(event, Event::Exit(exit) if exit.id == id);
    Ok(events.iter().filter(told).count())
}

fn share(engine: &Containerd) -> Result<()> {
    let mut all = several(engine, 4)?;
    let both = daemon(engine);
    ensure!(both.len() == 2, "{both:?}");
    for container in &all {
        ensure!(
            engine.shims_of(container.id()).is_empty(),
            "{}",
            container.id()
        );
    }
    // What is of a pod is not of the namespace's daemon, and what does not ask for it neither.
    let pod = engine.new_id("pod");
    let member = echo(engine, 0)?.id(&pod).pod(&pod).create()?;
    let alone = echo(engine, 0)?
        .options(RuntimeOptions::body(""))
        .create()?;
    for other in [&member, &alone] {
        ensure!(engine.shims_of(other.id()).len() == 2, "{}", other.id());
    }
    end(engine, member)?;
    end(engine, alone)?;

    // The daemon began with the first. What it has to say goes through another's log from now on.
    end(engine, all.remove(0))?;
    for container in &all {
        ensure_answers(container, "after the first")?;
    }
    let missing = echo(engine, 0)?.args(["/missing"]);
    let id = missing.get_id().to_owned();
    missing.refused()?;
    eventually("the daemon's log is in containerd's", || {
        let log = engine.log();
        let told =
            |line: &str| line.contains("level=error") && line.contains(&format!("create of {id}"));
        log.lines().any(told).then_some(())
    })?;
    // Its zygote dies and is replaced; what the next one's helpers are is the same.
    let zygote = both.iter().find(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim_end() == "lighter-zygote")
    });
    let zygote = *zygote.context("no zygote")?;
    let limit = |pid: u32| -> Result<String> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        Ok(files.context("no limit of open files")?.to_owned())
    };
    let before = limit(zygote)?;
    for pid in both.iter().filter(|pid| **pid != zygote) {
        let raised = limit(*pid)?;
        let fields: Vec<&str> = raised.split_whitespace().collect();
        ensure!(
            fields[3] == fields[4],
            "the daemon takes what it may: {raised}"
        );
    }
    kill(Pid::from_raw(zygote as i32), Signal::SIGKILL)?;
    ensure_dead(zygote)?;
    all.push(started(engine, 4)?);
    let now = daemon(engine);
    ensure!(
        now.len() == 2 && now.intersection(&both).count() == 1,
        "{now:?}, {both:?}"
    );
    for pid in now.difference(&both) {
        ensure!(limit(*pid)? == before, "{}, before {before}", limit(*pid)?);
    }
    for container in all {
        ensure_answers(&container, "at last")?;
        end(engine, container)?;
    }
    // The daemon ends a while after the last.
    engine.ensure_clean()
}

/// Containers that come and go without a pause, eight at a time.
fn come_and_go(engine: &Containerd) -> Result<()> {
    let resident = started(engine, 0)?;
    let both = daemon(engine);
    together(engine, 160, GROUPED)?;
    ensure!(daemon(engine) == both, "{:?}, {both:?}", daemon(engine));
    ensure_answers(&resident, "still there")?;
    end(engine, resident)?;
    engine.ensure_clean()
}

/// The same with daemons that end as soon as they have no containers: whoever has found one gets
/// that or its successor, and never an error.
fn never_meet_an_end(engine: &Containerd) -> Result<()> {
    let impatient = format!("{GROUPED}\ngroup_linger = '1ms'");
    for round in 0..10 {
        together(engine, 16, &impatient)?;
        for number in 0..4 {
            short(engine, &impatient, number)?;
        }
        if round % 2 == 0 {
            eventually("the daemon has left", || {
                daemon(engine).is_empty().then_some(())
            })?;
        }
    }
    engine.ensure_clean()
}

/// Has `count` containers live, eight at a time.
fn together(engine: &Containerd, count: u32, options: &str) -> Result<()> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let live = || -> Result<()> {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < count => short(engine, options, number)?,
                    _ => return Ok(()),
                }
            }
        };
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(live)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no worker panics"))
    })
}

/// A short life.
fn short(engine: &Containerd, options: &str, number: u32) -> Result<()> {
    let status = (number % 100).to_string();
    let script = format!("exit {status}");
    let args = match number % 4 {
        1 => ["/bin/sh", "-c", &script],
        _ => ["/tool.wasm", "exit", &status],
    };
    let container = engine
        .container(&Rootfs::guests()?)
        .args(args)
        .options(RuntimeOptions::body(options))
        .create()?;
    container.start()?;
    let output = container.finish()?;
    ensure!(output.status == number % 100, "{output:?}");
    Ok(())
}

/// containerd ends, and comes back to find each as it is, or as it ended.
fn restart(engine: &Containerd) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut all = several(engine, 4)?;
        let created = echo(engine, 0)?.create()?;
        let both = daemon(engine);
        engine.stop(signal)?;
        let ended = all.remove(1);
        kill(Pid::from_raw(ended.pid() as i32), Signal::SIGKILL)?;
        ensure_dead(ended.pid())?;
        engine.restart()?;
        ensure!(daemon(engine) == both, "{:?}, {both:?}", daemon(engine));
        let id = ended.id().to_owned();
        ensure!(ended.finish()?.status == 137);
        engine.ensure_gone(&id)?;
        created.start()?;
        all.push(created);
        all.push(started(engine, 1)?);
        ensure!(daemon(engine) == both, "one daemon serves all");
        for container in all {
            ensure_answers(&container, "afterwards")?;
            end(engine, container)?;
        }
        engine.ensure_clean()?;
    }
    Ok(())
}

/// The end of the daemon is that of its containers, each of which is told of once and freed.
fn daemon_killed(engine: &Containerd) -> Result<()> {
    let all = several(engine, 6)?;
    let ids: Vec<String> = all.iter().map(|it| it.id().to_owned()).collect();
    let pids: Vec<u32> = all.iter().map(Container::pid).collect();
    let both = daemon(engine);
    for pid in &both {
        // The zygote may go with the daemon before its turn comes.
        let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
    }
    both.into_iter().try_for_each(ensure_dead)?;
    // While those are cleaned up after.
    let next = started(engine, 0)?;
    for (id, pid) in ids.iter().zip(pids) {
        ensure_dead(pid)?;
        ensure!(exits(engine, id)? == 1, "{id}");
    }
    drop(all);
    for id in &ids {
        engine.ensure_gone(id)?;
    }
    ensure_answers(&next, "as ever")?;
    end(engine, next)?;
    engine.ensure_clean()
}

/// containerd has the shim's `delete` free one container: the others of the daemon go on.
fn one_given_up(engine: &Containerd) -> Result<()> {
    let mut all = several(engine, 3)?;
    let both = daemon(engine);
    let given_up = all.remove(1);
    let program = shim::program(engine, "wasmtime")?;
    let answer = shim::delete(engine, &program, given_up.id(), &given_up.bundle())?;
    ensure!(answer.status.success(), "{answer:?}");
    ensure_dead(given_up.pid())?;
    ensure!(exits(engine, given_up.id())? == 1);
    drop(given_up);
    ensure!(daemon(engine) == both);
    for container in all {
        ensure_answers(&container, "as ever")?;
        end(engine, container)?;
    }
    // It has not kept the one that it was asked to free.
    engine.ensure_clean()
}

/// Docker's containers are all of one namespace.
fn of_docker(engine: &Dockerd) -> Result<()> {
    let daemons = || {
        let lines = engine.remains().into_iter();
        let lines = lines.filter(|line| line.contains("containerd-shim-wasmtime-v1"));
        lines
            .filter(|line| line.contains("-id * "))
            .collect::<BTreeSet<_>>()
    };
    engine.configure(GROUPED)?;
    let launch = || {
        // Of two runtimes the last counts.
        let runtime = ["--runtime", Dockerd::CONFIGURED];
        let container = engine.launch(Image::Guests, &runtime, &["/tool.wasm", "sleep", "1000"])?;
        container.wait_for("{{.State.Running}}", "true")?;
        Ok(container)
    };
    let all = (0..4).map(|_| launch()).collect::<Result<Vec<_>>>()?;
    let before = daemons();
    // The inits are clones of these, and look like them.
    ensure!(!before.is_empty());
    let shims = engine.remains().into_iter();
    let others = shims.filter(|line| line.contains("containerd-shim") && !line.contains("-id * "));
    ensure!(others.count() == 0, "{:?}", engine.remains());
    // By the same id, and so with the same bundle.
    for _ in 0..5 {
        let restart = ["restart", "--time", "0", all[0].id()];
        engine.docker(&restart)?.success()?;
    }
    for container in &all {
        container.wait_for("{{.State.Running}}", "true")?;
    }
    ensure!(
        daemons().intersection(&before).count() > 1,
        "{:?}, {before:?}",
        daemons()
    );
    for container in all {
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
    }
    engine.configure("")?;
    engine.ensure_clean()
}
