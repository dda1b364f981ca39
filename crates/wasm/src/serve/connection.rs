//! One client's connection and its requests.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::sync::watch;
use wasmtime_wasi_http::WasiBody;

use super::Guests;
use super::bodies::{Answer, Course, Limited};
use super::failure::Failure;
use super::figures::Refusal;
use super::record::Record;
use super::refusal::{body_too_large, busy, failed, refuse, say};
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
            // Who has said all that he has to say may still be listening.
            .half_close(true)
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
        let service = service_fn(move |request| answer_and_tell(guests.clone(), client, request));
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

/// As [`answer`], and tells of it where that is set.
async fn answer_and_tell(
    guests: Guests,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let record = Record::of(guests.maker(), client, &request);
    let response = answer(guests, request).await?;
    Ok(match record {
        Some(record) => record.end_with(response),
        None => response,
    })
}

/// Has the guest answer `request`, or says why it does not.
async fn answer(
    guests: Guests,
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
        Limited::new(body, settings.max_body, course.clone(), shared).boxed_unsync()
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
            return Ok(response.map(|body| Answer::new(body, course, counted).boxed_unsync()));
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
