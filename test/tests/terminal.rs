//! Terminals of containers, through containerd's API and through the real `ctr`.

use std::{fs::OpenOptions, io::Read, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use containerd_client::types::v1::Status;
use image::{Entry, Image, Layer, Name};
use lighter_test::{
    CTRL_C, CTRL_D, Container, Containerd, Input, RUNC, Rootfs, Terminal, WASMTIME, code,
    each_containerd, events::Event, eventually, guest,
};
use nix::{
    fcntl::OFlag,
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::json;

each_containerd!(
    guests_see_a_terminal,
    what_is_typed_is_read,
    nobody_has_it_for_a_while,
    a_linux_process_has_it_as_runc_gives_it,
    told_in_state_and_event,
    sized_at_birth_and_resized,
    interrupt,
    closed_input_hangs_up_as_with_runc,
    resizes_that_fail_as_with_runc,
    large_output_is_whole,
    output_waits_for_the_next_reader,
    nothing_reads_the_output,
    ctr_run,
    ctr_run_is_interrupted,
    ctr_detach_and_attach,
    exec_sees_a_terminal,
    a_linux_exec_has_it_as_runc_gives_it,
    exec_is_sized_and_resized,
    exec_is_interrupted,
    closed_input_hangs_up_an_exec_as_with_runc,
    exec_resizes_that_fail_as_with_runc,
    ctr_exec,
);

/// A container with a terminal that the test types into.
fn in_terminal<'a>(
    engine: &'a Containerd,
    runtime: &str,
    args: &[&str],
) -> Result<lighter_test::Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .runtime(runtime)
        .terminal()
        .stdin(Input::Fed)
        .args(args))
}

fn guests_see_a_terminal(engine: &Containerd) -> Result<()> {
    for guest in ["/tool.wasm", "/tool-component.wasm"] {
        let output = in_terminal(engine, WASMTIME, &[guest, "isatty"])?.run()?;
        assert_eq!(output.success()?, "0 yes\r\n1 yes\r\n2 yes\r\n", "{guest}");
        let output = engine
            .container(&Rootfs::guests()?)
            .args([guest, "isatty"])
            .run()?;
        assert_eq!(output.success()?, "0 no\n1 no\n2 no\n", "{guest}");
    }
    Ok(())
}

/// A terminal that all have closed and somebody opens again is the same terminal.
fn nobody_has_it_for_a_while(engine: &Containerd) -> Result<()> {
    let script = "echo first; exec </dev/null >/dev/null 2>&1; sleep 0.3; \
        echo second >/dev/console; sleep 0.3; seq 1 20000 >/dev/console; \
        exec </dev/console >/dev/console 2>&1; echo last";
    let mut outputs = Vec::new();
    for runtime in [RUNC, WASMTIME] {
        let output = in_terminal(engine, runtime, &["/bin/sh", "-c", script])?.run()?;
        outputs.push(output.success()?);
    }
    let text = &outputs[1];
    assert!(text.starts_with("first\r\nsecond\r\n1\r\n"), "{text}");
    assert!(text.ends_with("20000\r\nlast\r\n"), "not the last");
    assert!(*text == outputs[0], "not as with runc");
    let host = host(engine, WASMTIME, false)?;
    let exec = host.exec(["/bin/sh", "-c", &script.replace("console", "tty")])?;
    let output = exec.terminal().run()?;
    assert!(output.text() == *text, "an exec's: {}", output.text());
    host.kill(Signal::SIGKILL)?;
    host.finish()?;
    Ok(())
}

/// Line by line, with the terminal's echo before, up to the key for the end.
fn what_is_typed_is_read(engine: &Containerd) -> Result<()> {
    for program in [
        &["/tool.wasm", "cat"][..],
        &["/tool-component.wasm", "cat"],
        &["/tool-p3.wasm", "cat"],
        &["/bin/cat"],
    ] {
        let container = in_terminal(engine, WASMTIME, program)?.create()?;
        container.start()?;
        for line in ["one", "two"] {
            container.feed(format!("{line}\n").as_bytes());
            container.wait_for_output(&format!("{line}\r\n{line}\r\n"))?;
        }
        container.feed(CTRL_D);
        let output = container.finish()?;
        assert_eq!(
            output.success()?,
            "one\r\none\r\ntwo\r\ntwo\r\n",
            "{program:?}"
        );
    }
    Ok(())
}

/// Owner, controlling terminal, session, console: what a program can see of it.
fn a_linux_process_has_it_as_runc_gives_it(engine: &Containerd) -> Result<()> {
    let script = "tty; stat -L -c '%n %u %g %a %t:%T' /dev/console $(tty); \
        echo controlled > /dev/tty; echo opened > /dev/stdout; \
        stat -c '%F' /dev/console; ls /dev/pts; \
        grep -E '^NS(pid|sid|pgid)' /proc/1/status; \
        grep -E ' /dev/(console|pts) ' /proc/mounts; stty -a; ls /proc/self/fd";
    for user in [0, 1000] {
        let [ours, theirs] = [WASMTIME, RUNC].map(|runtime| -> Result<String> {
            in_terminal(engine, runtime, &["/bin/sh", "-c", script])?
                .user(user, user)
                .run()?
                .success()
        });
        let ours = ours?;
        assert_eq!(ours, theirs?);
        assert!(ours.starts_with("/dev/pts/0\r\n"), "{ours}");
        assert!(ours.contains(&format!("/dev/pts/0 {user} 5 ")), "{ours}");
        assert!(ours.contains("controlled\r\nopened\r\n"), "{ours}");
    }
    Ok(())
}

fn told_in_state_and_event(engine: &Containerd) -> Result<()> {
    for (terminal, runtime) in [
        (true, WASMTIME),
        (true, RUNC),
        (false, WASMTIME),
        (false, RUNC),
    ] {
        let builder = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(["/bin/true"]);
        let container = match terminal {
            true => builder.terminal(),
            false => builder,
        }
        .create()?;
        assert_eq!(container.state()?.terminal, terminal, "{runtime}");
        let events = container.wait_for_event("create")?;
        let Some(Event::Create(create)) = events.first() else {
            anyhow::bail!("{events:?}");
        };
        let io = create.io.as_ref().context("an event without streams")?;
        assert_eq!(io.terminal, terminal, "{runtime}");
        container.start()?;
        container.finish()?.success()?;
    }
    Ok(())
}

fn sized_at_birth_and_resized(engine: &Containerd) -> Result<()> {
    let script = "trap 'stty size' WINCH; stty size; echo ready; while :; do read line; done";
    for runtime in [WASMTIME, RUNC] {
        let container = in_terminal(engine, runtime, &["/bin/sh", "-c", script])?
            .spec(|spec| spec["process"]["consoleSize"] = json!({"height": 31, "width": 97}))
            .create()?;
        container.start()?;
        container.wait_for_output("31 97\r\nready\r\n")?;
        container.resize("", 40, 120)?;
        container.wait_for_output("40 120\r\n")?;
        container.kill(Signal::SIGKILL)?;
        container.finish()?;

        // Before its start, too, and without a size of its own before that.
        let container = in_terminal(
            engine,
            runtime,
            &["/bin/sh", "-c", "stty size; read line; stty size"],
        )?
        .create()?;
        container.resize("", 50, 132)?;
        container.start()?;
        container.wait_for_output("50 132\r\n")?;
        container.resize("", 20, 60)?;
        container.feed(b"\n");
        let output = container.finish()?.success()?;
        assert!(output.ends_with("\r\n20 60\r\n"), "{runtime}: {output:?}");
    }
    // To a guest a changed size is nothing.
    let container = in_terminal(engine, WASMTIME, &["/tool.wasm", "cat"])?.create()?;
    container.start()?;
    container.resize("", 40, 120)?;
    container.feed(b"still\n");
    container.wait_for_output("still\r\nstill\r\n")?;
    container.feed(CTRL_D);
    container.finish()?.success()?;
    Ok(())
}

fn interrupt(engine: &Containerd) -> Result<()> {
    for (program, shown) in [
        (&["/tool.wasm", "loop"][..], "looping"),
        (&["/tool.wasm", "sleep", "1000"], "sleeping"),
        (&["/tool-component.wasm", "sleep", "1000"], "sleeping"),
        (&["/tool-p3.wasm", "loop"], "looping"),
    ] {
        let container = in_terminal(engine, WASMTIME, program)?.create()?;
        container.start()?;
        container.wait_for_output(shown)?;
        container.feed(CTRL_C);
        assert_eq!(container.finish()?.status, 130, "{program:?}");
    }
    let script = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do read line; done";
    let container = in_terminal(engine, WASMTIME, &["/bin/sh", "-c", script])?.create()?;
    container.start()?;
    container.wait_for_output("ready")?;
    container.feed(CTRL_C);
    let output = container.finish()?;
    assert_eq!(output.status, 7, "{}", output.text());
    assert!(output.text().contains("interrupted\r\n"));
    Ok(())
}

/// The end of a terminal's input is a hangup: SIGHUP, which a program may handle.
fn closed_input_hangs_up_as_with_runc(engine: &Containerd) -> Result<()> {
    let handled = "trap 'exit 9' HUP; echo ready; while :; do read line; done";
    let mut statuses = Vec::new();
    for runtime in [WASMTIME, RUNC] {
        let container = in_terminal(engine, runtime, &["/bin/sh", "-c", handled])?.create()?;
        container.start()?;
        container.wait_for_output("ready")?;
        container.end_stdin()?;
        statuses.push(container.finish()?.status);
    }
    assert_eq!(statuses, [9, 9]);
    for guest in ["/tool.wasm", "/tool-p3.wasm"] {
        let container = in_terminal(engine, WASMTIME, &[guest, "loop"])?.create()?;
        container.start()?;
        container.wait_for_output("looping")?;
        container.end_stdin()?;
        assert_eq!(container.finish()?.status, 129, "{guest}");
    }
    Ok(())
}

fn resizes_that_fail_as_with_runc(engine: &Containerd) -> Result<()> {
    let mut answers = Vec::new();
    for runtime in [WASMTIME, RUNC] {
        let mut told = Vec::new();
        let mut tell = |answer: Result<()>| {
            told.push(match answer {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("{:?} {error:#}", code(&error)),
            });
        };
        // Without a terminal, then stopped.
        let mut container = engine
            .container(&Rootfs::guests()?)
            .id("resized")
            .runtime(runtime)
            .stdin(Input::Fed)
            .args(["/bin/cat"])
            .create()?;
        tell(container.resize("", 10, 10));
        container.start()?;
        tell(container.resize("", 10, 10));
        tell(container.resize("nosuch", 10, 10));
        container.end_stdin()?;
        container.wait()?;
        tell(container.resize("", 10, 10));
        container.delete()?;
        tell(container.resize("", 10, 10));
        container.remove()?;
        // With one, stopped.
        let mut container = in_terminal(engine, runtime, &["/bin/true"])?
            .id("resized")
            .create()?;
        container.start()?;
        container.wait()?;
        eventually("it is stopped", || {
            (container.state().ok()?.status() == Status::Stopped).then_some(())
        })?;
        tell(container.resize("", 10, 10));
        container.delete()?;
        container.remove()?;
        answers.push(told);
    }
    assert_eq!(answers[0], answers[1]);
    Ok(())
}

fn large_output_is_whole(engine: &Containerd) -> Result<()> {
    let text: String = (0..200_000).map(|line| format!("{line}\n")).collect();
    let rootfs = Rootfs::guests()?.file("/large", &text);
    for program in [
        &["/tool.wasm", "read", "/large"][..],
        &["/bin/cat", "/large"],
    ] {
        let output = engine
            .container(&rootfs)
            .terminal()
            .args(program)
            .run()?
            .success()?;
        assert!(output == text.replace('\n', "\r\n"), "{program:?}");
    }
    Ok(())
}

/// FIFOs that nobody serves yet, for a container with a terminal.
struct Fifos(tempfile::TempDir);

impl Fifos {
    fn new(engine: &Containerd) -> Result<Self> {
        let folder = tempfile::tempdir_in(engine.folder())?;
        for name in ["in", "out"] {
            mkfifo(&folder.path().join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Reads the output until it has this text, and goes away again.
    fn read_until(&self, text: &str) -> Result<String> {
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.path("out"))?;
        let mut seen = Vec::new();
        eventually("output", || {
            let mut buffer = [0; 4096];
            if let Ok(count) = reader.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..count]);
            }
            String::from_utf8_lossy(&seen).contains(text).then_some(())
        })
        .with_context(|| format!("{text:?} in {:?}", String::from_utf8_lossy(&seen)))?;
        Ok(String::from_utf8_lossy(&seen).into_owned())
    }
}

fn output_waits_for_the_next_reader(engine: &Containerd) -> Result<()> {
    let fifos = Fifos::new(engine)?;
    let script = "trap 'echo got one' USR1; echo ready; while :; do sleep 1000 & wait $!; done";
    let mut container = engine
        .container(&Rootfs::guests()?)
        .terminal()
        .streams("", &fifos.text("out"), "")
        .args(["/bin/sh", "-c", script])
        .create()?;
    container.start()?;
    fifos.read_until("ready\r\n")?;
    for _ in 0..3 {
        // Nobody reads now.
        container.kill(Signal::SIGUSR1)?;
        assert_eq!(fifos.read_until("got one\r\n")?, "got one\r\n");
    }
    assert_eq!(container.state()?.status(), Status::Running);
    container.kill(Signal::SIGKILL)?;
    container.wait()?;
    container.delete()?;
    container.remove()
}

/// With no output connected, a process may write as much as it likes.
fn nothing_reads_the_output(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/large", "line\n".repeat(100_000));
    let mut container = engine
        .container(&rootfs)
        .terminal()
        .streams("", "", "")
        .args(["/tool.wasm", "read", "/large"])
        .create()?;
    container.start()?;
    assert_eq!(container.wait()?.status, 0);
    container.delete()?;
    container.remove()
}

/// A container to exec in, with a terminal of its own or without.
fn host<'a>(engine: &'a Containerd, runtime: &str, terminal: bool) -> Result<Container<'a>> {
    let builder =
        engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(["/bin/sh", "-c", "sleep 1000"]);
    let container = match terminal {
        true => builder.terminal(),
        false => builder,
    }
    .create()?;
    container.start()?;
    Ok(container)
}

fn exec_sees_a_terminal(engine: &Containerd) -> Result<()> {
    for terminal in [false, true] {
        let host = host(engine, WASMTIME, terminal)?;
        for guest in ["/tool.wasm", "/tool-component.wasm"] {
            let exec = host.exec([guest, "isatty"])?.terminal().add()?;
            assert!(exec.state()?.terminal);
            exec.start()?;
            let output = exec.finish()?.success()?;
            assert_eq!(output, "0 yes\r\n1 yes\r\n2 yes\r\n", "{guest}");
            let output = host.exec([guest, "isatty"])?.run()?;
            assert_eq!(output.success()?, "0 no\n1 no\n2 no\n", "{guest}");
        }
        for args in [["/tool.wasm", "cat"], ["/bin/cat", "-"]] {
            let exec = host.exec(args)?.terminal().input(Input::Fed).start()?;
            exec.feed(b"one\n");
            exec.wait_for_output("one\r\none\r\n")?;
            exec.feed(CTRL_D);
            exec.finish()?.success()?;
        }
    }
    Ok(())
}

fn a_linux_exec_has_it_as_runc_gives_it(engine: &Containerd) -> Result<()> {
    let script = "tty; stat -L -c '%n %u %g %a %t:%T' $(tty); echo controlled > /dev/tty; \
        echo opened > /dev/stdout; ls /dev/pts; stty -a; ls /proc/self/fd; \
        [ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo leader";
    for (terminal, user) in [(false, 0), (true, 0), (false, 1000)] {
        let [ours, theirs] = [WASMTIME, RUNC].map(|runtime| -> Result<String> {
            host(engine, runtime, terminal)?
                .exec(["/bin/sh", "-c", script])?
                .terminal()
                .with("/user", json!({"uid": user, "gid": user}))
                .run()?
                .success()
        });
        let ours = ours?;
        assert_eq!(ours, theirs?);
        let number = u8::from(terminal);
        assert!(
            ours.contains(&format!("/dev/pts/{number} {user} 5 ")),
            "{ours}"
        );
        assert!(ours.contains("controlled\r\nopened\r\n"), "{ours}");
        assert!(ours.ends_with("leader\r\n"), "{ours}");
    }
    Ok(())
}

fn exec_is_sized_and_resized(engine: &Containerd) -> Result<()> {
    let script = "trap 'stty size' WINCH; stty size; echo ready; while :; do read line; done";
    for runtime in [WASMTIME, RUNC] {
        let host = host(engine, runtime, true)?;
        let exec = host
            .exec(["/bin/sh", "-c", script])?
            .terminal()
            .input(Input::Fed)
            .with("/consoleSize", json!({"height": 31, "width": 97}))
            .start()?;
        exec.wait_for_output("31 97\r\nready\r\n")?;
        exec.resize(40, 120)?;
        exec.wait_for_output("40 120\r\n")?;
        // The container's own is another.
        host.resize("", 10, 20)?;
        let own = host.exec(["/bin/sh", "-c", "stty size < /proc/1/fd/0"])?;
        assert_eq!(own.run()?.success()?, "10 20\n");
        exec.kill(Signal::SIGKILL)?;
        exec.finish()?;
    }
    Ok(())
}

fn exec_is_interrupted(engine: &Containerd) -> Result<()> {
    let host = host(engine, WASMTIME, true)?;
    for (guest, shown) in [("/tool.wasm", "looping"), ("/tool-p3.wasm", "looping")] {
        let exec = host
            .exec([guest, "loop"])?
            .terminal()
            .input(Input::Fed)
            .start()?;
        exec.wait_for_output(shown)?;
        exec.feed(CTRL_C);
        assert_eq!(exec.finish()?.status, 130, "{guest}");
    }
    let exec = host
        .exec(["/bin/sleep", "1000"])?
        .terminal()
        .input(Input::Fed)
        .start()?;
    // Until it is there to be interrupted, the key waits in the terminal.
    exec.feed(CTRL_C);
    assert_eq!(exec.finish()?.status, 130);
    // The container does not notice.
    assert_eq!(host.state()?.status(), Status::Running);
    Ok(())
}

fn closed_input_hangs_up_an_exec_as_with_runc(engine: &Containerd) -> Result<()> {
    let handled = "trap 'exit 9' HUP; echo ready; while :; do read line; done";
    for runtime in [WASMTIME, RUNC] {
        let host = host(engine, runtime, false)?;
        let exec = host
            .exec(["/bin/sh", "-c", handled])?
            .terminal()
            .input(Input::Fed)
            .start()?;
        exec.wait_for_output("ready")?;
        exec.end_stdin()?;
        assert_eq!(exec.finish()?.status, 9, "{runtime}");
        assert_eq!(host.state()?.status(), Status::Running);
    }
    Ok(())
}

fn exec_resizes_that_fail_as_with_runc(engine: &Containerd) -> Result<()> {
    let mut answers = Vec::new();
    for runtime in [WASMTIME, RUNC] {
        let mut host = engine
            .container(&Rootfs::guests()?)
            .id("execresized")
            .runtime(runtime)
            .args(["/bin/sleep", "1000"])
            .create()?;
        host.start()?;
        let mut told = Vec::new();
        let mut tell = |answer: Result<()>| {
            told.push(match answer {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("{:?} {error:#}", code(&error)),
            });
        };
        for terminal in [false, true] {
            let exec = host
                .exec(["/bin/cat"])?
                .id(&format!("resized-{terminal}"))
                .input(Input::Fed);
            let mut exec = match terminal {
                true => exec.terminal(),
                false => exec,
            }
            .add()?;
            tell(exec.resize(10, 10));
            exec.start()?;
            tell(exec.resize(10, 10));
            exec.kill(Signal::SIGKILL)?;
            exec.wait()?;
            eventually("it is stopped", || {
                (exec.state().ok()?.status() == Status::Stopped).then_some(())
            })?;
            tell(exec.resize(10, 10));
            exec.delete()?;
            tell(exec.resize(10, 10));
        }
        host.kill(Signal::SIGKILL)?;
        host.wait()?;
        host.delete()?;
        host.remove()?;
        answers.push(told);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(
        answers[0][2].contains("cannot resize a stopped"),
        "{answers:?}"
    );
    Ok(())
}

/// Waits for the terminal's size, which ctr tells only after the start, and then for a line.
const SIZED: &str = "until [ \"$(stty size 2> /dev/null)\" = '41 123' ]; do sleep 0.1; done; \
    echo ready; until read line; do :; done; stty size; echo got $line; exit 5";

fn ctr_exec(engine: &Containerd) -> Result<()> {
    let host = host(engine, WASMTIME, false)?;
    let exec = |id: &str, args: &[&str]| -> Result<Terminal> {
        let exec = ["tasks", "exec", "--tty", "--exec-id", id, host.id()];
        ctr(engine, &[&exec[..], args].concat())
    };
    let mut terminal = exec("size", &["/bin/sh", "-c", SIZED])?;
    terminal.wait_for("ready\n")?;
    terminal.type_line("word")?;
    terminal.wait_for("41 123\ngot word\n")?;
    assert_eq!(terminal.wait()?.code(), Some(5), "{}", terminal.screen());

    let script = "trap 'stty size' WINCH; echo ready; while :; do read line; done";
    let mut terminal = exec("drag", &["/bin/sh", "-c", script])?;
    terminal.wait_for("ready\n")?;
    terminal.drag()?;
    terminal.type_keys(CTRL_C)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());

    let mut terminal = exec("loop", &["/tool.wasm", "loop"])?;
    terminal.wait_for("looping\n")?;
    terminal.type_keys(CTRL_C)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());

    let mut terminal = exec("cat", &["/tool-component.wasm", "cat"])?;
    terminal.type_line("typed")?;
    terminal.wait_for("typed\ntyped\n")?;
    terminal.type_keys(CTRL_D)?;
    assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
    Ok(())
}

/// An image with the guests and busybox, in the daemon's store.
fn import(engine: &Containerd) -> Result<String> {
    let mut layer = Layer::default();
    layer.add("/tool.wasm", Entry::file(guest("tool.wasm")?).mode(0o755))?;
    layer.add("/bin/busybox", Entry::file("/usr/bin/busybox").mode(0o755))?;
    for applet in ["sh", "stty", "sleep"] {
        layer.add(&format!("/bin/{applet}"), Entry::symlink("busybox"))?;
    }
    let image = Image {
        platform: "linux/amd64".parse()?,
        layers: vec![layer],
        ..Image::default()
    };
    let name: Name = format!("example.com/{}:1", engine.new_id("image")).parse()?;
    let archive = tempfile::NamedTempFile::new_in(engine.folder())?;
    image.save(&name, archive.path())?;
    engine.import(archive.path())?;
    Ok(name.to_string())
}

/// `ctr` in a terminal.
fn ctr(engine: &Containerd, args: &[&str]) -> Result<Terminal> {
    let mut command = engine.ctr()?;
    command.args(args);
    Terminal::run(&command, 41, 123)
}

fn ctr_run(engine: &Containerd) -> Result<()> {
    let (image, id) = (import(engine)?, engine.new_id("ctr"));
    let run = ["run", "--rm", "--tty", "--runtime", WASMTIME, &image, &id];
    let mut terminal = ctr(engine, &[&run[..], &["/bin/sh", "-c", SIZED]].concat())?;
    terminal.wait_for("ready\n")?;
    terminal.type_line("word")?;
    terminal.wait_for("41 123\ngot word\n")?;
    assert_eq!(terminal.wait()?.code(), Some(5), "{}", terminal.screen());
    engine.ensure_gone(&id)?;

    let script = "trap 'stty size' WINCH; echo ready; while :; do read line; done";
    let mut terminal = ctr(engine, &[&run[..], &["/bin/sh", "-c", script]].concat())?;
    terminal.wait_for("ready\n")?;
    terminal.drag()?;
    terminal.type_keys(CTRL_C)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());
    engine.ensure_gone(&id)?;

    let mut terminal = ctr(engine, &[&run[..], &["/tool.wasm", "cat"]].concat())?;
    terminal.type_line("typed")?;
    terminal.wait_for("typed\ntyped\n")?;
    terminal.type_keys(CTRL_D)?;
    assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
    engine.ensure_gone(&id)
}

fn ctr_run_is_interrupted(engine: &Containerd) -> Result<()> {
    let (image, id) = (import(engine)?, engine.new_id("ctr"));
    let run = ["run", "--rm", "--tty", "--runtime", WASMTIME, &image, &id];
    let mut terminal = ctr(engine, &[&run[..], &["/tool.wasm", "loop"]].concat())?;
    terminal.wait_for("looping\n")?;
    terminal.type_keys(CTRL_C)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());
    engine.ensure_gone(&id)
}

fn ctr_detach_and_attach(engine: &Containerd) -> Result<()> {
    let (image, id) = (import(engine)?, engine.new_id("ctr"));
    let run = [
        "run",
        "--detach",
        "--tty",
        "--runtime",
        WASMTIME,
        &image,
        &id,
    ];
    let mut terminal = ctr(engine, &[&run[..], &["/tool.wasm", "cat"]].concat())?;
    assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
    for turn in ["first", "second", "third"] {
        let terminal = ctr(engine, &["tasks", "attach", &id])?;
        terminal.type_line(turn)?;
        terminal.wait_for(&format!("{turn}\n{turn}\n"))?;
        // The client goes as if its window had been closed.
        drop(terminal);
    }
    let mut terminal = ctr(engine, &["tasks", "attach", &id])?;
    terminal.type_line("last")?;
    terminal.wait_for("last\nlast\n")?;
    terminal.type_keys(CTRL_D)?;
    assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
    // `ctr tasks attach` deletes the task that it has seen ending.
    let output = engine.run_ctr(["containers", "delete", &id])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    engine.ensure_gone(&id)
}
