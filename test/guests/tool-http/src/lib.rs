//! A guest of the tests that handles requests over HTTP: what it does is the path's first word.

use wasi::exports::http::incoming_handler::Guest;
use wasi::http::outgoing_handler;
use wasi::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasi::io::streams::StreamError;

struct Tool;

/// How much of a body is moved at a time, in bytes.
const CHUNK: u64 = 4096;

#[inline(never)]
#[no_mangle]
fn trap_inner() -> ! {
    core::arch::wasm32::unreachable()
}

impl Guest for Tool {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let mut words = path.trim_start_matches('/').splitn(2, '/');
        let word = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default();
        match word {
            "hello" => text(answer, 200, "hello\n"),
            "status" => text(answer, rest.parse().unwrap(), ""),
            "method" => text(answer, 200, &format!("{:?}\n", request.method())),
            "headers" => {
                let headers = request.headers().entries();
                let lines = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value)));
                text(answer, 200, &lines.collect::<String>());
            }
            "env" => {
                let lines = wasi::cli::environment::get_environment()
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}\n"));
                text(answer, 200, &lines.collect::<String>());
            }
            "log" => {
                println!("out: {rest}");
                eprintln!("err: {rest}");
                text(answer, 200, "logged\n");
            }
            "read" => {
                let file = std::fs::read_to_string(format!("/{rest}"));
                text(answer, 200, &file.unwrap_or_else(|error| error.to_string()));
            }
            "echo" => echo(request, answer),
            "count" => count(request, answer),
            "chunks" => chunks(answer, rest.parse().unwrap()),
            "trailers" => trailers(request, answer),
            "trap" => trap_inner(),
            "late" => late(answer, rest),
            "whole" => {
                text(answer, 200, "whole\n");
                trap_inner()
            }
            "silent" => drop(answer),
            "loop" => loop {
                std::hint::black_box(0);
            },
            "sleep" => {
                std::thread::sleep(std::time::Duration::from_millis(rest.parse().unwrap()));
                text(answer, 200, "slept\n");
            }
            "alloc" => {
                let megabytes: usize = rest.parse().unwrap();
                let mut taken: Vec<u8> = Vec::new();
                match taken.try_reserve_exact(megabytes << 20) {
                    Ok(()) => text(answer, 200, "allocated\n"),
                    Err(_) => text(answer, 507, "no memory\n"),
                }
            }
            "fetch" => fetch(rest, answer),
            _ => text(answer, 404, "no such word\n"),
        }
    }
}

/// Begins a response.
fn begin(answer: ResponseOutparam, status: u16) -> (OutgoingBody, wasi::io::streams::OutputStream) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).unwrap();
    let body = response.body().unwrap();
    ResponseOutparam::set(answer, Ok(response));
    let stream = body.write().unwrap();
    (body, stream)
}

/// Answers, as far as the client stays for it.
fn text(answer: ResponseOutparam, status: u16, text: &str) {
    let (body, stream) = begin(answer, status);
    for chunk in text.as_bytes().chunks(CHUNK as usize) {
        match stream.blocking_write_and_flush(chunk) {
            Err(StreamError::Closed) => return,
            written => written.unwrap(),
        }
    }
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
}

/// Begins a response and does not come to its end.
fn late(answer: ResponseOutparam, what: &str) {
    let (body, stream) = begin(answer, 200);
    stream.blocking_write_and_flush(b"beginning\n").unwrap();
    match what {
        "trap" => {
            std::mem::forget((body, stream));
            // What has been written goes out at a pause.
            std::thread::sleep(std::time::Duration::from_millis(1));
            trap_inner()
        }
        "loop" => loop {
            std::hint::black_box(0);
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(100_000)),
        // For the instance's end to drop.
        _ => std::mem::forget((body, stream)),
    }
}

/// Sends a request's body back as it comes.
fn echo(request: IncomingRequest, answer: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let input = incoming.stream().unwrap();
    let (body, output) = begin(answer, 200);
    loop {
        match input.blocking_read(CHUNK) {
            Ok(bytes) => output.blocking_write_and_flush(&bytes).unwrap(),
            Err(StreamError::Closed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    drop((input, output));
    OutgoingBody::finish(body, None).unwrap();
}

/// How many bytes a request's body has.
fn count(request: IncomingRequest, answer: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let input = incoming.stream().unwrap();
    let mut count = 0;
    let end = loop {
        match input.blocking_read(1 << 20) {
            Ok(bytes) => count += bytes.len(),
            Err(end) => break end,
        }
    };
    let end = match end {
        StreamError::Closed => "whole",
        StreamError::LastOperationFailed(_) => "broken",
    };
    text(answer, 200, &format!("{count} {end}\n"));
}

/// So many pieces, a moment apart.
fn chunks(answer: ResponseOutparam, count: usize) {
    let (body, stream) = begin(answer, 200);
    for number in 0..count {
        if stream.blocking_write_and_flush(format!("{number}\n").as_bytes()).is_err() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
}

/// The request's trailers as the response's.
fn trailers(request: IncomingRequest, answer: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let input = incoming.stream().unwrap();
    while input.blocking_read(CHUNK).is_ok() {}
    drop(input);
    let future = IncomingBody::finish(incoming);
    future.subscribe().block();
    let came = future.get().unwrap().unwrap().unwrap();
    let entries = came.map(|fields| fields.entries()).unwrap_or_default();
    let headers = Fields::new();
    // HTTP/1.1 has those trailers only that are announced.
    for (name, _) in &entries {
        headers.append(&"trailer".to_string(), &name.clone().into_bytes()).unwrap();
    }
    let response = OutgoingResponse::new(headers);
    let body = response.body().unwrap();
    ResponseOutparam::set(answer, Ok(response));
    let stream = body.write().unwrap();
    stream.blocking_write_and_flush(b"with trailers\n").unwrap();
    drop(stream);
    let trailers = Fields::from_list(&entries).unwrap();
    OutgoingBody::finish(body, Some(trailers)).unwrap();
}

/// The status and body of `http://URL`, or why there is none.
fn fetch(url: &str, answer: ResponseOutparam) {
    let (scheme, url) = match url.strip_prefix("https/") {
        Some(url) => (Scheme::Https, url),
        None => (Scheme::Http, url),
    };
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&Method::Get).unwrap();
    request.set_scheme(Some(&scheme)).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request.set_path_with_query(Some(&format!("/{path}"))).unwrap();
    let future = match outgoing_handler::handle(request, None) {
        Ok(future) => future,
        Err(error) => return text(answer, 502, &format!("{error:?}\n")),
    };
    future.subscribe().block();
    let response = match future.get().unwrap().unwrap() {
        Ok(response) => response,
        Err(error) => return text(answer, 502, &format!("{error:?}\n")),
    };
    let incoming = response.consume().unwrap();
    let input = incoming.stream().unwrap();
    let mut bytes = Vec::new();
    while let Ok(more) = input.blocking_read(CHUNK) {
        bytes.extend(more);
    }
    text(
        answer,
        200,
        &format!("{} {}", response.status(), String::from_utf8_lossy(&bytes)),
    );
}

wasi::http::proxy::export!(Tool);
