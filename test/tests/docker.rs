//! `docker run` of guests and of Linux containers, with both image stores.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    cgroup,
    dockerd::{Dockerd, Image, Store},
    each_store, ensure_root,
};
use nix::unistd::{Gid, Uid, chown};

each_store!(
    output,
    exit_codes,
    environment,
    working_directory,
    user,
    volumes,
    read_only,
    input,
    logs,
    memory,
    figures,
    no_such_entrypoint,
    not_a_program,
    trap,
    nothing_left,
);

const TOOLS: [&str; 2] = ["/tool.wasm", "/tool-component.wasm"];
const MB: u64 = 1 << 20;

fn output(engine: &Dockerd) -> Result<()> {
    let hello = engine.run(Image::Guests, &[], &[])?;
    assert!(
        hello.success()?.starts_with("Hello from WebAssembly!\n"),
        "{hello:?}"
    );
    for tool in TOOLS {
        let reply = engine.run(Image::Guests, &[], &[tool, "args", "one", "two words", ""])?;
        assert_eq!(
            reply.success()?,
            format!("{tool}\nargs\none\ntwo words\n\n")
        );
        let reply = engine.run(Image::Guests, &[], &[tool, "stderr", "an error"])?;
        assert_eq!(
            (reply.success()?.as_str(), reply.errors.as_str()),
            ("", "an error\n")
        );
    }
    let reply = engine.run(Image::Guests, &["--entrypoint", "/tool.wasm"], &["args"])?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\n");
    let reply = engine.run(Image::Linux, &[], &["sh", "-c", "echo out; echo err >&2"])?;
    assert_eq!(
        (reply.success()?.as_str(), reply.errors.as_str()),
        ("out\n", "err\n")
    );
    Ok(())
}

fn exit_codes(engine: &Dockerd) -> Result<()> {
    for code in [0, 1, 7, 255] {
        let reply = engine.run(
            Image::Guests,
            &[],
            &["/tool.wasm", "exit", &code.to_string()],
        )?;
        assert_eq!(reply.code, code, "{reply:?}");
    }
    let reply = engine.run(Image::Guests, &[], &["/tool-component.wasm", "exit", "1"])?;
    assert_eq!(reply.code, 1, "{reply:?}");
    let reply = engine.run(Image::Linux, &[], &["sh", "-c", "exit 7"])?;
    assert_eq!(reply.code, 7, "{reply:?}");
    Ok(())
}

fn environment(engine: &Dockerd) -> Result<()> {
    let options = ["-e", "A=1", "-e", "B=x=y z", "--hostname", "guest"];
    for (image, command) in [
        (Image::Guests, [TOOLS[0], "env"].as_slice()),
        (Image::Guests, &[TOOLS[1], "env"]),
        (Image::Linux, &["env"]),
    ] {
        let output = engine.run(image, &options, command)?.success()?;
        for line in ["A=1", "B=x=y z", "HOSTNAME=guest"] {
            ensure!(
                output.lines().any(|found| found == line),
                "{line} in {output}"
            );
        }
    }
    Ok(())
}

fn working_directory(engine: &Dockerd) -> Result<()> {
    let options = ["-w", "/etc"];
    let output = engine
        .run(Image::Guests, &options, &["/tool-p3.wasm", "cwd"])?
        .success()?;
    assert_eq!(output, "/etc\n");
    // Guests of WASI 0.1 and 0.2 have no other way to know.
    for tool in TOOLS {
        let output = engine
            .run(Image::Guests, &options, &[tool, "env"])?
            .success()?;
        ensure!(output.contains("PWD=/etc\n"), "{tool}: {output}");
    }
    let output = engine
        .run(Image::Guests, &options, &["../tool.wasm", "args"])?
        .success()?;
    assert_eq!(output, "../tool.wasm\nargs\n");
    assert_eq!(
        engine.run(Image::Linux, &options, &["pwd"])?.success()?,
        "/etc\n"
    );
    Ok(())
}

/// A guest has the rights of its user, and the files that it makes belong to it.
fn user(engine: &Dockerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    chown(
        folder.path(),
        Some(Uid::from_raw(1000)),
        Some(Gid::from_raw(1000)),
    )?;
    let volume = format!("{}:/volume", folder.path().display());
    let (write, read): (&[&str], &[&str]) =
        (&["write", "/volume/made", "text"], &["read", "/etc/secret"]);
    for (image, program) in [
        (Image::Guests, [TOOLS[0]].as_slice()),
        (Image::Guests, &[TOOLS[1]]),
    ] {
        let reply = engine.run(image, &[], &[program, read].concat())?;
        assert_eq!(reply.success()?, "root's\n", "as root");
        for user in ["1000", "user"] {
            let options = ["-u", user, "-v", &volume];
            engine
                .run(image, &options, &[program, write].concat())?
                .success()?;
            let made = folder.path().join("made");
            let found = fs::metadata(&made)?;
            assert_eq!((found.uid(), found.gid()), (1000, 1000), "{user}");
            fs::remove_file(made)?;
            let reply = engine.run(image, &options, &[program, read].concat())?;
            assert_eq!(
                (reply.code, reply.text().as_str()),
                (1, ""),
                "{user}: {reply:?}"
            );
            ensure!(reply.errors.contains("ermission"), "{reply:?}");
        }
    }
    let script = "id -u; id -g; cat /etc/secret";
    let reply = engine.run(Image::Linux, &["-u", "1000"], &["sh", "-c", script])?;
    assert_eq!(
        (reply.code, reply.text().as_str()),
        (1, "1000\n1000\n"),
        "{reply:?}"
    );
    Ok(())
}

fn volumes(engine: &Dockerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    fs::write(folder.path().join("given"), "given\n")?;
    let writable = format!("{}:/volume", folder.path().display());
    let readable = format!("{writable}:ro");
    let made = folder.path().join("made");
    for tool in TOOLS {
        for volume in [&writable, &readable] {
            let reply = engine.run(
                Image::Guests,
                &["-v", volume],
                &[tool, "read", "/volume/given"],
            )?;
            assert_eq!(reply.success()?, "given\n");
        }
        let command = [tool, "write", "/volume/made", "text"];
        let reply = engine.run(Image::Guests, &["-v", &readable], &command)?;
        assert_eq!(reply.code, 1, "{reply:?}");
        ensure!(!made.exists(), "{tool} wrote to a read-only volume");
        engine
            .run(Image::Guests, &["-v", &writable], &command)?
            .success()?;
        assert_eq!(fs::read_to_string(&made)?, "text");
        fs::remove_file(&made)?;
    }
    let script = "cat /volume/given; echo text > /volume/made";
    let reply = engine.run(Image::Linux, &["-v", &readable], &["sh", "-c", script])?;
    assert_eq!(
        (reply.code, reply.text().as_str()),
        (1, "given\n"),
        "{reply:?}"
    );
    ensure!(!made.exists());
    let reply = engine.run(Image::Linux, &["-v", &writable], &["sh", "-c", script])?;
    assert_eq!(reply.success()?, "given\n");
    assert_eq!(fs::read_to_string(&made)?, "text\n");
    Ok(())
}

fn read_only(engine: &Dockerd) -> Result<()> {
    for (image, command) in [
        (
            Image::Guests,
            [TOOLS[0], "write", "/tmp/made", "text"].as_slice(),
        ),
        (Image::Guests, &[TOOLS[1], "write", "/tmp/made", "text"]),
        (Image::Linux, &["sh", "-c", "echo text > /tmp/made"]),
    ] {
        engine.run(image, &[], command)?.success()?;
        let reply = engine.run(image, &["--read-only"], command)?;
        assert_eq!(reply.code, 1, "{reply:?}");
        ensure!(reply.errors.contains("/tmp/made"), "{reply:?}");
        engine
            .run(image, &["--read-only", "--tmpfs", "/tmp"], command)?
            .success()?;
    }
    Ok(())
}

fn input(engine: &Dockerd) -> Result<()> {
    let megabyte: Vec<u8> = (0..MB).map(|i| ((i * 31) >> 3) as u8).collect();
    for (image, command) in [
        (Image::Guests, [TOOLS[0], "cat"].as_slice()),
        (Image::Guests, &[TOOLS[1], "cat"]),
        (Image::Linux, &["cat"]),
    ] {
        // Nothing at all is what there is under cron and in most CI.
        for given in [&megabyte[..], &[]] {
            let reply = engine.run_fed(image, command, given)?;
            assert_eq!(reply.code, 0, "{}", reply.errors);
            assert!(
                reply.output == given,
                "{} of {} bytes",
                reply.output.len(),
                given.len()
            );
        }
    }
    Ok(())
}

fn logs(engine: &Dockerd) -> Result<()> {
    let guest = engine.launch(Image::Guests, &[], &["/tool.wasm", "args", "one"])?;
    assert_eq!(guest.wait()?, 0);
    assert_eq!(guest.logs()?.text(), "/tool.wasm\nargs\none\n");
    let guest = engine.launch(Image::Guests, &[], &["/tool.wasm", "stderr", "an error"])?;
    assert_eq!(guest.wait()?, 0);
    let logs = guest.logs()?;
    assert_eq!(
        (logs.text().as_str(), logs.errors.as_str()),
        ("", "an error\n")
    );
    let linux = engine.launch(Image::Linux, &[], &["sh", "-c", "echo one; echo two >&2"])?;
    assert_eq!(linux.wait()?, 0);
    let logs = linux.logs()?;
    assert_eq!(
        (logs.text().as_str(), logs.errors.as_str()),
        ("one\n", "two\n")
    );
    Ok(())
}

fn memory(engine: &Dockerd) -> Result<()> {
    let limit = if cgroup::unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    for (image, command) in [
        (Image::Guests, [TOOLS[0], "alloc", "20", "1000"].as_slice()),
        (Image::Guests, &[TOOLS[1], "alloc", "20", "1000"]),
        (
            Image::Linux,
            &["sh", "-c", "echo allocated 20 MB; sleep 1000"],
        ),
    ] {
        let container = engine.launch(image, &["--memory", "64m"], command)?;
        container.wait_for_log("allocated 20 MB")?;
        assert_eq!(
            container.cgroup_file("memory", limit)?,
            (64 * MB).to_string()
        );
        assert_eq!(
            container.inspect("{{.State.OOMKilled}} {{.State.Status}}")?,
            "false running"
        );
    }
    for (image, command) in [
        (Image::Guests, [TOOLS[0], "alloc", "256", "1000"].as_slice()),
        (Image::Guests, &[TOOLS[1], "alloc", "256", "1000"]),
        (Image::Linux, &["tail", "/dev/zero"]),
    ] {
        let container = engine.launch(image, &["--memory", "64m"], command)?;
        assert_eq!(container.wait()?, 137, "{command:?}");
        let state = "{{.State.OOMKilled}} {{.State.Status}} {{.State.ExitCode}}";
        container.wait_for(state, "true exited 137")?;
    }
    Ok(())
}

/// `docker top` and `docker stats`.
fn figures(engine: &Dockerd) -> Result<()> {
    let command = ["/tool.wasm", "alloc", "20", "1000"];
    let guest = engine.launch(Image::Guests, &["--memory", "64m"], &command)?;
    guest.wait_for_log("sleeping")?;
    let pid = guest.inspect("{{.State.Pid}}")?;
    let top = engine
        .docker(&["top", guest.id(), "-o", "pid,comm"])?
        .success()?;
    let lines: Vec<Vec<&str>> = top
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines, [["PID", "COMMAND"], [&pid, "tool.wasm"]], "{top}");
    let top = engine.docker(&["top", guest.id()])?.success()?;
    let line = top
        .lines()
        .nth(1)
        .context("a line for the guest")?
        .trim_end();
    ensure!(line.ends_with(" /tool.wasm alloc 20 1000"), "{top}");

    let format = "{{.PIDs}} {{.MemUsage}} {{.NetIO}}";
    let stats = ["stats", "--no-stream", "--format", format, guest.id()];
    let stats = engine.docker(&stats)?.success()?;
    let words: Vec<&str> = stats.split_whitespace().collect();
    ensure!(words[0] == "1" && words[3] == "64MiB", "{stats}");
    let usage: f64 = words[1]
        .strip_suffix("MiB")
        .context(stats.clone())?
        .parse()?;
    ensure!((20.0..60.0).contains(&usage), "{stats}");
    Ok(())
}

/// The exit codes of `docker run` are those of a shell: 127 for what is not
/// there, 126 for what cannot be run.
fn no_such_entrypoint(engine: &Dockerd) -> Result<()> {
    for (image, command, reason) in [
        (Image::Guests, "/nowhere.wasm", "no such file or directory"),
        (
            Image::Guests,
            "nowhere",
            "executable file not found in $PATH",
        ),
        (Image::Linux, "/nowhere", "no such file or directory"),
    ] {
        let reply = engine.run(image, &[], &[command])?;
        assert_eq!(reply.code, 127, "{reply:?}");
        ensure!(
            reply.errors.contains(command) && reply.errors.contains(reason),
            "{reply:?}"
        );
    }
    Ok(())
}

fn not_a_program(engine: &Dockerd) -> Result<()> {
    for (command, reason) in [
        ("/etc/plain", "text file"),
        ("/etc/plain-executable", "text file"),
        ("/etc", "directory"),
    ] {
        let reply = engine.run(Image::Guests, &[], &[command])?;
        ensure!(
            reply.errors.contains(command) && reply.errors.contains(reason),
            "{reply:?}"
        );
        assert_eq!(reply.code, 126, "{reply:?}");
    }
    let reply = engine.run(Image::Guests, &["-u", "1000"], &["/etc/secret"])?;
    assert_eq!(reply.code, 126, "{reply:?}");
    ensure!(reply.errors.contains("permission denied"), "{reply:?}");
    Ok(())
}

fn trap(engine: &Dockerd) -> Result<()> {
    for tool in TOOLS {
        let guest = engine.launch(Image::Guests, &[], &[tool, "trap"])?;
        assert_eq!(guest.wait()?, 134, "{tool}");
        let logs = guest.logs()?;
        assert_eq!(logs.text(), "");
        for part in ["trap_inner", "trap_outer", "unreachable"] {
            ensure!(logs.errors.contains(part), "{part} in {}", logs.errors);
        }
        assert_eq!(
            guest.inspect("{{.State.ExitCode}} {{.State.Error}}")?,
            "134"
        );
    }
    Ok(())
}

/// A daemon of its own, so that what remains is this test's.
fn nothing_left(shared: &Dockerd) -> Result<()> {
    let engine = Dockerd::start(shared.store())?;
    engine.run(Image::Guests, &[], &["/tool.wasm", "exit", "3"])?;
    engine.run(Image::Guests, &[], &["/tool.wasm", "trap"])?;
    engine.run(Image::Guests, &[], &["/nowhere.wasm"])?;
    engine.run(Image::Linux, &[], &["sh", "-c", "sleep 1000 & echo"])?;
    let guest = engine.launch(Image::Guests, &["-p", "80"], &["/tool.wasm", "loop"])?;
    guest.wait_for_log("looping")?;
    let running = engine.remains();
    for kind in ["process", "cgroup", "mount"] {
        ensure!(
            running.iter().any(|line| line.starts_with(kind)),
            "{kind} in {running:?}"
        );
    }
    engine.docker(&["rm", "--force", guest.id()])?.success()?;
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"])?.success()?, "");
    engine.ensure_clean()
}

/// A daemon that is dropped takes running containers with it.
#[test]
fn harness_leaves_nothing() -> Result<()> {
    ensure_root()?;
    let engine = Dockerd::start(Store::Containerd)?;
    let (name, folder) = (engine.name().to_owned(), engine.folder().to_owned());
    let guest = engine.launch(Image::Guests, &["-p", "80"], &["/tool.wasm", "loop"])?;
    guest.wait_for_log("looping")?;
    std::mem::forget(guest);
    ensure!(!engine.remains().is_empty());
    drop(engine);
    ensure!(!folder.exists());
    for namespace in [name.clone(), format!("{name}-out")] {
        ensure!(!std::path::Path::new("/run/netns").join(namespace).exists());
    }
    ensure!(!cgroup::folder("memory").join(&name).exists());
    for process in fs::read_dir("/proc")?.flatten() {
        let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !line.contains(&name),
            "{}: {line}",
            process.path().display()
        );
    }
    Ok(())
}
