//! What is set of guests: the network, files, limits, serving and compiling.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use lighter_test::{
    Builder, Container, Containerd, Network, Output, Rootfs, each_containerd,
    options::RuntimeOptions,
};
use nix::sys::signal::Signal;

each_containerd!(
    network_off,
    name_lookups_off,
    allowed_addresses,
    allowed_requests,
    files,
    folders,
    memory,
    tables,
    time,
    fuel,
    serving,
    request_log,
    stack,
    proposals,
    configuration,
    store
);

const TOOL: &str = "/tool.wasm";
const COMPONENT: &str = "/tool-component.wasm";
const SERVER: &str = "/tool-http.wasm";
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest of the tests' file system with settings.
fn guest<'a>(engine: &'a Containerd, settings: &str, args: &[&str]) -> Result<Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .args(args)
        .options(RuntimeOptions::body(settings)))
}

fn run(engine: &Containerd, settings: &str, args: &[&str]) -> Result<Output> {
    guest(engine, settings, args)?.run()
}

/// Runs a module that is written as text.
fn run_text(engine: &Containerd, settings: &str, text: &str) -> Result<Output> {
    text_guest(engine, settings, text)?.run()
}

fn text_guest<'a>(engine: &'a Containerd, settings: &str, text: &str) -> Result<Builder<'a>> {
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(text)?);
    Ok(engine
        .container(&rootfs)
        .args(["/text.wasm"])
        .options(RuntimeOptions::body(settings)))
}

/// A network with a listener on each of these ports of 127.0.0.1, who answers `port PORT`.
fn listeners(engine: &Containerd, ports: &'static [u16]) -> Result<Network> {
    let network = Network::new(&format!("{}-{}", engine.namespace(), engine.new_id("n")))?;
    for port in ports {
        let listening = network.spawn(move || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?));
        let listener = listening.join().expect("binding does not panic")?;
        // It ends with the test's program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                answer(client, *port).ok();
            }
        });
    }
    Ok(network)
}

fn answer(mut client: TcpStream, port: u16) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut asked = [0; 4096];
    let length = client.read(&mut asked)?;
    let body = format!("port {port}\n");
    let answer = match asked[..length].starts_with(b"GET ") {
        true => format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
        false => body,
    };
    client.write_all(answer.as_bytes())?;
    Ok(())
}

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
            client.write_all(b"text")?;
            client.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            // One that is dropped may be reset.
            let _ = client.read_to_string(&mut answer);
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

fn files(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let read_only = "files.read_only = true";
        for args in [
            &[tool, "write", "/tmp/new", "text"][..],
            &[tool, "mkdir", "/tmp/new"],
            &[tool, "unlink", "/tool.wasm"],
        ] {
            let refused = run(engine, read_only, args)?;
            assert_eq!(refused.status, 1, "{args:?}: {}", refused.errors());
            run(engine, "", args)?.success()?;
        }
        let read = run(engine, read_only, &[tool, "stat", "/tool.wasm"])?;
        assert!(read.success()?.starts_with("file "));
        let none = run(engine, "files.root = false", &[tool, "stat", "/tool.wasm"])?;
        assert_eq!(none.status, 1, "{}", none.text());
    }
    // Linux programs are the kernel's business.
    run(
        engine,
        "files.read_only = true",
        &["/bin/sh", "-c", "echo > /tmp/new"],
    )?
    .success()?;
    Ok(())
}

fn folders(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let settings = "files.root = false\nfiles.preopens = ['/tmp:/out', '/etc:/in:ro']";
        run(engine, settings, &[tool, "write", "/out/new", "text"])?.success()?;
        let refused = run(engine, settings, &[tool, "write", "/in/new", "text"])?;
        assert_eq!(refused.status, 1, "{}", refused.errors());
        run(engine, settings, &[tool, "ls", "/in"])?.success()?;
        // Nothing leads out of a folder.
        let refused = run(engine, settings, &[tool, "stat", "/in/../tool.wasm"])?;
        assert_eq!(refused.status, 1, "{}", refused.text());
        let within = "files.read_only = true\nfiles.preopens = ['/tmp']";
        run(engine, within, &[tool, "write", "/tmp/new", "text"])?.success()?;
    }
    let missing = "files.preopens = ['/missing']";
    let said = guest(engine, missing, &[TOOL, "args"])?.refused()?;
    assert!(
        said.contains("/missing") && said.contains("files.preopens"),
        "{said}"
    );
    Ok(())
}

fn memory(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let enough = run(engine, "limits.memory = '64MiB'", &[tool, "alloc", "16"])?;
        assert_eq!(enough.success()?, "allocated 16 MB\n");
        let more = run(engine, "limits.memory = '8MiB'", &[tool, "alloc", "16"])?;
        assert_ne!(more.status, 0, "{}", more.text());
        assert_eq!(more.text(), "");
    }
    let at_once = r#"(module (memory 17) (func (export "_start")))"#;
    run_text(engine, "limits.memory = '2MiB'", at_once)?.success()?;
    let said = text_guest(engine, "limits.memory = '1MiB'", at_once)?.refused()?;
    assert!(said.contains("memory limits"), "{said}");
    let two = r#"(module (memory 1) (memory 1) (func (export "_start")))"#;
    run_text(engine, "limits.memories = 2", two)?.success()?;
    text_guest(engine, "limits.memories = 1", two)?.refused()?;
    Ok(())
}

fn tables(engine: &Containerd) -> Result<()> {
    // Traps when it does not get the elements.
    let grows = r#"(module
        (table $table 1 funcref)
        (func (export "_start")
            (table.grow $table (ref.null func) (i32.const 100))
            (if (i32.eq (i32.const -1)) (then unreachable))))"#;
    run_text(engine, "limits.table_elements = 101", grows)?.success()?;
    let refused = run_text(engine, "limits.table_elements = 100", grows)?;
    assert_eq!(refused.status, 134, "{}", refused.errors());
    let two = r#"(module (table 1 funcref) (table 1 funcref) (func (export "_start")))"#;
    run_text(engine, "limits.tables = 2", two)?.success()?;
    text_guest(engine, "limits.tables = 1", two)?.refused()?;
    Ok(())
}

fn time(engine: &Containerd) -> Result<()> {
    let limited = "limits.time = '300ms'";
    for tool in [TOOL, COMPONENT] {
        // One that computes, and one that waits in the host.
        for command in [&["loop"][..], &["sleep", "1000"]] {
            let args = [&[tool], command].concat();
            let over = run(engine, limited, &args)?;
            assert_eq!(over.status, 124, "{args:?}: {}", over.errors());
            let said = format!("{tool}: ended after 300ms, the limit that is set (limits.time)\n");
            assert_eq!(over.errors(), said);
        }
        let done = run(engine, "limits.time = '1h'", &[tool, "exit", "1"])?;
        assert_eq!((done.status, done.errors().as_str()), (1, ""));
    }
    let container = guest(engine, limited, &["/bin/sleep", "1000"])?.create()?;
    container.start()?;
    let added = container.exec([TOOL, "loop"])?.run()?;
    assert_eq!(added.status, 124, "{added:?}");
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

fn fuel(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let done = run(engine, "limits.fuel = 1_000_000_000", &[tool, "args"])?;
        assert_eq!(done.success()?, format!("{tool}\nargs\n"));
        let over = run(engine, "limits.fuel = 10_000_000", &[tool, "loop"])?;
        assert_eq!((over.status, over.text().as_str()), (134, "looping\n"));
        assert!(over.errors().contains("fuel"), "{}", over.errors());
    }
    Ok(())
}

/// A server in a network, at port 8000.
struct Served<'a> {
    network: &'a Network,
    container: Container<'a>,
}

impl<'a> Served<'a> {
    fn start(
        engine: &'a Containerd,
        network: &'a Network,
        settings: &str,
        more: impl FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> Result<Self> {
        let rootfs = Rootfs::guests()?.file("/etc/hosts", "127.0.0.1 peer\n");
        let builder = engine
            .container(&rootfs)
            .args([SERVER])
            .options(RuntimeOptions::body(&format!(
                "http.port = 8000\n{settings}"
            )))
            .network(&network.path());
        let container = more(builder).create()?;
        container.start()?;
        Ok(Self { network, container })
    }

    fn send(&self, request: String) -> Result<String> {
        let sending = self.network.spawn(move || {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 8000))?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.write_all(request.as_bytes())?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            Ok(answer)
        });
        sending.join().expect("the client does not panic")
    }

    fn get(&self, path: &str) -> Result<String> {
        self.send(format!(
            "GET /{path} HTTP/1.1\r\nhost: tests\r\nconnection: close\r\n\r\n"
        ))
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        // So that the next can have the port.
        if self.container.kill(Signal::SIGKILL).is_ok() {
            let _ = self.container.wait();
        }
    }
}

fn serving(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let settings = "http.max_body = 4\nhttp.request_time = '300ms'\nlimits.memory = '16MiB'\n\
                    http.max_headers = '8KiB'";
    let start = |settings: &str, name: &str, value: &str| {
        Served::start(engine, &network, settings, |builder| {
            builder.env(name, value)
        })
    };
    let served = start(settings, "UNUSED", "")?;
    assert!(served.get("hello")?.starts_with("HTTP/1.1 200 "));
    let post = |served: &Served, body: &str| {
        served.send(format!(
            "POST /count HTTP/1.1\r\nhost: tests\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    assert!(post(&served, "four")?.starts_with("HTTP/1.1 200 "));
    assert!(post(&served, "five5")?.starts_with("HTTP/1.1 413 "));
    assert!(served.get("sleep/100000")?.starts_with("HTTP/1.1 504 "));
    assert!(served.get("loop")?.starts_with("HTTP/1.1 504 "));
    assert!(served.get("alloc/4")?.starts_with("HTTP/1.1 200 "));
    assert!(served.get("alloc/32")?.starts_with("HTTP/1.1 507 "));
    let long = format!("hello?{}", "x".repeat(10_000));
    assert!(served.get(&long)?.starts_with("HTTP/1.1 4"), "over 8 KiB");
    drop(served);

    // The environment may ask for less, and not for more.
    let served = start(settings, "LIGHTER_HTTP_MAX_BODY", "3")?;
    assert!(post(&served, "four")?.starts_with("HTTP/1.1 413 "));
    drop(served);
    for (settings, name, value, setting) in [
        (settings, "LIGHTER_HTTP_MAX_BODY", "5", "http.max_body"),
        (
            settings,
            "LIGHTER_HTTP_REQUEST_SECONDS",
            "2",
            "http.request_time",
        ),
        (
            settings,
            "LIGHTER_HTTP_MAX_MEMORY",
            "100000000",
            "limits.memory",
        ),
        (
            "pool.instances = 2",
            "LIGHTER_HTTP_MAX_REQUESTS",
            "3",
            "1 to 2",
        ),
    ] {
        let Err(error) = start(settings, name, value) else {
            anyhow::bail!("{name}={value} was taken");
        };
        let error = format!("{error:#}");
        assert!(error.contains(name) && error.contains(setting), "{error}");
    }
    let served = start(
        "pool.instances = 2048\nhttp.max_requests = 2048",
        "UNUSED",
        "",
    )?;
    assert!(served.get("hello")?.starts_with("HTTP/1.1 200 "));
    Ok(())
}

fn request_log(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let served = Served::start(engine, &network, "http.log = true", |builder| builder)?;
    served.get("nothing?a=b")?;
    served.get("status/418")?;
    served.container.wait_for_output("/status/418")?;
    let log = served.container.stdout();
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.first().context("a line")?;
    assert!(first.starts_with("127.0.0.1 - - ["), "{log}");
    assert!(
        first.contains(" +0000] \"GET /nothing?a=b HTTP/1.1\" 404 13 "),
        "{log}"
    );
    assert!(
        lines[1].contains("] \"GET /status/418 HTTP/1.1\" 418 0 "),
        "{log}"
    );
    assert!(lines.iter().all(|line| line.ends_with("ms")), "{log}");
    assert_eq!(lines.len(), 2, "{log}");
    drop(served);

    let served = Served::start(engine, &network, "", |builder| builder)?;
    served.get("log/text")?;
    served.container.wait_for_output("text")?;
    assert!(!served.container.stdout().contains("GET"));
    Ok(())
}

fn stack(engine: &Containerd) -> Result<()> {
    // Calls itself so often that it needs some megabytes.
    let deep = r#"(module
        (func $down (param i64) (result i64)
            (if (result i64) (i64.eqz (local.get 0))
                (then (i64.const 0))
                (else (i64.add (i64.const 1)
                    (call $down (i64.sub (local.get 0) (i64.const 1)))))))
        (func (export "_start") (drop (call $down (i64.const 100000)))))"#;
    let overflown = run_text(engine, "", deep)?;
    assert_eq!(overflown.status, 134, "{}", overflown.errors());
    assert!(
        overflown.errors().contains("call stack exhausted"),
        "{}",
        overflown.errors()
    );
    run_text(engine, "engine.stack_size = '64MiB'", deep)?.success()?;
    let smaller = r#"(module
        (func $down (param i64) (result i64)
            (if (result i64) (i64.eqz (local.get 0))
                (then (i64.const 0))
                (else (i64.add (i64.const 1)
                    (call $down (i64.sub (local.get 0) (i64.const 1)))))))
        (func (export "_start") (drop (call $down (i64.const 5000)))))"#;
    run_text(engine, "", smaller)?.success()?;
    let overflown = run_text(engine, "engine.stack_size = '32KiB'", smaller)?;
    assert_eq!(overflown.status, 134, "{}", overflown.errors());
    Ok(())
}

fn proposals(engine: &Containerd) -> Result<()> {
    let wide = r#"(module (func (export "_start")
        (i64.add128 (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))
        drop drop))"#;
    let said = text_guest(engine, "", wide)?.refused()?;
    assert!(said.contains("wide arithmetic"), "{said}");
    let on = "engine.proposals.wide_arithmetic = true";
    run_text(engine, on, wide)?.success()?;
    // Twice: compiled, and from the cache.
    run_text(engine, on, wide)?.success()?;
    let said = text_guest(engine, "", wide)?.refused()?;
    assert!(said.contains("wide arithmetic"), "still: {said}");

    let vector = r#"(module (func (export "_start") (drop (v128.const i64x2 0 0))))"#;
    run_text(engine, "", vector)?.success()?;
    let off = "[engine.proposals]\nsimd = false\nrelaxed_simd = false";
    let said = text_guest(engine, off, vector)?.refused()?;
    assert!(said.contains("SIMD"), "{said}");
    // Everything else runs as it does.
    run(engine, off, &[COMPONENT, "args"])?.success()?;
    Ok(())
}

/// A component whose function `first` gives the first byte of what `wasi:config` tells of `a.key`, or 0.
const CONFIGURED: &str = r#"(component
    (import "wasi:config/store@0.2.0-rc.1" (instance $store
        (type $wrong' (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $wrong (eq $wrong')))
        (export "get" (func (param "key" string) (result (result (option string) (error $wrong)))))))
    (core module $memory
        (memory (export "memory") 1)
        (global $next (mut i32) (i32.const 1024))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (global.get $next)
            (global.set $next (i32.add (global.get $next) (local.get 3))))
        (data (i32.const 16) "a.key"))
    (core instance $m (instantiate $memory))
    (alias core export $m "memory" (core memory $linear))
    (alias core export $m "realloc" (core func $realloc))
    (core func $get (canon lower (func $store "get")
        (memory $linear) (realloc $realloc)))
    (core module $main
        (import "m" "memory" (memory 1))
        (import "m" "get" (func $get (param i32 i32 i32)))
        (func (export "first") (result i32)
            (call $get (i32.const 16) (i32.const 5) (i32.const 64))
            ;; Whether it is an error, whether there is a text, and where that is.
            (if (result i32)
                (i32.or (i32.load8_u (i32.const 64)) (i32.eqz (i32.load8_u (i32.const 68))))
                (then (i32.const 0))
                (else (i32.load8_u (i32.load (i32.const 72)))))))
    (core instance $i (instantiate $main (with "m" (instance
        (export "memory" (memory $linear))
        (export "get" (func $get))))))
    (alias core export $i "first" (core func $first))
    (func (export "first") (result u32) (canon lift (core func $first))))"#;

fn configuration(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(CONFIGURED)?);
    let first = |settings: &str, env: Option<&str>, annotation: Option<&str>| {
        let mut builder = engine
            .container(&rootfs)
            .args(["/text.wasm#first"])
            .options(RuntimeOptions::body(settings));
        if let Some(value) = env {
            builder = builder.env("WASI_CONFIG_a.key", value);
        }
        if let Some(value) = annotation {
            builder = builder.annotation("lighter/config.a.key", value);
        }
        builder.run().map(|output| output.status)
    };
    let set = "annotations = ['config']\n[config]\n'a.key' = 'set'";
    let allowing = "annotations = ['config']";
    assert_eq!(first("", None, None)?, 0);
    assert_eq!(first("", Some("env"), None)?, u32::from(b'e'));
    assert_eq!(first(set, Some("env"), None)?, u32::from(b's'));
    assert_eq!(first(set, None, Some("told"))?, u32::from(b't'));
    assert_eq!(first(allowing, Some("env"), Some("told"))?, u32::from(b't'));
    Ok(())
}

fn store(engine: &Containerd) -> Result<()> {
    // Whether the store with the empty name can be opened.
    let opens = r#"(component
        (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
            (type $wrong' (variant
                (case "no-such-store") (case "access-denied") (case "other" string)))
            (export "error" (type $wrong (eq $wrong')))
            (export "bucket" (type $bucket (sub resource)))
            (export "open" (func (param "identifier" string)
                (result (result (own $bucket) (error $wrong)))))))
        (core module $memory
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
        (core instance $m (instantiate $memory))
        (alias core export $m "memory" (core memory $linear))
        (alias core export $m "realloc" (core func $realloc))
        (core func $open (canon lower (func $store "open")
            (memory $linear) (realloc $realloc)))
        (core module $main
            (import "m" "memory" (memory 1))
            (import "m" "open" (func $open (param i32 i32 i32)))
            (func (export "open") (result i32)
                (call $open (i32.const 0) (i32.const 0) (i32.const 64))
                (i32.add (i32.const 7) (i32.load8_u (i32.const 64)))))
        (core instance $i (instantiate $main (with "m" (instance
            (export "memory" (memory $linear))
            (export "open" (func $open))))))
        (alias core export $i "open" (core func $lifted))
        (func (export "open") (result u32) (canon lift (core func $lifted))))"#;
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(opens)?);
    let open = |settings: &str| {
        engine
            .container(&rootfs)
            .args(["/text.wasm#open"])
            .options(RuntimeOptions::body(settings))
    };
    let said = open("").refused()?;
    assert!(said.contains("wasi:keyvalue/store"), "{said}");
    assert!(said.contains("wasi.keyvalue is set"), "{said}");
    assert_eq!(open("wasi.keyvalue = true").run()?.status, 7);
    // Its code is in the cache now.
    let said = open("").refused()?;
    assert!(said.contains("wasi:keyvalue/store"), "{said}");
    Ok(())
}
