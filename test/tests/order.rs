//! Calls that come in the wrong order, or for what is not there: the answers
//! are those of containerd's own runtime, which is asked the same.

use anyhow::Result;
use containerd_client::tonic::Code;
use lighter_test::{Container, Containerd, RUNC, Rootfs, WASMTIME, code, each_containerd};
use nix::sys::signal::Signal;

each_containerd!(
    calls_on_a_created_task,
    calls_on_a_running_task,
    calls_on_a_stopped_task,
    calls_on_a_deleted_task
);

const PROGRAMS: [(&str, [&str; 3]); 3] = [
    (RUNC, ["/bin/sh", "-c", "exec sleep 1000"]),
    (WASMTIME, ["/bin/sh", "-c", "exec sleep 1000"]),
    (WASMTIME, ["/tool.wasm", "sleep", "1000"]),
];

/// The answers of a list of calls, each with the call's name.
type Answers = Vec<(&'static str, String)>;

fn answer<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "OK".to_owned(),
        Err(error) => format!("{:?}", code(&error)),
    }
}

/// Has `ask` ask under runc and under our runtime and compares the answers.
fn compare(engine: &Containerd, ask: impl Fn(&mut Container) -> Result<Answers>) -> Result<()> {
    let mut expected = None;
    for (runtime, args) in PROGRAMS {
        let mut container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .create()?;
        let answers = ask(&mut container)?;
        match &expected {
            None => expected = Some(answers),
            Some(expected) => {
                for ((call, ours), (_, theirs)) in answers.iter().zip(expected) {
                    // Where runc's shim fails without a code, any code is better.
                    let better = theirs == "Unknown" && ours != "OK";
                    assert!(
                        ours == theirs || better,
                        "{call}: {ours}, not {theirs}: {runtime} {args:?}"
                    );
                }
                assert_eq!(answers.len(), expected.len());
            }
        }
    }
    Ok(())
}

fn calls_on_a_created_task(engine: &Containerd) -> Result<()> {
    compare(engine, |task| {
        let status = |task: &Container| match task.state() {
            Ok(state) => format!(
                "{} {} {}",
                state.status,
                state.exit_status,
                state.pid == task.pid()
            ),
            Err(error) => format!("{:?}", code(&error)),
        };
        Ok(vec![
            ("state", status(task)),
            ("create again", answer(task.create_task())),
            ("pids", answer(task.pids())),
            ("stats", answer(task.stats())),
            ("unknown signal", answer(task.signal(250, false))),
        ])
    })
}

fn calls_on_a_running_task(engine: &Containerd) -> Result<()> {
    compare(engine, |task| {
        task.start()?;
        let status = |task: &Container| match task.state() {
            Ok(state) => format!(
                "{} {} {}",
                state.status,
                state.exit_status,
                state.pid == task.pid()
            ),
            Err(error) => format!("{:?}", code(&error)),
        };
        Ok(vec![
            ("state", status(task)),
            ("start again", answer(task.start())),
            ("delete", answer(task.delete())),
            ("unknown signal", answer(task.signal(250, false))),
            ("kill", answer(task.kill(Signal::SIGKILL))),
        ])
    })
}

fn calls_on_a_stopped_task(engine: &Containerd) -> Result<()> {
    compare(engine, |task| {
        task.start()?;
        task.kill(Signal::SIGKILL)?;
        task.wait()?;
        task.wait_for_event("exit")?;
        let state = task.state()?;
        Ok(vec![
            (
                "state",
                format!(
                    "{} {} {}",
                    state.status,
                    state.exit_status,
                    state.exited_at.is_some()
                ),
            ),
            ("wait", answer(task.wait())),
            ("wait again", answer(task.wait())),
            ("start", answer(task.start())),
            ("kill", answer(task.kill(Signal::SIGTERM))),
            ("kill all", answer(task.signal(9, true))),
            ("pids", answer(task.pids())),
            ("delete", answer(task.delete())),
        ])
    })
}

fn calls_on_a_deleted_task(engine: &Containerd) -> Result<()> {
    compare(engine, |task| {
        task.start()?;
        task.kill(Signal::SIGKILL)?;
        task.wait()?;
        task.delete()?;
        Ok(vec![
            ("state", answer(task.state())),
            ("start", answer(task.start())),
            ("kill", answer(task.kill(Signal::SIGKILL))),
            ("wait", answer(task.wait())),
            ("pids", answer(task.pids())),
            ("delete", answer(task.delete())),
        ])
    })?;
    // What containerd makes of an unknown task is its own affair, but for this.
    let task = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm"])
        .record()?;
    assert_eq!(
        task.start().map_err(|error| code(&error)),
        Err(Code::NotFound)
    );
    Ok(())
}
