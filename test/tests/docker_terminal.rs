//! Terminals with Docker: `docker run -t` and `-it`, sizes, keys, detaching and
//! attaching again.

use anyhow::Result;
use lighter_test::{
    CTRL_C, CTRL_D, DETACH,
    dockerd::{Dockerd, Image},
    each_store, eventually,
};

each_store!(
    output_only,
    linux_session,
    guest_session,
    interrupt,
    detach_and_attach,
    attach_to_a_detached_run,
    exec,
);

fn output_only(engine: &Dockerd) -> Result<()> {
    for (guest, command) in [
        (Image::Guests, &["/tool.wasm", "isatty"][..]),
        (Image::Guests, &["/tool-component.wasm", "isatty"]),
    ] {
        let reply = engine.run(guest, &["-t"], command)?;
        assert_eq!(reply.success()?, "0 yes\r\n1 yes\r\n2 yes\r\n");
        // The standard output goes where it went, and nothing is a terminal.
        let reply = engine.run(guest, &[], command)?;
        assert_eq!(reply.success()?, "0 no\n1 no\n2 no\n");
    }
    let reply = engine.run(Image::Linux, &["-t"], &["/bin/tty"])?;
    assert_eq!(reply.success()?, "/dev/pts/0\r\n");
    Ok(())
}

fn linux_session(engine: &Dockerd) -> Result<()> {
    // A trap ends a read.
    let script = "trap 'stty size' WINCH; stty size; \
        while :; do read line && echo got $line; [ \"$line\" = end ] && exit 3; done";
    let args = engine.run_args(
        Image::Linux,
        &["--rm", "-it", "--user", "1000"],
        &["/bin/sh", "-c", script],
    );
    let mut terminal = engine.terminal(&args, 41, 123)?;
    terminal.wait_for("41 123\n")?;
    terminal.type_line("one")?;
    terminal.wait_for("one\ngot one\n")?;
    terminal.drag()?;
    terminal.type_line("end")?;
    assert_eq!(terminal.wait()?.code(), Some(3), "{}", terminal.screen());
    Ok(())
}

fn guest_session(engine: &Dockerd) -> Result<()> {
    let args = engine.run_args(Image::Guests, &["--rm", "-it"], &["/tool.wasm", "cat"]);
    let mut terminal = engine.terminal(&args, 24, 80)?;
    terminal.type_line("one")?;
    terminal.wait_for("one\none\n")?;
    terminal.resize(50, 90)?;
    terminal.type_line("two")?;
    terminal.wait_for("two\ntwo\n")?;
    terminal.type_keys(CTRL_D)?;
    assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
    Ok(())
}

fn interrupt(engine: &Dockerd) -> Result<()> {
    for (image, command, shown) in [
        (Image::Guests, &["/tool.wasm", "loop"][..], "looping"),
        (
            Image::Guests,
            &["/tool-p3.wasm", "sleep", "1000"],
            "sleeping",
        ),
        (
            Image::Linux,
            &[
                "/bin/sh",
                "-c",
                "trap 'exit 130' INT; echo set; while :; do read x; done",
            ],
            "set",
        ),
    ] {
        let args = engine.run_args(image, &["--rm", "-it"], command);
        let mut terminal = engine.terminal(&args, 24, 80)?;
        terminal.wait_for(shown)?;
        terminal.type_keys(CTRL_C)?;
        assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());
    }
    Ok(())
}

fn detach_and_attach(engine: &Dockerd) -> Result<()> {
    let programs = [
        (Image::Guests, &["/tool.wasm", "cat"][..]),
        (Image::Linux, &["/bin/cat"]),
    ];
    for (image, program) in programs {
        let name = format!("attached-{}", image.name());
        let args = engine.run_args(image, &["-it", "--name", &name], program);
        let mut terminal = engine.terminal(&args, 24, 80)?;
        let mut typed = 0;
        for _ in 0..3 {
            typed += 1;
            let line = format!("line {typed}");
            terminal.type_line(&line)?;
            terminal.wait_for(&format!("{line}\n{line}\n"))?;
            terminal.type_keys(DETACH)?;
            // With which code depends on the command.
            terminal.wait()?;
            let running = engine.docker(&["inspect", "--format", "{{.State.Running}}", &name])?;
            assert_eq!(running.success()?, "true\n", "{}", terminal.screen());
            terminal = engine.terminal(&["attach", &name], 30, 90)?;
        }
        terminal.type_line("last")?;
        terminal.wait_for("last\nlast\n")?;
        terminal.type_keys(CTRL_D)?;
        assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
        let log = engine.docker(&["logs", &name])?.success()?;
        assert!(log.starts_with("line 1\r\nline 1\r\nline 2\r\n"), "{log}");
        assert!(log.ends_with("last\r\nlast\r\n"), "{log}");
        engine.docker(&["rm", &name])?.success()?;
    }
    Ok(())
}

fn attach_to_a_detached_run(engine: &Dockerd) -> Result<()> {
    // A shell without a trap may take no notice of an interrupt that comes while another program ends.
    let script = "trap 'exit 130' INT; while read line; do stty size; done";
    let container = engine.launch(Image::Linux, &["-it"], &["/bin/sh", "-c", script])?;
    let mut terminal = engine.terminal(&["attach", container.id()], 33, 111)?;
    // Its size comes with the attaching, which has no sign of its own.
    eventually("the container's terminal is resized", || {
        terminal.type_line("").ok()?;
        terminal.screen().contains("33 111\n").then_some(())
    })?;
    // And what the window becomes meanwhile.
    eventually("the container's terminal is resized again", || {
        terminal.resize(44, 77).ok()?;
        terminal.type_line("").ok()?;
        terminal.screen().contains("44 77\n").then_some(())
    })?;
    terminal.type_keys(CTRL_C)?;
    terminal.wait()?;
    assert_eq!(container.wait()?, 130);
    Ok(())
}

fn exec(engine: &Dockerd) -> Result<()> {
    for (image, command, sessions) in [
        (
            Image::Guests,
            &["/tool.wasm", "sleep", "1000"][..],
            &[&["/tool.wasm", "cat"][..], &["/tool-component.wasm", "cat"]][..],
        ),
        (
            Image::Linux,
            &["/bin/sleep", "1000"],
            &[
                &["/bin/cat"][..],
                &["/bin/sh", "-c", "while read x; do echo $x; done"],
            ],
        ),
    ] {
        let container = engine.launch(image, &[], command)?;
        for session in sessions {
            let args = [&["exec", "-it", container.id()], *session].concat();
            let mut terminal = engine.terminal(&args, 24, 80)?;
            terminal.type_line("typed")?;
            terminal.wait_for("typed\ntyped\n")?;
            terminal.type_keys(CTRL_D)?;
            assert_eq!(terminal.wait()?.code(), Some(0), "{}", terminal.screen());
        }
        let looping = match image {
            Image::Guests => &["/tool.wasm", "loop"][..],
            Image::Linux => &["/bin/sh", "-c", "echo looping; while :; do :; done"],
        };
        let args = [&["exec", "-it", container.id()], looping].concat();
        let mut terminal = engine.terminal(&args, 24, 80)?;
        terminal.wait_for("looping\n")?;
        terminal.type_keys(CTRL_C)?;
        assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());
    }
    let container = engine.launch(Image::Linux, &[], &["/bin/sleep", "1000"])?;
    let script = "trap 'stty size' WINCH; stty size; while :; do read line; done";
    let args = ["exec", "-it", container.id(), "/bin/sh", "-c", script];
    let mut terminal = engine.terminal(&args, 41, 123)?;
    terminal.wait_for("41 123\n")?;
    terminal.drag()?;
    terminal.type_keys(CTRL_C)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{}", terminal.screen());
    Ok(())
}
