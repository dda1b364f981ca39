//! containerd is stopped or killed and started again while containers are there: it finds them
//! as they are, or as they ended meanwhile, under our runtime as under its own.

use anyhow::{Context, Result, ensure};
use containerd_client::types::v1::Status;
use lighter_test::{
    Builder, Container, Containerd, Input, RUNC, Rootfs, WASMTIME, each_containerd, eventually,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_containerd!(own: living, ended_meanwhile, shim_killed_meanwhile, pod);

/// Programs that give back what they read until SIGTERM ends them, and their exit status then.
const PROGRAMS: [(&str, &[&str], u32); 3] = [
    (RUNC, SHELL, 3),
    (WASMTIME, SHELL, 3),
    (WASMTIME, &["/tool.wasm", "cat"], 143),
];
const OURS: &[(&str, &[&str], u32)] = PROGRAMS.split_at(1).1;
const SHELL: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap 'echo trapped; exit 3' TERM; while read line; do echo $line; done",
];

/// How containerd is ended: by its init, and by accident.
const ENDS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGKILL];

fn program<'a>(engine: &'a Containerd, runtime: &str, args: &[&str]) -> Result<Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .runtime(runtime)
        .args(args)
        .stdin(Input::Fed))
}

/// A container of each program, started.
fn programs<'a>(
    engine: &'a Containerd,
    programs: &[(&str, &[&str], u32)],
) -> Result<Vec<(Container<'a>, u32)>> {
    programs
        .iter()
        .map(|&(runtime, args, status)| {
            let container = program(engine, runtime, args)?.create()?;
            container.start()?;
            echo(&container, "before")?;
            Ok((container, status))
        })
        .collect()
}

/// Has the container give a line back.
fn echo(container: &Container, line: &str) -> Result<()> {
    container.feed(format!("{line}\n").as_bytes());
    container.wait_for_output(&format!("{line}\n"))
}

fn status(container: &Container) -> Result<Status> {
    Ok(container.state()?.status())
}

/// Ends the container and sees to it that nothing of it stays.
fn end(engine: &Containerd, container: Container, expected: u32) -> Result<()> {
    let id = container.id().to_owned();
    container.kill(Signal::SIGTERM)?;
    let output = container.finish()?;
    ensure!(output.status == expected, "{id}: {output:?}");
    engine.ensure_gone(&id)
}

/// How often containerd has been told by a shim that a process ended.
fn exits(engine: &Containerd) -> usize {
    let log = engine.log();
    let told = |line: &&str| line.contains("event forwarded") && line.contains("/tasks/exit");
    log.lines().filter(told).count()
}

fn living(engine: &Containerd) -> Result<()> {
    for signal in ENDS {
        let running = programs(engine, &PROGRAMS)?;
        let paused = programs(engine, &PROGRAMS)?;
        for (container, _) in &paused {
            container.pause()?;
        }
        let created = PROGRAMS
            .iter()
            .map(|(runtime, args, status)| Ok((program(engine, runtime, args)?.create()?, *status)))
            .collect::<Result<Vec<_>>>()?;
        let mut execs = Vec::new();
        for ((container, _), (_, args, status)) in running.iter().zip(PROGRAMS) {
            let exec = match args {
                SHELL => container.exec(["/bin/sh", "-c", SHELL[2]])?,
                _ => container.exec(["/tool.wasm", "cat"])?,
            };
            execs.push((exec.input(Input::Fed).start()?, status));
        }

        engine.stop(signal)?;
        for (container, _) in &running {
            echo(container, "meanwhile")?;
        }
        engine.restart()?;

        for ((container, _), (runtime, ..)) in running.iter().zip(PROGRAMS) {
            let state = container.state()?;
            ensure!(state.status() == Status::Running, "{state:?}");
            ensure!(state.pid == container.pid(), "{state:?}");
            echo(container, "after")?;
            let exec = container
                .exec(["/bin/sh", "-c", "echo new; exit 5"])?
                .run()?;
            ensure!(
                (exec.status, exec.text().as_str()) == (5, "new\n"),
                "{exec:?}"
            );
            if runtime == WASMTIME {
                let guest = container.exec(["/tool.wasm", "exit", "6"])?.run()?;
                ensure!(guest.status == 6, "{guest:?}");
            }
        }
        for (exec, expected) in execs {
            exec.feed(b"across\n");
            exec.wait_for_output("across\n")?;
            exec.kill(Signal::SIGTERM)?;
            let output = exec.finish()?;
            ensure!(output.status == expected, "{output:?}");
        }
        for (container, expected) in running {
            end(engine, container, expected)?;
        }
        for (container, expected) in paused {
            ensure!(status(&container)? == Status::Paused);
            container.resume()?;
            echo(&container, "resumed")?;
            end(engine, container, expected)?;
        }
        for (container, expected) in created {
            ensure!(status(&container)? == Status::Created);
            container.start()?;
            echo(&container, "started")?;
            end(engine, container, expected)?;
        }
        engine.ensure_clean()?;
    }
    Ok(())
}

/// Exits, codes and output of what ended while nobody was there to be told. Not compared with runc:
/// containerd 1.7 and later take a shim whose container has no processes for a left-over one when
/// they start, and with it goes what runc's knew of the exit.
fn ended_meanwhile(engine: &Containerd) -> Result<()> {
    for signal in ENDS {
        let before = exits(engine);
        let running = programs(engine, OURS)?;
        engine.stop(signal)?;
        for (container, _) in &running {
            echo(container, "last words")?;
            kill(Pid::from_raw(container.pid() as i32), Signal::SIGTERM)?;
            ensure_dead(container.pid())?;
        }
        engine.restart()?;
        let count = running.len();
        for (container, expected) in running {
            eventually("containerd knows that it has ended", || {
                (status(&container).ok()? == Status::Stopped).then_some(())
            })?;
            let id = container.id().to_owned();
            let output = container.finish()?;
            ensure!(output.status == expected, "{output:?}");
            ensure!(output.text().contains("last words\n"), "{output:?}");
            ensure!(
                (expected == 3) == output.text().contains("trapped\n"),
                "{output:?}"
            );
            engine.ensure_gone(&id)?;
        }
        eventually("every end is told", || {
            (exits(engine) >= before + count).then_some(())
        })?;
        ensure!(exits(engine) == before + count, "and told once");
        engine.ensure_clean()?;
    }
    Ok(())
}

/// A shim that is killed meanwhile takes its container with it, and is cleaned up after.
fn shim_killed_meanwhile(engine: &Containerd) -> Result<()> {
    for signal in ENDS {
        // runc's containers outlive their shim.
        let running = programs(engine, OURS)?;
        engine.stop(signal)?;
        for (container, _) in &running {
            for pid in engine.shims_of(container.id()) {
                // The zygote may go with the daemon before its turn comes.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            ensure_dead(container.pid())?;
        }
        engine.restart()?;
        for (container, _) in running {
            let id = container.id().to_owned();
            eventually("containerd has forgotten the task", || {
                container.state().err().map(drop)
            })?;
            drop(container);
            engine.ensure_gone(&id)?;
        }
        engine.ensure_clean()?;
        let next = engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "exit", "6"])
            .run()?;
        ensure!(next.status == 6);
    }
    Ok(())
}

/// The containers of a pod, which share a daemon, and one more that joins them after.
fn pod(engine: &Containerd) -> Result<()> {
    for signal in ENDS {
        let pod = engine.new_id("pod");
        let member = |number: usize| -> Result<Container<'_>> {
            let (runtime, args, _) = PROGRAMS[number];
            let mut builder = program(engine, runtime, args)?.pod(&pod);
            if number == 1 {
                builder = builder.id(&pod);
            }
            let member = builder.create()?;
            member.start()?;
            echo(&member, "before")?;
            Ok(member)
        };
        let first = member(1)?;
        let second = member(2)?;
        let daemons = engine.shims_of(&pod);
        engine.stop(signal)?;
        engine.restart()?;
        let third = member(2).context("a member that joins after the restart")?;
        ensure!(engine.shims_of(&pod) == daemons, "one daemon serves all");
        for container in [&first, &second] {
            echo(container, "after")?;
        }
        end(engine, third, 143)?;
        end(engine, second, 143)?;
        end(engine, first, 3)?;
        engine.ensure_clean()?;
    }
    Ok(())
}
