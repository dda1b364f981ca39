//! Components that handle requests over HTTP, served.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Containerd, Rootfs, Served, each_containerd, eventually,
    http2::{self, Frame, HEADERS},
    options::RuntimeOptions,
};
use nix::sys::signal::Signal;
use serde_json::json;

each_containerd!(hello, end, settings_that_are_wrong, port_in_use);

const TOOL: &str = "/tool-http.wasm";

fn hello(engine: &Containerd) -> Result<()> {
    let served = Served::start(engine, "/hello-http.wasm", |builder| builder)?;
    let answer = served.ensure_status("some/where?x=1", 200)?;
    assert!(
        answer.contains("Hello from WebAssembly! You asked for /some/where?x=1\n"),
        "{answer}"
    );
    served.container.kill(Signal::SIGTERM)?;
    assert_eq!(served.container.finish()?.status, 0);
    Ok(())
}

/// What is under way is finished, nothing new is begun, and the exit code is 0.
fn end(engine: &Containerd) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let served = Served::start(engine, TOOL, |builder| builder)?;
        let mut stream = served.connect()?;
        stream.write_all(b"GET /chunks/20 HTTP/1.1\r\nHost: tests\r\n\r\n")?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "0\n" {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "no beginning");
        }
        served.container.kill(signal)?;
        eventually("the port is closed", || {
            served.connect().is_err().then_some(())
        })?;
        let mut rest = String::new();
        lines.read_to_string(&mut rest)?;
        assert!(
            rest.contains("19\n") && rest.ends_with("0\r\n\r\n"),
            "{rest}"
        );
        assert_eq!(served.container.finish()?.status, 0);
    }
    // One that waits for its next request ends at once, and so does one that nobody asked.
    let served = Served::start(engine, TOOL, |builder| builder)?;
    let idle = served.connect()?;
    served.container.kill(Signal::SIGTERM)?;
    assert_eq!(served.container.finish()?.status, 0);
    drop(idle);
    // Nor has one begun that has said half of what it wants: it would have half a minute for the rest.
    let served = Served::start(engine, TOOL, |builder| builder)?;
    let mut half = served.connect()?;
    half.write_all(b"GET /hello HTTP/1.1\r\nHo")?;
    served.ensure_status("hello", 200)?;
    let begun = Instant::now();
    served.container.kill(Signal::SIGTERM)?;
    assert_eq!(served.container.finish()?.status, 0);
    ensure!(begun.elapsed() < Duration::from_secs(20));
    drop(half);
    Ok(())
}

fn settings_that_are_wrong(engine: &Containerd) -> Result<()> {
    let Err(error) = Served::start(engine, TOOL, |builder| {
        builder.env("LIGHTER_HTTP_MAX_BODY", "1M")
    }) else {
        anyhow::bail!("a container was started");
    };
    let error = format!("{error:#}");
    assert!(
        error.contains("LIGHTER_HTTP_MAX_BODY") && error.contains("1M"),
        "{error}"
    );
    Ok(())
}

fn port_in_use(engine: &Containerd) -> Result<()> {
    let served = Served::start(engine, TOOL, |builder| builder)?;
    let second = engine
        .container(&Rootfs::guests()?)
        .args([TOOL])
        .env("PORT", "8000")
        .network(&served.network.path())
        .create()?;
    let error = format!("{:#}", second.start().unwrap_err());
    assert!(
        error.contains("cannot listen on 0.0.0.0:8000") && error.contains("in use"),
        "{error}"
    );
    Ok(())
}

#[test]
fn requests_in_a_row_and_in_one_piece() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let one = "GET /hello HTTP/1.1\r\nHost: tests\r\n\r\n";
    let last = "GET /method HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n";
    let answer = served.exchange(format!("{one}{one}{one}{last}").as_bytes())?;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4, "{answer}");
    assert_eq!(answer.matches("hello\n").count(), 3, "{answer}");
    assert!(answer.contains("Method::Get"), "{answer}");
    // What is short is sent with its length.
    assert_eq!(
        answer.matches("content-length: 6\r\n").count(),
        3,
        "{answer}"
    );
    assert!(!answer.contains("chunked"), "{answer}");
    // Also to whoever asks for nothing else (RFC 9110, section 9.3.2).
    let head = "HEAD /hello HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n";
    let answer = served.exchange(head.as_bytes())?;
    assert!(answer.contains("\r\ncontent-length: 6\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    Ok(())
}

/// A body of which nobody could hold all in between goes through, both ways at once.
#[test]
fn bodies_are_streamed() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| {
        builder.env("LIGHTER_HTTP_MAX_MEMORY", &(4 << 20).to_string())
    })?;
    const SIZE: usize = 32 << 20;
    let mut stream = served.connect()?;
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"
    )?;
    let mut writer = stream.try_clone()?;
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        for piece in 0..SIZE / 4096 {
            writer.write_all(&[piece as u8; 4096])?;
        }
        Ok(())
    });
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "no answer");
    }
    let mut received = Vec::with_capacity(SIZE);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim_end(), 16).context(line.clone())?;
        if length == 0 {
            break;
        }
        let begin = received.len();
        received.resize(begin + length, 0);
        reader.read_exact(&mut received[begin..])?;
        reader.read_exact(&mut [0; 2])?;
    }
    writing.join().expect("the writer does not panic")?;
    assert_eq!(received.len(), SIZE);
    let right = |(at, byte): (usize, &u8)| *byte == (at / 4096) as u8;
    assert!(received.iter().enumerate().all(right));
    Ok(())
}

/// A client that asks first is told to go on when the guest reads.
#[test]
fn expectations() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let mut stream = served.connect()?;
    stream.write_all(
        b"POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Length: 3\r\n\
          Expect: 100-continue\r\n\r\n",
    )?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    stream.write_all(b"abc")?;
    let mut answer = String::new();
    reader.read_to_string(&mut answer)?;
    assert!(answer.contains("3 whole\n"), "{answer}");
    Ok(())
}

#[test]
fn trailers() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let answer = served.exchange(
        b"POST /trailers HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nTE: trailers\r\n\
          Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
          3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n",
    )?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let end = answer.split("with trailers\n").nth(1);
    assert!(
        end.is_some_and(|end| end.contains("\r\n0\r\nx-sum: 42\r\n")),
        "{answer}"
    );
    Ok(())
}

/// HTTP/2 without TLS, of a client that knows (RFC 9113, section 3.3).
#[test]
fn http_2() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let mut stream = served.connect()?;
    http2::begin(&mut stream)?;
    stream.write_all(&Frame::get(1, "/").bytes())?;
    let headers = Frame::await_kind(&mut stream, HEADERS)?;
    // The guest does not know the word "", which is 404: entry 13 of the table.
    assert_eq!(headers.payload[0], 0x80 | 13, "{headers:?}");
    Ok(())
}

/// The client gets 500, the container's stderr the reason, and the next request its answer.
#[test]
fn traps() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let answer = served.ensure_status("trap", 500)?;
    assert!(answer.contains("the guest failed"), "{answer}");
    served.ensure_status("silent", 500)?;
    served.ensure_status("hello", 200)?;
    eventually("the reasons", || {
        let errors = served.container.stderr();
        let told = [
            "/tool-http.wasm: ",
            "trap_inner",
            "unreachable",
            "never invoked",
        ];
        told.iter().all(|part| errors.contains(part)).then_some(())
    })
    .with_context(|| served.container.stderr())?;
    let errors = served.container.stderr();
    assert_eq!(
        errors.matches("Caused by: wasm trap").count(),
        1,
        "{errors}"
    );
    Ok(())
}

#[test]
fn output_and_files() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    served.ensure_status("log/a-line", 200)?;
    served.container.wait_for_output("out: a-line\n")?;
    eventually("the error output", || {
        served
            .container
            .stderr()
            .contains("err: a-line\n")
            .then_some(())
    })?;
    let answer = served.ensure_status("env", 200)?;
    assert!(answer.contains("PORT=8000\n"), "{answer}");
    Ok(())
}

/// A guest that computes for ever gets its client 504; meanwhile and afterwards others are served.
#[test]
fn time_limit() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| {
        builder.env("LIGHTER_HTTP_REQUEST_SECONDS", "2")
    })?;
    let mut slow = Vec::new();
    for path in ["loop", "loop", "loop", "sleep/100000"] {
        let mut stream = served.connect()?;
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n"
        )?;
        slow.push(stream);
    }
    served.ensure_status("hello", 200)?;
    for mut stream in slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert!(answer.contains("longer than 2 s"), "{answer}");
    }
    served.ensure_status("hello", 200)?;
    assert!(
        served
            .container
            .stderr()
            .contains("longer than 2 s: GET /loop\n"),
        "{}",
        served.container.stderr()
    );
    Ok(())
}

/// Guests that compute let others on at every turn: these come to an end sooner than those.
#[test]
fn guests_that_compute() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| {
        builder.env("LIGHTER_HTTP_REQUEST_SECONDS", "10")
    })?;
    let mut busy = Vec::new();
    for _ in 0..2 * std::thread::available_parallelism()?.get() {
        let mut stream = served.connect()?;
        stream.write_all(b"GET /loop HTTP/1.1\r\nHost: tests\r\n\r\n")?;
        busy.push(stream);
    }
    for _ in 0..30 {
        served.ensure_status("hello", 200)?;
    }
    for stream in busy {
        stream.set_nonblocking(true)?;
        let answered = stream.peek(&mut [0]).map_err(|error| error.kind());
        assert_eq!(answered, Err(ErrorKind::WouldBlock), "its time is over");
    }
    Ok(())
}

/// Instances that wait for requests on one thread are in nobody's way on another.
#[test]
fn as_many_requests_as_there_may_be() -> Result<()> {
    const MOST: usize = 16;
    let engine = Containerd::newest()?;
    let settings = format!("http.reuse = 100\npool.instances = {MOST}");
    let processors = std::thread::available_parallelism()?.get();
    let threads = processors.min(2);
    let served = Served::start(&engine, TOOL, |builder| {
        let options = RuntimeOptions::body(&settings);
        builder.options(options).spec(|spec| {
            let some = json!({"cpus": format!("0-{}", threads - 1)});
            spec["linux"]["resources"]["cpu"] = some;
        })
    })?;
    // Each goes to the thread that has the fewest.
    let connections: Vec<_> = (0..MOST * threads)
        .map(|_| served.connect())
        .collect::<Result<_>>()?;
    for thread in 0..threads {
        let its = || connections.iter().skip(thread).step_by(threads);
        for mut connection in its() {
            connection.write_all(b"GET /sleep/500 HTTP/1.1\r\nHost: tests\r\n\r\n")?;
        }
        for connection in its() {
            let mut line = String::new();
            let mut answer = BufReader::new(connection);
            answer.read_line(&mut line)?;
            assert_eq!(line, "HTTP/1.1 200 OK\r\n");
            while line != "\r\n" {
                line.clear();
                answer.read_line(&mut line)?;
            }
            let mut body = [0; 6];
            answer.read_exact(&mut body)?;
            assert_eq!(&body, b"slept\n");
        }
    }
    Ok(())
}

/// As many as the settings say, whatever limit of open files the container begins with.
#[test]
fn as_many_connections_as_there_may_be() -> Result<()> {
    const MOST: usize = 300;
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| {
        builder.spec(|spec| {
            let limit = json!([{"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 100}]);
            spec["process"]["rlimits"] = limit;
        })
    })?;
    let mut connections: Vec<_> = (0..MOST).map(|_| served.connect()).collect::<Result<_>>()?;
    let last = connections.last_mut().context("there are some")?;
    last.write_all(b"GET /hello HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    last.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    Ok(())
}

/// Where no thread can be had, who needs one is told, and the others are served.
#[test]
fn no_more_threads() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    served.ensure_status("hello", 200)?;
    // Without one to spare.
    served.container.update(json!({"pids": {"limit": 1}}))?;
    served.ensure_status("read/etc/passwd", 500)?;
    served.ensure_status("hello", 200)?;
    served.container.update(json!({"pids": {"limit": -1}}))?;
    served.ensure_status("read/etc/passwd", 200)?;
    Ok(())
}

#[test]
fn other_limits() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| {
        builder
            .env("LIGHTER_HTTP_MAX_REQUESTS", "1")
            .env("LIGHTER_HTTP_MAX_CONNECTIONS", "2")
            .env("LIGHTER_HTTP_MAX_BODY", "1000")
            .env("LIGHTER_HTTP_MAX_MEMORY", "16000000")
    })?;
    served.ensure_status("alloc/8", 200)?;
    served.ensure_status("alloc/17", 507)?;

    let announced = served.exchange(
        b"POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Length: 1001\r\n\r\n",
    )?;
    assert!(announced.starts_with("HTTP/1.1 413 "), "{announced}");
    let mut chunked = b"POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n3e9\r\n"
        .to_vec();
    chunked.extend([b'x'; 1001]);
    chunked.extend(b"\r\n0\r\n\r\n");
    let chunked = served.exchange(&chunked)?;
    assert!(chunked.starts_with("HTTP/1.1 413 "), "{chunked}");

    let mut headers = b"GET /hello HTTP/1.1\r\nHost: tests\r\nX-Long: ".to_vec();
    headers.extend([b'x'; 70_000]);
    headers.extend(b"\r\n\r\n");
    let headers = served.exchange(&headers)?;
    assert!(headers.starts_with("HTTP/1.1 431 "), "{headers}");

    let mut busy = served.connect()?;
    busy.write_all(b"GET /chunks/10000 HTTP/1.1\r\nHost: tests\r\n\r\n")?;
    let mut lines = BufReader::new(busy.try_clone()?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    let answer = served.ensure_status("hello", 503)?;
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("too many requests"), "{answer}");

    let _waiting = served.connect()?;
    eventually("too many connections", || {
        let answer = served.get("hello").ok()?;
        answer.contains("too many connections").then_some(())
    })?;
    Ok(())
}

#[test]
fn what_is_no_request_for_a_guest() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let answer = served.exchange(
        b"GET /hello HTTP/1.1\r\nHost: tests\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\
          GET /hello HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n",
    )?;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    assert!(
        answer.contains("cannot be upgraded to websocket"),
        "{answer}"
    );
    let answer = served.exchange(b"nonsense\r\n\r\n")?;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // A body that ends before it should breaks off its own request only.
    let mut stream = served.connect()?;
    stream.write_all(
        b"POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: 100\r\n\r\nonly this",
    )?;
    drop(stream);
    served.ensure_status("hello", 200)?;
    Ok(())
}

/// Requests that the guest makes itself, here to a server beside it.
#[test]
fn requests_of_a_guest() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::start(&engine, TOOL, |builder| builder)?;
    let other = engine
        .container(&Rootfs::guests()?)
        .args(["/hello-http.wasm"])
        .env("PORT", "8001")
        .network(&served.network.path())
        .create()?;
    other.start()?;
    let answer = served.ensure_status("fetch/127.0.0.1:8001/from/a/guest", 200)?;
    assert!(
        answer.contains("200 Hello from WebAssembly! You asked for /from/a/guest"),
        "{answer}"
    );
    let answer = served.ensure_status("fetch/127.0.0.1:9/nobody", 502)?;
    assert!(answer.contains("ConnectionRefused"), "{answer}");
    Ok(())
}
