//! What a guest is told and how it ends: arguments, environment, working
//! directory, exit codes, traps, functions by name.

use anyhow::{Result, ensure};
use lighter_test::{Containerd, Rootfs, Settings, Version, each_containerd};
use nix::sys::signal::Signal;

each_containerd!(
    arguments,
    arguments_in_the_eyes_of_others,
    environment,
    home,
    working_directory,
    entrypoints,
    wasm_that_cannot_be_read,
    exit_codes,
    trap,
    function_by_name,
    function_that_is_missing,
    clocks_and_random,
);

/// The same program for WASI 0.1, 0.2 and 0.3.
const TOOLS: [&str; 3] = ["/tool.wasm", "/tool-component.wasm", "/tool-p3.wasm"];

fn arguments(engine: &Containerd) -> Result<()> {
    // Rust's components keep all arguments in 64 KiB at first (wasi-preview1
    // component adapter).
    let long = "x".repeat(30_000);
    for tool in TOOLS {
        let args = [tool, "args", "", "two words", "ä€𝄞", "-x", &long];
        let output = engine
            .container(&Rootfs::guests()?)
            .args(args)
            .run()?
            .success()?;
        assert_eq!(output.lines().collect::<Vec<_>>(), args);
    }
    Ok(())
}

/// What ps and `docker top` show of a guest: cut where it is long, and nothing that comes after it in memory.
fn arguments_in_the_eyes_of_others(engine: &Containerd) -> Result<()> {
    let shown = |pid: u32| -> Result<Vec<String>> {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let line = line.trim_end_matches('\0').split('\0');
        Ok(line.map(str::to_owned).collect())
    };
    let long = format!("{:030000}", 1000);
    for tool in TOOLS {
        let args = [tool, "sleep", "1000"];
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        container.start()?;
        assert_eq!(shown(container.pid())?, args);
        let exec = container.exec([tool, "sleep", &long])?.add()?;
        let cut = shown(exec.start()?)?;
        ensure!(cut.len() == 3 && cut[..2] == args[..2], "{cut:?}");
        ensure!(!cut[2].is_empty() && long.starts_with(&cut[2]), "{cut:?}");
        exec.kill(Signal::SIGKILL)?;
        exec.finish()?;
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

/// A guest that is root may read what its process was started with: nothing of it is containerd's.
#[test]
fn environment_of_containerd() -> Result<()> {
    let settings = Settings {
        environment: vec![("SECRET_OF_THE_HOST".to_owned(), "lighter".to_owned())],
        ..Settings::default()
    };
    let engine = Containerd::start_with(Version::V2_1, &settings)?;
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    container.start()?;
    let read = ["/tool.wasm", "read", "/proc/self/environ"];
    let added = container.exec(read)?.run()?;
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    let own = engine.container(&Rootfs::guests()?).args(read).run()?;
    for output in [added, own] {
        let text = output.success()?;
        ensure!(text.bytes().all(|byte| byte == 0), "{text:?}");
    }
    Ok(())
}

fn environment(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "env"])
            .spec(|spec| spec["process"]["env"] = serde_json::json!(["A=1", "B=", "C=x=y z"]))
            .run()?
            .success()?;
        let of_the_image = |line: &str| line.starts_with("HOME=");
        let lines: Vec<&str> = output.lines().filter(|line| !of_the_image(line)).collect();
        assert_eq!(lines, ["A=1", "B=", "C=x=y z"], "{tool}");
    }
    Ok(())
}

/// The home that the image's /etc/passwd names, as with runc; none where it names none, as with wasmtime.
fn home(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/etc/passwd", "ann:x:1000:1000::/home/ann:/bin/sh\n");
    for tool in TOOLS {
        let env = |uid: u32, env: &[&str]| -> Result<String> {
            let container = engine.container(&rootfs).args([tool, "env"]).user(uid, uid);
            let container = container.spec(|spec| spec["process"]["env"] = serde_json::json!(env));
            container.run()?.success()
        };
        assert_eq!(env(1000, &["A=1"])?, "A=1\nHOME=/home/ann\n", "{tool}");
        assert_eq!(env(1001, &["A=1", "HOME="])?, "A=1\n", "{tool}");
        assert_eq!(env(1001, &["HOME=/"])?, "HOME=/\n", "{tool}");
    }
    let host = engine
        .container(&rootfs)
        .args([TOOLS[0], "sleep", "1000"])
        .create()?;
    host.start()?;
    let env = |program: [&str; 2]| -> Result<String> {
        let exec = host.exec(program)?;
        let exec = exec.with("/user", serde_json::json!({"uid": 1001, "gid": 1001}));
        let ended = exec.with("/env", serde_json::json!(["A=1"])).run()?;
        Ok(ended.text())
    };
    assert_eq!(env([TOOLS[0], "env"])?, "A=1\n");
    assert_eq!(env(["/bin/busybox", "env"])?, "A=1\nHOME=/\n");
    Ok(())
}

fn working_directory(engine: &Containerd) -> Result<()> {
    let run_in = |cwd: &str, tool: &str, command: &str| {
        engine
            .container(&Rootfs::guests()?.folder("/work", 0o755))
            .args([tool, command])
            .cwd(cwd)
            .run()?
            .success()
    };
    let run = |tool: &str, command: &str| run_in("/work", tool, command);
    assert_eq!(run("/tool-p3.wasm", "cwd")?, "/work\n");
    assert_eq!(
        run_in("/", "/tool-p3.wasm", "cwd")?,
        "none\n",
        "it starts in its root"
    );
    // The C library of WASI 0.1, which Rust's components of 0.2 have in them too,
    // takes "here" and "/here" for the same. What such a guest can be told of
    // its working directory is a variable.
    for tool in &TOOLS[..2] {
        assert!(run(tool, "env")?.contains("PWD=/work\n"), "{tool}");
    }
    Ok(())
}

/// The entrypoint is found as a shell finds it, and known by its first bytes.
fn entrypoints(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?
        .copy(lighter_test::guest("tool.wasm")?, "/bin/plain-name")
        .file("/script.wasm", "#!/bin/sh\necho a script $1\n");
    let run = |program: &str, cwd: &str| -> Result<String> {
        engine
            .container(&rootfs)
            .args([program, "args"])
            .cwd(cwd)
            .run()?
            .success()
    };
    assert_eq!(run("plain-name", "/")?, "plain-name\nargs\n");
    assert_eq!(run("./plain-name", "/bin")?, "./plain-name\nargs\n");
    assert_eq!(run("bin/plain-name", "/")?, "bin/plain-name\nargs\n");
    assert_eq!(run("/script.wasm", "/")?, "a script args\n");
    Ok(())
}

/// A Linux program needs only to be executable; wasm must be readable, and that is the reason then.
fn wasm_that_cannot_be_read(engine: &Containerd) -> Result<()> {
    let wasm = std::fs::read(lighter_test::guest("hello.wasm")?)?;
    let busybox = std::fs::read("/usr/bin/busybox")?;
    let rootfs = Rootfs::guests()?
        .file_of("/unreadable.wasm", wasm, 0o111, 0)
        .file_of("/busybox", busybox, 0o111, 0);
    let run = |args: &[&str]| engine.container(&rootfs).args(args).user(1000, 1000);
    let text = run(&["/unreadable.wasm"]).refused()?;
    for part in ["/unreadable.wasm", "permission denied", "readable"] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    let output = run(&["/busybox", "echo", "linux"]).run()?;
    assert_eq!(output.success()?, "linux\n");
    Ok(())
}

fn exit_codes(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        for code in [0, 1, 2, 42, 125, 255] {
            // Rust's library for WASI 0.2 can only say good or bad: the stable
            // function of wasi:cli/exit has no number.
            let expected = if tool == "/tool-component.wasm" {
                code.min(1)
            } else {
                code
            };
            let output = engine
                .container(&Rootfs::guests()?)
                .args([tool, "exit", &code.to_string()])
                .run()?;
            assert_eq!(
                output.status,
                expected,
                "{tool} {code}: {}",
                output.errors()
            );
        }
    }
    // `run` of wasi:cli returns its error.
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/tool-p3.wasm", "fail"])
        .run()?;
    assert_eq!(output.status, 1);
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/tool-component.wasm", "read", "/missing"])
        .run()?;
    assert_eq!(output.status, 1);
    Ok(())
}

fn trap(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "trap"])
            .run()?;
        let errors = output.errors();
        assert_eq!(output.status, 134, "{tool}: {errors}");
        assert!(errors.contains("unreachable"), "{tool}: {errors}");
        for function in ["trap_inner", "trap_outer"] {
            assert!(
                errors.contains(function),
                "{tool}: no {function} in {errors}"
            );
        }
        assert_eq!(output.text(), "", "{tool}");
    }
    Ok(())
}

fn function_by_name(engine: &Containerd) -> Result<()> {
    let run = |program: &str| engine.container(&Rootfs::guests()?).args([program]).run();
    assert_eq!(
        run("/reactor.wasm#greet")?.success()?,
        "hello from a reactor\n"
    );
    assert_eq!(run("/reactor.wasm#quit")?.status, 7);
    // One of an interface, whose guest takes its arguments all the same.
    let output = run("/hello-component.wasm#wasi:cli/run@0.2.6#run")?;
    assert!(output.success()?.contains("Hello"));
    let output = run("/reactor.wasm#fail")?;
    assert_eq!(output.status, 134);
    assert!(
        output.errors().contains("unreachable"),
        "{}",
        output.errors()
    );
    Ok(())
}

fn function_that_is_missing(engine: &Containerd) -> Result<()> {
    for program in [
        "/reactor.wasm",
        "/reactor.wasm#nowhere",
        "/hello.wasm#nowhere",
    ] {
        let text = engine
            .container(&Rootfs::guests()?)
            .args([program])
            .refused()?;
        let name = program.split_once('#').map_or("_start", |(_, name)| name);
        assert!(text.contains(name), "{program}: {text}");
    }
    Ok(())
}

fn clocks_and_random(engine: &Containerd) -> Result<()> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    for tool in &TOOLS[..2] {
        let told = engine
            .container(&Rootfs::guests()?)
            .args([tool, "time"])
            .run()?
            .success()?;
        let told: u64 = told.trim().parse()?;
        assert!(told.abs_diff(now) < 60, "{tool}: {told}, not {now}");
    }
    let random = || {
        engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "random"])
            .run()?
            .success()
    };
    let (one, other) = (random()?, random()?);
    assert_eq!(one.trim().len(), 32);
    assert_ne!(one, other);
    Ok(())
}
