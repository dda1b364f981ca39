//! Pods without a pause container: containerd 2's Sandbox API, served by the shim.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
};

use anyhow::{Context, Result, ensure};
use containerd_client::tonic::Code;
use containerd_shim_protos::{
    api::{ConnectRequest, ShutdownRequest},
    sandbox_api::{
        CreateSandboxRequest, PingRequest, PlatformRequest, ShutdownSandboxRequest,
        StartSandboxRequest, StopSandboxRequest,
    },
    ttrpc,
};
use lighter_test::{
    Builder, Container, Containerd, Network, Rootfs, Settings, Version,
    cri::v1,
    ensure_root, eventually,
    leaks::ensure_dead,
    sandbox::{Sandbox, cri_namespaces},
    shim::{Shim, deadline, refusal},
};
use nix::sys::signal::Signal;
use prost::Message;
use prost_types::Any;

/// A message of the shim's API with these fields set.
macro_rules! request {
    ($name:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut request = $name::new();
        $(request.$field = $value;)*
        request
    }};
}

/// Makes a test of each function with the daemon of containerd 2.1, the first that has the API.
macro_rules! containerd_2 {
    ($($test:ident),* $(,)?) => {
        mod containerd_2_1 {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    super::ensure_root()?;
                    super::$test(&*super::engine()?)
                }
            )*
        }
    };
}

/// The daemon that these tests share. Without CRI, containerd 2.1 does not serve its Sandbox API
/// to clients either.
fn engine() -> Result<Arc<Containerd>> {
    static SHARED: Mutex<Weak<Containerd>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(daemon) = shared.upgrade() {
        return Ok(daemon);
    }
    let settings = Settings {
        cri: true,
        ..Settings::default()
    };
    let daemon = Arc::new(Containerd::start_with(Version::V2_1, &settings)?);
    *shared = Arc::downgrade(&daemon);
    Ok(daemon)
}

containerd_2!(
    members_share_the_pod,
    members_share_processes,
    the_nodes_namespaces,
    order_of_calls,
    calls_to_the_shim,
    what_cannot_be_made,
    stop_ends_members,
    figures,
    a_killed_daemon,
    a_killed_init,
);

/// What CRI asks for a pod, which goes as the options of its sandbox.
fn config() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        hostname: "pod-name".into(),
        linux: Some(v1::LinuxPodSandboxConfig::default()),
        ..v1::PodSandboxConfig::default()
    }
}

fn options(config: &v1::PodSandboxConfig) -> Option<Any> {
    Some(Any {
        type_url: "runtime.v1.PodSandboxConfig".to_owned(),
        value: config.encode_to_vec(),
    })
}

/// A container of the sandbox.
fn member<'a>(
    engine: &'a Containerd,
    sandbox: &Sandbox,
    pid: u32,
    pids: bool,
    args: &[&str],
) -> Result<Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .pod(sandbox.id())
        .args(args)
        .spec(cri_namespaces(pid, pids)))
}

fn namespace(pid: u32, name: &str) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/ns/{name}");
    fs::read_link(&path).context(path)
}

fn own(name: &str) -> Result<PathBuf> {
    namespace(std::process::id(), name)
}

/// Kills the containers, shuts the sandbox down, and sees to it that nothing stays.
fn end(engine: &Containerd, sandbox: &Sandbox, members: Vec<Container>) -> Result<()> {
    let daemons = engine.shims_of(sandbox.id());
    ensure!(!daemons.is_empty(), "there is no daemon to end");
    for member in members {
        // It may have ended on its own.
        let _ = member.kill(Signal::SIGKILL);
        member.finish()?;
    }
    sandbox.stop(0)?;
    sandbox.shutdown()?;
    daemons.into_iter().try_for_each(ensure_dead)?;
    engine.ensure_gone(sandbox.id())
}

fn members_share_the_pod(engine: &Containerd) -> Result<()> {
    let network = Network::new(&engine.new_id("pod-net"))?;
    let mut config = config();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.1.2.3".into()],
        ..v1::DnsConfig::default()
    });
    for (name, value) in [("kernel.shmmni", "123"), ("net.ipv4.tcp_retries1", "5")] {
        config
            .linux
            .get_or_insert_default()
            .sysctls
            .insert(name.to_owned(), value.to_owned());
    }
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config), &network.path().display().to_string())?;
    // Who has made the pod may be about to end.
    let processes = eventually("the daemon and its zygote, no more", || {
        let processes = engine.shims_of(sandbox.id());
        (processes.len() == 2).then_some(processes)
    })?;
    assert!(processes.contains(&pid), "{pid} of {processes:?}");

    let server = member(
        engine,
        &sandbox,
        pid,
        false,
        &["/tool-component.wasm", "tcp-server", "8000"],
    )?
    .create()?;
    server.start()?;
    server.wait_for_output("listening")?;
    let script = "hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shmmni \
                  /proc/sys/net/ipv4/tcp_retries1 /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                  echo shared > /dev/shm/file; \
                  echo through the pod | nc 127.0.0.1 8000; sleep 1000";
    let client = member(engine, &sandbox, pid, false, &["/bin/sh", "-c", script])?.create()?;
    client.start()?;
    client.wait_for_output("through the pod")?;
    client.wait_for_output("pod-name\npod-name\nnameserver 10.1.2.3\n123\n5\n0\n")?;
    let reader = member(engine, &sandbox, pid, false, &["/bin/cat", "/dev/shm/file"])?.run()?;
    assert_eq!(reader.success()?, "shared\n");
    for name in ["ipc", "uts", "net"] {
        let theirs = namespace(client.pid(), name)?;
        assert_eq!(theirs, namespace(server.pid(), name)?, "{name}");
        assert_ne!(theirs, own(name)?, "{name}");
    }
    assert_ne!(
        namespace(client.pid(), "pid")?,
        namespace(server.pid(), "pid")?
    );
    assert_eq!(
        engine.shims_of(sandbox.id()),
        processes,
        "no more for members"
    );
    end(engine, &sandbox, vec![client, server])
}

fn members_share_processes(engine: &Containerd) -> Result<()> {
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config()), "")?;
    eventually("the daemon and its zygote, no more", || {
        (engine.shims_of(sandbox.id()).len() == 2).then_some(())
    })?;
    let first = member(
        engine,
        &sandbox,
        pid,
        true,
        &["/tool.wasm", "sleep", "1000"],
    )?
    .create()?;
    first.start()?;
    first.wait_for_output("sleeping")?;
    // The orphan's parent ends, and so it gets the pod's init, which is to reap it.
    let script = "(sh -c 'sleep 0.1; exit 3' &); echo $$; sleep 1000";
    let second = member(engine, &sandbox, pid, true, &["/bin/sh", "-c", script])?.create()?;
    second.start()?;
    second.wait_for_output("\n")?;
    let shared = namespace(first.pid(), "pid")?;
    assert_eq!(shared, namespace(second.pid(), "pid")?);
    assert_ne!(shared, own("pid")?);

    let init = init_of(&shared)?;
    let status = fs::read_to_string(format!("/proc/{init}/status"))?;
    let line = |key: &str| status.lines().find(|line| line.starts_with(key));
    assert_eq!(line("Uid:"), Some("Uid:\t65534\t65534\t65534\t65534"));
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:", "CapAmb:"] {
        let empty = format!("{set}\t0000000000000000");
        assert_eq!(line(set), Some(&*empty));
    }
    assert_eq!(line("NoNewPrivs:"), Some("NoNewPrivs:\t1"));
    let root = format!("/proc/{init}/root");
    assert_eq!(fs::read_dir(&root)?.count(), 0, "its root is empty");
    assert_ne!(namespace(init, "mnt")?, own("mnt")?);
    for name in ["ipc", "uts", "net"] {
        assert_eq!(namespace(init, name)?, namespace(second.pid(), name)?);
    }
    eventually("the orphan is reaped", || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        children.trim().is_empty().then_some(())
    })?;
    let seen = member(engine, &sandbox, pid, true, &["/bin/ls", "/proc/1/root/"])?.run()?;
    assert_ne!(seen.status, 0, "{}", seen.text());

    // One that ends takes nobody with it.
    first.kill(Signal::SIGKILL)?;
    assert_eq!(first.finish()?.status, 137);
    assert!(second.state().is_ok());
    ensure!(PathBuf::from(&root).exists(), "the init lives on");
    end(engine, &sandbox, vec![second])?;
    ensure_dead(init)
}

/// The process that is 1 in a pid namespace.
fn init_of(namespace: &PathBuf) -> Result<u32> {
    let inside = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
        let own = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
        (line.ends_with("\t1") && own == *namespace).then_some(pid)
    };
    fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find_map(inside)
        .context("the namespace has no init")
}

fn the_nodes_namespaces(engine: &Containerd) -> Result<()> {
    let mut config = config();
    config.hostname = String::new();
    let node = v1::NamespaceMode::Node as i32;
    config.linux.get_or_insert_default().security_context = Some(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(v1::NamespaceOption {
            network: node,
            pid: node,
            ipc: node,
            ..v1::NamespaceOption::default()
        }),
        ..v1::LinuxSandboxSecurityContext::default()
    });
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config), "")?;
    let linux = member(engine, &sandbox, pid, true, &["/bin/sleep", "1000"])?.create()?;
    linux.start()?;
    let guest = member(
        engine,
        &sandbox,
        pid,
        true,
        &["/tool.wasm", "sleep", "1000"],
    )?
    .create()?;
    guest.start()?;
    for container in [&linux, &guest] {
        for name in ["ipc", "uts", "net", "pid"] {
            assert_eq!(namespace(container.pid(), name)?, own(name)?, "{name}");
        }
    }
    // The guest's init, in the node's pid namespace, looks like one.
    let mut processes = engine.shims_of(sandbox.id());
    processes.retain(|&process| process != guest.pid());
    assert_eq!(processes.len(), 2, "there is no init of the pod");
    end(engine, &sandbox, vec![linux, guest])
}

fn order_of_calls(engine: &Containerd) -> Result<()> {
    let code = |answer: Result<(), containerd_client::tonic::Status>| {
        answer.map_or_else(|status| status.code(), |()| Code::Ok)
    };
    let sandbox = engine.sandbox();
    assert_eq!(code(sandbox.shutdown()), Code::NotFound);
    assert_eq!(code(sandbox.wait().map(drop)), Code::NotFound);
    assert_eq!(code(sandbox.stop(0)), Code::Ok, "as if it were stopped");

    sandbox.create(options(&config()), "")?;
    assert_eq!(
        code(sandbox.create(options(&config()), "")),
        Code::AlreadyExists
    );
    assert_eq!(sandbox.status(false)?.state, "SANDBOX_NOTREADY");
    let pid = sandbox.status(false)?.pid;
    let early = member(engine, &sandbox, pid, false, &["/tool.wasm", "args"])?.create();
    let early = early.err().context("a container in a pod that is not up")?;
    assert_eq!(lighter_test::code(&early), Code::FailedPrecondition);

    let started = sandbox.start()?;
    assert_eq!(started, pid);
    let status = sandbox.status(true)?;
    assert_eq!(status.state, "SANDBOX_READY");
    assert_eq!(status.sandbox_id, sandbox.id());
    assert!(status.created_at.is_some_and(|at| at.seconds > 0));
    let info: serde_json::Value = serde_json::from_str(&status.info["info"])?;
    assert_eq!(info["pid"], pid);
    assert_eq!(info["processStatus"], "running");
    assert_eq!(info["config"]["hostname"], "pod-name");
    assert!(sandbox.status(false)?.info.is_empty());
    let done = member(engine, &sandbox, pid, false, &["/tool.wasm", "exit", "4"])?.run()?;
    assert_eq!(done.status, 4);
    assert_eq!(
        sandbox.status(false)?.state,
        "SANDBOX_READY",
        "it outlives its last container"
    );
    sandbox.stop(0)?;
    sandbox.stop(0)?;
    let exit = sandbox.wait()?;
    assert_eq!(exit.exit_status, 0);
    assert!(exit.exited_at.is_some_and(|at| at.seconds > 0));
    let status = sandbox.status(false)?;
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    assert_eq!(status.exited_at, exit.exited_at);
    let late = member(engine, &sandbox, pid, false, &["/tool.wasm", "args"])?.create();
    let late = late.err().context("a container in a pod that is stopped")?;
    assert_eq!(lighter_test::code(&late), Code::FailedPrecondition);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(
        !mounts.contains(sandbox.id()),
        "a stopped pod has no mounts"
    );
    end(engine, &sandbox, Vec::new())?;
    assert_eq!(code(sandbox.shutdown()), Code::NotFound);
    Ok(())
}

/// The calls that containerd has no way to ask for, and those that it keeps back, by ttrpc.
fn calls_to_the_shim(engine: &Containerd) -> Result<()> {
    let id = engine.new_id("pod");
    let bundle = tempfile::Builder::new()
        .prefix("bundle-")
        .tempdir_in(engine.folder())?;
    let shim = Shim::start(engine, "wasmtime", &id, bundle.path())?;
    let calls = shim.sandboxes();
    let ping = |id: &str| {
        let request = request!(PingRequest {
            sandbox_id: id.to_owned()
        });
        calls.ping_sandbox(deadline(), &request)
    };
    let start = || {
        calls.start_sandbox(
            deadline(),
            &request!(StartSandboxRequest {
                sandbox_id: id.clone()
            }),
        )
    };
    assert_eq!(refusal(ping(&id))?.0, ttrpc::Code::NOT_FOUND);
    assert_eq!(refusal(start())?.0, ttrpc::Code::NOT_FOUND);
    let create = |id: &str| {
        let request = request!(CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            bundle_path: bundle.path().display().to_string(),
        });
        calls.create_sandbox(deadline(), &request)
    };
    create(&id)?;
    assert_eq!(refusal(create(&id))?.0, ttrpc::Code::ALREADY_EXISTS);
    assert_eq!(
        refusal(create("other"))?.0,
        ttrpc::Code::FAILED_PRECONDITION
    );
    assert_eq!(refusal(ping("other"))?.0, ttrpc::Code::NOT_FOUND);
    assert_eq!(refusal(ping(&id))?.0, ttrpc::Code::FAILED_PRECONDITION);
    assert_eq!(start()?.pid, engine.shims_of(&id)[0]);
    assert_eq!(refusal(start())?.0, ttrpc::Code::FAILED_PRECONDITION);
    ping(&id)?;
    let request = request!(PlatformRequest {
        sandbox_id: id.clone()
    });
    let platform = calls.platform(deadline(), &request)?.platform;
    assert_eq!(platform.os, "linux");
    let known = [("x86_64", "amd64"), ("aarch64", "arm64")];
    assert!(known.contains(&(std::env::consts::ARCH, &platform.architecture)));
    // As containerd asks after it has been restarted: the sandbox is no task, but its shim is there.
    let connect = request!(ConnectRequest { id: id.clone() });
    assert!(shim.tasks().connect(deadline(), &connect)?.shim_pid > 0);
    // A shutdown for tasks is none for the sandbox.
    shim.tasks()
        .shutdown(deadline(), &request!(ShutdownRequest { id: id.clone() }))?;
    ping(&id)?;
    let request = request!(StopSandboxRequest {
        sandbox_id: id.clone()
    });
    calls.stop_sandbox(deadline(), &request)?;
    assert_eq!(refusal(ping(&id))?.0, ttrpc::Code::FAILED_PRECONDITION);
    assert_eq!(refusal(start())?.0, ttrpc::Code::FAILED_PRECONDITION);
    let request = request!(ShutdownSandboxRequest {
        sandbox_id: id.clone()
    });
    calls.shutdown_sandbox(deadline(), &request)?;
    eventually("the daemon ends", || {
        engine.shims_of(&id).is_empty().then_some(())
    })?;
    engine.ensure_gone(&id)
}

fn what_cannot_be_made(engine: &Containerd) -> Result<()> {
    let refused = |options: Option<Any>, network: &str| -> Result<(Code, String)> {
        let sandbox = engine.sandbox();
        let error = sandbox.create(options, network).err();
        let error = error.context("the sandbox was created")?;
        engine.ensure_gone(sandbox.id())?;
        let daemons = engine.shims_of(sandbox.id());
        daemons.into_iter().try_for_each(ensure_dead)?;
        Ok((error.code(), error.message().to_owned()))
    };
    let mut asked = config();
    let mut with = |name: &str, value: &str| {
        asked.linux.get_or_insert_default().sysctls =
            HashMap::from([(name.to_owned(), value.to_owned())]);
        options(&asked)
    };
    let (code, message) = refused(with("vm.swappiness", "1"), "")?;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("vm.swappiness"), "{message}");
    let (code, message) = refused(with("net.ipv4.tcp_retries1", "5"), "")?;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("network namespace"), "{message}");
    let (_, message) = refused(with("kernel.shmmni", "many"), "")?;
    assert!(message.contains("kernel.shmmni"), "{message}");
    let (_, message) = refused(options(&config()), "/run/netns/none")?;
    assert!(message.contains("/run/netns/none"), "{message}");
    let (code, message) = refused(
        Some(Any {
            type_url: "some.Other".into(),
            value: Vec::new(),
        }),
        "",
    )?;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("some.Other"), "{message}");
    Ok(())
}

fn stop_ends_members(engine: &Containerd) -> Result<()> {
    let sandbox = engine.sandbox();
    let pid = sandbox.run(None, "")?;
    // The first minds the signal, the second does not.
    let minds = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let minds = member(engine, &sandbox, pid, false, &["/bin/sh", "-c", minds])?.create()?;
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let deaf = member(engine, &sandbox, pid, false, &["/bin/sh", "-c", deaf])?.create()?;
    let guest = member(
        engine,
        &sandbox,
        pid,
        true,
        &["/tool.wasm", "sleep", "1000"],
    )?
    .create()?;
    for container in [&minds, &deaf, &guest] {
        container.start()?;
    }
    minds.wait_for_output("up")?;
    deaf.wait_for_output("up")?;
    guest.wait_for_output("sleeping")?;
    sandbox.stop(1)?;
    assert_eq!(minds.finish()?.status, 5);
    assert_eq!(deaf.finish()?.status, 137);
    assert_eq!(guest.finish()?.status, 143);
    end(engine, &sandbox, Vec::new())
}

fn figures(engine: &Containerd) -> Result<()> {
    let sandbox = engine.sandbox();
    sandbox.run(options(&config()), "")?;
    let error = format!(
        "{:#}",
        sandbox.metrics().err().context("figures of nothing")?
    );
    assert!(error.contains("cgroup_parent"), "{error}");
    end(engine, &sandbox, Vec::new())?;

    let mut config = config();
    config.linux.get_or_insert_default().cgroup_parent = format!("/{}", engine.namespace());
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config), "")?;
    let inside = member(engine, &sandbox, pid, false, &["/bin/sleep", "1000"])?.create()?;
    inside.start()?;
    let metrics = sandbox.metrics()?;
    assert_eq!(metrics.id, sandbox.id());
    assert!(metrics.timestamp.is_some_and(|at| at.seconds > 0));
    let data = metrics.data.context("no figures")?;
    assert!(data.type_url.contains("Metrics"), "{}", data.type_url);
    assert!(!data.value.is_empty());
    end(engine, &sandbox, vec![inside])
}

fn a_killed_daemon(engine: &Containerd) -> Result<()> {
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config()), "")?;
    let inside = member(
        engine,
        &sandbox,
        pid,
        true,
        &["/tool.wasm", "sleep", "1000"],
    )?
    .create()?;
    inside.start()?;
    inside.wait_for_output("sleeping")?;
    let init = init_of(&namespace(inside.pid(), "pid")?)?;
    let daemons = engine.shims_of(sandbox.id());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    daemons.into_iter().try_for_each(ensure_dead)?;
    ensure_dead(init)?;
    inside.wait_for_event("exit")?;
    eventually("containerd has forgotten the task", || {
        inside.state().err().map(drop)
    })?;
    drop(inside);
    engine.ensure_gone(sandbox.id())
}

fn a_killed_init(engine: &Containerd) -> Result<()> {
    let sandbox = engine.sandbox();
    let pid = sandbox.run(options(&config()), "")?;
    let inside = member(engine, &sandbox, pid, true, &["/bin/sleep", "1000"])?.create()?;
    inside.start()?;
    let init = init_of(&namespace(inside.pid(), "pid")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init as i32), Signal::SIGKILL)?;
    assert_eq!(sandbox.wait()?.exit_status, 137);
    assert_eq!(sandbox.status(false)?.state, "SANDBOX_NOTREADY");
    assert_eq!(inside.finish()?.status, 137);
    end(engine, &sandbox, Vec::new())
}
