//! Components of WASI 0.3 that handle requests over HTTP (`wasi:http/handler`), served.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Containerd, Rootfs, Served, each_containerd, eventually,
    http2::{self, DATA, Frame, HEADERS, PING, RST_STREAM, STATUS_200},
};
use nix::sys::signal::Signal;

each_containerd!(answers);

const TOOL: &str = "/tool-http-p3.wasm";

fn answers(engine: &Containerd) -> Result<()> {
    let served = Served::with(engine, TOOL, "")?;
    let answer = served.ensure_status("hello", 200)?;
    assert!(answer.ends_with("hello\n\r\n0\r\n\r\n"), "{answer}");
    served.ensure_status("nothing", 404)?;
    served.container.kill(Signal::SIGTERM)?;
    assert_eq!(served.container.finish()?.status, 0);
    Ok(())
}

/// A connection, whose requests are one thread's and so the same instances'.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn to(served: &Served) -> Result<Self> {
        Ok(Self(BufReader::new(served.connect()?)))
    }

    /// Which of its instance's requests this one is.
    fn ever(&mut self) -> Result<usize> {
        let stream = self.0.get_mut();
        stream.write_all(b"GET /ever HTTP/1.1\r\nHost: tests\r\n\r\n")?;
        let mut answer = String::new();
        while !answer.ends_with("\r\n0\r\n\r\n") {
            ensure!(self.0.read_line(&mut answer)? > 0, "cut off: {answer}");
        }
        let count = answer.lines().rev().nth(3).context(answer.clone())?;
        count.parse().context(answer)
    }
}

/// An instance gets 128 requests, or as many as are set, and then there is another.
#[test]
fn reuse() -> Result<()> {
    let engine = Containerd::newest()?;
    for (settings, most) in [("", 128), ("http.reuse = 3", 3), ("http.reuse = 1", 1)] {
        // However slow the machine is.
        let served = Served::with(&engine, TOOL, &format!("http.idle_time = '1h'\n{settings}"))?;
        let mut connection = Connection::to(&served)?;
        for expected in (1..=most).chain(1..=most.min(5)) {
            assert_eq!(connection.ever()?, expected, "{settings}");
        }
    }
    Ok(())
}

/// Requests are in one instance at the same time.
#[test]
fn requests_at_a_time() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut stream = served.connect()?;
    http2::begin(&mut stream)?;
    const COUNT: u32 = 10;
    let ids = (0..COUNT).map(|number| 2 * number + 1);
    let path = format!("/meet/{COUNT}");
    for id in ids.clone() {
        stream.write_all(&Frame::get(id, &path).bytes())?;
        // It is in the instance, which waits for the next.
        loop {
            let frame = Frame::await_kind(&mut stream, HEADERS)?;
            if frame.stream == id {
                assert_eq!(frame.payload[0], STATUS_200);
                break;
            }
        }
    }
    let mut met = Vec::new();
    while met.len() < COUNT as usize {
        let frame = Frame::await_kind(&mut stream, DATA)?;
        if frame.payload.ends_with(b"met\n") {
            met.push(frame.stream);
        }
    }
    met.sort_unstable();
    assert_eq!(met, ids.collect::<Vec<_>>());
    Ok(())
}

/// What its client has given up counts for as long as the guest is at it.
#[test]
fn requests_that_are_given_up() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.max_requests = 2")?;
    let mut stream = served.connect_2()?;
    for (id, path) in [(1, "/sleep/1000000"), (3, "/sleep/1000000"), (5, "/hello")] {
        stream.write_all(&Frame::get(id, path).bytes())?;
    }
    // The third is one too many: the others are at work.
    let refused = Frame::await_kind(&mut stream, HEADERS)?;
    assert_eq!(refused.stream, 5);
    assert_ne!(refused.payload[0], STATUS_200);
    for id in [1, 3] {
        stream.write_all(&Frame::new(RST_STREAM, 0, id, &[0, 0, 0, 8]).bytes())?;
    }
    // Once this is answered, that has been read.
    stream.write_all(&Frame::new(PING, 0, 0, &[0; 8]).bytes())?;
    while Frame::await_kind(&mut stream, PING)?.flags & 1 == 0 {}
    for _ in 0..10 {
        served.ensure_status("hello", 503)?;
    }
    Ok(())
}

/// A body of which nobody could hold all in between goes through, both ways at once.
#[test]
fn bodies_are_streamed() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "limits.memory = '4MiB'")?;
    const SIZE: usize = 16 << 20;
    for word in ["echo", "copy"] {
        let mut stream = served.connect()?;
        write!(
            stream,
            "POST /{word} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        )?;
        let mut writer = stream.try_clone()?;
        let writing = std::thread::spawn(move || -> std::io::Result<()> {
            for piece in 0..SIZE / 4096 {
                let piece = [piece as u8; 4096];
                writer.write_all(&[b"1000\r\n", &piece[..], b"\r\n"].concat())?;
            }
            writer.write_all(b"0\r\n\r\n")
        });
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "{word}: no answer");
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
        assert_eq!(received.len(), SIZE, "{word}");
        let right = |(at, byte): (usize, &u8)| *byte == (at / 4096) as u8;
        assert!(received.iter().enumerate().all(right), "{word}");
    }
    Ok(())
}

#[test]
fn trailers() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
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

#[test]
fn bodies_that_break_off() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut stream = served.connect()?;
    stream.write_all(
        b"POST /count HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Length: 100\r\n\r\n\
          only this",
    )?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(answer.contains("9 broken\n"), "{answer}");
    Ok(())
}

/// A guest that fails gets its clients 500, or a response that is not whole, and the next request
/// its answer.
#[test]
fn failures() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.request_time = '500ms'")?;
    served.ensure_status("trap", 500)?;
    served.ensure_status("error", 500)?;
    served.ensure_status("loop", 504)?;
    served.ensure_status("sleep/100000", 504)?;
    for what in ["trap", "sleep"] {
        let answer = served.get(&format!("late/{what}"))?;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("beginning\n"), "{answer}");
        assert!(!answer.contains("\r\n0\r\n"), "looks whole: {answer}");
    }
    let mut stream = served.connect()?;
    http2::begin(&mut stream)?;
    stream.write_all(&Frame::get(1, "/late/trap").bytes())?;
    loop {
        let frame = Frame::read(&mut stream)?;
        if frame.kind == RST_STREAM {
            break;
        }
        assert!(!frame.ends_stream(), "looks whole: {frame:?}");
    }
    served.ensure_status("hello", 200)?;
    eventually("the reasons", || {
        let errors = served.container.stderr();
        let told = ["trap_inner", "unreachable", "as it was told", "timed out"];
        told.iter().all(|part| errors.contains(part)).then_some(())
    })
    .with_context(|| served.container.stderr())
}

/// Requests that the guest makes itself, here to a server beside it.
#[test]
fn requests_of_a_guest() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
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
