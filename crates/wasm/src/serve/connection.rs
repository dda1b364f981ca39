//! One client's connection: its requests, and what it is told when there is no response.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::sync::watch;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Guests;
use super::failure::Failure;
use super::log::Entry;
use super::settings::Settings;
use crate::guest::complain;

/// How connections are served.
pub(super) struct Protocol(Builder<TokioExecutor>);

impl Protocol {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    pub(super) fn new(settings: &Settings) -> Self {
        let http = &settings.set.http;
        let max_headers = http.max_headers.0;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(http.header_time.0)
            .max_buf_size(max_headers as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(max_headers).unwrap_or(u32::MAX))
            .max_concurrent_streams(settings.set.pool.instances.0);
        Self(builder)
    }

    /// Serves one connection to its end; after `ending`, only to the end of the request that is
    /// under way.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        guests: Guests,
        mut ending: watch::Receiver<bool>,
    ) {
        // One that has broken off has none.
        let client = stream
            .peer_addr()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let service = service_fn(move |request| answer_and_log(guests.clone(), client, request));
        let mut connection = pin!(self.0.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // A client that breaks off or talks nonsense has been told so; nobody else cares.
            _ = connection.as_mut() => return,
            _ = ending.wait_for(|ending| *ending) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// As [`answer`], with a line about it if that is set.
async fn answer_and_log(
    guests: Guests,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let maker = guests.maker();
    let entry = match maker.settings.set.http.log {
        true => Some(Entry::new(&maker.stdout, client, &request)),
        false => None,
    };
    let response = answer(guests, request).await?;
    Ok(match entry {
        Some(entry) => entry.of(response),
        None => response,
    })
}

/// Has the guest answer `request`, or says why it does not.
async fn answer(
    guests: Guests,
    request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let maker = guests.maker();
    let (name, settings) = (maker.name(), &maker.settings);
    if let Some(refusal) = refuse(&request, settings.max_body) {
        return Ok(refusal);
    }
    let Some(counted) = maker.shared.requests.take(settings.max_requests) else {
        return Ok(busy("too many requests at a time"));
    };
    let too_large = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| {
        let limited = Limited {
            body,
            left: settings.max_body,
            too_large: too_large.clone(),
        };
        limited.boxed_unsync()
    });
    let begun = Instant::now();
    let counted = Arc::new(counted);
    let answered = guests.handle(request, counted.clone()).await;
    if too_large.load(Ordering::Relaxed) {
        return Ok(body_too_large(settings.max_body));
    }
    let late = || {
        let time = settings.longer_than();
        say(
            StatusCode::GATEWAY_TIMEOUT,
            format!("the guest took {time}"),
        )
    };
    let failure = match answered {
        Ok(response) => {
            return Ok(response.map(|body| {
                let counted = Held {
                    body,
                    _counted: counted,
                };
                counted.boxed_unsync()
            }));
        }
        Err(failure) => failure,
    };
    Ok(match failure {
        Failure::Late => late(),
        // Also where an instance that never pauses had to be ended as a whole: the error then tells
        // of a request that came to nothing.
        _ if begun.elapsed() >= settings.request_time => late(),
        Failure::Trapped => failed(),
        Failure::NoInstance(error) => {
            complain(&format!("{name}: no instance can be made"), &error);
            busy("no instance of the guest can be made")
        }
        Failure::Other(error) => {
            complain(name, &error);
            failed()
        }
    })
}

/// What is not for a guest at all.
fn refuse(request: &Request<Incoming>, max_body: u64) -> Option<Response<WasiBody>> {
    let length = request.headers().get(CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > max_body) {
        return Some(body_too_large(max_body));
    }
    // A client that would also take HTTP/2 over this connection is served as it is (RFC 9113,
    // section 3.1, has done away with this upgrade).
    let upgrade = request.headers().get(UPGRADE);
    if let Some(protocol) = upgrade.filter(|protocol| *protocol != "h2c") {
        let protocol = protocol.to_str().unwrap_or("another protocol");
        return Some(say(
            StatusCode::NOT_IMPLEMENTED,
            format!("connections cannot be upgraded to {protocol}"),
        ));
    }
    (request.method() == Method::CONNECT)
        .then(|| say(StatusCode::NOT_IMPLEMENTED, "there are no tunnels here"))
}

fn failed() -> Response<WasiBody> {
    say(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the guest failed; its container's log says why",
    )
}

fn busy(reason: &str) -> Response<WasiBody> {
    let mut response = say(StatusCode::SERVICE_UNAVAILABLE, reason);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn body_too_large(max_body: u64) -> Response<WasiBody> {
    let mut response = say(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a request's body may have {max_body} bytes"),
    );
    // What is left of it is not read.
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn say(status: StatusCode, text: impl Into<String>) -> Response<WasiBody> {
    let text = Full::from(format!("{}\n", text.into()));
    let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A request's body, as much of it as is allowed.
struct Limited {
    body: Incoming,
    left: u64,
    /// Set once there is more.
    too_large: Arc<AtomicBool>,
}

impl Body for Limited {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        Poll::Ready(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                frame.map(|frame| frame.map_err(Error::Hyper))
            }
            None => {
                self.too_large.store(true, Ordering::Relaxed);
                Some(Err(Error::HttpRequestBodySize(None)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, with which its request ends.
struct Held<C> {
    body: WasiBody,
    _counted: C,
}

impl<C: Unpin> Body for Held<C> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
