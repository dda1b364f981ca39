//! What a client is told when its guest does not answer it.

use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::net::TcpStream;
use wasmtime_wasi_http::WasiBody;

use super::bodies::whole;

/// Said to a client whose request's line or headers have not come in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
    content-length: 43\r\n\r\nthe request's headers did not come in time\n";

/// Tells a client so, if that does not take time.
pub(super) fn tell_slow(stream: &TcpStream) {
    let _ = stream.try_write(TOO_SLOW);
}

/// What is not for a guest at all.
pub(super) fn refuse<B>(request: &Request<B>, max_body: u64) -> Option<Response<WasiBody>> {
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > max_body) {
        return Some(body_too_large(max_body));
    }
    if !has_host(request) {
        let text = "a request needs one Host header, in ASCII";
        return Some(last(say(StatusCode::BAD_REQUEST, text)));
    }
    // A client that would also take HTTP/2 over this connection is served as it is (RFC 9113,
    // section 3.1, has done away with this upgrade).
    let upgrade = headers.get(UPGRADE);
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

/// Whether it is said whom the request is for (RFC 9112, section 3.2). Before HTTP/1.1 that was not
/// asked for.
fn has_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok(),
        (Some(_), Some(_)) => false,
        (None, _) => request.uri().authority().is_some() || request.version() < Version::HTTP_11,
    }
}

/// For a guest that trapped, or gave no response.
pub(super) fn failed() -> Response<WasiBody> {
    say(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the guest failed; its container's log says why",
    )
}

/// For what may work a second later.
pub(super) fn busy(reason: &str) -> Response<WasiBody> {
    let mut response = say(StatusCode::SERVICE_UNAVAILABLE, reason);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// For a body of more than `max_body` bytes. What is left of it is not read.
pub(super) fn body_too_large(max_body: u64) -> Response<WasiBody> {
    last(say(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a request's body may have {max_body} bytes"),
    ))
}

/// A line of text.
pub(super) fn say(status: StatusCode, text: impl Into<String>) -> Response<WasiBody> {
    let mut response = Response::new(whole(format!("{}\n", text.into())));
    *response.status_mut() = status;
    response
}

/// The connection's last response.
fn last(mut response: Response<WasiBody>) -> Response<WasiBody> {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
