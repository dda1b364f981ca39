//! Memory limits, the OOM event, and the figures of a running task.

use std::fs;

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Containerd, Rootfs, cgroup, each_containerd, metrics, options::RuncOptions, run,
};
use nix::sys::signal::Signal;

each_containerd!(
    limit,
    within_the_limit,
    too_little_to_begin,
    too_little_for_the_shim,
    figures,
    processes
);

const MB: u64 = 1 << 20;

fn limit(engine: &Containerd) -> Result<()> {
    for tool in ["/tool.wasm", "/tool-component.wasm"] {
        let container = engine
            .container(&Rootfs::guests()?)
            .args([tool, "alloc", "256", "1000"])
            .memory(64 * MB)
            .create()?;
        let id = container.id().to_owned();
        container.start()?;
        assert_eq!(container.wait()?.status, 137, "{tool}");
        container.finish()?;
        engine.recorder().wait_for(&id, "delete")?;
        engine.recorder().wait_for(&id, "oom")?;
        let events = engine.recorder().of(&id);
        let count = |name: &str| events.iter().filter(|event| event.name() == name).count();
        for name in ["create", "start", "oom", "exit", "delete"] {
            assert_eq!(count(name), 1, "{name} in {events:?}");
        }
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

fn within_the_limit(engine: &Containerd) -> Result<()> {
    for tool in ["/tool.wasm", "/tool-component.wasm"] {
        let container = engine
            .container(&Rootfs::guests()?)
            .args([tool, "alloc", "32"])
            .memory(64 * MB)
            .create()?;
        let id = container.id().to_owned();
        container.start()?;
        assert_eq!(container.finish()?.success()?, "allocated 32 MB\n");
        let events = engine.recorder().wait_for(&id, "delete")?;
        assert!(
            events.iter().all(|event| event.name() != "oom"),
            "{events:?}"
        );
    }
    Ok(())
}

/// A container whose limit is too low for its own birth: the error says so, and nothing stays.
fn too_little_to_begin(engine: &Containerd) -> Result<()> {
    for args in [
        &["/tool.wasm", "sleep", "1000"][..],
        &["/bin/sleep", "1000"],
    ] {
        let error = engine
            .container(&Rootfs::guests()?)
            .args(args)
            .memory(MB / 16)
            .refused()?;
        // It is ended by the limit, or has taken more before there was one.
        let told = ["memory limit is 65536", "memory limit to 65536"];
        ensure!(
            told.iter().any(|told| error.contains(told)),
            "{args:?}: {error}"
        );
    }
    Ok(())
}

/// A shim whose own cgroup is full, at one point or other of a container's life: an error, or the
/// container's exit, and nothing stays.
///
/// The program's pages are in memory already, and counted elsewhere: a kernel that has to read them into
/// so small a cgroup drops some for others without end, and kills nobody.
fn too_little_for_the_shim(engine: &Containerd) -> Result<()> {
    let mut refused = 0;
    let first = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "exit", "5"])
        .run()?;
    ensure!(first.status == 5);
    if cgroup::unified() {
        let top = cgroup::folder("memory");
        let ours = top.join(engine.namespace());
        fs::create_dir_all(&ours)?;
        for folder in [top, ours] {
            fs::write(folder.join("cgroup.subtree_control"), "+memory")?;
        }
    }
    for quarters in (1..24).step_by(2) {
        let name = format!("{}/shim-{quarters}", engine.namespace());
        let folder = cgroup::folder("memory").join(&name);
        fs::create_dir_all(&folder)?;
        let file = if cgroup::unified() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        fs::write(folder.join(file), (quarters * MB / 4).to_string())?;
        let options = RuncOptions {
            shim_cgroup: format!("/{name}"),
            ..RuncOptions::default()
        };
        let builder = engine
            .container(&Rootfs::guests()?)
            .options(options.any())
            .args(["/tool.wasm", "exit", "3"]);
        let id = builder.get_id().to_owned();
        match builder.create().and_then(|container| {
            container.start()?;
            container.finish()
        }) {
            Ok(output) => ensure!([3, 137].contains(&output.status), "{output:?}"),
            Err(_) => refused += 1,
        }
        engine
            .ensure_gone(&id)
            .with_context(|| format!("with {quarters} quarters of a megabyte"))?;
        cgroup::remove(&folder)?;
    }
    ensure!(refused > 0, "the smallest is too small");
    let next = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "exit", "6"])
        .run()?;
    ensure!(next.status == 6);
    Ok(())
}

/// The figures are those of the cgroup's own files.
fn figures(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "alloc", "20", "1000"])
        .memory(128 * MB)
        .spec(|spec| spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 50}))
        .create()?;
    container.start()?;
    container.wait_for_output("sleeping")?;
    let number = |controller: &str, file: &str| -> Result<u64> {
        let text = container.cgroup_file(controller, file)?;
        text.parse().with_context(|| format!("{file}: {text}"))
    };
    if cgroup::unified() {
        let figures = metrics::v2(&container.stats()?)?;
        let memory = figures.memory.context("memory")?;
        ensure!(memory.usage_limit == 128 * MB, "{memory:?}");
        ensure!(memory.usage_limit == number("memory", "memory.max")?);
        ensure!(
            memory.usage.abs_diff(number("memory", "memory.current")?) < 4 * MB,
            "{memory:?}"
        );
        ensure!(memory.anon >= 20 * MB, "{memory:?}");
        let pids = figures.pids.context("pids")?;
        ensure!(
            (pids.current, pids.limit) == (number("pids", "pids.current")?, 50),
            "{pids:?}"
        );
        ensure!(figures.cpu.context("cpu")?.usage_usec > 0);
    } else {
        let before = number("cpuacct", "cpuacct.usage")?;
        let figures = metrics::v1(&container.stats()?)?;
        let after = number("cpuacct", "cpuacct.usage")?;
        let memory = figures.memory.context("memory")?;
        let usage = memory.usage.clone().context("usage")?;
        ensure!(usage.limit == 128 * MB, "{usage:?}");
        let file = number("memory", "memory.usage_in_bytes")?;
        ensure!(usage.usage.abs_diff(file) < 4 * MB, "{usage:?}, but {file}");
        ensure!(
            usage.usage >= 20 * MB && usage.max >= usage.usage,
            "{usage:?}"
        );
        ensure!(memory.rss >= 20 * MB, "{memory:?}");
        let pids = figures.pids.context("pids")?;
        ensure!(
            (pids.current, pids.limit) == (number("pids", "pids.current")?, 50),
            "{pids:?}"
        );
        let cpu = figures.cpu.context("cpu")?.usage.context("cpu usage")?;
        ensure!(
            (before..=after).contains(&cpu.total) && before > 0,
            "{before} {cpu:?} {after}"
        );
    }
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

fn processes(engine: &Containerd) -> Result<()> {
    let guest = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    assert_eq!(guest.pids()?, [guest.pid()], "a created guest");
    guest.start()?;
    assert_eq!(guest.pids()?, [guest.pid()], "a running guest");
    let name = run("cat", &[&format!("/proc/{}/comm", guest.pid())])?;
    assert!(!name.is_empty());
    guest.kill(Signal::SIGKILL)?;
    guest.finish()?;

    let shell = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sh", "-c", "sleep 1000 & echo ready; wait"])
        .create()?;
    shell.start()?;
    shell.wait_for_output("ready")?;
    let mut pids = shell.pids()?;
    let listed = shell.cgroup_file("pids", "cgroup.procs")?;
    let mut expected: Vec<u32> = listed.lines().map(str::parse).collect::<Result<_, _>>()?;
    pids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert_eq!(pids.len(), 2);
    assert!(pids.contains(&shell.pid()));
    shell.signal(Signal::SIGKILL as u32, true)?;
    assert_eq!(shell.finish()?.status, 137);
    Ok(())
}
