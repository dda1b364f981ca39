//! Requests over TLS that a guest makes: whose certificates it trusts.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use lighter_test::{Authority, Builder, Containerd, Rootfs, Served, eventually};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const TOOL: &str = "/tool-http.wasm";
const DEBIAN: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Larger than any buffer on the way.
const BODY: usize = 1 << 20;

/// Lets a server answer every request at a port of a guest's network; it ends with the test's
/// program.
fn listen(served: &Served, port: u16, config: Arc<ServerConfig>) -> Result<()> {
    let listening = served
        .network
        .spawn(move || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?));
    let listener = listening.join().expect("binding does not panic")?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // Who does not like the certificate goes away.
            let _ = answer(client, config.clone());
        }
    });
    Ok(())
}

fn answer(client: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, client);
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        asked.extend(byte);
    }
    let asked = String::from_utf8(asked)?;
    ensure!(asked.starts_with("GET /path?query HTTP/1.1\r\n"), "{asked}");
    ensure!(asked.contains("host: peer:7443\r\n"), "{asked}");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    )?;
    stream.flush()?;
    Ok(())
}

/// The tests' files, the names of servers, and the folders where bundles are.
fn rootfs() -> Result<Rootfs> {
    let rootfs = Rootfs::guests()?.file("/etc/hosts", "127.0.0.1 peer other\n");
    let folders = [
        "/etc/ssl",
        "/etc/ssl/certs",
        "/etc/pki",
        "/etc/pki/tls",
        "/etc/pki/tls/certs",
        "/own",
    ];
    let rootfs = folders
        .iter()
        .fold(rootfs, |rootfs, path| rootfs.folder(path, 0o755));
    Ok(rootfs)
}

fn serve<'a>(engine: &'a Containerd, rootfs: &Rootfs, named: &str) -> Result<Served<'a>> {
    Served::start_in(engine, rootfs, TOOL, |builder: Builder<'a>| {
        builder.env("SSL_CERT_FILE", named)
    })
}

const FETCH: &str = "fetch/https/peer:7443/path?query";

fn ensure_fetched(served: &Served) -> Result<()> {
    let answer = served.ensure_status(FETCH, 200)?;
    let bodies = answer.matches(&"x".repeat(64)).count() * 64;
    ensure!(answer.contains("200 x") && bodies > BODY / 2, "{bodies}");
    Ok(())
}

fn ensure_refused(served: &Served, error: &str, reasons: &[&str]) -> Result<()> {
    let answer = served.ensure_status(FETCH, 502)?;
    ensure!(answer.contains(error), "{error}: {answer}");
    eventually("the reason", || {
        let errors = served.container.stderr();
        reasons
            .iter()
            .all(|reason| errors.contains(reason))
            .then_some(())
    })
}

/// An authority of the container's files is trusted, wherever a distribution has them.
#[test]
fn authorities_of_the_files() -> Result<()> {
    let engine = Containerd::newest()?;
    let (authority, other) = (Authority::new("one")?, Authority::new("other")?);
    let bundle = format!("# Some\n{}\n{}", other.pem(), authority.pem());
    for path in [
        DEBIAN,
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ] {
        let served = serve(&engine, &rootfs()?.file(path, &bundle), "")?;
        listen(&served, 7443, authority.server(2200)?)?;
        for _ in 0..2 {
            ensure_fetched(&served)?;
        }
    }
    // Which is not to say that everybody is.
    let served = serve(&engine, &rootfs()?.file(DEBIAN, other.pem()), "")?;
    listen(&served, 7443, authority.server(2200)?)?;
    let reasons = ["a request to peer:7443: ", "UnknownIssuer"];
    ensure_refused(&served, "TlsCertificateError", &reasons)
}

/// Guests of WASI 0.3 are no different.
#[test]
fn guests_of_wasi_0_3() -> Result<()> {
    let engine = Containerd::newest()?;
    let (authority, other) = (Authority::new("one")?, Authority::new("other")?);
    let rootfs = rootfs()?.file(DEBIAN, authority.pem());
    let start = || Served::start_in(&engine, &rootfs, "/tool-http-p3.wasm", |builder| builder);
    let served = start()?;
    listen(&served, 7443, authority.server(2200)?)?;
    ensure_fetched(&served)?;
    let served = start()?;
    listen(&served, 7443, other.server(2200)?)?;
    ensure_refused(&served, "TlsCertificateError", &["UnknownIssuer"])
}

/// Without a bundle, the built-in list: a private authority is not in it.
#[test]
fn no_authorities() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = serve(&engine, &rootfs()?, "")?;
    listen(&served, 7443, Authority::new("one")?.server(2200)?)?;
    ensure_refused(&served, "TlsCertificateError", &["UnknownIssuer"])
}

/// A bundle that the environment names is the only one.
#[test]
fn authorities_that_are_named() -> Result<()> {
    let engine = Containerd::newest()?;
    let (authority, other) = (Authority::new("one")?, Authority::new("other")?);
    let rootfs = rootfs()?
        .file(DEBIAN, other.pem())
        .file("/own/authority.pem", authority.pem());
    let served = serve(&engine, &rootfs, "/own/authority.pem")?;
    listen(&served, 7443, authority.server(2200)?)?;
    ensure_fetched(&served)?;
    let served = serve(&engine, &rootfs, "/own/authority.pem")?;
    listen(&served, 7443, other.server(2200)?)?;
    ensure_refused(&served, "TlsCertificateError", &["UnknownIssuer"])
}

#[test]
fn certificates_of_others() -> Result<()> {
    let engine = Containerd::newest()?;
    let authority = Authority::new("one")?;
    let served = serve(&engine, &rootfs()?.file(DEBIAN, authority.pem()), "")?;
    listen(&served, 7443, authority.server(2000)?)?;
    ensure_refused(&served, "TlsCertificateError", &["certificate expired"])?;
    listen(&served, 7444, authority.server(2200)?)?;
    let answer = served.ensure_status("fetch/https/other:7444/", 502)?;
    ensure!(answer.contains("TlsCertificateError"), "{answer}");
    eventually("the reason", || {
        let errors = served.container.stderr();
        errors.contains("a request to other:7444: ").then_some(())
    })
}

/// A bundle that is none is told, and nothing else is disturbed.
#[test]
fn bundles_that_are_none() -> Result<()> {
    let engine = Containerd::newest()?;
    let authority = Authority::new("one")?;
    let cut = &authority.pem()[..100];
    for (rootfs, named, reason) in [
        (rootfs()?.file(DEBIAN, ""), "", "no certificates"),
        (rootfs()?.file(DEBIAN, "noise"), "", "no certificates"),
        (rootfs()?.file(DEBIAN, cut), "", "malformed"),
        (rootfs()?.folder(DEBIAN, 0o755), "", "it is no file"),
        (rootfs()?, "/missing.pem", "No such file"),
        (rootfs()?, "/dev/zero", "it is no file"),
    ] {
        let served = serve(&engine, &rootfs, named)?;
        listen(&served, 7443, authority.server(2200)?)?;
        let path = if named.is_empty() { DEBIAN } else { named };
        ensure_refused(&served, "InternalError", &[path, reason, "SSL_CERT_FILE"])?;
        let answer = served.ensure_status(FETCH, 502)?;
        ensure!(answer.contains(reason), "{answer}");
        served.ensure_status("hello", 200)?;
    }
    Ok(())
}
