//! What `docker` does with containers that run: pause and unpause, update, stats, top.

use anyhow::{Result, ensure};
use lighter_test::{
    dockerd::{Container, Dockerd, Image},
    each_store, eventually,
};

each_store!(pause, update, stats, top);

/// A guest that computes, and a Linux container that does.
fn busy(engine: &Dockerd) -> Result<[Container<'_>; 2]> {
    let guest = engine.launch(Image::Guests, &[], &["/tool.wasm", "loop"])?;
    let script = "echo looping; while :; do :; done";
    let linux = engine.launch(Image::Linux, &[], &["sh", "-c", script])?;
    for container in [&guest, &linux] {
        container.wait_for_log("looping")?;
    }
    Ok([guest, linux])
}

const STATE: &str = "{{.State.Status}} {{.State.Paused}}";

fn pause(engine: &Dockerd) -> Result<()> {
    for container in busy(engine)? {
        let time = || container.cgroup_file("cpuacct", "cpuacct.usage");
        engine.docker(&["pause", container.id()])?.success()?;
        container.wait_for(STATE, "paused true")?;
        let before = time()?;
        let again = engine.docker(&["pause", container.id()])?;
        ensure!(
            again.code != 0 && again.errors.contains("already paused"),
            "{again:?}"
        );
        engine
            .run(Image::Guests, &["--rm"], &["/hello.wasm"])?
            .success()?;
        assert_eq!(time()?, before, "time used while paused");
        engine.docker(&["unpause", container.id()])?.success()?;
        container.wait_for(STATE, "running false")?;
        eventually("it goes on", || (time().ok()? != before).then_some(()))?;
        // A paused container is removed as any other.
        engine.docker(&["pause", container.id()])?.success()?;
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
        ensure!(container.inspect(STATE).is_err());
    }
    Ok(())
}

/// New limits hold, and are still those after a restart.
fn update(engine: &Dockerd) -> Result<()> {
    let options = [
        "--memory=64m",
        "--memory-swap=96m",
        "--cpu-quota=30000",
        "--cpu-shares=512",
        "--pids-limit=40",
        "--cpuset-cpus=0",
    ];
    for container in busy(engine)? {
        let id = container.id();
        engine
            .docker(&[&["update"], options.as_slice(), &[id]].concat())?
            .success()?;
        let limited = || -> Result<()> {
            for (controller, file, value) in [
                ("memory", "memory.limit_in_bytes", (64 << 20).to_string()),
                (
                    "memory",
                    "memory.memsw.limit_in_bytes",
                    (96 << 20).to_string(),
                ),
                ("cpu", "cpu.cfs_quota_us", 30_000.to_string()),
                ("cpu", "cpu.shares", 512.to_string()),
                ("pids", "pids.max", 40.to_string()),
                ("cpuset", "cpuset.cpus", 0.to_string()),
            ] {
                assert_eq!(container.cgroup_file(controller, file)?, value, "{file}");
            }
            Ok(())
        };
        limited()?;
        engine
            .docker(&["restart", "--timeout", "0", id])?
            .success()?;
        limited()?;
        let refused = engine.docker(&["update", "--cpuset-cpus=900", id])?;
        ensure!(
            refused.code != 0 && refused.errors.contains("900"),
            "{refused:?}"
        );
        engine.docker(&["rm", "--force", id])?.success()?;
    }
    Ok(())
}

fn stats(engine: &Dockerd) -> Result<()> {
    for container in busy(engine)? {
        let format = "{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}";
        let line = engine
            .docker(&["stats", "--no-stream", "--format", format, container.id()])?
            .success()?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [cpu, memory, "/", _, pids] = fields[..] else {
            anyhow::bail!("{line:?}");
        };
        // It computes all the time.
        ensure!(cpu.trim_end_matches('%').parse::<f64>()? > 1.0, "{line:?}");
        ensure!(!memory.starts_with("0B"), "{line:?}");
        ensure!(pids.parse::<u32>()? >= 1, "{line:?}");
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
    }
    Ok(())
}

fn top(engine: &Dockerd) -> Result<()> {
    for container in busy(engine)? {
        let pid = container.inspect("{{.State.Pid}}")?;
        let table = engine
            .docker(&["top", container.id(), "-o", "pid"])?
            .success()?;
        let listed: Vec<&str> = table.lines().skip(1).map(str::trim).collect();
        assert_eq!(listed, [pid.as_str()]);
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
    }
    Ok(())
}
