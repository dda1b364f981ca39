//! A guest of the tests that handles requests over HTTP by WASI 0.3: what it does is the path's
//! first word. README.md in the folder above lists them.

use std::{
    hint,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use wasip3::{
    clocks::monotonic_clock,
    http::{
        client,
        types::{ErrorCode, Fields, Request, Response, Scheme},
    },
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter, spawn_local},
    wit_future, wit_stream,
};

struct Tool;

wasip3::http::service::export!(Tool);

/// Requests that this instance has had.
static EVER: AtomicUsize = AtomicUsize::new(0);
/// Requests that wait in this instance for others.
static WAITING: AtomicUsize = AtomicUsize::new(0);

const MILLISECOND: u64 = 1_000_000;

/// A request's or a response's trailers, if there are any.
type Trailers = Result<Option<Fields>, ErrorCode>;

impl wasip3::exports::http::handler::Guest for Tool {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let ever = EVER.fetch_add(1, Relaxed) + 1;
        let path = request.get_path_with_query().unwrap_or_default();
        let mut words = path.trim_start_matches('/').splitn(2, '/');
        let word = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default().to_owned();
        match word {
            "hello" => text(200, "hello\n".to_owned()),
            "ever" => text(200, format!("{ever}\n")),
            "echo" => {
                let (content, trailers) = consume(request);
                let (response, _) = Response::new(Fields::new(), Some(content), trailers);
                Ok(response)
            }
            "copy" => {
                let (content, _) = consume(request);
                respond(200, Fields::new(), async |writer, _| copy(content, writer).await)
            }
            "count" => {
                let (mut content, trailers) = consume(request);
                let mut count = 0;
                while let Some(piece) = read(&mut content).await {
                    count += piece.len();
                }
                let end = match trailers.await {
                    Ok(_) => "whole",
                    Err(_) => "broken",
                };
                text(200, format!("{count} {end}\n"))
            }
            "trailers" => {
                let (mut content, trailers) = consume(request);
                while read(&mut content).await.is_some() {}
                let trailers = trailers.await?;
                let headers = Fields::new();
                // HTTP/1.1 has those trailers only that are announced.
                for (name, _) in trailers.iter().flat_map(Fields::copy_all) {
                    headers.append("trailer", name.as_bytes()).unwrap();
                }
                respond(200, headers, async |mut writer, end| {
                    writer.write_all(b"with trailers\n".to_vec()).await;
                    drop(writer);
                    end.write(Ok(trailers)).await.ok();
                })
            }
            "chunks" => {
                let count: usize = rest.parse().unwrap();
                respond(200, Fields::new(), async move |mut writer, _| {
                    for number in 0..count {
                        writer.write_all(format!("{number}\n").into_bytes()).await;
                        monotonic_clock::wait_for(20 * MILLISECOND).await;
                    }
                })
            }
            "meet" => {
                let count: usize = rest.parse().unwrap();
                respond(200, Fields::new(), async move |mut writer, _| {
                    writer.write_all(b"here\n".to_vec()).await;
                    WAITING.fetch_add(1, Relaxed);
                    while WAITING.load(Relaxed) < count {
                        monotonic_clock::wait_for(MILLISECOND).await;
                    }
                    writer.write_all(b"met\n".to_vec()).await;
                })
            }
            "trap" => trap_inner(),
            "late" => respond(200, Fields::new(), async move |mut writer, _end| {
                writer.write_all(b"beginning\n".to_vec()).await;
                match rest.as_str() {
                    "trap" => trap_inner(),
                    _ => monotonic_clock::wait_for(u64::MAX).await,
                }
            }),
            "loop" => loop {
                hint::black_box(0);
            },
            "sleep" => {
                monotonic_clock::wait_for(rest.parse::<u64>().unwrap() * MILLISECOND).await;
                text(200, "slept\n".to_owned())
            }
            "error" => Err(ErrorCode::InternalError(Some("as it was told".to_owned()))),
            "fetch" => match fetch(&rest).await {
                Ok(answer) => text(200, answer),
                Err(error) => text(502, format!("{error:?}\n")),
            },
            _ => text(404, "no such word\n".to_owned()),
        }
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
fn trap_inner() -> ! {
    core::arch::wasm32::unreachable()
}

/// A request's body and trailers.
fn consume(request: Request) -> (StreamReader<u8>, FutureReader<Trailers>) {
    let (_, well) = wit_future::new(|| Ok(()));
    Request::consume_body(request, well)
}

/// A response whose body `write` writes when the response has begun. There are no trailers unless
/// it writes them.
fn respond(
    status: u16,
    headers: Fields,
    write: impl AsyncFnOnce(StreamWriter<u8>, FutureWriter<Trailers>) + 'static,
) -> Result<Response, ErrorCode> {
    let (writer, content) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(headers, Some(content), trailers);
    response.set_status_code(status).unwrap();
    spawn_local(async move { write(writer, end).await });
    Ok(response)
}

fn text(status: u16, text: String) -> Result<Response, ErrorCode> {
    respond(status, Fields::new(), async move |mut writer, _| {
        writer.write_all(text.into_bytes()).await;
    })
}

/// The next piece of a body, until its end.
async fn read(content: &mut StreamReader<u8>) -> Option<Vec<u8>> {
    let (result, piece) = content.read(Vec::with_capacity(16 << 10)).await;
    match result {
        StreamResult::Complete(_) => Some(piece),
        _ if piece.is_empty() => None,
        _ => Some(piece),
    }
}

async fn copy(mut content: StreamReader<u8>, mut writer: StreamWriter<u8>) {
    while let Some(piece) = read(&mut content).await {
        writer.write_all(piece).await;
    }
}

/// The status and body of `http://URL`, or of `https://URL` for `https/URL`.
async fn fetch(url: &str) -> Result<String, ErrorCode> {
    let (scheme, url) = match url.strip_prefix("https/") {
        Some(url) => (Scheme::Https, url),
        None => (Scheme::Http, url),
    };
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, None);
    request.set_scheme(Some(&scheme)).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request.set_path_with_query(Some(&format!("/{path}"))).unwrap();
    let response = client::send(request).await?;
    let status = response.get_status_code();
    let (_, well) = wit_future::new(|| Ok(()));
    let (mut content, _) = Response::consume_body(response, well);
    let mut bytes = Vec::new();
    while let Some(piece) = read(&mut content).await {
        bytes.extend(piece);
    }
    Ok(format!("{status} {}", String::from_utf8_lossy(&bytes)))
}
