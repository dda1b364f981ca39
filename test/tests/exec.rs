//! Further processes in a running container: wasm and Linux ones, in wasm and Linux containers.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use containerd_client::{tonic::Code, types::v1::Status};
use lighter_test::{
    Builder, Container, Containerd, Input, RUNC, Rootfs, code, each_containerd, events::Event,
    eventually, leaks::ensure_dead,
};
use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::Signal,
        stat::Mode,
    },
    unistd::mkfifo,
};
use serde_json::json;

each_containerd!(
    programs,
    long_command_lines,
    terminals_that_are_none,
    streams,
    who_and_where,
    confinement,
    user_namespace,
    signals,
    states,
    events,
    programs_that_cannot_run,
    an_end_with_the_container,
    an_end_before_those_it_leaves,
    an_end_that_nobody_reads_of,
    not_deleted_with_the_container,
    many_at_once,
    by_hand
);

/// Containers of both kinds that wait.
const HOSTS: [[&str; 3]; 2] = [
    ["/tool.wasm", "sleep", "1000"],
    ["/bin/sh", "-c", "sleep 1000"],
];

fn running<'a>(builder: Builder<'a>) -> Result<Container<'a>> {
    let container = builder.create()?;
    container.start()?;
    Ok(container)
}

fn hosts(engine: &Containerd) -> impl Iterator<Item = Result<Container<'_>>> {
    HOSTS.into_iter().map(|args| {
        let rootfs = Rootfs::guests()?;
        running(engine.container(&rootfs).args(args))
    })
}

fn programs(engine: &Containerd) -> Result<()> {
    for host in hosts(engine) {
        let host = host?;
        let output = host.exec(["/tool.wasm", "args", "one", "two"])?.run()?;
        assert_eq!(output.text(), "/tool.wasm\nargs\none\ntwo\n");
        assert_eq!(host.exec(["/tool.wasm", "exit", "7"])?.run()?.status, 7);
        let output = host.exec(["/tool-component.wasm", "args", "x"])?.run()?;
        assert_eq!(
            (output.status, output.text().as_str()),
            (0, "/tool-component.wasm\nargs\nx\n")
        );
        let output = host
            .exec(["sh", "-c", "echo linux $0; exit 3", "here"])?
            .run()?;
        assert_eq!((output.status, output.text().as_str()), (3, "linux here\n"));
        let trapped = host.exec(["/tool.wasm", "trap"])?.run()?;
        assert_eq!(trapped.status, 134);
        assert!(
            trapped.errors().contains("trap_inner"),
            "{}",
            trapped.errors()
        );
    }
    Ok(())
}

/// As long as the kernel takes them (execve(2)): more than a packet of a socket holds.
fn long_command_lines(engine: &Containerd) -> Result<()> {
    let argument = "x".repeat(100_000);
    for host in hosts(engine) {
        let host = host?;
        let mut counting = [argument.as_str(); 16];
        counting[..4].copy_from_slice(&["sh", "-c", "echo $# ${#1} ${#12}", "sh"]);
        let output = host.exec(counting)?.run()?.success()?;
        assert_eq!(output, "12 100000 100000\n");
        let mut printing = [argument.as_str(); 14];
        printing[..2].copy_from_slice(&["/tool.wasm", "args"]);
        let output = host.exec(printing)?.run()?.success()?;
        assert_eq!(output.len(), "/tool.wasm\nargs\n".len() + 12 * 100_001);
    }
    Ok(())
}

/// What a container has put where terminals are made is not opened by a process that is in none of its cgroups.
fn terminals_that_are_none(engine: &Containerd) -> Result<()> {
    let script = "rm /dev/ptmx; mkfifo /dev/ptmx; echo made; sleep 1000";
    let host = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sh", "-c", script]);
    let host = running(host)?;
    host.wait_for_output("made")?;
    let watch = Inotify::init(InitFlags::IN_NONBLOCK)?;
    let place = format!("/proc/{}/root/dev/ptmx", host.pid());
    watch.add_watch(place.as_str(), AddWatchFlags::IN_OPEN)?;
    let error = host.exec(["/bin/true"])?.terminal().run().err();
    let error = error.context("it has a terminal")?;
    let text = format!("{error:#}");
    assert!(text.contains("/dev/ptmx"), "{text}");
    assert_eq!(watch.read_events().err(), Some(Errno::EAGAIN));
    Ok(())
}

fn streams(engine: &Containerd) -> Result<()> {
    let text = vec![b'x'; 3 << 20];
    for host in hosts(engine) {
        let host = host?;
        for args in [["sh", "-c", "cat"], ["/tool.wasm", "cat", ""]] {
            let output = host
                .exec(args)?
                .input(Input::Bytes(text.clone()))
                .add()
                .and_then(|exec| {
                    exec.start()?;
                    exec.end_stdin()?;
                    exec.finish()
                })?;
            assert_eq!(output.stdout.len(), text.len(), "{args:?}");
        }
        let output = host.exec(["/tool.wasm", "stderr", "apart"])?.run()?;
        assert_eq!(
            (output.text().as_str(), output.errors().as_str()),
            ("", "apart\n")
        );
    }
    Ok(())
}

fn who_and_where(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?
        .folder("/work", 0o755)
        .file("/work/here", "yes");
    let host = running(engine.container(&rootfs).args(HOSTS[0]))?;
    let sh = |script| host.exec(["sh", "-c", script]);
    let text = sh("id -u; id -g; id -G; pwd; echo $A; echo $HOME; umask")?
        .with(
            "/user",
            json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o77}),
        )
        .with("/cwd", json!("/work"))
        .with("/env", json!(["A=b", "PATH=/bin"]))
        .run()?
        .text();
    assert_eq!(text, "1000\n1001\n1001 7 8\n/work\nb\n/\n0077\n");
    let seen = host
        .exec(["/tool-p3.wasm", "cwd"])?
        .with("/cwd", json!("/work"))
        .run()?;
    assert_eq!(seen.text(), "/work\n", "{}", seen.errors());
    let env = host
        .exec(["/tool.wasm", "env"])?
        .with("/env", json!(["A=b"]))
        .run()?
        .text();
    assert!(
        env.contains("A=b\n") && env.contains("HOME=/root\n"),
        "{env}"
    );
    // It is in the container: its processes, its host name, its files, its cgroup.
    let waiting = host.exec(["/tool.wasm", "sleep", "1000"])?.add()?;
    let pid = waiting.start()?;
    assert!(host.pids()?.contains(&pid));
    for namespace in ["pid", "mnt", "net", "ipc", "uts"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        assert_eq!(of(pid)?, of(host.pid())?);
    }
    let user = host
        .exec(["/tool.wasm", "sleep", "1000"])?
        .with("/user", json!({"uid": 1000, "gid": 5}))
        .add()?;
    let pid = user.start()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    assert_eq!(line("Uid:"), Some("1000\t1000\t1000\t1000"));
    assert_eq!(line("CapEff:"), Some("0000000000000000"));
    assert_eq!(line("Groups:"), Some(""));
    Ok(())
}

/// What keeps the container's own processes in keeps added ones in as well: all as with runc.
fn confinement(engine: &Containerd) -> Result<()> {
    const LOOK: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups)' /proc/self/status; \
         grep 'file size' /proc/self/limits; mkdir /sealed 2>&1; hostname other 2>&1; true";
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let look = |runtime: &str, in_exec: bool| -> Result<String> {
            let rootfs = Rootfs::guests()?;
            let builder = engine.container(&rootfs).runtime(runtime).spec(|spec| {
                spec["linux"]["seccomp"] = seccomp.clone();
                spec["process"]["user"]["uid"] = json!(uid);
                spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                spec["process"]["rlimits"] =
                    json!([{"type": "RLIMIT_FSIZE", "soft": 7777, "hard": 9999}]);
            });
            if in_exec {
                let host = running(builder.args(["/bin/sh", "-c", "sleep 1000"]))?;
                Ok(host.exec(["sh", "-c", LOOK])?.run()?.text())
            } else {
                Ok(builder.args(["/bin/sh", "-c", LOOK]).run()?.text())
            }
        };
        let ours = look(lighter_test::WASMTIME, true)?;
        assert!(
            ours.contains("Seccomp:\t2") && ours.contains("7777"),
            "{ours}"
        );
        assert_eq!(ours, look(RUNC, true)?, "exec under runc");
        assert_eq!(
            ours,
            look(lighter_test::WASMTIME, false)?,
            "the container's own process"
        );
    }
    Ok(())
}

fn user_namespace(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    for args in HOSTS {
        let host = running(engine.container(&rootfs).args(args).spec(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.push(json!({"type": "user"}));
            let ids = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
            spec["linux"]["uidMappings"] = ids.clone();
            spec["linux"]["gidMappings"] = ids;
        }))?;
        let exec = host.exec(["/tool.wasm", "sleep", "1000"])?.add()?;
        let pid = exec.start()?;
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/user"))?;
        assert_eq!(
            theirs,
            std::fs::read_link(format!("/proc/{}/ns/user", host.pid()))?
        );
        assert_ne!(theirs, std::fs::read_link("/proc/self/ns/user")?);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        assert!(status.contains("Uid:\t200000\t200000\t"), "{status}");
        let text = host.exec(["sh", "-c", "id -u"])?.run()?.text();
        assert_eq!(text, "0\n");
        let output = host.exec(["sh", "-c", "tty"])?.terminal().run()?;
        assert_eq!(output.text(), "/dev/pts/0\r\n");
    }
    Ok(())
}

fn signals(engine: &Containerd) -> Result<()> {
    for host in hosts(engine) {
        let host = host?;
        for (signal, status) in [
            (Signal::SIGTERM, 143),
            (Signal::SIGINT, 130),
            (Signal::SIGKILL, 137),
        ] {
            let exec = host.exec(["/tool.wasm", "loop"])?.start()?;
            exec.wait_for_output("looping")?;
            exec.kill(signal)?;
            assert_eq!(exec.wait()?.status, status);
            let error = exec.kill(signal).unwrap_err();
            assert_eq!(code(&error), Code::NotFound, "{error:#}");
        }
        // The container is as before.
        assert_eq!(host.exec(["/tool.wasm", "exit", "0"])?.run()?.status, 0);
    }
    Ok(())
}

fn states(engine: &Containerd) -> Result<()> {
    for host in hosts(engine) {
        let host = host?;
        let mut exec = host
            .exec(["/tool.wasm", "sleep", "1000"])?
            .id("one")
            .add()?;
        let created = exec.state()?;
        assert_eq!(
            (created.status().as_str_name(), created.pid),
            ("CREATED", 0)
        );
        let error = exec.kill(Signal::SIGTERM).unwrap_err();
        assert_eq!(code(&error), Code::FailedPrecondition, "{error:#}");
        let doubled = host
            .exec(["/tool.wasm", "args"])?
            .id("one")
            .add()
            .err()
            .unwrap();
        assert_eq!(code(&doubled), Code::AlreadyExists, "{doubled:#}");
        let pid = exec.start()?;
        let state = exec.state()?;
        assert_eq!((state.status().as_str_name(), state.pid), ("RUNNING", pid));
        assert!(exec.start().is_err());
        assert!(exec.delete().is_err(), "it runs");
        exec.kill(Signal::SIGKILL)?;
        let exit = exec.wait()?;
        let state = exec.state()?;
        assert_eq!(
            (state.status().as_str_name(), state.exit_status),
            ("STOPPED", 137)
        );
        assert_eq!(state.exited_at, exit.at);
        assert_eq!(exec.delete()?, exit);
        assert_eq!(code(&exec.state().unwrap_err()), Code::NotFound);
        // The id is free again; a process that never ran can be deleted.
        let mut never = host.exec(["/tool.wasm", "args"])?.id("one").add()?;
        never.delete()?;
    }
    Ok(())
}

fn events(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let events = |runtime: &str| -> Result<Vec<String>> {
        let builder = engine.container(&rootfs).runtime(runtime);
        let host = running(builder.args(["/bin/sh", "-c", "sleep 1000"]))?;
        let output = host.exec(["sh", "-c", "exit 5"])?.id("quick").run()?;
        assert_eq!(output.status, 5);
        let exited = |event: &Event| matches!(event, Event::Exit(exit) if exit.id == "quick");
        let came = eventually("the exit", || {
            let events = host.events();
            events.iter().any(exited).then_some(events)
        })?;
        let told = came.iter().map(|event| match event {
            Event::Exit(exit) => format!("exit {} {}", exit.id, exit.exit_status),
            other => other.name().to_owned(),
        });
        Ok(told.collect())
    };
    let ours = events(lighter_test::WASMTIME)?;
    assert_eq!(
        ours,
        [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit quick 5"
        ]
    );
    assert_eq!(ours, events(RUNC)?);
    Ok(())
}

fn programs_that_cannot_run(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?
        .file("/broken.wasm", b"\0asm broken")
        .folder("/dir", 0o755);
    for args in HOSTS {
        let host = running(engine.container(&rootfs).args(args))?;
        for (program, words) in [
            ("missing", "executable file not found in $PATH"),
            ("/missing", "no such file or directory"),
            ("/dir", "directory"),
            ("/broken.wasm", "broken.wasm"),
        ] {
            let mut exec = host.exec([program])?.add()?;
            let error = format!("{:#}", exec.start().unwrap_err());
            assert!(
                error.contains(words) && error.contains("exec failed"),
                "{error}"
            );
            exec.wait()?;
            exec.delete()?;
        }
        let exec = host
            .exec(["/tool.wasm", "args"])?
            .with("/cwd", json!("/nowhere"))
            .add()?;
        let error = format!("{:#}", exec.start().unwrap_err());
        assert!(error.contains("/nowhere"), "{error}");
        // What failed has left no process.
        eventually("only the container's own processes", || {
            (host.pids().ok()?.len() <= 2).then_some(())
        })?;
    }
    Ok(())
}

fn an_end_with_the_container(engine: &Containerd) -> Result<()> {
    for shared in [false, true] {
        for args in HOSTS {
            let rootfs = Rootfs::guests()?;
            let mut builder = engine.container(&rootfs).args(args);
            if shared {
                builder = builder.spec(|spec| {
                    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
                    namespaces.retain(|namespace| namespace["type"] != "pid");
                });
            }
            let host = running(builder)?;
            let exec = host
                .exec(["/tool.wasm", "sleep", "1000"])?
                .id("inner")
                .add()?;
            let pid = exec.start()?;
            host.kill(Signal::SIGKILL)?;
            assert_eq!(host.wait()?.status, 137);
            assert_eq!(exec.wait()?.status, 137);
            ensure_dead(pid)?;
            host.wait_for_event("exit")?;
            let exits: Vec<String> = eventually("both exits", || {
                let exits: Vec<String> = host
                    .events()
                    .iter()
                    .filter_map(|event| match event {
                        Event::Exit(exit) => Some(exit.id.clone()),
                        _ => None,
                    })
                    .collect();
                (exits.len() == 2).then_some(exits)
            })?;
            assert_eq!(exits, ["inner", host.id()], "the init is told of last");
            let error = host
                .exec(["/tool.wasm", "args"])?
                .add()
                .and_then(|exec| exec.start());
            assert!(error.is_err(), "exec in a stopped container");
        }
    }
    Ok(())
}

fn many_at_once(engine: &Containerd) -> Result<()> {
    for host in hosts(engine) {
        let host = host?;
        let id = host.id().to_owned();
        std::thread::scope(|scope| -> Result<()> {
            let runs: Vec<_> = (0..12)
                .map(|number| {
                    let host = &host;
                    scope.spawn(move || -> Result<()> {
                        let number = number.to_string();
                        let args = ["/tool.wasm", "exit", &number];
                        assert_eq!(host.exec(args)?.run()?.status.to_string(), number);
                        let script = format!("exit {number}");
                        let output = host.exec(["sh", "-c", &script])?.run()?;
                        assert_eq!(output.status.to_string(), number);
                        Ok(())
                    })
                })
                .collect();
            for run in runs {
                run.join().expect("no exec panics")?;
            }
            Ok(())
        })?;
        drop(host);
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// The real client.
fn by_hand(engine: &Containerd) -> Result<()> {
    for host in hosts(engine) {
        let host = host?;
        for (args, told) in [
            (vec!["/tool.wasm", "args", "x"], "/tool.wasm\nargs\nx\n"),
            (vec!["sh", "-c", "echo from sh"], "from sh\n"),
        ] {
            let mut line = vec!["tasks", "exec", "--exec-id", "typed", host.id()];
            line.extend(args);
            let output = engine.run_ctr(line)?;
            assert_eq!(String::from_utf8_lossy(&output.stdout), told);
            assert!(output.status.success(), "{output:?}");
        }
    }
    Ok(())
}

/// A process has ended when it has, whoever it leaves behind with its streams.
fn an_end_before_those_it_leaves(engine: &Containerd) -> Result<()> {
    let host = running(engine.container(&Rootfs::guests()?).args(HOSTS[1]))?;
    let script = "trap '' HUP; while :; do echo more; sleep 0.1; done & exit 6";
    let exec = || host.exec(["/bin/sh", "-c", script]);
    let (mut piped, mut in_terminal) = (exec()?.start()?, exec()?.terminal().start()?);
    for exec in [&piped, &in_terminal] {
        assert_eq!(exec.wait()?.status, 6);
        assert_eq!(exec.state()?.status(), Status::Stopped);
    }
    // As under runc, after ten seconds.
    assert_eq!(piped.delete()?.status, 6);
    host.kill(Signal::SIGKILL)?;
    assert_eq!(host.wait()?.status, 137);
    assert_eq!(in_terminal.delete()?.status, 6);
    Ok(())
}

/// The end of a container does not wait for whoever should read what a process in it has written.
fn an_end_that_nobody_reads_of(engine: &Containerd) -> Result<()> {
    let host = running(engine.container(&Rootfs::guests()?).args(HOSTS[1]))?;
    let folder = tempfile::tempdir_in(engine.folder())?;
    let fifo = folder.path().join("out");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let out = fifo.display().to_string();
    let exec = host.exec(["/bin/yes"])?.streams("", &out, "").add()?;
    let pid = exec.start()?;
    eventually("the process waits in a write", || {
        let state = fs::read_to_string(format!("/proc/{pid}/wchan")).ok()?;
        state.contains("pipe_w").then_some(())
    })?;
    let begin = Instant::now();
    host.kill(Signal::SIGKILL)?;
    assert_eq!(exec.wait()?.status, 137);
    assert_eq!(host.wait()?.status, 137);
    // Ten seconds are for its delete, which is not waited for here.
    assert!(begin.elapsed() < Duration::from_secs(9));
    std::mem::forget(exec);
    host.finish()?;
    Ok(())
}

/// A daemon that serves others after it keeps nothing of a container, also where its client has gone before it
/// deleted the processes that it added.
fn not_deleted_with_the_container(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    let pod = engine.new_id("pod");
    let first = running(engine.container(&rootfs).pod(&pod).args(HOSTS[1]))?;
    let daemons = engine.shims_of(first.id());
    let descriptors = || {
        let folders = daemons.iter().map(|pid| format!("/proc/{pid}/fd"));
        folders
            .map(|folder| fs::read_dir(folder).map_or(0, Iterator::count))
            .sum::<usize>()
    };
    let life = || -> Result<()> {
        let host = running(engine.container(&rootfs).pod(&pod).args(HOSTS[1]))?;
        for args in [["/bin/sleep", "0"], ["/bin/sleep", "1000"]] {
            let exec = host.exec(args)?.input(Input::Fed).start()?;
            std::mem::forget(exec);
        }
        host.kill(Signal::SIGKILL)?;
        host.finish()?;
        Ok(())
    };
    life()?;
    let before = descriptors();
    for _ in 0..5 {
        life()?;
    }
    eventually("they are closed", || {
        (descriptors() <= before).then_some(())
    })
    .with_context(|| format!("{} descriptors, {before} before", descriptors()))?;
    first.kill(Signal::SIGKILL)?;
    first.finish()?;
    Ok(())
}
