//! The network of pods: their bridge, the node's own, names, and what probes connect to.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use lighter_test::{
    cri::{Container, Cri, Pod, RUNC, WASMTIME, v1},
    each_cri, eventually,
};

each_cri!(
    from_pod_to_pod,
    from_the_node,
    tcp_probes,
    one_address_for_all_containers,
    the_nodes_network,
    host_name,
    name_servers,
    hosts,
);

/// A guest that answers HTTP on port 8080.
fn web<'a>(pod: &'a Pod) -> Result<Container<'a>> {
    let server = pod
        .container(["/tool-component.wasm", "http", "8080"])
        .start()?;
    server.wait_for_log("listening")?;
    Ok(server)
}

/// The four ways between guests and Linux programs in pods of their own.
fn from_pod_to_pod(cri: &Cri) -> Result<()> {
    let (servers, clients) = (cri.pod(WASMTIME).run()?, cri.pod(WASMTIME).run()?);
    let runc = cri.pod(RUNC).run()?;
    let address = servers.ip()?.to_string();
    assert_ne!(address, clients.ip()?.to_string());
    let guest = servers
        .container(["/tool-component.wasm", "tcp-server", "8001"])
        .start()?;
    guest.wait_for_log("listening")?;
    let script = "while :; do echo from busybox | nc -l -p 8002; done";
    servers.container(["/bin/sh", "-c", script]).start()?;

    for pod in [&clients, &runc] {
        let script = format!("echo ping | nc {address} 8001");
        let linux = pod.container(["/bin/sh", "-c", script.as_str()]).run()?;
        assert_eq!(linux.success()?, "ping\n", "{}", pod.handler());
    }
    let client = [
        "/tool-component.wasm",
        "tcp-client",
        &address,
        "8001",
        "ping",
    ];
    assert_eq!(clients.container(client).run()?.success()?, "ping\n");
    let linux = eventually("busybox answers", || {
        let client = ["/bin/nc", address.as_str(), "8002"];
        let ended = clients.container(client).run().ok()?;
        (ended.output == "from busybox\n").then_some(())
    });
    linux?;
    let client = ["/tool-component.wasm", "tcp-client", &address, "8002", "x"];
    let guest = eventually("busybox answers", || {
        let ended = clients.container(client).run().ok()?;
        (ended.code == 0).then_some(ended)
    })?;
    assert_eq!(guest.output, "from busybox\n\n");
    for pod in [servers, clients, runc] {
        pod.end()?;
    }
    Ok(())
}

/// Connects from the node's network.
fn connect(cri: &Cri, address: IpAddr, port: u16) -> Result<TcpStream> {
    let address = SocketAddr::new(address, port);
    cri.network()
        .spawn(move || {
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
                .with_context(|| format!("connect to {address}"))
        })
        .join()
        .expect("a thread that connects")
}

fn from_the_node(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    web(&pod)?;
    let mut client = connect(cri, pod.ip()?, 8080)?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("hello from wasm\n"), "{answer}");
    pod.end()
}

/// A connection that is made is health, one that is refused is none.
fn tcp_probes(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let address = pod.ip()?;
    let refused = connect(cri, address, 8080).expect_err("nobody listens");
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    let server = web(&pod)?;
    for _ in 0..10 {
        drop(connect(cri, address, 8080)?);
    }
    server.stop(0)?;
    assert!(connect(cri, address, 8080).is_err());
    pod.end()
}

fn namespace(container: &Container, kind: &str) -> Result<std::path::PathBuf> {
    let path = format!("/proc/{}/ns/{kind}", container.pid()?);
    fs::read_link(&path).context(path)
}

fn one_address_for_all_containers(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    let linux = pod.container(["/bin/sleep", "1000"]).start()?;
    assert_eq!(namespace(&guest, "net")?, namespace(&linux, "net")?);
    let address = pod.ip()?.to_string();
    for container in [guest, linux] {
        let addresses = container.exec_sync(["/bin/ip", "-o", "-4", "addr"], 10)?;
        let addresses = addresses.success()?;
        assert!(addresses.contains(&format!(" {address}/")), "{addresses}");
        assert!(addresses.contains(" 127.0.0.1/"), "{addresses}");
    }
    pod.end()
}

/// With `hostNetwork` the node's address and ports are the container's.
fn the_nodes_network(cri: &Cri) -> Result<()> {
    let node = v1::NamespaceMode::Node as i32;
    let pod = cri
        .pod(WASMTIME)
        // The node's as well, so a kubelet gives none.
        .with(|config| config.hostname.clear())
        .namespaces(|namespaces| namespaces.network = node)
        .run()?;
    let server = pod
        .container(["/tool-component.wasm", "tcp-server", "8003"])
        .start()?;
    server.wait_for_log("listening")?;
    let linux = pod
        .container(["/bin/sh", "-c", "echo ping | nc 127.0.0.1 8003"])
        .run()?;
    assert_eq!(linux.success()?, "ping\n");
    let mut client = connect(cri, IpAddr::from([127, 0, 0, 1]), 8003)?;
    client.write_all(b"from the node")?;
    let mut answer = [0; 13];
    client.read_exact(&mut answer)?;
    assert_eq!(&answer, b"from the node");
    pod.end()
}

fn host_name(cri: &Cri) -> Result<()> {
    for handler in [RUNC, WASMTIME] {
        let pod = cri.pod(handler).run()?;
        let linux = pod
            .container([
                "/bin/sh",
                "-c",
                "hostname; cat /etc/hostname; echo $HOSTNAME",
            ])
            .run()?;
        let name = &pod.config().hostname;
        assert_eq!(linux.success()?, format!("{name}\n{name}\n{name}\n"));
        pod.end()?;
    }
    let pod = cri.pod(WASMTIME).run()?;
    let name = &pod.config().hostname;
    let guest = pod
        .container(["/tool.wasm", "read", "/etc/hostname"])
        .run()?;
    assert_eq!(guest.success()?, format!("{name}\n"));
    let guest = pod.container(["/tool.wasm", "env"]).run()?.success()?;
    assert!(guest.contains(&format!("HOSTNAME={name}\n")), "{guest}");
    pod.end()
}

fn name_servers(cri: &Cri) -> Result<()> {
    for handler in [RUNC, WASMTIME] {
        let pod = cri
            .pod(handler)
            .with(|config| {
                config.dns_config = Some(v1::DnsConfig {
                    servers: vec!["10.9.8.7".into()],
                    searches: vec!["pod.test".into()],
                    options: vec!["ndots:5".into()],
                });
            })
            .run()?;
        let expected = "search pod.test\nnameserver 10.9.8.7\noptions ndots:5\n";
        let mut readers = vec![["/bin/cat", "/etc/resolv.conf", ""]];
        if handler == WASMTIME {
            readers.push(["/tool.wasm", "read", "/etc/resolv.conf"]);
        }
        for reader in readers {
            let reader = reader.into_iter().filter(|arg| !arg.is_empty());
            assert_eq!(pod.container(reader).run()?.success()?, expected);
        }
        pod.end()?;
    }
    Ok(())
}

/// A kubelet mounts a file of names into each container.
fn hosts(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let file = cri.engine().folder().join(cri.new_name("hosts"));
    fs::write(&file, "127.0.0.1 localhost\n10.1.2.3 other.pod\n")?;
    let guest = pod
        .container(["/tool-component.wasm", "resolve", "other.pod"])
        .mount(&file, "/etc/hosts")
        .run()?;
    assert_eq!(guest.success()?, "10.1.2.3\n");
    pod.end()
}
