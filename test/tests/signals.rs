//! Signals end a guest at once, whatever it does.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use lighter_test::{
    Containerd, RUNC, Rootfs, WASMTIME, each_containerd, eventually, leaks::ensure_dead,
};
use nix::sys::signal::Signal;

each_containerd!(
    in_a_loop,
    in_a_sleep,
    in_a_read,
    before_the_start,
    ignored,
    real_time,
    linux
);

const ENDING: [(Signal, u32); 5] = [
    (Signal::SIGTERM, 143),
    (Signal::SIGINT, 130),
    (Signal::SIGQUIT, 131),
    (Signal::SIGHUP, 129),
    (Signal::SIGKILL, 137),
];

/// What counts as "at once" on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_millis(500);

fn end(engine: &Containerd, args: &[&str], said: &str) -> Result<()> {
    for (signal, status) in ENDING {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        container.start()?;
        if !said.is_empty() {
            container.wait_for_output(said)?;
        }
        let (id, pid) = (container.id().to_owned(), container.pid());
        let begin = Instant::now();
        container.kill(signal)?;
        let exit = container.wait()?;
        let took = begin.elapsed();
        assert_eq!(exit.status, status, "{args:?} {signal}");
        assert!(took < AT_ONCE, "{args:?} {signal}: after {took:?}");
        container.finish()?;
        ensure_dead(pid)?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

fn in_a_loop(engine: &Containerd) -> Result<()> {
    end(engine, &["/tool.wasm", "loop"], "looping")?;
    end(engine, &["/tool-component.wasm", "loop"], "looping")?;
    end(engine, &["/tool-p3.wasm", "loop"], "looping")
}

fn in_a_sleep(engine: &Containerd) -> Result<()> {
    end(engine, &["/tool.wasm", "sleep", "1000"], "sleeping")?;
    end(
        engine,
        &["/tool-component.wasm", "sleep", "1000"],
        "sleeping",
    )?;
    end(engine, &["/tool-p3.wasm", "sleep", "1000"], "sleeping")
}

/// A guest that waits for input which never comes.
fn in_a_read(engine: &Containerd) -> Result<()> {
    for tool in ["/tool.wasm", "/tool-component.wasm"] {
        for (signal, status) in ENDING {
            let container = engine
                .container(&Rootfs::guests()?)
                .args([tool, "cat"])
                .stdin(lighter_test::Input::Fed)
                .create()?;
            container.start()?;
            container.feed(b"begin\n");
            container.wait_for_output("begin")?;
            let begin = Instant::now();
            container.kill(signal)?;
            assert_eq!(container.wait()?.status, status, "{tool} {signal}");
            assert!(begin.elapsed() < AT_ONCE, "{tool} {signal}");
            container.finish()?;
        }
    }
    Ok(())
}

/// A task that was created and never started can be killed.
fn before_the_start(engine: &Containerd) -> Result<()> {
    for args in [["/tool.wasm", "loop"], ["/bin/sleep", "1000"]] {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        container.kill(Signal::SIGKILL)?;
        assert_eq!(container.wait()?.status, 137, "{args:?}");
        container.finish()?;
        ensure_dead(pid)?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// The signals without a name of their own end what does not handle them, as all others do.
fn real_time(engine: &Containerd) -> Result<()> {
    for (runtime, args) in [
        (RUNC, ["/bin/busybox", "sleep", "1000"]),
        (WASMTIME, ["/bin/busybox", "sleep", "1000"]),
        (WASMTIME, ["/tool.wasm", "sleep", "1000"]),
    ] {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            // Such a signal would not reach the first process of a pid namespace.
            .spec(|spec| {
                if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                    namespaces.retain(|namespace| namespace["type"] != "pid");
                }
            })
            .create()?;
        container.start()?;
        let (id, pid) = (container.id().to_owned(), container.pid());
        // runc's own program, which takes no notice of it, is there for a while after the start.
        eventually("the program runs", || {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (!name.starts_with("runc")).then_some(())
        })?;
        container.signal(40, false)?;
        assert_eq!(container.wait()?.status, 168, "{runtime} {args:?}");
        container.finish()?;
        ensure_dead(pid)?;
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// Signals that end nothing by default, or that only a handler makes sense of,
/// do not disturb a guest.
fn ignored(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "cat"])
        .stdin(lighter_test::Input::Fed)
        .create()?;
    container.start()?;
    container.feed(b"one");
    container.wait_for_output("one")?;
    for signal in [
        Signal::SIGWINCH,
        Signal::SIGCHLD,
        Signal::SIGURG,
        Signal::SIGCONT,
    ] {
        container.kill(signal)?;
    }
    container.feed(b"two");
    container.wait_for_output("onetwo")?;
    container.end_stdin()?;
    assert_eq!(container.finish()?.success()?, "onetwo");
    Ok(())
}

/// A Linux process with handlers of its own gets its signals as under runc.
fn linux(engine: &Containerd) -> Result<()> {
    for runtime in [lighter_test::RUNC, lighter_test::WASMTIME] {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args([
                "/bin/sh",
                "-c",
                "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done",
            ])
            .create()?;
        container.start()?;
        container.wait_for_output("ready")?;
        container.kill(Signal::SIGTERM)?;
        let output = container.finish()?;
        assert_eq!(
            (output.status, output.text()),
            (9, "ready\ncaught\n".to_owned()),
            "{runtime}"
        );
    }
    Ok(())
}
