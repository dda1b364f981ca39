//! Output that goes to a logger program (`binary://`), as under the runc shim.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lighter_test::{
    Containerd, RUNC, Rootfs, WASMTIME, each_containerd, eventually, leaks::ensure_dead,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

each_containerd!(
    both_streams,
    of_an_exec,
    of_a_terminal,
    stdin_beside_it,
    finishes_after_the_exit,
    that_stays_is_ended,
    refused,
    ends_with_its_daemon,
    dies_alone,
    a_full_file,
    an_endless_writer,
    ctr_run
);

/// A small file system.
struct Disk(tempfile::TempDir);

impl Disk {
    /// Of more than a pipe holds.
    fn new(engine: &Containerd) -> Result<Self> {
        let disk = Self(tempfile::tempdir_in(engine.folder())?);
        let size = Some("size=256k");
        mount(
            Some("tmpfs"),
            disk.0.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// A file that takes no more is no reason for a container to end, and takes what comes when there is room again.
fn a_full_file(engine: &Containerd) -> Result<()> {
    let disk = Disk::new(engine)?;
    let log = disk.0.path().join("log");
    let script = "head -c 1000000 /dev/zero && echo all > /tmp/taken; \
        while ! test -e /tmp/room; do sleep 0.1; done; echo again";
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sh", "-c", script])
        .streams("", &format!("file://{}", log.display()), "")
        .create()?;
    container.start()?;
    let taken = format!("/proc/{}/root/tmp/taken", container.pid());
    eventually("all has been taken", || {
        Path::new(&taken).exists().then_some(())
    })?;
    // What is in the pipe still has room now.
    fs::OpenOptions::new().write(true).open(&log)?.set_len(0)?;
    container
        .exec(["/bin/touch", "/tmp/room"])?
        .run()?
        .success()?;
    assert_eq!(container.wait()?.status, 0);
    container.finish()?;
    let logged = fs::read(&log)?;
    assert!(logged.ends_with(b"again\n"), "{} bytes", logged.len());
    Ok(())
}

/// Who writes without end to a file is killed as any other: its shim has time for calls.
fn an_endless_writer(engine: &Containerd) -> Result<()> {
    let disk = Disk::new(engine)?;
    let log = disk.0.path().join("log");
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/yes"])
        .streams("", &format!("file://{}", log.display()), "")
        .create()?;
    container.start()?;
    eventually("the disk is full", || {
        fs::metadata(&log)
            .is_ok_and(|log| log.len() > 200_000)
            .then_some(())
    })?;
    assert_eq!(container.exec(["/bin/true"])?.run()?.status, 0);
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    Ok(())
}

/// What a logger was given goes to the folder that its argument `to` names: once it is ready what
/// it was started with, and then both streams. `rest` is what it does at their end.
const SCRIPT: &str = r#"#!/bin/sh
ls /proc/$$/fd >"$2/descriptors"
readlink /proc/$$/fd/0 /proc/$$/fd/2 >"$2/standard"
tr '\0' '\n' </proc/$$/environ >"$2/environment"
printf '%s\n' "$@" >"$2/arguments"
echo $$ >"$2/pid"
BEFORE
cat <&3 >"$2/stdout" 4<&- 5>&- &
cat <&4 >"$2/stderr" 3<&- 5>&- &
exec 3<&- 4<&- 5>&-
wait
AFTER
echo >"$2/end"
"#;

struct Logger {
    folder: tempfile::TempDir,
}

impl Logger {
    fn new(engine: &Containerd) -> Result<Self> {
        Self::with(engine, "", "")
    }

    /// One that does more before it is ready and after its streams' end.
    fn with(engine: &Containerd, before: &str, after: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("logger-")
            .tempdir_in(engine.folder())?;
        let script = SCRIPT.replace("BEFORE", before).replace("AFTER", after);
        let program = folder.path().join("log it");
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn uri(&self) -> String {
        let folder = self.folder.path().display();
        format!("binary://{folder}/log%20it?to={folder}")
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.text("pid").trim().parse()?)
    }

    fn wait_for(&self, name: &str, text: &str) -> Result<()> {
        eventually("a stream has come", || {
            (self.text(name) == text).then_some(())
        })
        .with_context(|| format!("{text:?} in {name}: {:?}", self.text(name)))
    }

    /// Everything about the start of the logger that does not differ from one to the other.
    fn start(&self) -> [String; 2] {
        ["standard", "environment"].map(|name| self.text(name))
    }

    /// Makes sure that it has got the descriptors that it is to have and no other. The shell has two
    /// of its own, for its script and the redirection.
    fn check_descriptors(&self) {
        let text = self.text("descriptors");
        let mut numbers: Vec<u32> = text.lines().flat_map(str::parse).collect();
        numbers.sort();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 10, 11]);
    }
}

/// Programs that write "out" and "err": a guest in two runs, as it does one thing at a time.
const PROGRAMS: [(&[&str], &str, &str); 3] = [
    (&["/tool.wasm", "args"], "/tool.wasm\nargs\n", ""),
    (&["/tool.wasm", "stderr", "err"], "", "err\n"),
    (
        &["/bin/sh", "-c", "echo out; echo err >&2"],
        "out\n",
        "err\n",
    ),
];

fn both_streams(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let id = engine.new_id("logged");
    let mut starts = Vec::new();
    for runtime in [RUNC, WASMTIME] {
        for (args, stdout, stderr) in PROGRAMS {
            if runtime == RUNC && args[0].ends_with(".wasm") {
                continue;
            }
            let logger = Logger::new(engine)?;
            let mut container = engine
                .container(&rootfs)
                .id(&id)
                .runtime(runtime)
                .streams("", &logger.uri(), &logger.uri())
                .args(args)
                .create()?;
            container.start()?;
            assert_eq!(container.wait()?.status, 0);
            logger.wait_for("stdout", stdout)?;
            logger.wait_for("stderr", stderr)?;
            container.delete()?;
            ensure_dead(logger.pid()?)?;
            container.remove()?;
            assert_eq!(
                logger.text("arguments"),
                format!("to\n{}\n", logger.folder.path().display())
            );
            starts.push(logger.start());
            if runtime == WASMTIME {
                // Not killed, but at its end.
                assert!(logger.path("end").exists(), "{args:?}");
                logger.check_descriptors();
                engine.ensure_gone(&id)?;
            }
        }
    }
    for start in &starts {
        assert_eq!(*start, starts[0], "not as under runc");
    }
    let environment = &starts[0][1];
    let expected = format!(
        "CONTAINER_ID={id}\nCONTAINER_NAMESPACE={}\n",
        engine.namespace()
    );
    assert_eq!(*environment, expected);
    Ok(())
}

fn of_an_exec(engine: &Containerd) -> Result<()> {
    let mut environments = Vec::new();
    let id = engine.new_id("exec-logged");
    for (runtime, init, args, stdout) in [
        (RUNC, ["/bin/sleep", "1000"], ["/bin/echo", "out"], "out\n"),
        (
            WASMTIME,
            ["/bin/sleep", "1000"],
            ["/bin/echo", "out"],
            "out\n",
        ),
        (
            WASMTIME,
            ["/tool.wasm", "loop"],
            ["/tool.wasm", "args"],
            "/tool.wasm\nargs\n",
        ),
    ] {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(init)
            .create()?;
        container.start()?;
        let logger = Logger::new(engine)?;
        let mut exec = container
            .exec(args)?
            .id(&id)
            .streams("", &logger.uri(), &logger.uri())
            .start()?;
        assert_eq!(exec.wait()?.status, 0);
        logger.wait_for("stdout", stdout)?;
        exec.delete()?;
        drop(exec);
        ensure_dead(logger.pid()?)?;
        environments.push(logger.text("environment"));
        // One whose program is not there leaves nothing either.
        if runtime == WASMTIME {
            let logger = Logger::new(engine)?;
            let exec =
                container
                    .exec(["/no/such/program", ""])?
                    .streams("", &logger.uri(), &logger.uri());
            let error = format!("{:#}", exec.start().err().context("it runs")?);
            assert!(error.contains("no such file"), "{error}");
            ensure_dead(logger.pid()?)?;
        }
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    assert!(environments[0].starts_with(&format!("CONTAINER_ID={id}\n")));
    for environment in &environments {
        assert_eq!(*environment, environments[0], "not as under runc");
    }
    Ok(())
}

fn of_a_terminal(engine: &Containerd) -> Result<()> {
    for (runtime, args, screen) in [
        (RUNC, ["/bin/echo", "out"], "out\r\n"),
        (WASMTIME, ["/bin/echo", "out"], "out\r\n"),
        (WASMTIME, ["/tool.wasm", "args"], "/tool.wasm\r\nargs\r\n"),
    ] {
        let logger = Logger::new(engine)?;
        let mut container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .terminal()
            .streams("", &logger.uri(), "")
            .args(args)
            .create()?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0);
        logger.wait_for("stdout", screen)?;
        container.delete()?;
        assert_eq!(logger.text("stderr"), "");
        if runtime == WASMTIME {
            ensure_dead(logger.pid()?)?;
            assert!(logger.path("end").exists());
        }
        container.remove()?;
    }
    Ok(())
}

fn stdin_beside_it(engine: &Containerd) -> Result<()> {
    for args in [["/tool.wasm", "cat"], ["/bin/cat", "-"]] {
        let logger = Logger::new(engine)?;
        let stdin = logger.path("stdin");
        mkfifo(&stdin, Mode::S_IRWXU)?;
        let mut container = engine
            .container(&Rootfs::guests()?)
            .streams(&stdin.display().to_string(), &logger.uri(), &logger.uri())
            .args(args)
            .create()?;
        container.start()?;
        fs::write(&stdin, "through it")?;
        logger.wait_for("stdout", "through it")?;
        container.end_stdin()?;
        assert_eq!(container.wait()?.status, 0);
        container.delete()?;
        ensure_dead(logger.pid()?)?;
        container.remove()?;
    }
    Ok(())
}

/// The exit does not wait for a logger, nor does it end one: the delete waits.
fn finishes_after_the_exit(engine: &Containerd) -> Result<()> {
    // Less than what a pipe holds.
    let text = "line of text\n".repeat(4000);
    let rootfs = Rootfs::guests()?.file("/large", &text);
    for args in [
        ["/tool.wasm", "read", "/large"],
        ["/bin/cat", "/large", "/dev/null"],
    ] {
        let wait = r#"exec 5>&-; while [ ! -e "$2/go" ]; do sleep 0.01; done"#;
        let logger = Logger::with(engine, wait, "")?;
        let mut container = engine
            .container(&rootfs)
            .streams("", &logger.uri(), &logger.uri())
            .args(args)
            .create()?;
        container.start()?;
        container.wait()?;
        container.wait_for_event("exit")?;
        assert!(!logger.path("stdout").exists());
        std::thread::scope(|scope| {
            let delete = scope.spawn(|| container.delete());
            fs::write(logger.path("go"), "")?;
            delete.join().expect("no panic")
        })?;
        ensure_dead(logger.pid()?)?;
        assert_eq!(logger.text("stdout"), text);
        assert!(logger.path("end").exists());
        container.remove()?;
    }
    Ok(())
}

/// One that does not end with its streams is ended in a bounded time, whether it heeds SIGTERM or not.
fn that_stays_is_ended(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let heeds = r#"trap 'echo >"$2/terminated"; exit' TERM; while :; do sleep 0.1; done"#;
    let ignores = r#"trap '' TERM; while :; do sleep 0.1; done"#;
    std::thread::scope(|scope| {
        let run = |after: &'static str, args: [&'static str; 2]| {
            let rootfs = &rootfs;
            scope.spawn(move || -> Result<bool> {
                let logger = Logger::with(engine, "", after)?;
                let mut container = engine
                    .container(rootfs)
                    .streams("", &logger.uri(), &logger.uri())
                    .args(args)
                    .create()?;
                container.start()?;
                container.wait()?;
                let begin = Instant::now();
                container.delete()?;
                assert!(begin.elapsed() < Duration::from_secs(25));
                ensure_dead(logger.pid()?)?;
                container.remove()?;
                Ok(logger.path("terminated").exists())
            })
        };
        let heeding = run(heeds, ["/bin/echo", "out"]);
        let ignoring = run(ignores, ["/tool.wasm", "args"]);
        assert!(heeding.join().expect("no panic")?);
        assert!(!ignoring.join().expect("no panic")?);
        Ok(())
    })
}

fn refused(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let refused = |stdout: &str, stderr: &str| {
        let container = engine
            .container(&rootfs)
            .streams("", stdout, stderr)
            .args(["/tool.wasm", "args"]);
        container.refused()
    };
    let error = refused("binary:///no/such/logger?to=x", "")?;
    assert!(error.contains("binary:///no/such/logger?to=x"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");

    let dies = Logger::with(engine, "exit 7", "")?;
    let error = refused(&dies.uri(), "")?;
    assert!(error.contains("exit status 7"), "{error}");
    assert!(error.contains("before it was ready"), "{error}");
    ensure_dead(dies.pid()?)?;

    let error = refused("", &dies.uri())?;
    assert!(error.contains("named as the stdout"), "{error}");

    // A logger of a container that cannot be created ends.
    let logger = Logger::new(engine)?;
    let error = engine
        .container(&rootfs)
        .streams("", &logger.uri(), "")
        .args(["/no/such/program"])
        .refused()?;
    assert!(error.contains("no such file"), "{error}");
    ensure_dead(logger.pid()?)?;
    assert!(logger.path("end").exists());
    Ok(())
}

/// A killed daemon takes the container with it, and the logger finds its streams at their end.
fn ends_with_its_daemon(engine: &Containerd) -> Result<()> {
    for args in [["/tool.wasm", "loop"], ["/bin/sh", "-c"]] {
        let logger = Logger::new(engine)?;
        let container = engine
            .container(&Rootfs::guests()?)
            .streams("", &logger.uri(), &logger.uri())
            .args(args.iter().chain(&["echo looping; sleep 1000"]))
            .create()?;
        container.start()?;
        logger.wait_for("stdout", "looping\n")?;
        for pid in engine.shims_of(container.id()) {
            // One may have gone with the other.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        ensure_dead(logger.pid()?)?;
        assert!(logger.path("end").exists());
        let id = container.id().to_owned();
        drop(container);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// Without its logger a container goes on, until it writes.
fn dies_alone(engine: &Containerd) -> Result<()> {
    let logger = Logger::new(engine)?;
    let container = engine
        .container(&Rootfs::guests()?)
        .streams("", &logger.uri(), &logger.uri())
        .args(["/bin/sh", "-c", "trap '' PIPE; echo out; sleep 1000"])
        .create()?;
    container.start()?;
    logger.wait_for("stdout", "out\n")?;
    kill(Pid::from_raw(logger.pid()? as i32), Signal::SIGKILL)?;
    // A zombie would be there still.
    ensure_dead(logger.pid()?)?;
    assert_eq!(container.state()?.pid, container.pid());
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    Ok(())
}

/// `ctr run` takes URIs of loggers, and of files.
fn ctr_run(engine: &Containerd) -> Result<()> {
    let rootfs = tempfile::Builder::new()
        .prefix("ctr-")
        .tempdir_in(engine.folder())?;
    for name in ["/usr/bin/busybox", "tool.wasm"] {
        let from = match name.starts_with('/') {
            true => PathBuf::from(name),
            false => lighter_test::guest(name)?,
        };
        let name = Path::new(name).file_name().context("a name")?;
        fs::copy(from, rootfs.path().join(name))?;
    }
    for (args, stdout) in [
        (["/tool.wasm", "args"], "/tool.wasm\nargs\n"),
        (["/busybox", "echo"], "\n"),
    ] {
        let run = |uri: &str| -> Result<()> {
            let id = engine.new_id("ctr");
            let rootfs = rootfs.path().display().to_string();
            let output = engine.run_ctr([
                "run",
                "--rm",
                "--runtime",
                WASMTIME,
                "--log-uri",
                uri,
                "--rootfs",
                &rootfs,
                &id,
                args[0],
                args[1],
            ])?;
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{errors}");
            engine.ensure_gone(&id)
        };
        let logger = Logger::new(engine)?;
        run(&logger.uri())?;
        assert_eq!(logger.text("stdout"), stdout);
        ensure_dead(logger.pid()?)?;
        let file = logger.path("folders/that are new/log");
        run(&format!("file://{}", file.display()).replace(' ', "%20"))?;
        assert_eq!(fs::read_to_string(&file)?, stdout);
    }
    Ok(())
}
