//! Docker's networks: published ports, and containers that find each other by
//! name.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    dockerd::{ADDRESS, Dockerd, Image},
    each_store, eventually,
};

each_store!(published_http, published_echo, by_name, host_and_none);

const TOOL: &str = "/tool-component.wasm";

/// Sends bytes to a published port from another machine, and reads to the end.
fn ask(engine: &Dockerd, port: u16, request: &'static [u8]) -> Result<String> {
    let asking = engine.outside().spawn(move || {
        let mut client = TcpStream::connect((ADDRESS, port))?;
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        client.write_all(request)?;
        client.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asking.join().expect("the client does not panic")
}

/// The port of the daemon's machine that a container's port was given.
fn port_of(engine: &Dockerd, id: &str, port: &str) -> Result<u16> {
    let ports = engine.docker(&["port", id, port])?.success()?;
    let first = ports.lines().next().context("a published port")?;
    Ok(first.rsplit(':').next().context("an address")?.parse()?)
}

fn published_http(engine: &Dockerd) -> Result<()> {
    let guest = engine.launch(Image::Guests, &["-p", "8080:80"], &[TOOL, "http", "80"])?;
    guest.wait_for_log("listening")?;
    for _ in 0..3 {
        let answer = ask(
            engine,
            8080,
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        ensure!(answer.ends_with("hello from wasm\n"), "{answer}");
    }
    engine.docker(&["stop", guest.id()])?.success()?;
    ensure!(ask(engine, 8080, b"").is_err(), "the port is still served");
    Ok(())
}

fn published_echo(engine: &Dockerd) -> Result<()> {
    // Port 0.0.0.0:80 is for everyone in a container, as Docker has it.
    let options = ["-p", "7", "-u", "1000"];
    let guest = engine.launch(Image::Guests, &options, &["/tcp-echo.wasm", "7"])?;
    guest.wait_for_log("listening on 0.0.0.0:7")?;
    let port = port_of(engine, guest.id(), "7")?;
    assert_eq!(ask(engine, port, b"from outside")?, "from outside");

    let linux = engine.launch(
        Image::Linux,
        &["-p", "7"],
        &["nc", "-ll", "-p", "7", "-e", "cat"],
    )?;
    let port = port_of(engine, linux.id(), "7")?;
    eventually("nc listens", || {
        (ask(engine, port, b"from outside").ok()? == "from outside").then_some(())
    })
}

/// A guest and a Linux container on a network of the user's, over Docker's name
/// server.
fn by_name(engine: &Dockerd) -> Result<()> {
    engine.docker(&["network", "create", "ours"])?.success()?;
    let options = |name| ["--network", "ours", "--name", name];
    let guest = engine.launch(
        Image::Guests,
        &options("guest"),
        &[TOOL, "tcp-server", "7000"],
    )?;
    let linux = engine.launch(
        Image::Linux,
        &options("linux"),
        &["nc", "-ll", "-p", "7001", "-e", "cat"],
    )?;
    guest.wait_for_log("listening")?;
    let ours = ["--network", "ours"];

    let resolved = engine
        .run(Image::Guests, &ours, &[TOOL, "resolve", "linux"])?
        .success()?;
    let format = "{{.NetworkSettings.Networks.ours.IPAddress}}";
    assert_eq!(resolved.trim(), linux.inspect(format)?);
    let unknown = engine.run(Image::Guests, &ours, &[TOOL, "resolve", "nobody"])?;
    assert_eq!(
        (unknown.code, unknown.text().as_str()),
        (1, ""),
        "{unknown:?}"
    );

    let script = "echo from linux | nc guest 7000";
    let reply = engine.run(Image::Linux, &ours, &["sh", "-c", script])?;
    assert_eq!(reply.success()?, "from linux\n");
    eventually("nc listens", || {
        let command = [TOOL, "tcp-client", "linux", "7001", "from wasm"];
        (engine
            .run(Image::Guests, &ours, &command)
            .ok()?
            .success()
            .ok()?
            == "from wasm\n")
            .then_some(())
    })?;
    let command = [TOOL, "tcp-client", "guest", "7000", "from wasm to wasm"];
    let reply = engine.run(Image::Guests, &ours, &command)?;
    assert_eq!(reply.success()?, "from wasm to wasm\n");

    drop((guest, linux));
    engine.docker(&["network", "rm", "ours"])?.success()?;
    Ok(())
}

/// `--network host` is the daemon's machine, `none` is a loopback alone.
fn host_and_none(engine: &Dockerd) -> Result<()> {
    let options = ["--network", "host"];
    let guest = engine.launch(Image::Guests, &options, &[TOOL, "tcp-server", "7002"])?;
    guest.wait_for_log("listening")?;
    assert_eq!(ask(engine, 7002, b"to the host")?, "to the host");
    let command = [TOOL, "tcp-client", "10.0.0.1", "7002", "x"];
    assert_eq!(engine.run(Image::Guests, &[], &command)?.success()?, "x\n");
    let reply = engine.run(Image::Guests, &["--network", "none"], &command)?;
    assert_eq!((reply.code, reply.text().as_str()), (1, ""), "{reply:?}");
    Ok(())
}
