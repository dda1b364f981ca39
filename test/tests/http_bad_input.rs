//! Servers of guests, and clients and guests that do not keep to HTTP: a clear answer to whoever
//! it was, and nobody else notices.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Bystander, Containerd, Served, eventually,
    http2::{CONTINUATION, DATA, Frame, GOAWAY, HEADERS, RST_STREAM, STATUS_200},
};

const TOOL: &str = "/tool-http.wasm";
const GET: &str = "GET /hello HTTP/1.1\r\nHost: tests\r\n\r\n";

/// All that comes on a connection, and whether its end was an orderly one.
fn all(stream: &mut TcpStream) -> (String, bool) {
    let mut answer = Vec::new();
    let orderly = stream.read_to_end(&mut answer).is_ok();
    (String::from_utf8_lossy(&answer).into_owned(), orderly)
}

/// Ensures that a response over HTTP/1.1 has begun and does not look whole.
fn ensure_broken_off(answer: &str) -> Result<()> {
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    ensure!(answer.contains("beginning\n"), "{answer}");
    ensure!(!answer.contains("\r\n0\r\n"), "looks whole: {answer}");
    Ok(())
}

/// A guest that traps, or comes to no end, after its response has begun: its client can tell.
#[test]
fn responses_that_break_off() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.request_time = '500ms'")?;
    let mut bystander = Bystander::of(&served)?;
    for what in ["trap", "loop", "sleep", "forget"] {
        let answer = served.get(&format!("late/{what}"))?;
        ensure_broken_off(&answer).context(what)?;
    }
    bystander.ask()?;
    eventually("the reasons", || {
        let errors = served.container.stderr();
        let told = ["trap_inner", "a request took longer than"];
        told.iter().all(|part| errors.contains(part)).then_some(())
    })?;

    // Over HTTP/2 it is one stream that ends so.
    let mut stream = served.connect_2()?;
    stream.write_all(&Frame::get(1, "/late/trap").bytes())?;
    loop {
        let frame = Frame::read(&mut stream)?;
        if frame.kind == RST_STREAM {
            // INTERNAL_ERROR (section 7).
            assert_eq!((frame.stream, &frame.payload[..]), (1, &[0, 0, 0, 2][..]));
            break;
        }
        assert!(!frame.ends_stream(), "looks whole: {frame:?}");
    }
    stream.write_all(&Frame::get(3, "/hello").bytes())?;
    let headers = Frame::await_kind(&mut stream, HEADERS)?;
    assert_eq!((headers.stream, headers.payload[0]), (3, STATUS_200));
    Ok(())
}

/// A response that was finished is whole whatever its guest does then, and an instance that is
/// used again is none that has failed.
#[test]
fn responses_that_are_whole() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.reuse = 100")?;
    for _ in 0..3 {
        // Its client may also be told that the guest failed, if nothing of it has been sent yet.
        let answer = served.get("whole/trap")?;
        let is_whole = answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nwhole\n");
        let is_refused = answer.starts_with("HTTP/1.1 500 ");
        assert!(is_whole || is_refused, "{answer}");
        ensure_broken_off(&served.get("late/trap")?)?;
        served.ensure_status("hello", 200)?;
    }
    Ok(())
}

#[test]
fn lines_and_headers_that_are_none() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut bystander = Bystander::of(&served)?;
    for wrong in [
        "nonsense\r\n\r\n",
        "GET\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET  HTTP/1.1\r\nHost: tests\r\n\r\n",
        "GET /hello HTTP/9.9\r\nHost: tests\r\n\r\n",
        "GET /he llo HTTP/1.1\r\nHost: tests\r\n\r\n",
        "G\u{0}T /hello HTTP/1.1\r\nHost: tests\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: tests\r\nno colon\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: tests\r\nX-Null: \u{0}\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: tests\r\nBad Name: x\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: tests\r\n X-Folded: x\r\n\r\n",
        "POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: x\r\n\r\n",
        "POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: -1\r\n\r\n",
        "POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST /count HTTP/1.1\r\nHost: tests\r\nTransfer-Encoding: gzip\r\n\r\n",
        // RFC 9112, section 3.2.
        "GET /hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: one\r\nHost: other\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: \u{e4}\u{f6}\r\n\r\n",
    ] {
        // Whoever cannot be understood is not listened to any more.
        let answer = served.exchange(format!("{wrong}{GET}").as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{wrong:?}: {answer}");
        assert!(!answer.contains("hello\n"), "{wrong:?}: {answer}");
    }
    // Clients of HTTP/1.0 need not say whom they mean.
    let older = served.exchange(b"GET /hello HTTP/1.0\r\n\r\n")?;
    assert!(older.starts_with("HTTP/1.0 200 "), "{older}");
    bystander.ask()?;
    let errors = served.container.stderr();
    assert_eq!(errors, "", "nothing of this is a guest's failure");
    Ok(())
}

#[test]
fn headers_that_are_too_large() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.max_headers = '16KiB'")?;
    let mut bystander = Bystander::of(&served)?;
    let long = "x".repeat(17 << 10);
    let many = "X-Many: x\r\n".repeat(101);
    for wrong in [
        format!("GET /hello HTTP/1.1\r\nHost: tests\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /hello HTTP/1.1\r\nHost: tests\r\n{many}\r\n"),
        // One that is never ended is refused all the same.
        format!("GET /hello HTTP/1.1\r\nHost: tests\r\nX-Long: {long}"),
    ] {
        let answer = served.exchange(wrong.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let just = "x".repeat(15 << 10);
    let answer = served.exchange(
        format!(
            "GET /hello HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nX-Long: {just}\r\n\r\n"
        )
        .as_bytes(),
    )?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // Over HTTP/2: literals without a name in the table, of 8,000 bytes each.
    let mut stream = served.connect_2()?;
    let mut block = Frame::get(1, "/hello").payload;
    for _ in 0..4 {
        block.extend(b"\x00\x06x-long\x7f");
        // 8000 - 127, seven bits at a time (RFC 7541, section 5.1).
        block.extend([0xc1, 0x3d]);
        block.extend([b'x'; 8000]);
    }
    let (first, rest) = block.split_at(16_000);
    stream.write_all(&Frame::new(HEADERS, 0x1, 1, first).bytes())?;
    let (more, last) = rest.split_at(rest.len() / 2);
    stream.write_all(&Frame::new(CONTINUATION, 0, 1, more).bytes())?;
    stream.write_all(&Frame::new(CONTINUATION, 0x4, 1, last).bytes())?;
    let headers = Frame::await_kind(&mut stream, HEADERS)?;
    assert_ne!(headers.payload[0], STATUS_200, "{headers:?}");
    assert!(headers.ends_stream(), "{headers:?}");
    stream.write_all(&Frame::get(3, "/hello").bytes())?;
    let headers = Frame::await_kind(&mut stream, HEADERS)?;
    assert_eq!((headers.stream, headers.payload[0]), (3, STATUS_200));
    bystander.ask()?;
    Ok(())
}

/// Who takes his time is told so when it is over.
#[test]
fn slow_clients() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(
        &engine,
        TOOL,
        "http.header_time = '500ms'\nhttp.request_time = '1s'",
    )?;
    let mut slow = Vec::new();
    for beginning in [
        "G",
        // It could still be HTTP/2.
        "PR",
        "GET /hello HTTP/1.1\r\n",
        "GET /hello HTTP/1.1\r\nHost: t",
    ] {
        let mut stream = served.connect()?;
        stream.write_all(beginning.as_bytes())?;
        slow.push(stream);
    }
    let mut body = served.connect()?;
    body.write_all(b"POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: 10\r\n\r\nfive5")?;
    // Only what has not been said is waited for.
    served.ensure_status("hello", 200)?;
    for mut stream in slow {
        let (answer, orderly) = all(&mut stream);
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{answer}"
        );
        assert!(orderly && answer.ends_with(" in time\n"), "{answer}");
    }
    let mut line = String::new();
    BufReader::new(&body).read_line(&mut line)?;
    assert!(line.starts_with("HTTP/1.1 504 "), "{line}");
    served.ensure_status("hello", 200)?;
    Ok(())
}

/// A connection on which there is no request ends without a word, be it the first that does not
/// come or the next; one that has begun is told.
#[test]
fn idle_clients() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "http.header_time = '500ms'")?;
    let (answer, orderly) = all(&mut served.connect()?);
    assert!(orderly && answer.is_empty(), "{answer}");
    for (more, is_told) in [("", false), ("GET /hello HT", true)] {
        let mut stream = served.connect()?;
        write!(stream, "{GET}{more}")?;
        let (answer, orderly) = all(&mut stream);
        assert!(orderly, "{answer}");
        let (first, rest) = answer
            .split_once("\r\n\r\nhello\n")
            .context(answer.clone())?;
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert_eq!(rest.starts_with("HTTP/1.1 408 "), is_told, "{rest}");
        assert_eq!(rest.is_empty(), !is_told, "{rest}");
    }
    Ok(())
}

/// Who does not take what he has asked for is not waited for.
#[test]
fn clients_that_do_not_read() -> Result<()> {
    let engine = Containerd::newest()?;
    let settings = "http.send_time = '500ms'\nhttp.max_requests = 1";
    let served = Served::with(&engine, TOOL, settings)?;
    let mut stream = served.connect()?;
    stream.set_write_timeout(Some(std::time::Duration::from_secs(30)))?;
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nHost: tests\r\nContent-Length: {}\r\n\r\n",
        1 << 30
    )?;
    // More than all buffers on the way have room for.
    let piece = [b'x'; 1 << 16];
    let error = (0..1 << 14).find_map(|_| stream.write_all(&piece).err());
    let kind = error.context("nobody reads it, but it is gone")?.kind();
    let is_cut_off = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&kind);
    assert!(is_cut_off, "{kind:?}");
    // Its place is another's.
    eventually("a place", || served.ensure_status("hello", 200).ok())?;

    // Nor who asks again and again for little, the responses to which are over for the guest.
    let mut stream = served.connect()?;
    stream.set_write_timeout(Some(std::time::Duration::from_secs(30)))?;
    let requests = GET.repeat(1 << 10);
    let error = (0..1 << 12).find_map(|_| stream.write_all(requests.as_bytes()).err());
    let kind = error.context("nobody reads it, but it is gone")?.kind();
    let is_cut_off = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&kind);
    assert!(is_cut_off, "{kind:?}");
    Ok(())
}

/// A client that has said all it has to say still listens.
#[test]
fn half_closed_connections() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    for (path, end) in [
        ("hello", "\r\n\r\nhello\n"),
        ("sleep/300", "\r\n\r\nslept\n"),
        ("chunks/10", "\r\n0\r\n\r\n"),
    ] {
        let mut stream = served.connect()?;
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: tests\r\n\r\n")?;
        stream.shutdown(Shutdown::Write)?;
        let (answer, orderly) = all(&mut stream);
        assert!(orderly, "{path}: {answer}");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{path}: {answer}"
        );
        assert!(answer.ends_with(end), "{path}: {answer}");
    }
    // One that says nothing, or not all, gets nothing, and soon.
    for said in ["", "GET /hello HTTP/1.1\r\n"] {
        let mut stream = served.connect()?;
        stream.write_all(said.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let (answer, _) = all(&mut stream);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    served.ensure_status("hello", 200)?;
    Ok(())
}

/// Bodies that are not as they were announced.
#[test]
fn bodies_of_another_length() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut bystander = Bystander::of(&served)?;
    let post = "POST /count HTTP/1.1\r\nHost: tests\r\n";
    // What is over is the next request, and none.
    let longer = served
        .exchange(format!("{post}Content-Length: 3\r\n\r\nabcdef\r\n\r\n{GET}").as_bytes())?;
    assert!(longer.starts_with("HTTP/1.1 200 OK\r\n"), "{longer}");
    assert!(longer.contains("3 whole\n"), "{longer}");
    assert!(longer.contains("HTTP/1.1 400 Bad Request\r\n"), "{longer}");
    assert!(!longer.contains("hello\n"), "{longer}");

    // A guest sees that a body does not come to its end.
    for shorter in [
        "Content-Length: 100\r\n\r\nonly this",
        "Transfer-Encoding: chunked\r\n\r\n64\r\nonly this",
        "Transfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
    ] {
        let mut stream = served.connect()?;
        write!(stream, "{post}{shorter}")?;
        stream.shutdown(Shutdown::Write)?;
        let (answer, _) = all(&mut stream);
        assert!(answer.contains("9 broken\n"), "{shorter:?}: {answer}");
    }
    for malformed in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcdef\r\n0\r\n\r\n"] {
        let request = format!("{post}Transfer-Encoding: chunked\r\n\r\n{malformed}{GET}");
        let answer = served.exchange(request.as_bytes())?;
        assert!(answer.contains(" broken\n"), "{malformed:?}: {answer}");
        assert!(!answer.contains("hello\n"), "{malformed:?}: {answer}");
    }
    // Who announces both means the chunks (RFC 9112, section 6.3).
    let both = served.exchange(
        format!("{post}Content-Length: 100\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .as_bytes(),
    )?;
    assert!(both.contains("3 whole\n"), "{both}");
    bystander.ask()?;
    Ok(())
}

/// Requests that are sent before the last is answered are answered in their order.
#[test]
fn requests_without_waiting() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let requests = "GET /sleep/200 HTTP/1.1\r\nHost: tests\r\n\r\n".to_owned()
        + "POST /count HTTP/1.1\r\nHost: tests\r\nContent-Length: 3\r\n\r\nabc"
        + "GET /trap HTTP/1.1\r\nHost: tests\r\n\r\n"
        + GET
        // Nobody reads what is announced here, so nobody takes it for a request.
        + "POST /hello HTTP/1.1\r\nHost: tests\r\nContent-Length: 40\r\n\r\n"
        + "GET /status/418 HTTP/1.1\r\nHost: tests\r\n\r\n\r\n"
        + "GET /method HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n";
    let answer = served.exchange(requests.as_bytes())?;
    let mut rest = &answer[..];
    for part in [
        "slept\n",
        "3 whole\n",
        "the guest failed",
        "hello\n",
        "hello\n",
    ] {
        let at = rest
            .find(part)
            .with_context(|| format!("{part}: {answer}"))?;
        rest = &rest[at + part.len()..];
    }
    assert!(!answer.contains("418"), "{answer}");
    Ok(())
}

#[test]
fn frames_that_are_none() -> Result<()> {
    let engine = Containerd::newest()?;
    let served = Served::with(&engine, TOOL, "")?;
    let mut bystander = Bystander::of(&served)?;
    let mut healthy = served.connect_2()?;
    for wrong in [
        // Noise; a frame that is larger than any may be; of a stream that is the server's; a header
        // block that is none; the body of a stream that is not there.
        vec![0xff; 64],
        Frame::new(DATA, 0, 1, &[0; 20_000]).bytes(),
        Frame::new(HEADERS, 0x5, 2, &[0x82]).bytes(),
        Frame::new(HEADERS, 0x5, 1, &[0xff; 16]).bytes(),
        Frame::new(DATA, 0, 7, b"x").bytes(),
    ] {
        let mut stream = served.connect_2()?;
        stream.write_all(&wrong)?;
        let goaway = Frame::await_kind(&mut stream, GOAWAY)?;
        let code = &goaway.payload[4..8];
        assert_ne!(code, [0; 4], "{wrong:?}: {goaway:?}");
        // Its end may be a reset.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Half of the preface, and no more.
    let mut stream = served.connect()?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")?;
    let (answer, _) = all(&mut stream);
    assert!(!answer.contains("200 OK"), "{answer}");
    healthy.write_all(&Frame::get(1, "/hello").bytes())?;
    let headers = Frame::await_kind(&mut healthy, HEADERS)?;
    assert_eq!((headers.stream, headers.payload[0]), (1, STATUS_200));
    bystander.ask()?;
    Ok(())
}
