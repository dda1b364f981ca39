//! Processes added to containers of pods, streams to them, and ports: what `kubectl exec`, `attach`,
//! `port-forward` and probes come to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lighter_test::{
    cri::{Container, Cri, Pod, RUNC, WASMTIME},
    each_cri, eventually,
};
use tonic::Code;

each_cri!(
    exec_sync,
    exec_sync_that_takes_too_long,
    exec_sync_of_what_is_not_there,
    exec_as_the_containers_user,
    exec_with_streams,
    exec_on_a_terminal,
    attach,
    attach_to_what_reads_nothing,
    attach_to_a_terminal,
    input_for_one_client,
    port_forward,
    port_that_nobody_listens_on,
);

/// A container that stays, as a guest or on Linux.
fn idle<'a>(pod: &'a Pod, program: &str) -> Result<Container<'a>> {
    pod.container([program, "sleep", "1000"]).start()
}

/// The containers of both kinds: what is added to them need not be of the same.
fn idle_both<'a>(pod: &'a Pod) -> Result<[Container<'a>; 2]> {
    Ok([idle(pod, "/tool.wasm")?, idle(pod, "/bin/busybox")?])
}

fn exec_sync(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for container in idle_both(&pod)? {
        let linux = container.exec_sync(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], 10)?;
        assert_eq!(
            (linux.code, linux.output.as_str(), linux.errors.as_str()),
            (7, "out\n", "err\n")
        );
        let guest = container.exec_sync(["/tool.wasm", "args", "one"], 10)?;
        assert_eq!(
            (guest.code, guest.output.as_str(), guest.errors.as_str()),
            (0, "/tool.wasm\nargs\none\n", "")
        );
        let guest = container.exec_sync(["/tool.wasm", "stderr", "wrong"], 10)?;
        assert_eq!(
            (guest.output.as_str(), guest.errors.as_str()),
            ("", "wrong\n")
        );
        let guest = container.exec_sync(["/tool.wasm", "exit", "9"], 0)?;
        assert_eq!(guest.code, 9);
        let guest = container.exec_sync(["/tool-component.wasm", "cwd"], 0)?;
        assert_eq!((guest.code, guest.output.as_str()), (0, "/\n"));
    }
    pod.end()
}

/// The process is killed, and the container stays.
fn exec_sync_that_takes_too_long(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for container in idle_both(&pod)? {
        for args in [
            ["/bin/sh", "-c", "echo sleeping; exec sleep 999"],
            ["/tool.wasm", "sleep", "999"],
        ] {
            let before = Instant::now();
            let error = container.exec_sync(args, 1).expect_err("it takes too long");
            // By this code a kubelet knows a timeout.
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            assert!(before.elapsed() >= Duration::from_secs(1), "{error}");
            assert!(error.message().contains("timeout 1s exceeded"), "{error}");
            let left = eventually("the process is gone", || {
                let processes = container.exec_sync(["/bin/ps", "-o", "pid"], 10).ok()?;
                // The title, the container's first process and the one that looks.
                (processes.output.lines().count() == 3).then_some(())
            });
            left.with_context(|| format!("{args:?}"))?;
        }
        assert_eq!(container.exec_sync(["/bin/true"], 10)?.code, 0);
    }
    pod.end()
}

/// As with runc it is an error of the call that names the program.
fn exec_sync_of_what_is_not_there(cri: &Cri) -> Result<()> {
    for handler in [WASMTIME, RUNC] {
        let pod = cri.pod(handler).run()?;
        let container = idle(&pod, "/bin/busybox")?;
        let error = container.exec_sync(["/nowhere"], 10).expect_err(handler);
        assert!(error.message().contains("/nowhere"), "{handler}: {error}");
        assert_eq!(container.exec_sync(["/bin/true"], 10)?.code, 0);
        pod.end()?;
    }
    Ok(())
}

/// User, groups, folder and environment are the container's.
fn exec_as_the_containers_user(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for program in ["/tool.wasm", "/bin/busybox"] {
        let container = pod
            .container([program, "sleep", "1000"])
            .with(|config| config.working_dir = "/tmp".into())
            .env("COLOUR", "green")
            .security(|security| {
                security.run_as_user = Some(lighter_test::cri::v1::Int64Value { value: 1000 });
                security.run_as_group = Some(lighter_test::cri::v1::Int64Value { value: 2000 });
                security.supplemental_groups = vec![3000];
            })
            .start()?;
        let script = "id -u; id -g; id -G; pwd; echo $COLOUR";
        let linux = container.exec_sync(["/bin/sh", "-c", script], 10)?;
        assert_eq!(linux.success()?, "1000\n2000\n2000 3000\n/tmp\ngreen\n");
        let guest = container.exec_sync(["/tool.wasm", "write", "/file", "x"], 10)?;
        assert!(guest.errors.contains("Permission denied"), "{guest:?}");
        let guest = container.exec_sync(["/tool.wasm", "write", "/tmp/file", "x"], 10)?;
        assert_eq!(guest.code, 0, "{guest:?}");
        let owner = container.exec_sync(["/bin/stat", "-c", "%u:%g", "/tmp/file"], 10)?;
        assert_eq!(owner.output, "1000:2000\n");
        let guest = container.exec_sync(["/tool.wasm", "env"], 10)?;
        assert!(guest.output.contains("COLOUR=green\n"), "{guest:?}");
    }
    pod.end()
}

fn exec_with_streams(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for container in idle_both(&pod)? {
        let script = "read line; echo got $line; read line; echo then $line >&2; exit 5";
        let mut linux = container.exec(["/bin/sh", "-c", script], true, false)?;
        linux.write("one\n")?;
        linux.wait_for("got one\n")?;
        linux.write("two\n")?;
        let ended = linux.finish()?;
        assert_eq!(
            (ended.code, ended.output.as_str(), ended.errors.as_str()),
            (5, "got one\n", "then two\n")
        );

        let mut guest = container.exec(["/tool.wasm", "cat"], true, false)?;
        guest.write("to a guest\n")?;
        guest.wait_for("to a guest\n")?;
        guest.write("and back\n")?;
        guest.wait_for("and back\n")?;
        drop(guest);

        let guest = container.exec(["/tool.wasm", "exit", "3"], false, false)?;
        assert_eq!(guest.finish()?.code, 3);
        let linux = container.exec(["/bin/echo", "done"], false, false)?;
        let ended = linux.finish()?;
        assert_eq!((ended.code, ended.output.as_str()), (0, "done\n"));
    }
    pod.end()
}

fn exec_on_a_terminal(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for container in idle_both(&pod)? {
        let mut linux = container.exec(["/bin/sh"], true, true)?;
        linux.wait_for("/ # ")?;
        linux.resize(101, 37)?;
        // The size travels on a way of its own; the shell asks until it is there.
        linux.write("until stty size | grep '37 101'; do sleep 0.05; done; echo si''zed\n")?;
        linux.wait_for("37 101\r\n")?;
        linux.wait_for("sized")?;
        linux.write("tty && exit 6\n")?;
        let ended = linux.finish()?;
        assert_eq!((ended.code, ended.errors.as_str()), (6, ""));
        assert!(ended.output.contains("/dev/pts/"), "{ended:?}");

        let guest = container.exec(["/tool.wasm", "isatty"], true, true)?;
        assert_eq!(guest.finish()?.output, "0 yes\r\n1 yes\r\n2 yes\r\n");
        // The key that interrupts.
        let mut guest = container.exec(["/tool.wasm", "loop"], true, true)?;
        guest.wait_for("looping")?;
        guest.write("\u{3}")?;
        assert_eq!(guest.finish()?.code, 130);
    }
    pod.end()
}

fn attach(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let script = "while read line; do echo got $line; echo and $line >&2; done; exit 4";
    for args in [
        vec!["/bin/sh", "-c", script],
        vec!["/tool.wasm", "cat"],
        vec!["/tool-component.wasm", "cat"],
    ] {
        let container = pod
            .container(args.clone())
            .with(|config| config.stdin = true)
            .start()?;
        let mut first = container.attach(true, false)?;
        first.write("one\n")?;
        first.wait_for("one\n")?;
        drop(first);
        // A client that goes away takes nothing with it.
        let mut second = container.attach(true, false)?;
        second.write("two\n")?;
        second.wait_for("two\n")?;
        // Of two clients, each gets all output.
        let mut third = container.attach(true, false)?;
        third.write("three\n")?;
        third.wait_for("three\n")?;
        second.wait_for("three\n")?;
        second.write("four\n")?;
        third.wait_for("four\n")?;
        container.wait_for_log("four")?;
        container.stop(0)?;
        let written = container.written("stdout")?;
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            assert!(written.contains(line), "{args:?}: {written}");
        }
    }
    pod.end()
}

/// As `kubectl attach` does without `-i`.
fn attach_to_what_reads_nothing(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let server = pod.container(["/tcp-echo.wasm", "8001"]).start()?;
    server.wait_for_log("8001")?;
    let mut client = server.attach(false, false)?;
    let script = "while :; do echo text | nc 127.0.0.1 8001 >/dev/null; done";
    pod.container(["/bin/sh", "-c", script]).start()?;
    client.wait_for(": 5 bytes\n")?;
    server.stop(0)?;
    // The end of the container is the end of the stream, and no failure.
    assert_eq!(client.finish()?.code, 0);
    pod.end()
}

fn attach_to_a_terminal(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let terminal = |args: Vec<&str>| {
        pod.container(args)
            .with(|config| {
                config.stdin = true;
                config.tty = true;
            })
            .start()
    };
    let linux = terminal(vec!["/bin/sh"])?;
    let mut client = linux.attach(true, true)?;
    client.resize(90, 30)?;
    client.write("until stty size | grep '30 90'; do sleep 0.05; done; exit 8\n")?;
    client.wait_for("30 90\r\n")?;
    assert_eq!(linux.wait()?.code, 8);

    let guest = terminal(vec!["/tool.wasm", "cat"])?;
    let mut client = guest.attach(true, true)?;
    client.write("line\n")?;
    // The terminal's echo and the guest's own.
    client.wait_for("line\r\nline\r\n")?;
    client.write("\u{3}")?;
    assert_eq!(guest.wait()?.code, 130);
    pod.end()
}

/// With `stdin_once` the input ends with the first client.
fn input_for_one_client(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for args in [
        vec!["/bin/cat"],
        vec!["/tool.wasm", "cat"],
        vec!["/tool-component.wasm", "cat"],
    ] {
        let container = pod
            .container(args.clone())
            .with(|config| {
                config.stdin = true;
                config.stdin_once = true;
            })
            .start()?;
        let mut client = container.attach(true, false)?;
        client.write("all there is\n")?;
        client.wait_for("all there is\n")?;
        drop(client);
        let ended = container.wait().with_context(|| format!("{args:?}"))?;
        assert_eq!((ended.code, ended.output.as_str()), (0, "all there is\n"));
    }
    pod.end()
}

/// To a guest and to a Linux program in one pod, over one connection.
fn port_forward(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let guest = pod.container(["/tcp-echo.wasm", "8001"]).start()?;
    let linux = pod
        .container(["/bin/sh", "-c", "echo from busybox | nc -l -p 8002"])
        .start()?;
    guest.wait_for_log("8001")?;
    listens(&linux, 8002)?;
    let mut ports = pod.forward(&[8001, 8002])?;
    ports.write(0, "to a guest\n")?;
    ports.wait_for(0, "to a guest\n")?;
    ports.wait_for(1, "from busybox\n")?;
    ports.write(1, "to busybox\n")?;
    linux.wait_for_log("to busybox")?;
    drop(ports);
    let mut again = pod.forward(&[8001])?;
    again.write(0, "once more\n")?;
    again.wait_for(0, "once more\n")?;
    drop(again);
    pod.end()
}

/// Waits until somebody in the container's network listens on a port.
fn listens(container: &Container, port: u16) -> Result<()> {
    let pid = container.pid()?;
    let wanted = format!(":{port:04X} ");
    eventually("somebody listens", || {
        ["tcp", "tcp6"].iter().find_map(|kind| {
            let table = std::fs::read_to_string(format!("/proc/{pid}/net/{kind}")).ok()?;
            let listening = |line: &str| line.contains(&wanted) && line.contains(" 0A ");
            table.lines().any(listening).then_some(())
        })
    })
    .with_context(|| format!("port {port}: {:?}", container.lines()))
}

fn port_that_nobody_listens_on(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let failure = pod.forward(&[8009])?.failure(0)?;
    assert!(failure.contains("8009"), "{failure}");
    assert!(failure.contains("refused"), "{failure}");
    pod.end()
}
