//! The shim without containerd before it: its command line, and calls that
//! containerd would not let through.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest,
        PauseRequest, PidsRequest, ResumeRequest, StartRequest, StateRequest, StatsRequest,
        UpdateTaskRequest, WaitRequest,
    },
    ttrpc::Code,
};
use lighter_test::{
    Containerd, Version,
    shim::{Shim, bundle, deadline, delete, program, refusal},
};
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, setgroups},
};
use serde_json::{Value, json};

/// The containerd whose runc shim speaks the same version of the task service.
fn engine() -> Result<std::sync::Arc<Containerd>> {
    lighter_test::ensure_root()?;
    Containerd::shared(Version::V2_1)
}

fn write(bundle: &Path, spec: &Value) -> Result<()> {
    Ok(fs::write(
        bundle.join("config.json"),
        serde_json::to_vec(spec)?,
    )?)
}

macro_rules! request {
    ($message:ident { $($field:ident: $value:expr),* }) => {{
        #[allow(unused_mut)]
        let mut request = $message::new();
        $(request.$field = $value;)*
        request
    }};
}

/// Ids that no task has, and ids that one has already.
#[test]
fn unknown_and_doubled_ids() -> Result<()> {
    let engine = engine()?;
    let mut answers = Vec::new();
    for runtime in ["runc", "wasmtime"] {
        let id = engine.new_id("direct");
        let bundle = bundle(&engine, &id, &["/bin/sleep", "1000"])?;
        let shim = Shim::start(&engine, runtime, &id, bundle.path())?;
        let created = shim.create().context("create")?;
        ensure!(created.pid > 0, "{created:?}");
        let tasks = shim.tasks();
        let other = || "other".to_owned();
        answers.push(vec![
            (
                "create again",
                refusal(shim.create()).context("create again")?.0,
            ),
            (
                "state",
                refusal(tasks.state(deadline(), &request!(StateRequest { id: other() })))
                    .context("state")?
                    .0,
            ),
            (
                "start",
                refusal(tasks.start(deadline(), &request!(StartRequest { id: other() })))
                    .context("start")?
                    .0,
            ),
            (
                "kill",
                refusal(tasks.kill(
                    deadline(),
                    &request!(KillRequest {
                        id: other(),
                        signal: 9
                    }),
                ))
                .context("kill")?
                .0,
            ),
            (
                "wait",
                refusal(tasks.wait(deadline(), &request!(WaitRequest { id: other() })))
                    .context("wait")?
                    .0,
            ),
            (
                "delete",
                refusal(tasks.delete(deadline(), &request!(DeleteRequest { id: other() })))
                    .context("delete")?
                    .0,
            ),
            (
                "pids",
                refusal(tasks.pids(deadline(), &request!(PidsRequest { id: other() })))
                    .context("pids")?
                    .0,
            ),
            (
                "stats",
                refusal(tasks.stats(deadline(), &request!(StatsRequest { id: other() })))
                    .context("stats")?
                    .0,
            ),
            (
                "pause",
                refusal(tasks.pause(deadline(), &request!(PauseRequest { id: other() })))
                    .context("pause")?
                    .0,
            ),
            (
                "update",
                refusal(tasks.update(deadline(), &request!(UpdateTaskRequest { id: other() })))
                    .context("update")?
                    .0,
            ),
            (
                "resume",
                refusal(tasks.resume(deadline(), &request!(ResumeRequest { id: other() })))
                    .context("resume")?
                    .0,
            ),
            (
                "state of an exec process",
                refusal(tasks.state(
                    deadline(),
                    &request!(StateRequest {
                        id: id.clone(),
                        exec_id: other()
                    }),
                ))
                .context("of an exec process")?
                .0,
            ),
            (
                "start of an exec process",
                refusal(tasks.start(
                    deadline(),
                    &request!(StartRequest {
                        id: id.clone(),
                        exec_id: other()
                    }),
                ))
                .context("of an exec process")?
                .0,
            ),
            ("delete of a running task", {
                tasks
                    .start(deadline(), &request!(StartRequest { id: id.clone() }))
                    .context("start")?;
                refusal(tasks.delete(deadline(), &request!(DeleteRequest { id: id.clone() })))?.0
            }),
        ]);
        let connected = tasks
            .connect(deadline(), &request!(ConnectRequest { id: id.clone() }))
            .context("connect")?;
        ensure!(connected.task_pid == created.pid, "{connected:?}");
        ensure!(
            engine.shims_of(&id).contains(&connected.shim_pid),
            "{connected:?}"
        );
        tasks
            .kill(
                deadline(),
                &request!(KillRequest {
                    id: id.clone(),
                    signal: 9
                }),
            )
            .context("kill")?;
        let exit = tasks
            .wait(deadline(), &request!(WaitRequest { id: id.clone() }))
            .context("wait")?;
        ensure!(exit.exit_status == 137, "{exit:?}");
        let deleted = tasks
            .delete(deadline(), &request!(DeleteRequest { id: id.clone() }))
            .context("delete")?;
        ensure!(
            (deleted.exit_status, deleted.pid) == (137, created.pid),
            "{deleted:?}"
        );
        // The daemon ends on this call, and may do so before it answers.
        let mut shutdown = containerd_shim_protos::api::ShutdownRequest::new();
        shutdown.id = id.clone();
        let _ = tasks.shutdown(deadline(), &shutdown);
        engine.ensure_gone(&id).context(runtime)?;
    }
    let (theirs, ours) = (&answers[0], &answers[1]);
    assert_eq!(ours[0], ("create again", Code::ALREADY_EXISTS));
    // runc's shim has no code for this one.
    assert_eq!(ours[1..], theirs[1..]);
    Ok(())
}

/// One of a guest is not served, whatever its state, and the answer says so.
#[test]
fn checkpoint_of_a_guest() -> Result<()> {
    let engine = engine()?;
    let id = engine.new_id("direct");
    let bundle = bundle(&engine, &id, &["/tool.wasm", "sleep", "1000"])?;
    let shim = Shim::start(&engine, "wasmtime", &id, bundle.path())?;
    shim.create()?;
    let tasks = shim.tasks();
    let (code, message) = refusal(tasks.checkpoint(
        deadline(),
        &request!(CheckpointTaskRequest { id: id.clone() }),
    ))?;
    assert_eq!(code, Code::UNIMPLEMENTED, "{message}");
    assert!(message.contains("WebAssembly"), "{message}");
    Ok(())
}

/// What is wrong with a bundle is said by `start` or by Create, and `delete`
/// then leaves nothing.
#[test]
fn bundles_that_are_wrong() -> Result<()> {
    let engine = engine()?;
    type Change = fn(&Path) -> Result<()>;
    fn edit(bundle: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut spec: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
        change(&mut spec);
        write(bundle, &spec)
    }
    let cases: [(&str, &str, Change); 9] = [
        ("no config.json", "config.json", |bundle| {
            Ok(fs::remove_file(bundle.join("config.json"))?)
        }),
        ("not JSON", "config.json", |bundle| {
            Ok(fs::write(bundle.join("config.json"), "{\"process\":")?)
        }),
        ("an empty config.json", "config.json", |bundle| {
            Ok(fs::write(bundle.join("config.json"), "")?)
        }),
        ("no process", "process", |bundle| {
            edit(bundle, |spec| spec["process"] = Value::Null)
        }),
        ("no args", "args", |bundle| {
            edit(bundle, |spec| spec["process"]["args"] = Value::Null)
        }),
        ("empty args", "args", |bundle| {
            edit(bundle, |spec| spec["process"]["args"] = json!([]))
        }),
        ("a word where a number belongs", "config.json", |bundle| {
            edit(bundle, |spec| {
                spec["process"]["user"] = json!({"uid": "me"})
            })
        }),
        ("no root", "root", |bundle| {
            edit(bundle, |spec| spec["root"] = Value::Null)
        }),
        ("no rootfs", "rootfs", |bundle| {
            Ok(fs::remove_dir_all(bundle.join("rootfs"))?)
        }),
    ];
    for (case, named, change) in cases {
        let id = engine.new_id("direct");
        let bundle = bundle(&engine, &id, &["/hello.wasm"])?;
        change(bundle.path())?;
        let text = match Shim::start(&engine, "wasmtime", &id, bundle.path()) {
            Err(error) => format!("{error:#}"),
            Ok(shim) => refusal(shim.create()).context(case)?.1,
        };
        assert!(text.contains(named), "{case}: {text}");
        let program = program(&engine, "wasmtime")?;
        let deleted = delete(&engine, &program, &id, bundle.path())?;
        assert!(
            deleted.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&deleted.stderr)
        );
        engine.ensure_gone(&id).context(case)?;
    }
    Ok(())
}

/// `delete` for a bundle whose daemon never was answers with an exit, as
/// containerd expects after losing a shim.
#[test]
fn delete_without_a_daemon() -> Result<()> {
    let engine = engine()?;
    for runtime in ["runc", "wasmtime"] {
        let id = engine.new_id("direct");
        let bundle = bundle(&engine, &id, &["/hello.wasm"])?;
        let output = delete(&engine, &program(&engine, runtime)?, &id, bundle.path())?;
        assert!(
            output.status.success(),
            "{runtime}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let answer: containerd_shim_protos::api::DeleteResponse =
            containerd_shim_protos::protobuf::Message::parse_from_bytes(&output.stdout)?;
        assert_eq!(answer.exit_status, 137, "{runtime}");
        assert!(answer.exited_at.is_some(), "{runtime}");
    }
    Ok(())
}

#[test]
fn version_and_info() -> Result<()> {
    let engine = engine()?;
    let program = program(&engine, "wasmtime")?;
    let version = Command::new(&program).arg("-v").output()?;
    assert!(version.status.success());
    let text = String::from_utf8(version.stdout)?;
    assert!(text.contains("containerd-shim-wasmtime-v1"), "{text}");
    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");

    let info = Command::new(&program)
        .arg("-info")
        .stdin(std::process::Stdio::null())
        .output()?;
    assert!(
        info.status.success(),
        "{}",
        String::from_utf8_lossy(&info.stderr)
    );
    let info: containerd_shim_protos::types::introspection::RuntimeInfo =
        containerd_shim_protos::protobuf::Message::parse_from_bytes(&info.stdout)?;
    assert_eq!(info.name, lighter_test::WASMTIME);
    assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));

    let unknown = Command::new(&program)
        .args(["-namespace", "n", "-id", "i", "nonsense"])
        .output()?;
    assert!(!unknown.status.success());
    Ok(())
}

/// A daemon ends by itself when it is asked to and has no task.
#[test]
fn shutdown() -> Result<()> {
    let engine = engine()?;
    let id = engine.new_id("direct");
    let bundle = bundle(&engine, &id, &["/tool.wasm", "exit", "3"])?;
    let shim = Shim::start(&engine, "wasmtime", &id, bundle.path())?;
    let mut create = CreateTaskRequest::new();
    create.id = id.clone();
    create.bundle = bundle.path().display().to_string();
    let tasks = shim.tasks();
    tasks.create(deadline(), &create)?;
    tasks.start(deadline(), &request!(StartRequest { id: id.clone() }))?;
    let exit = tasks.wait(deadline(), &request!(WaitRequest { id: id.clone() }))?;
    assert_eq!(exit.exit_status, 3);
    // With a task it stays, as the runc shim does.
    let mut request = containerd_shim_protos::api::ShutdownRequest::new();
    request.id = id.clone();
    tasks.shutdown(deadline(), &request)?;
    tasks.state(deadline(), &request!(StateRequest { id: id.clone() }))?;
    tasks.delete(deadline(), &request!(DeleteRequest { id: id.clone() }))?;
    let _ = tasks.shutdown(deadline(), &request);
    lighter_test::eventually("the daemon ends", || {
        engine.shims_of(&id).is_empty().then_some(())
    })
}

/// Containers have nothing of what containerd, and so the daemon, was started with.
#[test]
fn groups_and_mask_of_the_daemon() -> Result<()> {
    let engine = engine()?;
    // Nobody minds them.
    setgroups(&[4, 27].map(Gid::from_raw))?;
    for args in [["/bin/sleep", "1000", ""], ["/tool.wasm", "sleep", "1000"]] {
        let id = engine.new_id("direct");
        let bundle = bundle(&engine, &id, &args)?;
        let mut spec: Value =
            serde_json::from_slice(&fs::read(bundle.path().join("config.json"))?)?;
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        write(bundle.path(), &spec)?;
        let mask = umask(Mode::from_bits_truncate(0o077));
        let shim = Shim::start(&engine, "wasmtime", &id, bundle.path());
        umask(mask);
        let shim = shim?;
        let pid = shim.create()?.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default().to_owned()
        };
        assert_eq!(line("Groups:"), "", "{args:?}");
        assert_eq!(line("Umask:"), "0022", "{args:?}");
    }
    Ok(())
}

/// Who cannot be told why still learns that it failed.
#[test]
fn standard_error_that_cannot_be_written() -> Result<()> {
    let shim = lighter_test::built_programs()?.join("containerd-shim-wasmtime-v1");
    let full = fs::OpenOptions::new().write(true).open("/dev/full")?;
    let status = Command::new(shim).arg("-h").stderr(full).status()?;
    assert_eq!(status.code(), Some(1));
    Ok(())
}
