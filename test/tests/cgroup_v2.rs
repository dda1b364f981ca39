//! The tests of containers run again on a machine whose cgroups are v2 and whose
//! init is systemd: a user-mode Linux, see test/uml/run. With them run those that
//! need such a machine, in the module [`inside`].
//!
//! Each test here boots a machine, runs a test program in it and shows what that
//! prints.

use std::{
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use lighter_test::{ensure_root, repository};

/// How long a machine may take from its boot to its halt, in seconds.
const LIMIT: &str = "900";

#[test]
fn cgroups() -> Result<()> {
    let program = std::env::current_exe()?;
    run("cgroups", &program, &["--ignored", "inside::"])
}

#[test]
fn memory() -> Result<()> {
    again("memory", &["containerd_2_1::"])
}

#[test]
fn pause() -> Result<()> {
    again("pause", &["containerd_2_1::"])
}

#[test]
fn update() -> Result<()> {
    again("update", &["containerd_2_1::"])
}

#[test]
fn stats() -> Result<()> {
    again("stats", &["containerd_2_1::"])
}

#[test]
fn recovery() -> Result<()> {
    again("recovery", &["containerd_2_1::"])
}

#[test]
fn many() -> Result<()> {
    // Two hundred in a row would take minutes on this machine's one processor.
    again("many", &["containerd_2_1::twenty_at_a_time"])
}

#[test]
fn linux() -> Result<()> {
    // What of these depends on cgroups or on systemd's shared mounts.
    let tests = [
        "capabilities",
        "cgroups_in_view",
        "devices",
        "mount_options",
        "propagation",
    ];
    let tests = tests.map(|test| format!("containerd_2_1::{test}"));
    again("linux", &tests.each_ref().map(String::as_str))
}

/// Runs tests of `test/tests/NAME.rs`, chosen by arguments of its program.
fn again(name: &str, arguments: &[&str]) -> Result<()> {
    run(name, &test_program(name)?, arguments)
}

/// The program that cargo builds of `test/tests/NAME.rs`.
///
/// # Errors
/// It does not build.
fn test_program(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    // Of the whole workspace, as in the Makefile: with a part of it cargo would
    // choose other features of dependencies and build these once more.
    let output = Command::new(cargo)
        .args(["test", "--release", "--workspace", "--locked"])
        .args(["--test", name, "--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(
        output.status.success(),
        "cargo cannot build the test program {name}"
    );
    for line in output.stdout.split(|&byte| byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        if message["reason"] == "compiler-artifact"
            && message["manifest_path"] == concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")
            && message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo does not say where it put the test program {name}")
}

/// Runs a test program in a machine of its own. What it prints goes to standard
/// output line by line, also when the output of tests is captured: it is the
/// only sign of life for minutes.
///
/// # Errors
/// The machine does not come up or takes too long; a test in it fails; no test
/// in it ran.
fn run(title: &str, program: &Path, arguments: &[&str]) -> Result<()> {
    ensure_root()?;
    let mut machine = Command::new("setpriv")
        // The machine must not outlive this program, even if that is killed.
        .args(["--pdeathsig", "KILL"])
        .arg(repository().join("test/uml/run"))
        .arg(LIMIT)
        .arg(program)
        .args(["--color", "never"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start setpriv, of the package util-linux")?;
    let output = machine.stdout.take().context("its output is piped")?;
    let mut passed = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(io::stdout(), "cgroup v2, {title}: {line}")?;
        if let Some(result) = line.strip_prefix("test result: ok. ") {
            passed = result
                .split(' ')
                .next()
                .and_then(|count| count.parse().ok());
        }
    }
    let status = machine.wait()?;
    ensure!(
        status.success(),
        "{title} failed on cgroup v2: {status}; see its output above"
    );
    let passed: usize = passed.context("the machine ran no test program")?;
    ensure!(passed > 0, "no test of {title} ran on cgroup v2");
    Ok(())
}

/// What only a machine with cgroup v2 and systemd can show.
mod inside {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use anyhow::{Context, Result, ensure};
    use lighter_test::{
        Builder, Containerd, Rootfs, Version, ensure_root, eventually,
        leaks::{ensure_dead, open_files},
        metrics,
        options::RuncOptions,
    };
    use nix::{
        errno::Errno,
        sys::inotify::{AddWatchFlags, InitFlags, Inotify},
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    use serde_json::json;

    const MEBIBYTE: u64 = 1 << 20;

    fn engine() -> Result<std::sync::Arc<Containerd>> {
        ensure_root()?;
        ensure!(
            lighter_test::cgroup::unified(),
            "this machine has no cgroup v2: the test cgroup_v2 runs this in one that has"
        );
        Containerd::shared(Version::V2_1)
    }

    /// A Linux container and a guest that wait.
    fn waiting(engine: &Containerd) -> Result<[Builder<'_>; 2]> {
        Ok([
            engine
                .container(&Rootfs::busybox())
                .args(["/bin/sleep", "1000"]),
            engine
                .container(&Rootfs::guests()?)
                .args(["/tool.wasm", "sleep", "1000"]),
        ])
    }

    /// Lets systemd make the container's cgroup: the scope [`unit`] in system.slice.
    fn by_systemd(builder: Builder<'_>) -> Builder<'_> {
        let options = RuncOptions {
            systemd_cgroup: true,
            ..Default::default()
        };
        let path = format!("system.slice:lighter:{}", builder.get_id());
        builder
            .options(options.any())
            .spec(|spec| spec["linux"]["cgroupsPath"] = json!(path))
    }

    fn unit(id: &str) -> String {
        format!("lighter-{id}.scope")
    }

    fn folder(id: &str) -> PathBuf {
        PathBuf::from("/sys/fs/cgroup/system.slice").join(unit(id))
    }

    /// A property of the container's scope, as systemd knows it.
    fn property(id: &str, name: &str) -> Result<String> {
        let arguments = ["show", "--value", "--property", name, &unit(id)];
        Ok(lighter_test::run("systemctl", &arguments)?
            .trim()
            .to_owned())
    }

    fn ensure_no_scope(id: &str) -> Result<()> {
        eventually("systemd has removed the scope", || {
            let unknown = property(id, "LoadState").is_ok_and(|state| state == "not-found");
            (unknown && !folder(id).exists()).then_some(())
        })
    }

    /// How many files the message bus has open; every connection is one.
    fn bus_files() -> Result<usize> {
        let pid = lighter_test::run(
            "systemctl",
            &["show", "--value", "--property", "MainPID", "dbus.service"],
        )?;
        open_files(pid.trim().parse()?)
    }

    /// Limits of every kind that this kernel knows.
    fn limited(builder: Builder<'_>) -> Builder<'_> {
        builder.memory(64 * MEBIBYTE).spec(|spec| {
            let resources = &mut spec["linux"]["resources"];
            resources["memory"]["reservation"] = json!(32 * MEBIBYTE);
            resources["pids"] = json!({"limit": 50});
            resources["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
        })
    }

    /// Fails unless [`limited`] is what the kernel holds a container to.
    fn ensure_limited(folder: &Path) -> Result<()> {
        for (file, value) in [
            ("memory.max", (64 * MEBIBYTE).to_string()),
            ("memory.low", (32 * MEBIBYTE).to_string()),
            ("memory.swap.max", 0.to_string()),
            ("pids.max", 50.to_string()),
            ("cpu.max", "50000 100000".to_owned()),
        ] {
            let path = folder.join(file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(text.trim_end() == value, "{file} is {text:?}, not {value}");
        }
        let weight = fs::read_to_string(folder.join("cpu.weight"))?;
        // Half of the usual shares, 1024, is less than the usual weight.
        ensure!(
            weight.trim_end().parse::<u32>()? < 100,
            "cpu.weight is {weight}"
        );
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn limits() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = limited(builder).create()?;
            container.start()?;
            let path = Path::new(engine.namespace()).join(container.id());
            let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()))?;
            assert_eq!(cgroup, format!("0::/{}\n", path.display()));
            ensure_limited(&Path::new("/sys/fs/cgroup").join(path))?;
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn an_init_is_born_in_its_cgroup() -> Result<()> {
        let engine = engine()?;
        let parent = Path::new("/sys/fs/cgroup/born");
        fs::create_dir_all(parent)?;
        fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
        for builder in waiting(&engine)? {
            let path = Path::new("/born").join(builder.get_id());
            let folder = parent.join(builder.get_id());
            fs::create_dir(&folder)?;
            let watch = Inotify::init(InitFlags::IN_NONBLOCK)?;
            watch.add_watch(&folder, AddWatchFlags::IN_MODIFY)?;
            let container = limited(builder)
                .spec(|spec| spec["linux"]["cgroupsPath"] = json!(path))
                .create()?;
            let events = watch.read_events()?;
            let written: Vec<_> = events.into_iter().filter_map(|event| event.name).collect();
            ensure!(written.contains(&"pids.max".into()), "only {written:?}");
            // Whoever writes there waits for the kernel's lock of moves.
            ensure!(!written.contains(&"cgroup.procs".into()), "{written:?}");
            let processes = fs::read_to_string(folder.join("cgroup.procs"))?;
            assert_eq!(processes.trim_end(), container.pid().to_string());
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
        }
        fs::remove_dir(parent)?;
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_sets_limits() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = limited(by_systemd(builder)).create()?;
            container.start()?;
            let id = container.id();
            let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()))?;
            assert_eq!(cgroup, format!("0::/system.slice/{}\n", unit(id)));
            ensure_limited(&folder(id))?;
            // systemd must know them, or it undoes them when it next sets its own.
            assert_eq!(property(id, "ActiveState")?, "active");
            assert_eq!(property(id, "Slice")?, "system.slice");
            assert_eq!(property(id, "MemoryMax")?, (64 * MEBIBYTE).to_string());
            assert_eq!(property(id, "TasksMax")?, "50");
            assert_eq!(property(id, "CPUQuotaPerSecUSec")?, "500ms");
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_takes_new_limits() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = by_systemd(builder).create()?;
            container.start()?;
            let id = container.id();
            container.update(json!({
                "memory": {"limit": 64 * MEBIBYTE, "swap": 64 * MEBIBYTE,
                           "reservation": 32 * MEBIBYTE},
                "pids": {"limit": 50},
                "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
                "unified": {"memory.high": (48 * MEBIBYTE).to_string()},
            }))?;
            ensure_limited(&folder(id)).context("after the update")?;
            assert_eq!(property(id, "MemoryMax")?, (64 * MEBIBYTE).to_string());
            assert_eq!(property(id, "MemoryHigh")?, (48 * MEBIBYTE).to_string());
            assert_eq!(property(id, "TasksMax")?, "50");
            assert_eq!(property(id, "CPUQuotaPerSecUSec")?, "500ms");
            // It sets what it knows of all units.
            lighter_test::run("systemctl", &["daemon-reload"])?;
            ensure_limited(&folder(id)).context("after a reload")?;
            container.update(json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}))?;
            assert_eq!(property(id, "MemoryMax")?, "infinity");
            assert_eq!(property(id, "CPUQuotaPerSecUSec")?, "infinity");
            let limit = fs::read_to_string(folder(id).join("memory.max"))?;
            assert_eq!(limit, "max\n");
            container.kill(Signal::SIGKILL)?;
            let id = id.to_owned();
            assert_eq!(container.finish()?.status, 137);
            ensure_no_scope(&id)?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_cgroups_have_figures() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = by_systemd(builder).memory(64 * MEBIBYTE).create()?;
            container.start()?;
            let figures = metrics::v2(&container.stats()?)?;
            let memory = figures.memory.context("figures of memory")?;
            assert_eq!(memory.usage_limit, 64 * MEBIBYTE);
            assert!((1..64 * MEBIBYTE).contains(&memory.usage), "{memory:?}");
            let pids = figures.pids.context("figures of processes")?;
            assert!(pids.current >= 1, "{pids:?}");
            let listed = container.pids()?;
            assert!(listed.contains(&container.pid()), "{listed:?}");
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_cgroups_are_frozen() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = by_systemd(builder).create()?;
            container.start()?;
            let id = container.id().to_owned();
            let frozen = || -> Result<bool> {
                let events = fs::read_to_string(folder(&id).join("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            };
            container.pause()?;
            ensure!(frozen()?);
            container.resume()?;
            ensure!(!frozen()?);
            container.pause()?;
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
            ensure_no_scope(&id)?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_cgroups_run_out_of_memory() -> Result<()> {
        let engine = engine()?;
        let guests = Rootfs::guests()?;
        let greedy = |_| {
            [
                engine.container(&Rootfs::busybox()).args([
                    "/bin/dd",
                    "if=/dev/zero",
                    "of=/dev/null",
                    "bs=200M",
                    "count=1",
                ]),
                engine
                    .container(&guests)
                    .args(["/tool.wasm", "alloc", "200"]),
            ]
        };
        for builder in (0..5).flat_map(greedy) {
            let container = by_systemd(builder).memory(48 * MEBIBYTE).create()?;
            container.start()?;
            // systemd removes the scope as soon as it is empty, and may be ahead of the shim, which
            // reads there why the process was killed.
            container.wait_for_event("oom")?;
            container.wait_for_event("exit")?;
            let id = container.id().to_owned();
            assert_eq!(container.finish()?.status, 137);
            ensure_no_scope(&id)?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_has_nothing_left_of_a_container() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = by_systemd(builder).create()?;
            container.start()?;
            let id = container.id().to_owned();
            assert!(
                folder(&id).exists(),
                "{} while it runs",
                folder(&id).display()
            );
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
            engine.ensure_gone(&id)?;
            ensure_no_scope(&id)?;
        }
        Ok(())
    }

    /// The bus allows a user so many connections: a container must not hold one.
    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_is_not_kept_on_the_line() -> Result<()> {
        let engine = engine()?;
        let before = bus_files()?;
        let mut containers = Vec::new();
        for builder in waiting(&engine)?.into_iter().chain(waiting(&engine)?) {
            let container = by_systemd(builder).create()?;
            container.start()?;
            containers.push(container);
        }
        eventually("connections to the bus are closed", || {
            (bus_files().ok()? <= before).then_some(())
        })
        .with_context(|| format!("{before} before, {:?} now", bus_files()))?;
        for container in containers {
            container.kill(Signal::SIGKILL)?;
            assert_eq!(container.finish()?.status, 137);
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn systemd_has_nothing_left_when_the_shim_is_killed() -> Result<()> {
        let engine = engine()?;
        for builder in waiting(&engine)? {
            let container = by_systemd(builder).create()?;
            container.start()?;
            let id = container.id().to_owned();
            let shims = engine.shims_of(&id);
            assert!(!shims.is_empty(), "the shim of {id} runs");
            for shim in shims {
                // The end of one process of the shim may be the end of others.
                match kill(Pid::from_raw(shim as i32), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            container.wait_for_event("exit")?;
            ensure_dead(container.pid())?;
            ensure_no_scope(&id)?;
        }
        Ok(())
    }

    /// A container may make device nodes, but open only those that its
    /// specification allows; on v2 a BPF program decides that.
    #[test]
    #[ignore = "needs cgroup v2 and systemd"]
    fn devices_are_kept_from_containers() -> Result<()> {
        let engine = engine()?;
        // 1:5 is allowed by the default specification, 1:11 is the kernel's log.
        let script = "busybox mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero >/dev/null && echo zero
            busybox mknod /tmp/log c 1 11
            cat /dev/null </tmp/log && echo reads
            cat /dev/null >>/tmp/log && echo writes
            true";
        let container = || {
            engine
                .container(&Rootfs::busybox())
                .args(["/bin/sh", "-c", script])
                .spec(|spec| {
                    let rules = spec["linux"]["resources"]["devices"].as_array_mut();
                    // Making nodes is harmless and allowed by Docker; so it is not this
                    // that keeps the log from the container.
                    rules.into_iter().for_each(|rules| {
                        rules.push(json!({"allow": true, "type": "c", "access": "m"}));
                    });
                })
        };
        for builder in [container(), by_systemd(container())] {
            let output = builder.run()?;
            assert_eq!(output.text(), "zero\n", "{}", output.errors());
            let refused = output.errors().matches("Operation not permitted").count();
            assert_eq!(refused, 2, "{}", output.errors());
        }
        // The same with a rule for the log, which shows that it is the rules that decide.
        let output = container()
            .spec(|spec| {
                let rules = spec["linux"]["resources"]["devices"].as_array_mut();
                rules.into_iter().for_each(|rules| {
                    rules.push(json!({
                        "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r",
                    }));
                });
            })
            .run()?;
        assert_eq!(output.text(), "zero\nreads\n", "{}", output.errors());
        Ok(())
    }
}
