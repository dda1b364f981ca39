//! The figures of a server, as Prometheus reads them.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Builder, Containerd, Served, each_containerd, eventually, options::RuntimeOptions,
};
use nix::sys::signal::Signal;

each_containerd!(at_an_address, at_a_socket);

const TOOL: &str = "/tool-http.wasm";
const ASK: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: tests\r\n\r\n";

/// Asks somebody who closes the connection.
fn ask(mut stream: impl Read + Write, request: &[u8]) -> Result<String> {
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The figures of an answer, by name and label.
struct Figures(BTreeMap<String, f64>);

impl Figures {
    fn of(answer: &str) -> Result<Self> {
        let (head, text) = answer.split_once("\r\n\r\n").context("no body")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let kind = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
        ensure!(format!("{head}\r\n").contains(kind), "{head}");
        ensure!(text.ends_with('\n'), "{text:?}");
        let mut figures = BTreeMap::new();
        let mut kinds = BTreeMap::new();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("no type")?;
                ensure!(
                    kinds.insert(name, kind).is_none(),
                    "{name} is there twice: {text}"
                );
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').context(line.to_owned())?;
                let family = name.split('{').next().unwrap_or_default();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| family.strip_suffix(end))
                    .filter(|family| kinds.get(family) == Some(&"histogram"))
                    .unwrap_or(family);
                ensure!(kinds.contains_key(family), "{name} has no type: {text}");
                ensure!(
                    figures.insert(name.to_owned(), value.parse()?).is_none(),
                    "{name} is there twice: {text}"
                );
            }
        }
        Ok(Self(figures))
    }

    fn get(&self, name: &str) -> Result<f64> {
        let value = self.0.get(name);
        value.copied().with_context(|| format!("no {name}"))
    }

    fn ensure(&self, name: &str, value: f64) -> Result<()> {
        let is = self.get(name)?;
        ensure!(is == value, "{name} is {is}, not {value}");
        Ok(())
    }
}

fn at_an_address(engine: &Containerd) -> Result<()> {
    let served = Served::with(engine, TOOL, "http.metrics = '127.0.0.1:9090'")?;
    served.ensure_status("hello", 200)?;
    let figures = || Figures::of(&ask(served.connect_to(9090)?, ASK)?);
    let name = "lighter_http_requests_total{code=\"200\"}";
    eventually("the request", || {
        (figures().ok()?.get(name).ok()? == 1.0).then_some(())
    })?;
    let other = ask(
        served.connect_to(9090)?,
        b"GET / HTTP/1.1\r\nHost: tests\r\n\r\n",
    )?;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    let other = ask(
        served.connect_to(9090)?,
        b"POST /metrics HTTP/1.1\r\nHost: tests\r\n\r\n",
    )?;
    assert!(other.starts_with("HTTP/1.1 405 "), "{other}");
    // It is for readers alone.
    served.ensure_status("metrics", 404)?;

    // Without the setting there is nobody.
    let without = Served::with(engine, TOOL, "")?;
    assert!(without.connect_to(9090).is_err());
    Ok(())
}

fn at_a_socket(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("figures.sock");
    let start = || {
        let options = RuntimeOptions::body("http.metrics = '/figures/figures.sock'");
        Served::start(engine, TOOL, |builder: Builder| {
            builder
                .options(options)
                .bind(folder.path(), "/figures", &["rw"])
        })
    };
    let served = start()?;
    let figures = || Figures::of(&ask(UnixStream::connect(&path)?, ASK)?);
    figures()?.ensure("lighter_http_connections_total", 0.0)?;

    // A socket that somebody listens on is not taken away from him.
    let Err(error) = start() else {
        anyhow::bail!("a second server took the first's socket");
    };
    let error = format!("{error:#}");
    assert!(
        error.contains("/figures/figures.sock (http.metrics)") && error.contains("in use"),
        "{error}"
    );
    // One that a killed server has left is.
    served.container.kill(Signal::SIGKILL)?;
    served.container.wait()?;
    assert!(path.exists());
    let next = start()?;
    figures()?;
    next.container.kill(Signal::SIGTERM)?;
    assert_eq!(next.container.finish()?.status, 0);
    assert!(!path.exists(), "ends with the server");
    Ok(())
}

#[test]
fn everything_is_counted() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(
        &engine,
        TOOL,
        "http.metrics = '127.0.0.1:9090'\nhttp.max_body = 100\nhttp.max_requests = 1\n\
         http.max_connections = 2",
    )?;
    let figures = || Figures::of(&ask(served.connect_to(9090)?, ASK)?);
    let post = |body: &str| {
        served.exchange(
            format!(
                "POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )
    };
    let calm = || {
        eventually("calm", || {
            let figures = figures().ok()?;
            let none = |name| figures.get(name).ok() == Some(0.0);
            (none("lighter_http_requests_in_flight")
                && none("lighter_http_connections_in_flight")
                && none("lighter_instances"))
            .then_some(figures)
        })
    };
    served.ensure_status("hello", 200)?;
    calm()?;
    post("twelve bytes")?;
    calm()?;
    post(&"x".repeat(101))?;
    calm()?;
    served.ensure_status("status/418", 418)?;
    calm()?;
    served.ensure_status("trap", 500)?;
    calm()?;
    served.ensure_status("fetch/127.0.0.1:9090/metrics", 200)?;
    calm()?;
    served.ensure_status("fetch/127.0.0.1:9/nobody", 502)?;
    calm()?;

    // A request that goes on for as long as its client likes, and a connection that is refused.
    let mut busy = served.connect()?;
    busy.write_all(
        b"POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Length: 3\r\n\r\nab",
    )?;
    let during = eventually("the request", || {
        let figures = figures().ok()?;
        let is_one = |name| figures.get(name).ok() == Some(1.0);
        let begun = is_one("lighter_http_requests_in_flight") && is_one("lighter_instances");
        begun.then_some(figures)
    })?;
    during.ensure("lighter_http_connections_in_flight", 1.0)?;
    let idle = served.connect()?;
    eventually("a refused connection", || {
        let answer = served.get("hello").ok()?;
        answer.contains("too many connections").then_some(())
    })?;
    drop(idle);
    busy.write_all(b"c")?;
    busy.shutdown(Shutdown::Write)?;
    busy.read_to_end(&mut Vec::new())?;
    let end = calm()?;
    let requests = |code: u16| format!("lighter_http_requests_total{{code=\"{code}\"}}");
    for (code, count) in [(413, 1.0), (418, 1.0), (500, 1.0), (502, 1.0)] {
        end.ensure(&requests(code), count)?;
    }
    end.ensure(&requests(200), 4.0)?;
    let duration = |rest: &str| format!("lighter_http_request_duration_seconds{rest}");
    end.ensure(&duration("_count"), 8.0)?;
    end.ensure(&duration("_bucket{le=\"+Inf\"}"), 8.0)?;
    ensure!(end.get(&duration("_sum"))? > 0.0);
    // Of the body that was too large nothing was read.
    end.ensure("lighter_http_request_body_bytes_total", 15.0)?;
    ensure!(end.get("lighter_http_response_body_bytes_total")? > 1000.0);
    let refusals = |limit: &str| format!("lighter_http_refusals_total{{limit=\"{limit}\"}}");
    end.ensure(&refusals("body"), 1.0)?;
    end.ensure(&refusals("requests"), 0.0)?;
    end.ensure(&refusals("instances"), 0.0)?;
    ensure!(end.get(&refusals("connections"))? >= 1.0);
    let failures = |reason: &str| format!("lighter_instance_failures_total{{reason=\"{reason}\"}}");
    end.ensure(&failures("trap"), 1.0)?;
    end.ensure(&failures("time"), 0.0)?;
    end.ensure("lighter_instances_total", 7.0)?;
    let outgoing =
        |outcome: &str| format!("lighter_http_outgoing_requests_total{{outcome=\"{outcome}\"}}");
    end.ensure(&outgoing("response"), 1.0)?;
    end.ensure(&outgoing("error"), 1.0)?;
    ensure!(end.get("process_cpu_seconds_total")? > 0.0);
    ensure!(end.get("process_resident_memory_bytes")? > 1e6);
    ensure!(end.get("process_open_fds")? > 3.0);
    ensure!(end.get("process_start_time_seconds")? > 1.7e9);
    Ok(())
}

/// A guest without end is one that was ended for its time.
#[test]
fn guests_that_take_too_long() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(
        &engine,
        TOOL,
        "http.metrics = '127.0.0.1:9090'\nhttp.request_time = '300ms'",
    )?;
    served.ensure_status("loop", 504)?;
    eventually("its end", || {
        let figures = Figures::of(&ask(served.connect_to(9090).ok()?, ASK).ok()?).ok()?;
        let is_one = |name: &str| figures.get(name).ok() == Some(1.0);
        let counted = is_one("lighter_instance_failures_total{reason=\"time\"}")
            && is_one("lighter_http_requests_total{code=\"504\"}");
        counted.then_some(())
    })
}

/// Readers who are slow, and there are many, keep nobody from anything.
#[test]
fn readers_who_say_nothing() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(
        &engine,
        TOOL,
        "http.metrics = '127.0.0.1:9090'\nhttp.max_connections = 1",
    )?;
    let readers: Result<Vec<_>> = (0..10).map(|_| served.connect_to(9090)).collect();
    let readers = readers?;
    served.ensure_status("hello", 200)?;
    // They are sent away one after the other.
    let answer = ask(served.connect_to(9090)?, ASK)?;
    Figures::of(&answer)?.get("process_cpu_seconds_total")?;
    drop(readers);
    Ok(())
}

#[test]
fn places_where_nobody_can_listen() -> Result<()> {
    let engine = Containerd::newest()?;
    let refused = |settings: &str| -> Result<String> {
        match Served::with(&engine, TOOL, settings) {
            Err(error) => Ok(format!("{error:#}")),
            Ok(_) => anyhow::bail!("{settings} was taken"),
        }
    };
    for wrong in ["9090", "localhost:9090", "metrics.sock", "127.0.0.1:0"] {
        let error = refused(&format!("http.metrics = '{wrong}'"))?;
        for part in ["http.metrics cannot be ", wrong, "is nowhere to listen"] {
            ensure!(error.contains(part), "{part}: {error}");
        }
    }
    for (settings, reason) in [
        (
            "http.metrics = '10.9.8.7:9090'",
            "10.9.8.7:9090 (http.metrics): ",
        ),
        ("http.metrics = '0.0.0.0:8000'", "8000"),
        (
            "http.metrics = '/missing/x.sock'",
            "/missing/x.sock (http.metrics): No such",
        ),
    ] {
        let error = refused(settings)?;
        ensure!(
            error.contains("cannot listen on ") && error.contains(reason),
            "{error}"
        );
    }
    // What is there and is no socket is nobody's left-over.
    let folder = tempfile::tempdir()?;
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "text")?;
    let options = RuntimeOptions::body("http.metrics = '/figures/plain'");
    let Err(error) = Served::start(&engine, TOOL, |builder: Builder| {
        builder
            .options(options)
            .bind(folder.path(), "/figures", &["rw"])
    }) else {
        anyhow::bail!("a file was taken for a socket");
    };
    let error = format!("{error:#}");
    ensure!(error.contains("/figures/plain (http.metrics): "), "{error}");
    assert_eq!(std::fs::read_to_string(&plain)?, "text");
    Ok(())
}
