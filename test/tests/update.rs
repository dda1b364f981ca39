//! New limits for running containers. What a request does is what containerd's own runtime does with
//! it, as the kernel's files tell.

use std::fs;

use anyhow::{Context, Result, ensure};
use containerd_client::tonic::Code;
use lighter_test::{
    Builder, Container, Containerd, RUNC, Rootfs, cgroup, code, each_containerd, eventually,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

each_containerd!(
    as_runc_does,
    in_every_state,
    limits_hold,
    refused,
    beyond_runc,
);

const MB: u64 = 1 << 20;

/// A Linux container and a guest that wait.
fn waiting(engine: &Containerd) -> Result<[Builder<'_>; 2]> {
    Ok([
        engine
            .container(&Rootfs::guests()?)
            .args(["/bin/sleep", "1000"]),
        engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "sleep", "1000"]),
    ])
}

/// The files in which the two runtimes must agree.
fn files() -> &'static [(&'static str, &'static str)] {
    // cpu.weight is left out: runc before 1.3.2 computes it from shares by another formula.
    const V2: &[(&str, &str)] = &[
        ("", "cpu.max"),
        ("", "memory.max"),
        ("", "memory.low"),
        ("", "memory.swap.max"),
        ("", "pids.max"),
    ];
    const V1: &[(&str, &str)] = &[
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpuset", "cpuset.cpus"),
        ("cpuset", "cpuset.mems"),
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("memory", "memory.soft_limit_in_bytes"),
        ("pids", "pids.max"),
    ];
    if cgroup::unified() { V2 } else { V1 }
}

fn limits(container: &Container<'_>) -> Result<Vec<String>> {
    let read = |(controller, file): &(&str, &str)| {
        // A kernel may lack swap.
        let text = container.cgroup_file(controller, file).unwrap_or_default();
        format!("{file}: {text}")
    };
    Ok(files().iter().map(read).collect())
}

/// One request after the other to one container, and what the limits are after each.
fn history(container: Container<'_>) -> Result<Vec<(Value, Vec<String>)>> {
    container.start()?;
    let mut history = vec![(Value::Null, limits(&container)?)];
    let requests = [
        json!({"memory": {"limit": 64 * MB}}),
        // Above the limit of before, so both must rise together; and below again.
        json!({"memory": {"limit": 128 * MB, "swap": 256 * MB}}),
        json!({"memory": {"limit": 512 * MB, "swap": 512 * MB}}),
        json!({"memory": {"limit": 48 * MB, "swap": 96 * MB}}),
        json!({"memory": {"reservation": 32 * MB}}),
        json!({"memory": {"limit": -1, "swap": -1}}),
        json!({"memory": {"limit": 100 * MB, "swap": -1}}),
        json!({"memory": {"limit": -1}}),
        json!({"cpu": {"quota": 50_000, "period": 100_000}}),
        json!({"cpu": {"quota": 20_000}}),
        json!({"cpu": {"period": 50_000}}),
        json!({"cpu": {"quota": 300_000, "period": 600_000}}),
        json!({"cpu": {"quota": 5_000, "period": 10_000}}),
        json!({"cpu": {"quota": -1}}),
        json!({"cpu": {"shares": 512}}),
        json!({"pids": {"limit": 20}}),
        json!({"pids": {"limit": -1}}),
        // What is zero or empty, or of another kind, changes nothing.
        json!({"pids": {"limit": 0}, "memory": {"limit": 0}, "cpu": {"shares": 0, "cpus": ""}}),
        json!({"devices": [{"allow": false, "access": "rwm"}]}),
        json!({}),
    ];
    let cpusets = [
        json!({"cpu": {"cpus": "0"}}),
        json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
    ];
    let cpusets = cpusets.into_iter().filter(|_| !cgroup::unified());
    for request in requests.into_iter().chain(cpusets) {
        container
            .update(request.clone())
            .with_context(|| request.to_string())?;
        history.push((request, limits(&container)?));
    }
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(history)
}

fn as_runc_does(engine: &Containerd) -> Result<()> {
    let [linux, guest] = waiting(engine)?;
    let model = engine
        .container(&Rootfs::guests()?)
        .runtime(RUNC)
        .args(["/bin/sleep", "1000"]);
    let right = history(model.create()?)?;
    let changes = right.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    ensure!(changes.count() >= 14, "too little happens: {right:#?}");
    for builder in [linux, guest] {
        for (ours, theirs) in history(builder.create()?)?.into_iter().zip(&right) {
            assert_eq!(&ours, theirs);
        }
    }
    Ok(())
}

fn memory_limit(container: &Container<'_>) -> Result<u64> {
    let file = match cgroup::unified() {
        true => "memory.max",
        false => "memory.limit_in_bytes",
    };
    let text = container.cgroup_file("memory", file)?;
    text.parse().with_context(|| text)
}

/// A container's limits may be changed from its create to its end.
fn in_every_state(engine: &Containerd) -> Result<()> {
    for builder in waiting(engine)? {
        let container = builder.create()?;
        let set = |bytes: u64| container.update(json!({"memory": {"limit": bytes}}));
        set(64 * MB).context("created")?;
        assert_eq!(memory_limit(&container)?, 64 * MB);
        container.start()?;
        set(65 * MB).context("running")?;
        assert_eq!(memory_limit(&container)?, 65 * MB);
        container.pause()?;
        set(66 * MB).context("paused")?;
        assert_eq!(memory_limit(&container)?, 66 * MB);
        container.resume()?;
        container.kill(Signal::SIGKILL)?;
        container.wait()?;
        let error = format!("{:#}", set(67 * MB).unwrap_err());
        assert!(
            error.contains("cannot update a stopped container"),
            "{error}"
        );
        container.finish()?;
    }
    Ok(())
}

/// New limits are those that the kernel goes by.
fn limits_hold(engine: &Containerd) -> Result<()> {
    // Memory: the guest asks for more than it is left, once it is told to.
    let container = engine
        .container(&Rootfs::guests()?)
        .args([
            "/bin/sh",
            "-c",
            "echo ready; read go; exec /bin/dd if=/dev/zero of=/dev/null bs=200M count=1",
        ])
        .stdin(lighter_test::Input::Fed)
        .create()?;
    container.start()?;
    container.wait_for_output("ready")?;
    container.update(json!({"memory": {"limit": 32 * MB, "swap": 32 * MB}}))?;
    container.feed(b"go\n");
    container.wait_for_event("oom")?;
    assert_eq!(container.finish()?.status, 137);

    // Processes.
    let script = "echo ready; read go; sleep 1000 & sleep 1000 & sleep 1000 & wait";
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sh", "-c", script])
        .stdin(lighter_test::Input::Fed)
        .create()?;
    container.start()?;
    container.wait_for_output("ready")?;
    container.update(json!({"pids": {"limit": 2}}))?;
    container.feed(b"go\n");
    eventually("a fork fails", || {
        container.stderr().contains("fork").then_some(())
    })?;
    // The shell ends of it, and its children with it.
    assert_ne!(container.finish()?.status, 0);

    // Processor time.
    let guest = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "loop"])
        .create()?;
    guest.start()?;
    guest.update(json!({"cpu": {"quota": 2_000, "period": 100_000}}))?;
    eventually("it is held back", || {
        let stat = guest.cgroup_file("cpu", "cpu.stat").ok()?;
        let throttled = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "))?;
        (throttled.parse::<u64>().ok()? > 2).then_some(())
    })?;
    guest.kill(Signal::SIGKILL)?;
    guest.finish()?;
    Ok(())
}

/// What cannot be set is named, and nothing else of the request is left.
fn refused(engine: &Containerd) -> Result<()> {
    for builder in waiting(engine)? {
        let container = builder.create()?;
        container.start()?;
        let before = limits(&container)?;
        let unknown = match cgroup::unified() {
            true => "memory.nonsense",
            false => "memory.high",
        };
        for (request, words) in [
            (
                json!({"cpu": {"quota": 50_000, "period": 100_000}, "memory": {"limit": 64 * MB},
                       "hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}),
                "hugetlb",
            ),
            (json!({"cpu": {"period": 7}}), "invalid argument"),
            (
                json!({"pids": {"limit": 20}, "unified": {unknown: "1"}}),
                unknown,
            ),
            (json!({"memory": {"limit": "much"}}), "much"),
        ] {
            let error = container.update(request.clone()).unwrap_err();
            assert_eq!(code(&error), Code::Unknown, "{error:#}");
            let text = format!("{error:#}").to_lowercase();
            assert!(text.contains(words), "{request}: {text}");
            assert_eq!(limits(&container)?, before, "{request}");
        }
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

/// Limits that runc 1.1 does not know, and those whose file depends on the machine.
fn beyond_runc(engine: &Containerd) -> Result<()> {
    let device = fs::read_to_string("/proc/partitions")?;
    // A whole disk, if this machine has one.
    let disk = device.lines().skip(2).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (major, minor) = (fields.next()?, fields.next()?);
        let name = fields.nth(1)?;
        std::path::Path::new(&format!("/sys/block/{name}/device"))
            .exists()
            .then(|| (major.to_owned(), minor.to_owned()))
    });
    for builder in waiting(engine)? {
        let container = builder.create()?;
        container.start()?;
        let burst = match cgroup::unified() {
            true => "cpu.max.burst",
            false => "cpu.cfs_burst_us",
        };
        container.update(json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 10_000}}))?;
        assert_eq!(container.cgroup_file("cpu", burst)?, "10000");
        // The burst must not be above the quota, so it goes first now.
        container.update(json!({"cpu": {"quota": 5_000, "period": 100_000, "burst": 1_000}}))?;
        assert_eq!(container.cgroup_file("cpu", burst)?, "1000");
        container.update(json!({"cpu": {"idle": 1}}))?;
        assert_eq!(container.cgroup_file("cpu", "cpu.idle")?, "1");
        container.update(json!({"cpu": {"shares": 1024, "idle": 0}}))?;
        assert_eq!(container.cgroup_file("cpu", "cpu.idle")?, "0");
        if cgroup::unified() {
            assert_eq!(container.cgroup_file("", "cpu.weight")?, "100");
            let high = 77 * MB;
            container.update(json!({"unified": {"memory.high": high.to_string()}}))?;
            assert_eq!(container.cgroup_file("", "memory.high")?, high.to_string());
        }
        if let Some((major, minor)) = &disk {
            let device = json!({"major": major.parse::<u32>()?, "minor": minor.parse::<u32>()?,
                                "rate": MB});
            container.update(json!({"blockIO": {"throttleReadBpsDevice": [device]}}))?;
            let (file, line) = match cgroup::unified() {
                true => ("io.max", format!("{major}:{minor} rbps={MB} ")),
                false => (
                    "blkio.throttle.read_bps_device",
                    format!("{major}:{minor} {MB}"),
                ),
            };
            let text = container.cgroup_file("blkio", file)?;
            ensure!(text.contains(&line), "{text}");
        }
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}
