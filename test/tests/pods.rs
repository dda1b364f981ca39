//! Guests and Linux containers side by side, alone and in a pod, whose
//! containers one daemon serves.

use anyhow::{Context, Result};
use lighter_test::{
    Containerd, Rootfs, each_containerd, eventually,
    leaks::{ensure_dead, open_files},
};
use nix::sys::signal::Signal;
use serde_json::json;

each_containerd!(
    side_by_side,
    one_daemon,
    pod_of_both_kinds,
    members_die_alone,
    daemon_stays_lean
);

fn side_by_side(engine: &Containerd) -> Result<()> {
    let start = |args: [&str; 3]| {
        let container = engine.container(&Rootfs::guests()?).args(args).create()?;
        container.start()?;
        Ok::<_, anyhow::Error>(container)
    };
    let guest = start(["/tool.wasm", "sleep", "1000"])?;
    let linux = start(["/bin/sh", "-c", "echo sleeping; sleep 1000"])?;
    guest.wait_for_output("sleeping")?;
    linux.wait_for_output("sleeping")?;
    let short = start(["/tool.wasm", "exit", "4"])?;
    assert_eq!(short.finish()?.status, 4);
    for container in [guest, linux] {
        container.kill(Signal::SIGKILL)?;
        assert_eq!(container.finish()?.status, 137);
    }
    Ok(())
}

/// The sandbox's container comes first, as under CRI; its id names the group.
fn one_daemon(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let pause = engine
        .container(&Rootfs::guests()?)
        .id(&pod)
        .pod(&pod)
        .args(["/bin/sleep", "1000"])
        .create()?;
    pause.start()?;
    let daemons = engine.shims_of(&pod);
    assert!(!daemons.is_empty());
    let mut members = Vec::new();
    for args in [
        ["/tool.wasm", "sleep", "1000"],
        ["/bin/sh", "-c", "sleep 1000"],
        ["/tool-component.wasm", "sleep", "1000"],
    ] {
        let member = engine
            .container(&Rootfs::guests()?)
            .pod(&pod)
            .args(args)
            .create()?;
        member.start()?;
        assert_eq!(
            engine.shims_of(member.id()),
            [0_u32; 0],
            "{args:?} has no daemon of its own"
        );
        members.push(member);
    }
    assert_eq!(engine.shims_of(&pod), daemons, "one daemon serves all");
    for member in members {
        member.kill(Signal::SIGKILL)?;
        let id = member.id().to_owned();
        assert_eq!(member.finish()?.status, 137);
        engine.ensure_gone(&id)?;
        assert_eq!(engine.shims_of(&pod), daemons, "it stays for the others");
    }
    pause.kill(Signal::SIGKILL)?;
    pause.finish()?;
    engine.ensure_gone(&pod)?;
    daemons.into_iter().try_for_each(ensure_dead)
}

/// A guest and a Linux container of a pod share network, IPC and host name.
fn pod_of_both_kinds(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let pause = engine
        .container(&Rootfs::guests()?)
        .id(&pod)
        .pod(&pod)
        .args(["/bin/sh", "-c", "ip link set lo up; echo up; sleep 1000"])
        .spec(|spec| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_NET_ADMIN"]);
            }
        })
        .create()?;
    pause.start()?;
    pause.wait_for_output("up")?;
    let joined = |spec: &mut serde_json::Value| {
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", pause.pid());
        spec["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "mount"},
            {"type": "ipc", "path": path("ipc")},
            {"type": "uts", "path": path("uts")},
            {"type": "network", "path": path("net")},
        ]);
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("hostname");
        }
    };
    let server = engine
        .container(&Rootfs::guests()?)
        .pod(&pod)
        .args(["/tool-component.wasm", "tcp-server", "8000"])
        .spec(joined)
        .create()?;
    server.start()?;
    server.wait_for_output("listening")?;
    let client = engine
        .container(&Rootfs::guests()?)
        .pod(&pod)
        .args(["/bin/sh", "-c", "echo through the pod | nc 127.0.0.1 8000"])
        .spec(joined)
        .create()?;
    client.start()?;
    client.wait_for_output("through the pod")?;
    for container in [client, server, pause] {
        // The client ends on its own when its peer does.
        let _ = container.kill(Signal::SIGKILL);
        container.finish()?;
    }
    engine.ensure_gone(&pod)
}

fn members_die_alone(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let pause = engine
        .container(&Rootfs::guests()?)
        .id(&pod)
        .pod(&pod)
        .args(["/bin/sleep", "1000"])
        .create()?;
    pause.start()?;
    for args in [
        ["/tool.wasm", "trap", "-"],
        ["/tool.wasm", "exit", "3"],
        ["/bin/sh", "-c", "exit 9"],
    ] {
        let member = engine
            .container(&Rootfs::guests()?)
            .pod(&pod)
            .args(args)
            .create()?;
        member.start()?;
        member.finish()?;
        assert!(pause.state().is_ok());
    }
    // One that cannot be created disturbs nobody either.
    let refused = engine
        .container(&Rootfs::guests()?)
        .pod(&pod)
        .args(["/missing"])
        .create();
    assert!(refused.is_err());
    assert_eq!(pause.pids()?, [pause.pid()]);
    pause.kill(Signal::SIGKILL)?;
    assert_eq!(pause.finish()?.status, 137);
    engine.ensure_gone(&pod)
}

/// A daemon that has served many containers holds no more than after the first.
fn daemon_stays_lean(engine: &Containerd) -> Result<()> {
    let pod = engine.new_id("pod");
    let pause = engine
        .container(&Rootfs::guests()?)
        .id(&pod)
        .pod(&pod)
        .args(["/bin/sleep", "1000"])
        .create()?;
    pause.start()?;
    let run = |args: [&str; 2]| -> Result<()> {
        let member = engine
            .container(&Rootfs::guests()?)
            .pod(&pod)
            .args(args)
            .stdin(lighter_test::Input::Bytes(b"text".to_vec()))
            .create()?;
        let id = member.id().to_owned();
        member.start()?;
        member.end_stdin()?;
        member.finish()?;
        engine.ensure_gone(&id)
    };
    let both = || run(["/tool.wasm", "cat"]).and_then(|()| run(["/bin/cat", "-"]));
    both()?;
    let processes = engine.shims_of(&pod);
    let open =
        |pids: &[u32]| -> Result<Vec<usize>> { pids.iter().map(|&pid| open_files(pid)).collect() };
    let before = open(&processes)?;
    for _ in 0..20 {
        both()?;
    }
    eventually("the daemon has no more files open than before", || {
        (open(&processes).ok()? == before).then_some(())
    })
    .with_context(|| format!("before {before:?}, after {:?}", open(&processes)))?;
    let threads = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .map(Iterator::count)
            .unwrap_or(0)
    };
    for pid in processes {
        assert!(threads(pid) < 16, "{} threads", threads(pid));
    }
    pause.kill(Signal::SIGKILL)?;
    pause.finish()?;
    engine.ensure_gone(&pod)
}
