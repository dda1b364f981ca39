//! Limits of pods' containers and the figures of their use.

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Version,
    cri::{Builder, Container, Cri, Pod, RUNC, WASMTIME, v1},
    each_cri, eventually,
};

each_cri!(
    limits,
    changed_limits,
    out_of_memory,
    out_of_memory_in_an_added_process,
    scores,
    figures_of_containers,
    figures_of_pods,
);

const MIB: i64 = 1 << 20;

/// The files of a container's own cgroup, v2 or v1.
const CGROUP: &str = "\
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
        /sys/fs/cgroup/cpu/cpu.cfs_period_us /sys/fs/cgroup/cpu/cpu.shares \
        /sys/fs/cgroup/cpuset/cpuset.cpus";

fn limited(container: Builder) -> Builder {
    container.resources(|limits| {
        *limits = v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB,
            cpu_quota: 20_000,
            cpu_period: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0".into(),
            ..Default::default()
        }
    })
}

const LIMITED: &str = "67108864\n20000\n50000\n512\n0\n";

/// The limits are the same as under runc, for guests too.
fn limits(cri: &Cri) -> Result<()> {
    for handler in [RUNC, WASMTIME] {
        let pod = cri.pod(handler).run()?;
        let seen = limited(pod.container(["/bin/sh", "-c", CGROUP])).run()?;
        assert_eq!(seen.success()?, LIMITED, "{handler}");
        pod.end()?;
    }
    let pod = cri.pod(WASMTIME).run()?;
    let guest = limited(pod.container(["/tool.wasm", "sleep", "1000"])).start()?;
    assert_eq!(cgroup(&guest)?, LIMITED);
    // CRI knows them as well.
    if cri.engine().version() >= Version::V1_7 {
        let told = guest.status()?.resources.context("no resources")?;
        let told = told.linux.context("no resources of Linux")?;
        assert_eq!(told.memory_limit_in_bytes, 64 * MIB);
        assert_eq!((told.cpu_quota, told.cpu_period), (20_000, 50_000));
    }
    pod.end()
}

/// What a process that is added to a container sees of its limits.
fn cgroup(container: &Container) -> Result<String> {
    container
        .exec_sync(["/bin/sh", "-c", CGROUP], 10)?
        .success()
}

fn changed_limits(cri: &Cri) -> Result<()> {
    for (handler, program) in [
        (RUNC, "/bin/busybox"),
        (WASMTIME, "/bin/busybox"),
        (WASMTIME, "/tool.wasm"),
    ] {
        let pod = cri.pod(handler).run()?;
        let container = limited(pod.container([program, "sleep", "1000"])).start()?;
        container.update(v1::LinuxContainerResources {
            memory_limit_in_bytes: 96 * MIB,
            cpu_quota: 30_000,
            cpu_period: 60_000,
            cpu_shares: 256,
            cpuset_cpus: "0-1".into(),
            ..Default::default()
        })?;
        let seen = cgroup(&container)?;
        assert_eq!(
            seen, "100663296\n30000\n60000\n256\n0-1\n",
            "{handler} {program}"
        );
        // What is not mentioned stays.
        container.update(v1::LinuxContainerResources {
            cpu_shares: 128,
            ..Default::default()
        })?;
        let seen = cgroup(&container)?;
        assert_eq!(
            seen, "100663296\n30000\n60000\n128\n0-1\n",
            "{handler} {program}"
        );
        pod.end()?;
    }
    Ok(())
}

/// A container with little memory.
fn small<'a>(pod: &'a Pod, args: &[&str]) -> Builder<'a> {
    pod.container(args.iter().copied()).resources(|limits| {
        limits.memory_limit_in_bytes = 32 * MIB;
        limits.memory_swap_limit_in_bytes = 32 * MIB;
    })
}

/// Who takes all memory is killed, and the status says why.
fn out_of_memory(cri: &Cri) -> Result<()> {
    let hungry = "x=x; while :; do x=$x$x; done";
    for (handler, args) in [
        (RUNC, ["/bin/sh", "-c", hungry]),
        (WASMTIME, ["/bin/sh", "-c", hungry]),
        (WASMTIME, ["/tool.wasm", "alloc", "1000"]),
        (WASMTIME, ["/tool-component.wasm", "alloc", "1000"]),
    ] {
        let pod = cri.pod(handler).run()?;
        let container = small(&pod, &args).start()?;
        let ended = container.wait()?;
        assert_eq!(ended.code, 137, "{handler} {args:?}: {ended:?}");
        // The event may come after the end.
        eventually("the reason is that of the kernel", || {
            let status = container.status().ok()?;
            (status.reason == "OOMKilled").then_some(())
        })
        .with_context(|| format!("{handler} {args:?}: {:?}", container.status()))?;
        pod.end()?;
    }
    Ok(())
}

/// The limit is the container's, whoever takes the memory; its first process stays.
fn out_of_memory_in_an_added_process(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for program in ["/tool.wasm", "/bin/busybox"] {
        let container = small(&pod, &[program, "sleep", "1000"]).start()?;
        let added = container.exec_sync(["/tool.wasm", "alloc", "1000"], 60)?;
        assert_eq!(added.code, 137, "{program}: {added:?}");
        let state = container.status()?.state();
        assert_eq!(state, v1::ContainerState::ContainerRunning, "{program}");
    }
    pod.end()
}

/// A kubelet's order of whom the kernel kills first; the tests' machine allows to raise it only.
fn scores(cri: &Cri) -> Result<()> {
    for (handler, program) in [
        (RUNC, "/bin/busybox"),
        (WASMTIME, "/bin/busybox"),
        (WASMTIME, "/tool.wasm"),
    ] {
        let pod = cri.pod(handler).run()?;
        let container = pod
            .container([program, "sleep", "1000"])
            .resources(|limits| limits.oom_score_adj = 977)
            .start()?;
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", container.pid()?))?;
        assert_eq!(score, "977\n", "{handler} {program}");
        let added = container.exec_sync(["/bin/cat", "/proc/self/oom_score_adj"], 10)?;
        assert_eq!(added.success()?, "977\n", "{handler} {program}");
        pod.end()?;
    }
    Ok(())
}

fn value(figure: &Option<v1::UInt64Value>) -> u64 {
    figure.as_ref().map_or(0, |figure| figure.value)
}

/// Starts a container that holds 40 MiB and has worked for it.
fn busy<'a>(pod: &'a Pod, args: [&str; 4]) -> Result<Container<'a>> {
    let container = pod.container(args).start()?;
    container.wait_for_log("allocated")?;
    Ok(container)
}

const GUEST: [&str; 4] = ["/tool.wasm", "alloc", "40", "1000"];

fn figures_of_containers(cri: &Cri) -> Result<()> {
    let script = "head -c 50000000 /dev/zero > /dev/shm/file; echo allocated; sleep 1000";
    for (handler, args) in [
        (RUNC, ["/bin/sh", "-c", script, ""]),
        (WASMTIME, ["/bin/sh", "-c", script, ""]),
        (WASMTIME, GUEST),
    ] {
        let pod = cri.pod(handler).run()?;
        let container = busy(&pod, args)?;
        let label = container.id().to_owned();
        let figures = eventually("figures of the writable layer too", || {
            let figures = container.stats().ok()?;
            figures.writable_layer.is_some().then_some(figures)
        })?;
        let attributes = figures.attributes.context("no attributes")?;
        assert_eq!(attributes.id, label);
        let cpu = figures.cpu.context("no processor time")?;
        assert!(cpu.timestamp > 0);
        let used = value(&cpu.usage_core_nano_seconds);
        assert!((1_000_000..60_000_000_000).contains(&used), "{used} ns");
        let memory = figures.memory.context("no memory")?;
        let used = value(&memory.working_set_bytes);
        let expected = 40 * MIB as u64..400 * MIB as u64;
        assert!(expected.contains(&used), "{handler} {args:?}: {used} bytes");

        let listed = cri.stats(v1::ContainerStatsFilter {
            pod_sandbox_id: pod.id().to_owned(),
            ..Default::default()
        })?;
        let ids: Vec<_> = listed
            .iter()
            .filter_map(|figures| figures.attributes.as_ref())
            .map(|attributes| attributes.id.as_str())
            .collect();
        assert_eq!(ids, [container.id()], "{handler}");
        let later = listed[0].cpu.as_ref().context("no processor time")?;
        assert!(value(&later.usage_core_nano_seconds) >= value(&cpu.usage_core_nano_seconds));

        // The node's disk: what the container has written.
        container.exec_sync(["/bin/sh", "-c", "head -c 5000000 /dev/zero > /file"], 30)?;
        eventually("the layer has grown", || {
            let layer = container.stats().ok()?.writable_layer?;
            (value(&layer.used_bytes) >= 5_000_000).then_some(())
        })?;
        pod.end()?;
    }
    Ok(())
}

/// What a pod takes is what its containers take, and it has a network.
fn figures_of_pods(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let container = busy(&pod, GUEST)?;
    let figures = pod.stats()?;
    let attributes = figures.attributes.context("no attributes")?;
    assert_eq!(attributes.id, pod.id());
    let linux = figures.linux.context("no figures of Linux")?;
    let [of_container] = &linux.containers[..] else {
        anyhow::bail!("{:?}", linux.containers);
    };
    let attributes = of_container.attributes.as_ref().context("no attributes")?;
    assert_eq!(attributes.id, container.id());
    let memory = of_container.memory.as_ref().context("no memory")?;
    let used = value(&memory.working_set_bytes);
    ensure!(used > 40 * MIB as u64, "{used} bytes");
    let memory = linux.memory.context("no memory")?;
    assert!(value(&memory.working_set_bytes) >= used, "{memory:?}");
    let cpu = linux.cpu.context("no processor time")?;
    assert!(value(&cpu.usage_core_nano_seconds) > 0);
    let network = linux.network.context("no network")?;
    let interface = network.default_interface.context("no interface")?;
    assert_eq!(interface.name, "eth0");
    pod.end()
}
