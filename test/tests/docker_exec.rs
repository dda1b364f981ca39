//! `docker exec` and health checks, in guests and beside them.

use anyhow::Result;
use lighter_test::{
    dockerd::{Dockerd, Image},
    each_store,
};

each_store!(guests, linux, who_and_where, refused, health);

fn guests(engine: &Dockerd) -> Result<()> {
    let host = engine.launch(Image::Guests, &[], &["/tool.wasm", "sleep", "1000"])?;
    host.wait_for_log("sleeping")?;
    let exec = |args: &[&str]| engine.docker(&[&["exec", host.id()], args].concat());
    let reply = exec(&["/tool.wasm", "args", "one", "two words"])?;
    assert_eq!(
        reply.text(),
        "/tool.wasm\nargs\none\ntwo words\n",
        "{reply:?}"
    );
    assert_eq!(exec(&["/tool.wasm", "exit", "7"])?.code, 7);
    let reply = exec(&["/tool-component.wasm", "args"])?;
    assert_eq!(reply.text(), "/tool-component.wasm\nargs\n", "{reply:?}");
    let reply = engine.docker_fed(&["exec", "-i", host.id(), "/tool.wasm", "cat"], b"typed\n")?;
    assert_eq!(reply.text(), "typed\n", "{reply:?}");
    assert_eq!(host.inspect("{{.State.Status}}")?, "running");
    Ok(())
}

fn linux(engine: &Dockerd) -> Result<()> {
    let host = engine.launch(Image::Linux, &[], &["sleep", "1000"])?;
    let exec = |args: &[&str]| engine.docker(&[&["exec", host.id()], args].concat());
    assert_eq!(exec(&["sh", "-c", "echo here; exit 3"])?.code, 3);
    let processes = exec(&["busybox", "ps"])?.success()?;
    assert!(processes.contains("sleep 1000"), "{processes}");
    // A detached one goes on by itself.
    engine
        .docker(&["exec", "-d", host.id(), "sh", "-c", "echo done > /left"])?
        .success()?;
    lighter_test::eventually("what it leaves", || {
        let reply = exec(&["cat", "/left"]).ok()?;
        (reply.text() == "done\n").then_some(())
    })?;
    Ok(())
}

fn who_and_where(engine: &Dockerd) -> Result<()> {
    let host = engine.launch(Image::Linux, &[], &["sleep", "1000"])?;
    let reply = engine.docker(&[
        "exec",
        "-u",
        "1000:7",
        "-w",
        "/bin",
        "-e",
        "A=b",
        host.id(),
        "sh",
        "-c",
        "id -u; id -g; pwd; echo $A",
    ])?;
    assert_eq!(reply.code, 0, "{reply:?}");
    assert_eq!(reply.success()?, "1000\n7\n/bin\nb\n");
    Ok(())
}

/// With the exit codes that Docker has for them.
fn refused(engine: &Dockerd) -> Result<()> {
    let host = engine.launch(Image::Guests, &[], &["/tool.wasm", "sleep", "1000"])?;
    host.wait_for_log("sleeping")?;
    let missing = engine.docker(&["exec", host.id(), "missing"])?;
    assert_eq!(missing.code, 127, "{missing:?}");
    engine.docker(&["kill", host.id()])?.success()?;
    host.wait()?;
    let stopped = engine.docker(&["exec", host.id(), "/tool.wasm", "args"])?;
    assert!(stopped.errors.contains("is not running"), "{stopped:?}");
    Ok(())
}

fn health(engine: &Dockerd) -> Result<()> {
    for (command, expected) in [("true", "healthy"), ("false", "unhealthy")] {
        let host = engine.launch(
            Image::Linux,
            &[
                "--health-cmd",
                command,
                "--health-interval",
                "1s",
                "--health-retries",
                "1",
            ],
            &["sleep", "1000"],
        )?;
        host.wait_for("{{.State.Health.Status}}", expected)?;
    }
    Ok(())
}
