//! Clients of HTTP/2 that wear a server out: what they can take is bounded, and others are served.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Bystander, Containerd, Served,
    http2::{
        self, CONTINUATION, DATA, Frame, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, STATUS_200,
        WINDOW_UPDATE,
    },
};

const TOOL: &str = "/tool-http.wasm";

/// How much memory a client may cost, in KiB. What the floods send is more.
const COST: u64 = 32 << 10;

/// The most memory that the guest's process has had so far, in KiB (proc_pid_status(5)).
fn peak(served: &Served) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", served.container.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(size.context("no VmHWM")?.parse()?)
}

/// Sends the same over and over without reading, until it is so much, or the server reads no more,
/// or ends the connection: whether it does.
fn flood(stream: &mut TcpStream, bytes: &[u8], most: usize) -> Result<bool> {
    let bytes = bytes.repeat(((1 << 16) / bytes.len()).max(1));
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..most / bytes.len() {
        match stream.write_all(&bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return is_end(error),
        }
    }
    Ok(false)
}

/// Sends a request and what spoils it over and over, until the server ends the connection: whether
/// it does.
fn flood_with_streams(stream: &mut TcpStream, spoil: impl Fn(u32) -> Frame) -> Result<bool> {
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    for number in 0..50_000 {
        let id = 2 * number + 1;
        let both = [Frame::get(id, "/hello").bytes(), spoil(id).bytes()].concat();
        if let Err(error) = stream.write_all(&both) {
            return is_end(error);
        }
    }
    Ok(false)
}

/// Whether a write failed since the connection was ended.
fn is_end(error: std::io::Error) -> Result<bool> {
    let ends = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    ensure!(ends.contains(&error.kind()), "{error}");
    Ok(true)
}

/// What a flood does to others, and to the server's memory: nothing.
fn ensure_borne(what: &str, send: impl FnOnce(&mut TcpStream) -> Result<()> + Send) -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut bystander = Bystander::of(&served)?;
    // So that what serving takes at all has been taken.
    served
        .connect_2()?
        .write_all(&Frame::get(1, "/hello").bytes())?;
    bystander.ask()?;
    let before = peak(&served)?;
    let mut stream = served.connect_2()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&mut stream));
        while !sending.is_finished() {
            bystander.ask().context("meanwhile")?;
        }
        sending.join().expect("the client does not panic")
    })
    .with_context(|| what.to_owned())?;
    let cost = peak(&served)?.saturating_sub(before);
    ensure!(cost < COST, "{what} costs {cost} KiB");
    drop(stream);
    bystander.ask()?;
    served.ensure_status("hello", 200)?;
    ensure!(
        served.container.stderr().is_empty(),
        "{}",
        served.container.stderr()
    );
    Ok(())
}

/// Streams that are opened and reset at once (CVE-2023-44487).
#[test]
fn streams_that_are_reset() -> Result<()> {
    ensure_borne("a flood of resets", |stream| {
        // CANCEL (RFC 9113, section 7).
        let reset = |id| Frame::new(RST_STREAM, 0, id, &8_u32.to_be_bytes());
        flood_with_streams(stream, reset).map(drop)
    })
}

/// The same with the server made to reset them (CVE-2025-8671), by a window that overflows.
#[test]
fn streams_that_the_server_must_reset() -> Result<()> {
    ensure_borne("a flood of wrong frames", |stream| {
        let overflow = |id| Frame::new(WINDOW_UPDATE, 0, id, &0x7fff_ffff_u32.to_be_bytes());
        ensure!(
            flood_with_streams(stream, overflow)?,
            "it is read to its end"
        );
        Ok(())
    })
}

/// A header block that does not end.
#[test]
fn headers_without_an_end() -> Result<()> {
    for (what, piece) in [("full", &[b'x'; 16 << 10][..]), ("empty", &[])] {
        ensure_borne(&format!("{what} frames"), |stream| {
            let mut block = Frame::get(1, "/hello").payload;
            // A literal, without a name in the table, whose length is a few hundred megabytes.
            block.extend(b"\x00\x06x-long\x7f\x80\x80\x80\x80\x01");
            stream.write_all(&Frame::new(HEADERS, 0x1, 1, &block).bytes())?;
            let more = Frame::new(CONTINUATION, 0, 1, piece).bytes();
            ensure!(flood(stream, &more, 256 << 20)?, "it is read to its end");
            Ok(())
        })?;
    }
    Ok(())
}

/// Frames that ask for an answer, which is not read.
#[test]
fn questions_without_an_end() -> Result<()> {
    for (what, frame) in [
        ("pings", Frame::new(PING, 0, 0, &[0; 8])),
        ("settings", Frame::new(SETTINGS, 0, 0, &[])),
    ] {
        ensure_borne(what, |stream| {
            flood(stream, &frame.bytes(), 64 << 20).map(drop)
        })?;
    }
    Ok(())
}

/// Of more streams than there may be at a time the client is told that they were not begun.
#[test]
fn streams_past_the_limit() -> Result<()> {
    let engine = Containerd::newest()?;
    let settings = "pool.instances = 4\nhttp.request_time = '1s'";
    let served = Served::with(&engine, TOOL, settings)?;
    let mut stream = served.connect_2()?;
    let mut all = Vec::new();
    for number in 0..20 {
        all.extend(Frame::get(2 * number + 1, "/sleep/100000").bytes());
    }
    stream.write_all(&all)?;
    let (mut refused, mut answered) = (0, 0);
    while refused + answered < 20 {
        let frame = Frame::read(&mut stream)?;
        match frame.kind {
            // REFUSED_STREAM.
            RST_STREAM => {
                assert_eq!(frame.payload, [0, 0, 0, 7], "{frame:?}");
                refused += 1;
            }
            HEADERS => answered += 1,
            GOAWAY => anyhow::bail!("{frame:?}"),
            _ => {}
        }
    }
    assert_eq!((refused, answered), (16, 4));
    // And when those are over, there is room again.
    stream.write_all(&Frame::get(41, "/hello").bytes())?;
    let headers = loop {
        let frame = Frame::await_kind(&mut stream, HEADERS)?;
        if frame.stream == 41 {
            break frame;
        }
    };
    assert_eq!(headers.payload[0], STATUS_200);
    Ok(())
}

/// A client that asks for much and gives no room for any of it.
#[test]
fn windows_that_are_never_opened() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.send_time = '500ms'")?;
    let mut bystander = Bystander::of(&served)?;
    let before = peak(&served)?;
    let mut stream = served.connect()?;
    http2::begin(&mut stream)?;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    stream.write_all(&Frame::new(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).bytes())?;
    for number in 0..100 {
        stream.write_all(&Frame::get(2 * number + 1, "/hello").bytes())?;
    }
    let mut received = Vec::new();
    // Its end may be a reset.
    while let Ok(frame) = Frame::read(&mut stream) {
        bystander.ask()?;
        assert_ne!(frame.kind, DATA, "{frame:?}");
        received.push(frame.kind);
    }
    assert!(received.contains(&HEADERS), "{received:?}");
    let cost = peak(&served)?.saturating_sub(before);
    assert!(cost < COST, "it costs {cost} KiB");
    // What they had is given back.
    bystander.ask()?;
    served.ensure_status("hello", 200)?;
    Ok(())
}

/// Who asks now and then goes on, however soon the guest has answered.
#[test]
fn requests_that_keep_coming() -> Result<()> {
    let engine = Containerd::newest()?;
    let settings = "http.header_time = '500ms'\nhttp.idle_time = '1ms'";
    let served = Served::with(&engine, TOOL, settings)?;
    let mut stream = served.connect_2()?;
    let begun = Instant::now();
    let mut number = 1;
    while begun.elapsed() < Duration::from_secs(2) {
        stream.write_all(&Frame::get(number, "/hello").bytes())?;
        loop {
            let frame = Frame::read(&mut stream)?;
            ensure!(frame.kind != GOAWAY, "after {:?}", begun.elapsed());
            if frame.stream == number && frame.ends_stream() {
                break;
            }
        }
        number += 2;
        // Not a wait for anything: it is the client that is slow.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Whoever says nothing, or not enough, is let go.
#[test]
fn slow_clients() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.header_time = '500ms'")?;
    let request = Frame::get(1, "/hello").bytes();
    let half = &request[..request.len() / 2];
    let open = Frame::new(HEADERS, 0x1, 1, &[0x82]).bytes();
    for beginning in [&b""[..], half, &open] {
        let mut stream = served.connect_2()?;
        stream.write_all(beginning)?;
        let goaway = Frame::await_kind(&mut stream, GOAWAY)?;
        // NO_ERROR.
        assert_eq!(goaway.payload[4..8], [0; 4], "{goaway:?}");
        // Whether it answers or not.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Not even the whole preface.
    let mut stream = served.connect()?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    Ok(())
}

/// Nor does who asks on, and says nothing to what it is told.
#[test]
fn who_asks_a_server_that_ends() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut stream = served.connect_2()?;
    stream.write_all(&Frame::get(1, "/hello").bytes())?;
    Frame::await_kind(&mut stream, HEADERS)?;
    served.container.kill(nix::sys::signal::Signal::SIGTERM)?;
    Frame::await_kind(&mut stream, GOAWAY)?;
    let begun = Instant::now();
    let mut number = 3;
    while stream
        .write_all(&Frame::get(number, "/hello").bytes())
        .is_ok()
        && Frame::await_kind(&mut stream, HEADERS).is_ok()
    {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{number}");
        number += 2;
        // Not a wait for anything: it is the client that is slow.
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(number > 3, "what was asked at once is answered");
    assert_eq!(served.container.finish()?.status, 0);
    Ok(())
}

/// Who is idle, and is not there any more, does not keep a server from ending.
#[test]
fn the_end_of_a_server() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.header_time = '500ms'")?;
    let mut stream = served.connect_2()?;
    stream.write_all(&Frame::get(1, "/hello").bytes())?;
    Frame::await_kind(&mut stream, HEADERS)?;
    served.container.kill(nix::sys::signal::Signal::SIGTERM)?;
    // It says nothing to what it is told, nor does it go.
    assert_eq!(served.container.finish()?.status, 0);
    drop(stream);
    Ok(())
}
