//! One client's connection and its requests.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use wasmtime_wasi_http::WasiBody;

use super::Guests;
use super::awake::Watched;
use super::bodies::{self, Course};
use super::client::{Asked, Client};
use super::failure::Failure;
use super::figures::Refusal;
use super::preface;
use super::record::Record;
use super::refusal::{body_too_large, busy, failed, refuse, say, tell_slow};
use super::settings::Settings;
use crate::guest::complain;

/// How long a client has, once the server is to end, for a request that is on its way.
const FAREWELL: Duration = Duration::from_secs(1);

/// How connections are served.
pub(super) struct Protocol {
    first: http1::Builder,
    second: http2::Builder<TokioExecutor>,
    header_time: Duration,
    send_time: Duration,
}

impl Protocol {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    pub(super) fn new(settings: &Settings) -> Self {
        let http = &settings.set.http;
        let max_headers = http.max_headers.0;
        let mut first = http1::Builder::new();
        first
            .timer(TokioTimer::new())
            // Who has said all that he has to say may still be listening.
            .half_close(true)
            .header_read_timeout(http.header_time.0)
            // The buffer alone lets some more through, if it comes at once.
            .max_header_size(max_headers as usize)
            .max_buf_size(max_headers as usize);
        let mut second = http2::Builder::new(TokioExecutor::new());
        second
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(max_headers).unwrap_or(u32::MAX))
            .max_concurrent_streams(settings.set.pool.instances.0);
        Self {
            first,
            second,
            header_time: http.header_time.0,
            send_time: http.send_time.0,
        }
    }

    /// Serves one connection to its end; after `ending`, only to the end of the requests that are
    /// under way.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        guests: Guests,
        mut ending: watch::Receiver<bool>,
    ) {
        end_unless_taken(&stream, self.send_time);
        let begun = tokio::select! {
            begun = timeout(self.header_time, preface::is_sent(&stream)) => begun,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        let client = Arc::new(Client::of(&stream, guests.maker().awake.clone()));
        match begun {
            Ok(Ok(false)) => self.serve_first(stream, guests, client, ending).await,
            Ok(Ok(true)) => self.serve_second(stream, guests, client, ending).await,
            // It has broken off.
            Ok(Err(_)) => {}
            Err(_) => preface::forget(&stream),
        }
    }

    /// HTTP/1.1.
    async fn serve_first(
        &self,
        stream: TcpStream,
        guests: Guests,
        client: Arc<Client>,
        mut ending: watch::Receiver<bool>,
    ) {
        let watched = Watched::new(stream, guests.maker().awake.clone());
        let service = {
            let client = client.clone();
            service_fn(move |request| answer_and_tell(guests.clone(), client.clone(), request))
        };
        let through = client.through(watched);
        let mut connection = self.first.serve_connection(TokioIo::new(through), service);
        let mut is_ending = false;
        let ended = loop {
            tokio::select! {
                // The answer goes out before what is seldom of any use.
                biased;
                ended = &mut connection => break ended,
                _ = ending.wait_for(|ending| *ending), if !is_ending => {
                    is_ending = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                // Of a request there is a part at most.
                () = client.asks_nothing(FAREWELL), if is_ending => return,
            }
        };
        // A client that breaks off or talks nonsense has been told so; nobody else cares.
        if ended.is_err_and(|error| error.is_timeout()) {
            let parts = connection.into_parts();
            // One that has begun no request has missed nothing.
            if !parts.read_buf.is_empty() {
                tell_slow(&parts.io.into_inner().into_inner().into_inner());
            }
        }
    }

    /// HTTP/2, whose connection ends when there has been no request for a time.
    async fn serve_second(
        &self,
        stream: TcpStream,
        guests: Guests,
        client: Arc<Client>,
        mut ending: watch::Receiver<bool>,
    ) {
        let service = {
            let client = client.clone();
            service_fn(move |request| answer_and_tell(guests.clone(), client.clone(), request))
        };
        let through = client.through(stream);
        let connection = self.second.serve_connection(TokioIo::new(through), service);
        let mut connection = pin!(connection);
        let (mut is_told, mut is_ending) = (false, false);
        let mut patience = self.header_time;
        let mut farewell = pin!(sleep(FAREWELL));
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = client.takes_nothing(self.send_time) => return,
                () = client.asks_nothing(patience) => if is_told {
                    // It has been told to go, and had time for it.
                    return;
                },
                _ = ending.wait_for(|ending| *ending), if !is_ending => {
                    is_ending = true;
                    patience = FAREWELL;
                    farewell.as_mut().reset(Instant::now() + FAREWELL);
                }
                // What it has asked before it could know is answered. It need not heed what it is told.
                () = farewell.as_mut(), if is_ending && !client.is_dismissed() => {
                    client.dismiss();
                    continue;
                }
            }
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Has the kernel end a connection whose client takes nothing of what has been written for `time` (tcp(7),
/// `TCP_USER_TIMEOUT`). Only it knows: a client that takes little at a time leaves no room here for long.
fn end_unless_taken(stream: &TcpStream, time: Duration) {
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // Zero would be the system's own time.
    let _ = set_tcp_user_timeout(stream, milliseconds.max(1));
}

/// As [`answer`], and tells of it where that is set.
async fn answer_and_tell(
    guests: Guests,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    if client.is_dismissed() {
        client.asks_in_vain();
        return Ok(busy("the server ends"));
    }
    let record = Record::of(guests.maker(), client.address, &request);
    let response = answer(guests, client.asks(), request).await?;
    Ok(match record {
        Some(record) => record.end_with(response),
        None => response,
    })
}

/// Has the guest answer `request`, or says why it does not.
async fn answer(
    guests: Guests,
    asked: Asked,
    mut request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let maker = guests.maker();
    let (name, settings) = (maker.name(), &maker.settings);
    let refused = |refusal| {
        if let Some(figures) = &maker.shared.figures {
            figures.refusals(refusal).add(1);
        }
    };
    if let Some(refusal) = refuse(&request, settings.max_body) {
        if refusal.status() == StatusCode::PAYLOAD_TOO_LARGE {
            refused(Refusal::Body);
        }
        return Ok(refusal);
    }
    let Some(counted) = maker.shared.requests.take(settings.max_requests) else {
        refused(Refusal::Requests);
        return Ok(busy("too many requests at a time"));
    };
    let course = Arc::new(Course::default());
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        // A guest is always told whom its client means.
        let host = HeaderValue::from_str(&settings.address.to_string());
        let headers = request.headers_mut();
        headers.extend(host.ok().map(|host| (HOST, host)));
    }
    let request = request.map(|body| {
        let shared = maker.shared.clone();
        bodies::limited(body, settings.max_body, course.clone(), shared)
    });
    let begun = Instant::now();
    let counted = Arc::new(counted);
    let answered = guests
        .handle(request, course.clone(), counted.clone())
        .await;
    if course.is_too_large() {
        refused(Refusal::Body);
        return Ok(body_too_large(settings.max_body));
    }
    let failure = match answered {
        Ok(response) => {
            return Ok(response.map(|body| bodies::answer(body, course, counted, asked)));
        }
        Err(failure) => failure,
    };
    let late = || {
        let time = settings.longer_than();
        say(
            StatusCode::GATEWAY_TIMEOUT,
            format!("the guest took {time}"),
        )
    };
    Ok(match failure {
        Failure::Late => late(),
        // Also where an instance that never pauses had to be ended as a whole: the error then tells
        // of a request that came to nothing.
        _ if begun.elapsed() >= settings.request_time => late(),
        Failure::Trapped => failed(),
        Failure::NoInstance(error) => {
            refused(Refusal::Instances);
            complain(&format!("{name}: no instance can be made"), &error);
            busy("no instance of the guest can be made")
        }
        Failure::Other(error) => {
            complain(name, &error);
            failed()
        }
    })
}
