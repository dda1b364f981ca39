//! OCI hooks: each is run at its point, with the container's state on its
//! standard input. The same checks run for runc, which says what is right.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use containerd_client::tonic::Code;
use lighter_test::{
    Container, Containerd, RUNC, Rootfs, WASMTIME, code, each_containerd, eventually,
};
use serde_json::{Value, json};

each_containerd!(
    states_and_order,
    in_the_container,
    failing_hook_fails_the_create,
    failing_hook_of_the_start,
    hook_that_takes_too_long,
    hooks_of_the_end_cannot_fail_it,
    environment_and_arguments,
    later_hooks_see_the_files,
    a_delete_that_is_given_up,
);

const PROGRAMS: [(&str, [&str; 3]); 3] = [
    (RUNC, ["/bin/sh", "-c", "exit 5"]),
    (WASMTIME, ["/bin/sh", "-c", "exit 5"]),
    (WASMTIME, ["/tool.wasm", "exit", "5"]),
];

/// A hook that saves its standard input in `folder` as `NAME.json` and adds its
/// name to the file `order`.
fn saving(folder: &Path, name: &str) -> Value {
    let folder = folder.display();
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("cat > {folder}/{name}.json; echo {name} >> {folder}/order; pwd > {folder}/{name}.pwd")],
    })
}

/// Hooks of the host that come when the container is there find its files where the bundle has them.
fn later_hooks_see_the_files(engine: &Containerd) -> Result<()> {
    for (runtime, args) in PROGRAMS {
        for points in [
            &["poststart", "poststop"][..],
            &["poststart"],
            &["poststop"],
        ] {
            let folder = tempfile::tempdir_in(engine.folder())?;
            let seen = folder.path().join("seen");
            let mut builder = engine
                .container(&Rootfs::guests()?)
                .runtime(runtime)
                .args(args);
            let bundles = engine.state().join("io.containerd.runtime.v2.task");
            let bundle = bundles.join(engine.namespace()).join(builder.get_id());
            for point in points {
                let (guest, seen) = (bundle.join("rootfs/tool.wasm"), seen.display());
                let script = format!("test -e {} && echo {point} >> {seen}", guest.display());
                let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
                builder = builder.hook(point, hook);
            }
            assert_eq!(builder.run()?.status, 5);
            let seen = fs::read_to_string(&seen).unwrap_or_default();
            let seen: Vec<&str> = seen.lines().collect();
            assert_eq!(seen, points, "{runtime} {args:?}");
        }
    }
    Ok(())
}

/// Who gives a delete up and asks again has the hooks run once.
fn a_delete_that_is_given_up(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let script = format!(
        "echo ran >> {}; while ! test -e {}; do sleep 0.1; done",
        path("ran"),
        path("go")
    );
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    let mut container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "exit", "5"])
        .hook("poststop", hook)
        .create()?;
    container.start()?;
    assert_eq!(container.wait()?.status, 5);
    let ran = || fs::read_to_string(path("ran")).unwrap_or_default();
    // Given up only once the hook has begun, however busy the machine is.
    for _ in 0..10 {
        let given_up = container.delete_within(Duration::from_secs(1));
        given_up.expect_err("the hook waits");
        if !ran().is_empty() {
            break;
        }
    }
    fs::write(path("go"), "")?;
    match container.delete() {
        Ok(exit) => assert_eq!(exit.status, 5),
        // The first has come to its end by now.
        Err(error) => assert_eq!(code(&error), Code::NotFound, "{error:#}"),
    }
    assert_eq!(ran(), "ran\n");
    Ok(())
}

fn state(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(format!("{name}.json"));
    let text = fs::read(&path).with_context(|| format!("the hook {name} has not run"))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{name} got {}", String::from_utf8_lossy(&text)))
}

/// The hooks of the machine's side: at their points, in their order, with the
/// real pid.
fn states_and_order(engine: &Containerd) -> Result<()> {
    let points = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let (mut orders, mut places) = (Vec::new(), Vec::new());
    for (runtime, args) in PROGRAMS {
        let folder = tempfile::tempdir_in(engine.folder())?;
        let mut builder = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .annotation("a.b/c", "kept");
        for point in points {
            builder = builder.hook(point, saving(folder.path(), point));
        }
        let mut container = builder.create()?;
        let order = || fs::read_to_string(folder.path().join("order")).unwrap_or_default();
        let mut seen = vec![("created", order())];
        let (id, pid, bundle) = (
            container.id().to_owned(),
            container.pid(),
            container.bundle(),
        );
        container.start()?;
        seen.push(("started", order()));
        assert_eq!(container.wait()?.status, 5);
        container.delete()?;
        seen.push(("deleted", order()));
        // poststart's is libcontainer's own matter, and that of a hook in the container's namespaces nobody's.
        places.push(["prestart", "createRuntime", "poststop"].map(|point| {
            let place = fs::read_to_string(folder.path().join(format!("{point}.pwd")));
            let is_bundle = place.map(|place| Path::new(place.trim_end()) == bundle);
            (point, is_bundle.unwrap_or_default())
        }));
        for point in points {
            let state = state(folder.path(), point)?;
            let expected = match point {
                // runc says "created" here, against the specification.
                "poststart" if runtime == RUNC => state["status"].as_str().unwrap_or_default(),
                "poststart" => "running",
                "poststop" => "stopped",
                _ => "creating",
            };
            assert_eq!(state["id"], json!(id), "{runtime} {args:?} {point}");
            assert_eq!(
                state["bundle"],
                json!(bundle.display().to_string()),
                "{point}"
            );
            assert_eq!(
                state["status"],
                json!(expected),
                "{runtime} {args:?} {point}: {state}"
            );
            assert_eq!(
                state["annotations"]["a.b/c"],
                json!("kept"),
                "{point}: {state}"
            );
            assert!(state["ociVersion"].is_string(), "{point}: {state}");
            match point {
                // The process is gone by then.
                "poststop" => {}
                // runc tells the pid as the container's namespace counts it.
                "createContainer" => assert!(
                    [json!(pid), json!(1)].contains(&state["pid"]),
                    "{runtime} {args:?} {point}: {state}"
                ),
                _ => assert_eq!(state["pid"], json!(pid), "{runtime} {args:?} {point}"),
            }
        }
        orders.push(seen);
        container.remove()?;
        engine.ensure_gone(&id)?;
    }
    for ours in &places[1..] {
        assert_eq!(*ours, places[0], "whether they run in the bundle");
    }
    // runc 1.1 runs poststart too early, which is no model.
    let created = "prestart\ncreateRuntime\ncreateContainer\n";
    assert!(orders[0][0].1.starts_with(created), "{:?}", orders[0]);
    let expected = [
        ("created", created.to_owned()),
        ("started", format!("{created}poststart\n")),
        ("deleted", format!("{created}poststart\npoststop\n")),
    ];
    assert_eq!(orders[1], expected, "a Linux container");
    assert_eq!(orders[2], expected, "a guest");
    Ok(())
}

/// `startContainer` runs inside of the container, after it was started and
/// before the program.
fn in_the_container(engine: &Containerd) -> Result<()> {
    let read = |container: &Container, file: &str| -> Result<String> {
        engine.look_into(container.id(), |root| {
            fs::read_to_string(root.join(file)).with_context(|| file.to_owned())
        })
    };
    for (runtime, args) in PROGRAMS {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .hook(
                "startContainer",
                json!({"path": "/bin/sh", "args": ["sh", "-c", "cat > /state.json"]}),
            )
            .create()?;
        assert!(
            read(&container, "state.json").is_err(),
            "{runtime} {args:?}: not before the start"
        );
        container.start()?;
        assert_eq!(container.wait()?.status, 5);
        let state: Value = serde_json::from_str(&read(&container, "state.json")?)?;
        assert_eq!(state["id"], json!(container.id()), "{runtime} {args:?}");
        assert_eq!(state["pid"], json!(1), "{runtime} {args:?}: {state}");
        container.finish()?;
    }
    Ok(())
}

fn failing_hook_fails_the_create(engine: &Containerd) -> Result<()> {
    for point in ["prestart", "createRuntime", "createContainer"] {
        for (runtime, args) in PROGRAMS {
            for hook in [
                json!({"path": "/bin/sh", "args": ["sh", "-c", "echo because of this >&2; exit 3"]}),
                json!({"path": "/missing/hook"}),
            ] {
                let builder = engine
                    .container(&Rootfs::guests()?)
                    .runtime(runtime)
                    .args(args)
                    .hook(point, hook.clone());
                let id = builder.get_id().to_owned();
                let error = match builder.create() {
                    Err(error) => format!("{error:#}"),
                    Ok(_) => {
                        anyhow::bail!("{runtime} {args:?}: created in spite of {point} {hook}")
                    }
                };
                if runtime == WASMTIME {
                    // The point, however it is spelt, and what went wrong.
                    let plain = error.to_lowercase().replace(' ', "");
                    assert!(
                        plain.contains(&point.to_lowercase()),
                        "no {point:?} in {error}"
                    );
                    let said: &[&str] = match hook["args"].get(2) {
                        None => &["/missing/hook"],
                        Some(_) => &["exit code: 3", "NonZeroExitCode(3)"],
                    };
                    assert!(
                        said.iter().any(|said| error.contains(said)),
                        "{point}: none of {said:?} in {error}"
                    );
                }
                engine
                    .ensure_gone(&id)
                    .with_context(|| format!("{runtime} {args:?} {point}"))?;
            }
        }
    }
    Ok(())
}

fn failing_hook_of_the_start(engine: &Containerd) -> Result<()> {
    for (runtime, args) in PROGRAMS {
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .hook(
                "startContainer",
                json!({"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}),
            )
            .create()?;
        let id = container.id().to_owned();
        // The runtimes differ in whether start or the exit tells of it; the
        // program must not have run, which would have ended with 5.
        match container.start() {
            Err(_) => drop(container),
            Ok(()) => {
                let output = container.finish()?;
                assert!(
                    ![0, 5].contains(&output.status),
                    "{runtime} {args:?}: {output:?}"
                );
            }
        }
        engine
            .ensure_gone(&id)
            .with_context(|| format!("{runtime} {args:?}"))?;
    }
    Ok(())
}

fn hook_that_takes_too_long(engine: &Containerd) -> Result<()> {
    let begin = std::time::Instant::now();
    let folder = tempfile::tempdir_in(engine.folder())?;
    let pid = folder.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let text = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm"])
        .hook(
            "createRuntime",
            json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1}),
        )
        .refused()?;
    assert!(text.contains("timeout"), "{text}");
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    let pid = fs::read_to_string(pid)?;
    eventually("the hook is killed", || {
        (!Path::new("/proc").join(pid.trim()).exists()).then_some(())
    })
}

/// What has ended cannot fail any more: a failing poststop hook keeps nobody
/// from deleting the container (OCI runtime specification, "Lifecycle").
fn hooks_of_the_end_cannot_fail_it(engine: &Containerd) -> Result<()> {
    let failing = json!({"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]});
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "exit", "5"])
        .hook("poststop", failing)
        .run()?;
    assert_eq!(output.status, 5);
    Ok(())
}

fn environment_and_arguments(engine: &Containerd) -> Result<()> {
    for (runtime, args) in PROGRAMS {
        let folder = tempfile::tempdir_in(engine.folder())?;
        let file = folder.path().join("said");
        let script = format!("echo \"$0 $1 $NAME ${{UNSET-none}}\" > {}", file.display());
        let output = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .env("UNSET", "the container's")
            .hook(
                "createRuntime",
                json!({
                    "path": "/bin/sh",
                    "args": ["own-name", "-c", script, "zero", "one"],
                    "env": ["NAME=value", "PATH=/usr/bin:/bin"],
                    "timeout": 30,
                }),
            )
            .run()?;
        assert_eq!(output.status, 5);
        assert_eq!(
            fs::read_to_string(&file)?,
            "zero one value none\n",
            "{runtime} {args:?}"
        );
    }
    Ok(())
}
