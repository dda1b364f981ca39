//! Pods under CRI: their life and their containers', from the first to the last call of a kubelet.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Rootfs,
    cri::{Container, Cri, IMAGE, Line, RUNC, WASMTIME, v1},
    each_cri, eventually,
};
use tonic::Code;

each_cri!(
    pod_of_both_kinds,
    a_pods_life,
    a_containers_life,
    stopping_the_pod_ends_its_containers,
    removing_ends_what_runs,
    how_containers_end,
    containers_that_cannot_start,
    restarts,
    init_containers,
    sidecars,
    logs,
    long_lines,
    reopened_log,
    messages_of_the_end,
    a_grace_period,
    the_images_signal,
    exec_probes,
);

fn pod_of_both_kinds(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let guest = pod.container(["/tool.wasm", "args", "one"]).run()?;
    assert_eq!(guest.success()?, "/tool.wasm\nargs\none\n");
    let linux = pod.container(["/bin/echo", "from Linux"]).run()?;
    assert_eq!(linux.success()?, "from Linux\n");
    pod.end()
}

/// The pods that CRI lists under an id.
fn listed_pods(cri: &Cri, id: &str) -> Result<Vec<v1::PodSandbox>> {
    cri.pods(v1::PodSandboxFilter {
        id: id.to_owned(),
        ..Default::default()
    })
}

/// The containers that CRI lists for a pod.
fn listed_containers(cri: &Cri, pod: &str) -> Result<Vec<v1::Container>> {
    cri.containers(v1::ContainerFilter {
        pod_sandbox_id: pod.to_owned(),
        ..Default::default()
    })
}

fn a_pods_life(cri: &Cri) -> Result<()> {
    let label = ("lighter.test/purpose".to_owned(), "life".to_owned());
    let pod = cri
        .pod(WASMTIME)
        .with(|config| config.labels.extend([label.clone()]))
        .run()?;
    let [listed] = &listed_pods(cri, pod.id())?[..] else {
        anyhow::bail!("the pod is not listed once");
    };
    assert_eq!(listed.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(listed.runtime_handler, WASMTIME);
    assert_eq!(listed.labels.get(&label.0), Some(&label.1));
    let status = pod.status()?;
    assert_eq!(status.runtime_handler, WASMTIME);
    assert_eq!(status.metadata, pod.config().metadata);
    assert!(status.created_at > 0);
    for _ in 0..2 {
        // A kubelet that has restarted does it again.
        pod.stop()?;
        assert_eq!(pod.status()?.state(), v1::PodSandboxState::SandboxNotready);
    }
    let error = pod
        .container(["/bin/true"])
        .start()
        .err()
        .context("a container in a stopped pod")?;
    let text = format!("{error:#}");
    assert!(
        text.contains("not running") || text.contains("no running task"),
        "{text}"
    );
    for _ in 0..2 {
        pod.remove()?;
        assert!(listed_pods(cri, pod.id())?.is_empty());
    }
    pod.ensure_gone()
}

fn a_containers_life(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for program in ["/tool.wasm", "/bin/busybox"] {
        let state = |container: &Container| -> Result<_> {
            let listed = listed_containers(cri, pod.id())?;
            let listed = listed.iter().find(|listed| listed.id == container.id());
            let listed = listed.context("it is not listed")?.state();
            let status = container.status()?;
            assert_eq!(status.state(), listed);
            Ok((listed, status))
        };
        let container = pod.container([program, "sleep", "1000"]).create()?;
        let (created, status) = state(&container)?;
        assert_eq!(created, v1::ContainerState::ContainerCreated);
        assert!(
            status.created_at > 0 && status.started_at == 0,
            "{status:?}"
        );
        container.start()?;
        let (running, status) = state(&container)?;
        assert_eq!(running, v1::ContainerState::ContainerRunning);
        assert!(status.started_at >= status.created_at, "{status:?}");
        assert!(status.finished_at == 0, "{status:?}");
        for _ in 0..2 {
            container.stop(0)?;
            let (exited, status) = state(&container)?;
            assert_eq!(exited, v1::ContainerState::ContainerExited);
            assert!(status.finished_at >= status.started_at, "{status:?}");
            assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        }
        for _ in 0..2 {
            container.remove()?;
            assert!(listed_containers(cri, pod.id())?.is_empty());
        }
        let error = container.status().expect_err("it is removed");
        let code = error
            .downcast_ref::<tonic::Status>()
            .map(tonic::Status::code);
        assert_eq!(code, Some(Code::NotFound), "{error:#}");
        cri.engine().ensure_gone(container.id())?;
    }
    pod.end()
}

fn stopping_the_pod_ends_its_containers(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let members = [
        pod.container(["/tool.wasm", "loop"]).start()?,
        pod.container(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
            .start()?,
    ];
    let daemons = pod.shims();
    ensure!(!daemons.is_empty(), "there is a daemon to end");
    pod.stop()?;
    for member in &members {
        let status = member.status()?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!(status.exit_code, 137, "{status:?}");
    }
    pod.end()?;
    daemons
        .into_iter()
        .try_for_each(lighter_test::leaks::ensure_dead)
}

fn removing_ends_what_runs(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for program in ["/tool.wasm", "/bin/busybox"] {
        let container = pod.container([program, "sleep", "1000"]).start()?;
        let pid = container.pid()?;
        container.remove()?;
        lighter_test::leaks::ensure_dead(pid)?;
        cri.engine().ensure_gone(container.id())?;
        // One that never ran.
        let container = pod.container([program, "sleep", "1000"]).create()?;
        container.remove()?;
        cri.engine().ensure_gone(container.id())?;
    }
    pod.end()
}

fn how_containers_end(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for (args, code, reason) in [
        (vec!["/bin/true"], 0, "Completed"),
        (vec!["/bin/sh", "-c", "exit 7"], 7, "Error"),
        (vec!["/tool.wasm", "exit", "0"], 0, "Completed"),
        (vec!["/tool.wasm", "exit", "7"], 7, "Error"),
        (vec!["/tool.wasm", "trap"], 134, "Error"),
        (vec!["/tool-component.wasm", "exit", "1"], 1, "Error"),
        (vec!["/tool-component.wasm", "trap"], 134, "Error"),
    ] {
        let ended = pod.container(args.clone()).run()?;
        assert_eq!(
            (ended.code, ended.reason.as_str()),
            (code, reason),
            "{args:?}"
        );
    }
    let trapped = pod.container(["/tool.wasm", "trap"]).run()?;
    assert!(trapped.errors.contains("trap_inner"), "{}", trapped.errors);
    pod.end()
}

/// The call fails with the cause, and so does the container, with what a kubelet shows as
/// the reason. Linux containers are told the same as by runc's shim.
fn containers_that_cannot_start(cri: &Cri) -> Result<()> {
    for (handler, program, cause) in [
        (RUNC, "/nowhere", "no such file or directory"),
        (WASMTIME, "/nowhere", "no such file or directory"),
        (RUNC, "/etc", "permission denied"),
        (WASMTIME, "/etc", "is a directory"),
        (WASMTIME, "/etc/broken.wasm", "wasm"),
    ] {
        let pod = cri.pod(handler).run()?;
        let broken = cri.engine().folder().join(cri.new_name("broken"));
        fs::write(&broken, b"\0asm\x01\0\0\0\xff\xff\xff")?;
        let container = pod
            .container([program])
            .mount(&broken, "/etc/broken.wasm")
            .create()?;
        let error = container.start().expect_err(program);
        let text = format!("{error:#}").to_lowercase();
        assert!(text.contains(program), "{handler} {program}: {text}");
        assert!(text.contains(cause), "{handler} {program}: {text}");
        let status = container.status()?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!(status.reason, "StartError", "{handler} {program}");
        assert_eq!(status.exit_code, 128, "{handler} {program}");
        assert!(
            status.message.to_lowercase().contains(cause),
            "{handler} {program}: {}",
            status.message
        );
        pod.end()?;
    }
    Ok(())
}

/// As a kubelet restarts a container: a new one with the name of the old and the next number.
fn restarts(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for args in [["/tool.wasm", "exit", "3"], ["/bin/sh", "-c", "exit 3"]] {
        let name = cri.new_name("restarted");
        let ended = (0..3)
            .map(|attempt| {
                let metadata = v1::ContainerMetadata {
                    name: name.clone(),
                    attempt,
                };
                pod.container(args)
                    .with(|config| config.metadata = Some(metadata))
                    .run()
            })
            .collect::<Result<Vec<_>>>()?;
        assert!(ended.iter().all(|ended| ended.code == 3), "{ended:?}");
    }
    pod.end()
}

/// A folder of the node that stands for an emptyDir.
fn empty_dir(cri: &Cri) -> Result<std::path::PathBuf> {
    let folder = cri.engine().folder().join(cri.new_name("volume"));
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// One after the other, each of another kind than the one before.
fn init_containers(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let volume = empty_dir(cri)?;
    let run = |args: [&str; 4]| pod.container(args).mount(&volume, "/volume").run();
    run(["/tool.wasm", "append", "/volume/file", "guest,"])?.success()?;
    let script = "printf linux, >> /volume/file; exit $0";
    run(["/bin/sh", "-c", script, "0"])?.success()?;
    assert_eq!(run(["/bin/sh", "-c", script, "2"])?.code, 2);
    run([
        "/tool-component.wasm",
        "append",
        "/volume/file",
        "component",
    ])?
    .success()?;
    let guest = run(["/tool.wasm", "read", "/volume/file", ""])?;
    assert_eq!(guest.success()?, "guest,linux,linux,component");
    pod.end()
}

/// Linux beside wasm and wasm beside Linux: one network, one volume.
fn sidecars(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let volume = empty_dir(cri)?;
    let server = pod
        .container(["/tool-component.wasm", "http", "8080"])
        .start()?;
    server.wait_for_log("listening")?;
    let script = "wget -q -O /volume/page http://127.0.0.1:8080/ && echo fetched; sleep 1000";
    let sidecar = pod
        .container(["/bin/sh", "-c", script])
        .mount(&volume, "/volume")
        .start()?;
    sidecar.wait_for_log("fetched")?;
    let reader = pod
        .container(["/tool.wasm", "read", "/volume/page"])
        .mount(&volume, "/volume")
        .run()?;
    assert_eq!(reader.success()?, "hello from wasm\n");

    let script = "echo listening; echo from Linux | nc -l -p 8081; sleep 1000";
    let server = pod.container(["/bin/sh", "-c", script]).start()?;
    server.wait_for_log("listening")?;
    let guest = eventually("the guest reaches the Linux container", || {
        pod.container([
            "/tool-component.wasm",
            "tcp-client",
            "127.0.0.1",
            "8081",
            "from a guest\n",
        ])
        .run()
        .ok()
        .filter(|ended| ended.code == 0)
    })?;
    assert_eq!(guest.output, "from Linux\n\n");
    server.wait_for_log("from a guest")?;
    pod.end()
}

fn line(stream: &str, text: &str) -> impl Fn(&&Line) -> bool {
    let (stream, text) = (stream.to_owned(), text.to_owned());
    move |line| line.stream == stream && line.text == text
}

/// The same under both handlers: stream, time and tag of every line.
fn logs(cri: &Cri) -> Result<()> {
    let script = "echo one; echo two >&2; printf three";
    for (handler, runs) in [
        (RUNC, vec![vec!["/bin/sh", "-c", script]]),
        (
            WASMTIME,
            vec![
                vec!["/bin/sh", "-c", script],
                vec!["/tool.wasm", "args", "one"],
                vec!["/tool.wasm", "stderr", "two"],
            ],
        ),
    ] {
        let pod = cri.pod(handler).run()?;
        let mut lines = Vec::new();
        for args in runs {
            let before = now();
            let container = pod.container(args).start()?;
            container.wait()?;
            let written = container.lines()?;
            for line in &written {
                // RFC 3339 in UTC, down to the nanosecond but for zeros at the end.
                let time = line.time.strip_suffix('Z').context("not in UTC")?;
                let time = format!("{time:0<29}Z");
                assert!(before <= time && time <= now(), "{before} {line:?}");
            }
            lines.extend(written);
        }
        for (stream, text) in [("stdout", "one"), ("stderr", "two")] {
            let found = lines.iter().find(line(stream, text));
            assert!(
                found.is_some_and(|line| line.full),
                "{handler} {text}: {lines:?}"
            );
        }
        let rest = lines.iter().find(line("stdout", "three"));
        // Without a line's end it is a part.
        assert!(rest.is_some_and(|line| !line.full), "{handler}: {lines:?}");
        pod.end()?;
    }
    Ok(())
}

/// The time as a log has it.
fn now() -> String {
    lighter_test::run("date", &["--utc", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .expect("date tells the time")
        .trim()
        .to_owned()
}

/// Lines of more than 16 KiB come in parts.
fn long_lines(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let text = "x".repeat(40_000);
    for args in [
        vec!["/bin/echo", text.as_str()],
        vec!["/tool-component.wasm", "args", text.as_str()],
    ] {
        let container = pod.container(args).start()?;
        assert_eq!(container.wait()?.code, 0);
        let lines: Vec<Line> = container
            .lines()?
            .into_iter()
            .skip_while(|line| !line.text.starts_with('x'))
            .collect();
        let tags: Vec<bool> = lines.iter().map(|line| line.full).collect();
        assert_eq!(tags, [false, false, true]);
        let whole: String = lines.into_iter().map(|line| line.text).collect();
        assert!(whole == text, "{} characters", whole.len());
    }
    pod.end()
}

/// As a kubelet rotates logs: the file is moved away, the log opened anew.
fn reopened_log(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let echo = "while read line; do echo $line; done";
    for args in [vec!["/bin/sh", "-c", echo], vec!["/tool.wasm", "cat"]] {
        let container = pod
            .container(args)
            .with(|config| config.stdin = true)
            .start()?;
        let mut client = container.attach(true, false)?;
        client.write("before\n")?;
        container.wait_for_log("before")?;
        let old = container.log().with_extension("old");
        fs::rename(container.log(), &old)?;
        container.reopen_log()?;
        client.write("after\n")?;
        container.wait_for_log("after")?;
        assert_eq!(container.written("stdout")?, "after\n");
        assert!(fs::read_to_string(&old)?.ends_with("before\n"));
    }
    pod.end()
}

/// A kubelet mounts a file for the message that it shows when the container has ended.
fn messages_of_the_end(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let path = "/dev/termination-log";
    for args in [
        vec![
            "/bin/sh",
            "-c",
            "printf 'out of luck' > /dev/termination-log; exit 1",
        ],
        vec!["/tool.wasm", "write", path, "out of luck"],
        vec!["/tool-component.wasm", "write", path, "out of luck"],
    ] {
        let file = cri.engine().folder().join(cri.new_name("message"));
        fs::write(&file, "")?;
        let ended = pod.container(args.clone()).mount(&file, path).run()?;
        let message = fs::read_to_string(&file)?;
        assert_eq!(message, "out of luck", "{args:?}: {ended:?}");
    }
    pod.end()
}

/// SIGTERM, and SIGKILL when the time is over, not before.
fn a_grace_period(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let stop = |args: &[&str], grace: i64| -> Result<_> {
        let container = pod.container(args.iter().copied()).start()?;
        container.wait_for_log("ing")?;
        let before = Instant::now();
        container.stop(grace)?;
        Ok((container.wait()?, before.elapsed()))
    };
    let polite = "trap 'echo bye; exit 3' TERM; echo waiting; while :; do sleep 0.1; done";
    let (ended, time) = stop(&["/bin/sh", "-c", polite], 60)?;
    assert_eq!((ended.code, ended.output.as_str()), (3, "waiting\nbye\n"));
    assert!(time < Duration::from_secs(30), "{time:?}");
    let deaf = "trap '' TERM; echo waiting; while :; do sleep 1; done";
    let (ended, time) = stop(&["/bin/sh", "-c", deaf], 2)?;
    assert_eq!(ended.code, 137);
    assert!(time >= Duration::from_secs(2), "{time:?}");
    for guest in [
        vec!["/tool.wasm", "sleep", "1000"],
        vec!["/tool.wasm", "loop"],
        vec!["/tool-component.wasm", "tcp-server", "80"],
    ] {
        let (ended, time) = stop(&guest, 60)?;
        assert_eq!(ended.code, 143, "{guest:?}");
        assert!(time < Duration::from_secs(30), "{guest:?}: {time:?}");
    }
    pod.end()
}

/// An image may name the signal that asks its program to end.
fn the_images_signal(cri: &Cri) -> Result<()> {
    let name = format!("lighter.test/{}:1", cri.new_name("signal"));
    let image = image::Image {
        platform: "linux/amd64".parse()?,
        stop_signal: Some("SIGINT".to_owned()),
        layers: vec![Rootfs::guests()?.layer()?],
        ..Default::default()
    };
    cri.import(&name, &image)?;
    let pod = cri.pod(WASMTIME).run()?;
    let script = "trap 'exit 4' INT; trap 'exit 5' TERM; echo waiting; while :; do sleep 0.1; done";
    for (args, code) in [
        (vec!["/bin/sh", "-c", script], 4),
        (vec!["/tool.wasm", "sleep", "1000"], 130),
    ] {
        for (image, code) in [
            (name.as_str(), code),
            (IMAGE, if code == 4 { 5 } else { 143 }),
        ] {
            let image = v1::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            };
            let container = pod
                .container(args.clone())
                .with(|config| config.image = Some(image))
                .start()?;
            container.wait_for_log("ing")?;
            container.stop(60)?;
            assert_eq!(container.wait()?.code, code, "{args:?}");
        }
    }
    pod.end()
}

/// A command in the container, again and again, each time with little time.
fn exec_probes(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for program in ["/tool.wasm", "/bin/busybox"] {
        let container = pod.container([program, "sleep", "1000"]).start()?;
        for probe in [
            ["/bin/cat", "/tmp/healthy", ""],
            ["/tool.wasm", "read", "/tmp/healthy"],
        ] {
            let probe = || {
                let args = probe.into_iter().filter(|arg| !arg.is_empty());
                container.exec_sync(args, 5)
            };
            assert_ne!(probe()?.code, 0);
            container.exec_sync(["/bin/touch", "/tmp/healthy"], 5)?;
            for _ in 0..10 {
                assert_eq!(probe()?.code, 0);
            }
            container.exec_sync(["/tool.wasm", "unlink", "/tmp/healthy"], 5)?;
            assert_ne!(probe()?.code, 0);
        }
        let pid = container.pid()?;
        container.stop(0)?;
        let error = container
            .exec_sync(["/bin/true"], 5)
            .expect_err("it has ended");
        assert!(error.message().contains("CONTAINER_EXITED"), "{error}");
        lighter_test::leaks::ensure_dead(pid)?;
    }
    pod.end()
}
