//! Pods under CRI with `sandboxer = "shim"`: neither a pause image nor a pause process.

use std::{
    fs,
    sync::{Arc, Mutex, Weak},
};

use anyhow::{Context, Result};
use lighter_test::{
    Settings, Version,
    cri::{Cri, Pod, v1},
    ensure_root, eventually,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The runtime handler, as docs/configuration.md has it.
const HANDLER: &str = "sandboxed";
const CONFIG: &str = "\
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sandboxed]
  runtime_type = 'io.containerd.wasmtime.v1'
  sandboxer = 'shim'
";

/// Makes a test of each function with the daemon of containerd 2.1, the first that knows the key.
macro_rules! cri_2 {
    ($($test:ident),* $(,)?) => {
        mod containerd_2_1 {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    super::ensure_root()?;
                    super::$test(&*super::cri()?)
                }
            )*
        }
    };
}

cri_2!(
    pod_of_both_kinds,
    what_members_see,
    shared_processes,
    users_of_its_own,
    a_killed_daemon,
);

fn cri() -> Result<Arc<Cri>> {
    static SHARED: Mutex<Weak<Cri>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(daemon) = shared.upgrade() {
        return Ok(daemon);
    }
    let settings = Settings {
        config: CONFIG.to_owned(),
        ..Settings::default()
    };
    let daemon = Arc::new(Cri::start_with(Version::V2_1, settings)?);
    *shared = Arc::downgrade(&daemon);
    Ok(daemon)
}

/// Stops and removes the pod, and sees to it that its daemon ends.
fn end(pod: Pod) -> Result<()> {
    let daemons = pod.shims();
    assert!(!daemons.is_empty(), "there is a daemon to end");
    pod.end()?;
    daemons.into_iter().try_for_each(ensure_dead)
}

fn state(pod: &Pod) -> Result<v1::PodSandboxState> {
    Ok(pod.status()?.state())
}

/// `hostUsers: false`.
fn users_of_its_own(cri: &Cri) -> Result<()> {
    let users = v1::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };
    let pod = cri.pod(HANDLER).namespaces(|namespaces| {
        namespaces.userns_options = Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: vec![users],
            gids: vec![users],
        });
    });
    let pod = pod.run()?;
    let script = "id -u; stat -c '%n %u %g' / /etc/hosts; echo mine > /mine && stat -c %u /mine; \
        touch /dev/shm/mine && echo shared; sleep 1000";
    let linux = pod.container(["/bin/sh", "-c", script]).start()?;
    linux.wait_for_log("shared")?;
    let said: Vec<String> = linux.lines()?.into_iter().map(|line| line.text).collect();
    assert_eq!(said, ["0", "/ 0 0", "/etc/hosts 0 0", "0", "shared"]);
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    guest.wait_for_log("sleeping")?;
    for kind in ["user", "net", "ipc", "uts"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        assert_eq!(of(linux.pid()?)?, of(guest.pid()?)?, "{kind}");
        assert_ne!(of(linux.pid()?)?, of(std::process::id())?, "{kind}");
    }
    let exec = linux.exec_sync(["/tool.wasm", "write", "/guests", "x"], 10)?;
    exec.success()?;
    end(pod)
}

fn pod_of_both_kinds(cri: &Cri) -> Result<()> {
    let pod = cri.pod(HANDLER).run()?;
    assert_eq!(state(&pod)?, v1::PodSandboxState::SandboxReady);
    let tasks = cri
        .engine()
        .state()
        .join("io.containerd.runtime.v2.task/k8s.io");
    assert!(
        !tasks.join(pod.id()).exists(),
        "there is no pause container"
    );
    let processes = pod.shims();
    assert_eq!(processes.len(), 2, "the daemon and its zygote");

    let server = pod
        .container(["/tool-component.wasm", "tcp-server", "8000"])
        .start()?;
    server.wait_for_log("listening")?;
    let client = pod
        .container(["/bin/sh", "-c", "echo through the pod | nc 127.0.0.1 8000"])
        .run()?;
    assert_eq!(client.success()?, "through the pod\n");
    let guest = pod.container(["/tool.wasm", "exit", "7"]).run()?;
    assert_eq!(guest.code, 7);
    assert_eq!(pod.shims(), processes, "one daemon serves all");
    assert!(pod.ip()?.to_string().starts_with("10.88."));

    let info = pod.info()?;
    assert_eq!(info["runtimeType"], lighter_test::WASMTIME);
    assert_eq!(info["config"]["hostname"], pod.config().hostname);

    let pid = server.pid()?;
    pod.stop()?;
    ensure_dead(pid)?;
    assert_eq!(state(&pod)?, v1::PodSandboxState::SandboxNotready);
    assert_eq!(server.status()?.exit_code, 137);
    end(pod)
}

fn what_members_see(cri: &Cri) -> Result<()> {
    let pod = cri
        .pod(HANDLER)
        .with(|config| {
            config.dns_config = Some(v1::DnsConfig {
                servers: vec!["10.9.8.7".into()],
                searches: vec!["pod.test".into()],
                options: vec!["ndots:5".into()],
            });
        })
        .linux(|linux| {
            linux
                .sysctls
                .insert("kernel.shmmni".to_owned(), "321".to_owned());
        })
        .run()?;
    let script = "hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shmmni; \
                  echo kept > /dev/shm/file";
    let seen = pod.container(["/bin/sh", "-c", script]).run()?.success()?;
    let name = &pod.config().hostname;
    assert_eq!(
        seen,
        format!("{name}\n{name}\nsearch pod.test\nnameserver 10.9.8.7\noptions ndots:5\n321\n")
    );
    let kept = pod.container(["/bin/cat", "/dev/shm/file"]).run()?;
    assert_eq!(kept.success()?, "kept\n");
    // A guest that looks up names reads the same files.
    let guest = pod
        .container(["/tool.wasm", "read", "/etc/hostname"])
        .run()?;
    assert_eq!(guest.success()?, format!("{name}\n"));
    let unprivileged = pod
        .container(["/bin/nc", "-l", "-p", "80"])
        .security(|security| security.run_as_user = Some(v1::Int64Value { value: 1000 }))
        .start()?;
    let pid = unprivileged.pid()?;
    eventually("a user listens on a low port", || {
        let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp6")).ok()?;
        sockets.contains(":0050 ").then_some(())
    })
    .with_context(|| format!("{:?}", unprivileged.lines()))?;
    end(pod)
}

fn shared_processes(cri: &Cri) -> Result<()> {
    let shared = v1::NamespaceMode::Pod as i32;
    let pod = cri
        .pod(HANDLER)
        .namespaces(|namespaces| namespaces.pid = shared)
        .run()?;
    let share = |security: &mut v1::LinuxContainerSecurityContext| {
        security.namespace_options.get_or_insert_default().pid = shared;
    };
    let guest = pod
        .container(["/tool.wasm", "sleep", "1000"])
        .security(share)
        .start()?;
    guest.wait_for_log("sleeping")?;
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let linux = pod
        .container(["/bin/sleep", "1000"])
        .security(share)
        .start()?;
    assert_eq!(namespace(guest.pid()?)?, namespace(linux.pid()?)?);
    guest.stop(0)?;
    assert_eq!(
        linux.status()?.state(),
        v1::ContainerState::ContainerRunning,
        "nobody's end is another's"
    );
    end(pod)
}

fn a_killed_daemon(cri: &Cri) -> Result<()> {
    let pod = cri.pod(HANDLER).run()?;
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    guest.wait_for_log("sleeping")?;
    let daemons = pod.shims();
    for daemon in &daemons {
        // The zygote may go with the daemon before its turn comes.
        let _ = kill(Pid::from_raw(*daemon as i32), Signal::SIGKILL);
    }
    eventually("CRI knows that the pod has ended", || {
        (state(&pod).ok()? == v1::PodSandboxState::SandboxNotready).then_some(())
    })?;
    // 137 by its event, or 255 if CRI saw the connection end before.
    assert_ne!(guest.wait()?.code, 0);
    pod.end()
}
