//! Sockets and name look-up inside of the container's network namespace.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use lighter_test::{Containerd, Network, Rootfs, each_containerd};
use nix::sys::signal::Signal;

each_containerd!(
    tcp_server,
    tcp_client,
    udp_server,
    udp_client,
    http,
    names,
    own_network
);

const TOOL: &str = "/tool-component.wasm";
const PATIENCE: Duration = Duration::from_secs(20);

fn network(engine: &Containerd) -> Result<Network> {
    Network::new(&format!("{}-{}", engine.namespace(), engine.new_id("n")))
}

fn tcp_server(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    for program in [
        [TOOL, "tcp-server", "7000"].as_slice(),
        &["/tcp-echo.wasm", "7000"],
    ] {
        let container = engine
            .container(&Rootfs::guests()?)
            .args(program)
            .network(&network.path())
            .create()?;
        container.start()?;
        container.wait_for_output("listening")?;
        // One client after another; the last sends more than any buffer holds.
        for size in [5, 1 << 20] {
            let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let expected = sent.clone();
            let received = network.spawn(move || {
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7000))?;
                client.set_read_timeout(Some(PATIENCE))?;
                let mut writer = client.try_clone()?;
                let writing = std::thread::spawn(move || {
                    writer.write_all(&sent)?;
                    writer.shutdown(Shutdown::Write)
                });
                let mut received = Vec::new();
                (&client).read_to_end(&mut received)?;
                writing.join().expect("the writer does not panic")?;
                Ok(received)
            });
            let received = received.join().expect("the client does not panic")?;
            assert!(
                received == expected,
                "{program:?}: {} of {size} bytes",
                received.len()
            );
        }
        container.kill(Signal::SIGTERM)?;
        assert_eq!(container.finish()?.status, 143);
    }
    Ok(())
}

fn tcp_client(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    let server = network.spawn(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7001))?;
        Ok(listener)
    });
    let listener = server.join().expect("the server does not panic")?;
    let serving = std::thread::spawn(move || -> Result<String> {
        let (mut client, _) = listener.accept()?;
        client.set_read_timeout(Some(PATIENCE))?;
        let mut received = String::new();
        client.read_to_string(&mut received)?;
        client.write_all(format!("got {received}").as_bytes())?;
        Ok(received)
    });
    let output = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "tcp-client", "127.0.0.1", "7001", "from the guest"])
        .network(&network.path())
        .run()?;
    assert_eq!(output.success()?, "got from the guest\n");
    assert_eq!(
        serving.join().expect("the server does not panic")?,
        "from the guest"
    );
    Ok(())
}

fn udp_server(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    let container = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "udp-echo", "7002"])
        .network(&network.path())
        .create()?;
    container.start()?;
    container.wait_for_output("listening")?;
    let received = network.spawn(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut received = Vec::new();
        for size in [1, 100, 1400] {
            socket.send_to(&vec![size as u8; size], (Ipv4Addr::LOCALHOST, 7002))?;
            let mut datagram = vec![0; 2000];
            let (length, _) = socket.recv_from(&mut datagram)?;
            received.push(datagram[..length].to_vec());
        }
        Ok(received)
    });
    let received = received.join().expect("the client does not panic")?;
    assert_eq!(
        received,
        [vec![1; 1], vec![100; 100], vec![1400_usize as u8; 1400]]
    );
    container.kill(Signal::SIGTERM)?;
    assert_eq!(container.finish()?.status, 143);
    Ok(())
}

fn udp_client(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    let socket = network.spawn(|| Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 7003))?));
    let socket = socket.join().expect("the server does not panic")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let serving = std::thread::spawn(move || -> Result<()> {
        let mut datagram = [0; 100];
        let (size, from) = socket.recv_from(&mut datagram)?;
        let answer = [b"got ", &datagram[..size]].concat();
        socket.send_to(&answer, from)?;
        Ok(())
    });
    let output = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "udp-send", "127.0.0.1", "7003", "a datagram"])
        .network(&network.path())
        .run()?;
    assert_eq!(output.success()?, "got a datagram\n");
    serving.join().expect("the server does not panic")
}

fn http(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    let container = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "http", "80"])
        .network(&network.path())
        .create()?;
    container.start()?;
    container.wait_for_output("listening")?;
    let answer = network.spawn(|| {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 80))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.join().expect("the client does not panic")?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("hello from wasm\n"), "{answer}");
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    Ok(())
}

/// A name server that knows one name: answers queries of type A with an address
/// and all others with no records (RFC 1035, section 4).
fn serve_names(socket: &UdpSocket, address: Ipv4Addr) -> Result<()> {
    loop {
        let mut query = [0; 512];
        let Ok((size, from)) = socket.recv_from(&mut query) else {
            return Ok(());
        };
        // Header, one question: labels up to the empty one, type, class.
        let labels = query[12..size]
            .iter()
            .position(|byte| *byte == 0)
            .context("a name ends")?;
        let end = 12 + labels + 5;
        let of_type_a = query[end - 4..end - 2] == [0, 1];
        let mut answer = query[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..12].copy_from_slice(&[0, of_type_a.into(), 0, 0, 0, 0]);
        if of_type_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, from)?;
    }
}

/// Names come from the container's own /etc/hosts and /etc/resolv.conf.
fn names(engine: &Containerd) -> Result<()> {
    let network = network(engine)?;
    let socket = network.spawn(|| Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?));
    let socket = socket.join().expect("the server does not panic")?;
    // The server ends when nobody asks any more.
    socket.set_read_timeout(Some(PATIENCE))?;
    std::thread::spawn(move || serve_names(&socket, Ipv4Addr::new(10, 9, 8, 7)));

    let folder = tempfile::tempdir_in(engine.folder())?;
    let (hosts, resolv) = (
        folder.path().join("hosts"),
        folder.path().join("resolv.conf"),
    );
    fs::write(
        &hosts,
        "127.0.0.1 localhost\n10.1.2.3 from-hosts other-name\n10.1.2.4 twice\n10.1.2.5 twice\n",
    )?;
    fs::write(&resolv, "nameserver 127.0.0.1\n")?;
    let resolve = |name: &str| {
        engine
            .container(&Rootfs::guests()?)
            .args([TOOL, "resolve", name])
            .network(&network.path())
            .bind(&hosts, "/etc/hosts", &["ro"])
            .bind(&resolv, "/etc/resolv.conf", &["ro"])
            .run()?
            .success()
    };
    assert_eq!(resolve("from-hosts")?, "10.1.2.3\n");
    assert_eq!(resolve("other-name")?, "10.1.2.3\n");
    assert_eq!(resolve("twice")?, "10.1.2.4\n10.1.2.5\n");
    assert_eq!(resolve("by-dns.example.com")?, "10.9.8.7\n");
    assert_eq!(resolve("192.0.2.1")?, "192.0.2.1\n");
    Ok(())
}

/// Without a path the container has a network of its own, where the machine's
/// servers are not.
fn own_network(engine: &Containerd) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port().to_string();
    let output = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "tcp-client", "127.0.0.1", &port, "x"])
        .run()?;
    assert_eq!((output.status, output.text()), (1, String::new()));
    Ok(())
}
