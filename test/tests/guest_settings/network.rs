//! Whom a guest may talk to.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
};

use anyhow::Result;
use lighter_test::{
    Container, Containerd, Network, Output, Rootfs, each_containerd, options::RuntimeOptions,
};
use nix::sys::signal::Signal;

use crate::{
    COMPONENT, PATIENCE, guest,
    peers::{Served, listeners},
    run,
};

each_containerd!(
    network_off,
    name_lookups_off,
    allowed_addresses,
    allowed_requests
);

fn connects(engine: &Containerd, network: &Network, settings: &str, port: &str) -> Result<Output> {
    guest(
        engine,
        settings,
        &[COMPONENT, "tcp-client", "127.0.0.1", port, "text"],
    )?
    .network(&network.path())
    .run()
}

fn network_off(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[7001])?;
    assert!(
        connects(engine, &network, "", "7001")?
            .success()?
            .contains("port 7001")
    );
    let off = connects(engine, &network, "network.enabled = false", "7001")?;
    assert_eq!(
        (off.status, off.text().as_str()),
        (1, ""),
        "{}",
        off.errors()
    );
    for args in [
        &[COMPONENT, "tcp-server", "7002"][..],
        &[COMPONENT, "udp-echo", "7002"],
        &[COMPONENT, "udp-send", "127.0.0.1", "7001", "text"],
        &[COMPONENT, "resolve", "localhost"],
    ] {
        let off = run(engine, "network.enabled = false", args)?;
        assert_eq!(
            (off.status, off.text().as_str()),
            (1, ""),
            "{args:?}: {}",
            off.errors()
        );
    }
    // Served all the same, but what it asks for itself is denied.
    let served = Served::start(engine, &network, "network.enabled = false", |b| b)?;
    let reply = served.get("fetch/127.0.0.1:7001/")?;
    assert!(
        reply.contains("502") && reply.contains("HttpRequestDenied"),
        "{reply}"
    );
    Ok(())
}

fn name_lookups_off(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[7001])?;
    let with_names =
        || -> Result<Rootfs> { Ok(Rootfs::guests()?.file("/etc/hosts", "127.0.0.1 peer\n")) };
    let resolve = |settings: &str| {
        engine
            .container(&with_names()?)
            .args([COMPONENT, "resolve", "peer"])
            .options(RuntimeOptions::body(settings))
            .run()
    };
    assert_eq!(resolve("")?.success()?, "127.0.0.1\n");
    let off = resolve("network.names = false")?;
    assert_eq!((off.status, off.text().as_str()), (1, ""));
    let off = "network.names = false";
    assert!(
        connects(engine, &network, off, "7001")?
            .success()?
            .contains("port 7001")
    );
    Ok(())
}

fn allowed_addresses(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[7001, 7002])?;
    let only = "network.allow = ['127.0.0.0/8:7001']";
    assert!(
        connects(engine, &network, only, "7001")?
            .success()?
            .contains("port 7001")
    );
    let other = connects(engine, &network, only, "7002")?;
    assert_eq!(
        (other.status, other.text().as_str()),
        (1, ""),
        "{}",
        other.errors()
    );
    let nobody = connects(engine, &network, "network.allow = []", "7001")?;
    assert_eq!(
        (nobody.status, nobody.text().as_str()),
        (1, ""),
        "{}",
        nobody.errors()
    );

    // Who may not be talked to is not heard either.
    let server = |settings: &str| -> Result<Container> {
        let server = guest(engine, settings, &[COMPONENT, "tcp-server", "7003"])?
            .network(&network.path())
            .create()?;
        server.start()?;
        server.wait_for_output("listening")?;
        Ok(server)
    };
    let ask = || {
        let asking = network.spawn(|| {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7003))?;
            client.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            // A connection that is dropped may be reset at any moment.
            let _ = client
                .write_all(b"text")
                .and_then(|()| client.shutdown(Shutdown::Write))
                .and_then(|()| client.read_to_string(&mut answer));
            Ok(answer)
        });
        asking.join().expect("the client does not panic")
    };
    for (settings, answer) in [
        ("network.allow = ['127.0.0.1']", "text"),
        ("network.allow = ['10.0.0.0/8']", ""),
    ] {
        let server = server(settings)?;
        assert_eq!(ask()?, answer, "{settings}");
        server.kill(Signal::SIGKILL)?;
        server.finish()?;
    }
    Ok(())
}

fn allowed_requests(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[7001, 7002])?;
    let fetch = |allow: &str, url: &str| -> Result<String> {
        let settings = format!("network.allow = {allow}");
        let served = Served::start(engine, &network, &settings, |builder| builder)?;
        served.get(&format!("fetch/{url}"))
    };
    for (allow, url) in [
        ("['127.0.0.1:7001']", "127.0.0.1:7001/"),
        // By a name of the container's /etc/hosts, and one that is allowed as such.
        ("['127.0.0.1:7001']", "peer:7001/"),
        ("['peer:7001']", "peer:7001/"),
    ] {
        let reply = fetch(allow, url)?;
        assert!(reply.contains("200 port 7001"), "{allow} {url}: {reply}");
    }
    for (allow, url) in [
        ("['127.0.0.1:7001']", "127.0.0.1:7002/"),
        ("['127.0.0.1:7001']", "peer:7002/"),
        ("['10.0.0.0/8']", "peer:7001/"),
        ("['peer:7001']", "127.0.0.1:7001/"),
        ("['127.0.0.0/8']", "https/peer:7001/"),
        ("[]", "127.0.0.1:7001/"),
    ] {
        let reply = fetch(allow, url)?;
        assert!(
            reply.contains("HttpRequestDenied"),
            "{allow} {url}: {reply}"
        );
    }
    // Allowed, and then nobody there speaks TLS.
    let reply = fetch("['peer:7001']", "https/peer:7001/")?;
    assert!(
        reply.contains("502") && !reply.contains("Denied"),
        "{reply}"
    );
    Ok(())
}
