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
use wasmtime_wasi_http::handler::{
    ExpirationError, InstantiationError, ProxyHandler, TrapOrPanicError,
};

use super::bodies::{Answer, Course, Limited};
use super::figures::Refusal;
use super::instances::Instances;
use super::record::Record;
use super::refusal::{body_too_large, busy, failed, refuse, say};
use super::settings::Settings;
use crate::guest::{complain, tell};

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
        handler: ProxyHandler<Instances>,
        mut ending: watch::Receiver<bool>,
    ) {
        // One that has broken off has none.
        let client = stream
            .peer_addr()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let service = service_fn(move |request| answer_and_tell(handler.clone(), client, request));
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
    handler: ProxyHandler<Instances>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let record = Record::of(handler.state(), client, &request);
    let response = answer(handler, request).await?;
    Ok(match record {
        Some(record) => record.end_with(response),
        None => response,
    })
}

/// Has the guest answer `request`, or says why it does not.
async fn answer(
    handler: ProxyHandler<Instances>,
    mut request: Request<Incoming>,
) -> Result<Response<WasiBody>, Infallible> {
    let instances = handler.state();
    let name = instances.name();
    let settings = &instances.settings;
    let refused = |refusal| {
        if let Some(figures) = &instances.shared.figures {
            figures.refusals(refusal).add(1);
        }
    };
    if let Some(refusal) = refuse(&request, settings.max_body) {
        if refusal.status() == StatusCode::PAYLOAD_TOO_LARGE {
            refused(Refusal::Body);
        }
        return Ok(refusal);
    }
    let Some(counted) = instances.shared.requests.take(settings.max_requests) else {
        refused(Refusal::Requests);
        return Ok(busy("too many requests at a time"));
    };
    let asked = format!("{} {}", request.method(), request.uri().path());
    let course = Arc::new(Course::default());
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        // A guest is always told whom its client means.
        let host = HeaderValue::from_str(&settings.address.to_string());
        let headers = request.headers_mut();
        headers.extend(host.ok().map(|host| (HOST, host)));
    }
    let request = request.map(|body| {
        let shared = instances.shared.clone();
        Limited::new(body, settings.max_body, course.clone(), shared).boxed_unsync()
    });
    let begun = Instant::now();
    let answered = handler.handle(course.clone(), request).await;
    if course.is_too_large() {
        refused(Refusal::Body);
        return Ok(body_too_large(settings.max_body));
    }
    Ok(match answered {
        Ok(response) => response.map(|body| Answer::new(body, course, counted).boxed_unsync()),
        // Also where an instance that never pauses had to be ended as a whole: the error then tells
        // of a request that came to nothing.
        Err(error) if error.is::<ExpirationError>() || begun.elapsed() >= settings.request_time => {
            let time = format!("longer than {} s", settings.request_time.as_secs());
            tell(&format!("{name}: a request took {time}: {asked}\n"));
            say(
                StatusCode::GATEWAY_TIMEOUT,
                format!("the guest took {time}"),
            )
        }
        // Whoever found it has written what happened.
        Err(error) if error.is::<TrapOrPanicError>() => failed(),
        Err(error) => match error.downcast_ref::<InstantiationError<Arc<Course>>>() {
            Some(failure) => {
                refused(Refusal::Instances);
                complain(&format!("{name}: no instance can be made"), &failure.error);
                busy("no instance of the guest can be made")
            }
            None => {
                complain(name, &error);
                failed()
            }
        },
    })
}
