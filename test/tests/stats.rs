//! The figures of a task are, one by one, those that containerd's own runtime tells of the same
//! cgroup: two containers share one, each under a runtime, and are asked while they stand still.

use anyhow::{Result, ensure};
use containerd_shim_protos::{
    cgroups::metrics::Metrics as V1, cgroups_v2::metrics::Metrics as V2, protobuf::Message,
};
use lighter_test::{Containerd, RUNC, Rootfs, cgroup, each_containerd, eventually};
use nix::sys::signal::Signal;
use prost_types::Any;
use serde_json::{Value, json};

each_containerd!(linux, wasm, without_limits, while_paused);

const MB: u64 = 1 << 20;

/// Uses memory, processor time beyond its quota, and a disk; and stands still.
const WORK: &str = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
    dd if=/dev/zero of=/tmp/file bs=64k count=32 conv=fsync 2>/dev/null
    cat /tmp/file >/dev/null; sleep 1000 & sleep 1000 & echo ready; wait";

fn limits(spec: &mut Value) {
    let resources = &mut spec["linux"]["resources"];
    resources["memory"] = json!({"limit": 96 * MB, "swap": 96 * MB, "reservation": 64 * MB});
    resources["cpu"] = json!({"shares": 512, "quota": 20_000, "period": 50_000});
    resources["pids"] = json!({"limit": 60});
}

fn of_both(
    engine: &Containerd,
    args: &[&str],
    said: &str,
    limited: bool,
    paused: bool,
) -> Result<()> {
    let limits: fn(&mut Value) = if limited { limits } else { |_| () };
    let theirs = engine
        .container(&Rootfs::guests()?)
        .runtime(RUNC)
        .args(["/bin/sh", "-c", WORK])
        .spec(limits);
    let path = format!("/{}/{}", engine.namespace(), theirs.get_id());
    let theirs = theirs.create()?;
    // A cgroup that has processes is refused.
    let left = cgroup::leave(theirs.pid())?;
    let ours = engine
        .container(&Rootfs::guests()?)
        .args(args)
        .spec(limits)
        .spec(|spec| spec["linux"]["cgroupsPath"] = json!(path))
        .create()?;
    cgroup::enter(theirs.pid(), &left)?;
    theirs.start()?;
    theirs.wait_for_output("ready")?;
    ours.start()?;
    ours.wait_for_output(said)?;
    if paused {
        ours.pause()?;
    }

    let (right, told) = eventually("figures that stand still", || {
        let right = theirs.stats().ok()?;
        let told = ours.stats().ok()?;
        (theirs.stats().ok()? == right).then_some((right, told))
    })?;
    assert_eq!(told.type_url, right.type_url);
    if cgroup::unified() {
        let right = V2::parse_from_bytes(&right.value)?;
        ensure!(right.memory.usage > MB && right.cpu.usage_usec > 0);
        assert_eq!(V2::parse_from_bytes(&told.value)?, right);
    } else {
        let right = V1::parse_from_bytes(&right.value)?;
        ensure!(right.memory.usage.usage > MB && right.cpu.usage.total > 0);
        assert_eq!(V1::parse_from_bytes(&told.value)?, right);
    }
    is_telling(&right, limited)?;

    if paused {
        ours.resume()?;
    }
    for container in [&ours, &theirs] {
        // The end of one may be that of the other's processes too.
        let _ = container.kill(Signal::SIGKILL);
        container.wait()?;
    }
    ours.finish()?;
    theirs.finish()?;
    Ok(())
}

/// Fails when the figures are such that any would be equal.
fn is_telling(any: &Any, limited: bool) -> Result<()> {
    if cgroup::unified() {
        let figures = V2::parse_from_bytes(&any.value)?;
        ensure!(figures.pids.current >= 4, "{figures:?}");
        ensure!(figures.memory.pgfault > 0, "{figures:?}");
        ensure!((figures.cpu.nr_throttled > 0) == limited, "{figures:?}");
        ensure!((figures.pids.limit == 60) == limited, "{figures:?}");
    } else {
        let figures = V1::parse_from_bytes(&any.value)?;
        ensure!(figures.pids.current >= 4, "{figures:?}");
        ensure!(figures.memory.total_pg_fault > 0, "{figures:?}");
        ensure!(figures.cpu.usage.per_cpu.len() > 1, "{figures:?}");
        let throttling = &figures.cpu.throttling;
        ensure!((throttling.throttled_periods > 0) == limited, "{figures:?}");
        ensure!((figures.pids.limit == 60) == limited, "{figures:?}");
    }
    Ok(())
}

fn linux(engine: &Containerd) -> Result<()> {
    of_both(engine, &["/bin/sh", "-c", WORK], "ready", true, false)
}

fn wasm(engine: &Containerd) -> Result<()> {
    let guest = ["/tool.wasm", "alloc", "16", "1000"];
    of_both(engine, &guest, "sleeping", true, false)
}

fn without_limits(engine: &Containerd) -> Result<()> {
    let guest = ["/tool.wasm", "alloc", "16", "1000"];
    of_both(engine, &guest, "sleeping", false, false)
}

fn while_paused(engine: &Containerd) -> Result<()> {
    let guest = ["/tool.wasm", "alloc", "16", "1000"];
    of_both(engine, &guest, "sleeping", true, true)
}
