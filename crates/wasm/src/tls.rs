//! Requests over HTTP that a guest makes over TLS.
//!
//! wasmtime-wasi-http's own client trusts the authorities that are built into it and no others.
//! This one asks `trust`; otherwise it does the same: HTTP/1.1, a connection a request, and the
//! request's times.

use std::io;
use std::task::Poll;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use wasmtime_wasi::runtime::spawn;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use crate::gate::Rest;
use crate::guest::tell;
use crate::serve::with_frames;
use crate::trust;

/// What is waited for where the guest does not say, as in wasmtime-wasi-http.
const TIME: Duration = Duration::from_secs(600);

/// Sends `request` to the host of its URI, whose certificate must be one that is trusted: by the
/// bundle of authorities that is `named`, or else see [`trust::connector`].
///
/// # Errors
/// Those of `wasi:http`. An [`Error::InternalError`] has a sentence about the bundle. Why a
/// certificate is not trusted, for which `wasi:http` has no words, is told on standard error.
pub(crate) async fn send(
    mut request: Request<WasiBody>,
    options: RequestOptions,
    named: Option<&str>,
) -> Result<(Response<WasiBody>, Rest), Error> {
    let uri = request.uri();
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let port = authority.port_u16().unwrap_or(443);
    // Brackets belong to an address of IPv6 in a URI alone.
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone())?;
    let connector = trust::connector(named).map_err(|reason| {
        tell(&format!("a request to {authority}: {reason}\n"));
        Error::InternalError(Some(reason))
    })?;
    let connecting = async {
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(Error::Connect)?;
        let stream = connector.connect(name, stream).await;
        stream.map_err(|error| of_tls(error, &format!("{host}:{port}")))
    };
    let stream = timeout(options.connect_timeout.unwrap_or(TIME), connecting).await;
    let stream = stream.map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).map_err(|_| Error::HttpRequestUriInvalid)?;
    let answering = sender.send_request(request);
    let response = timeout(options.first_byte_timeout.unwrap_or(TIME), answering).await;
    let response = response.map_err(|_| Error::ConnectionReadTimeout)??;
    let pause = options.between_bytes_timeout.unwrap_or(TIME);
    let rest: Rest = Box::new(async move { Ok(connection.await?) });
    Ok((response.map(|body| in_time(body, pause)), rest))
}

/// What has become of a handshake with `peer`.
fn of_tls(error: io::Error, peer: &str) -> Error {
    let reason = error.get_ref().and_then(|error| error.downcast_ref());
    match reason {
        Some(rustls::Error::InvalidCertificate(_)) => {
            tell(&format!("a request to {peer}: {error}\n"));
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some((*alert).into()),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::Tls(error),
    }
}

/// A response's body, between whose frames no more than a `pause` may pass.
fn in_time(body: Incoming, pause: Duration) -> WasiBody {
    let mut over = Box::pin(sleep(pause));
    with_frames(body, move |body, context| {
        if let Poll::Ready(frame) = body.poll_frame(context) {
            over.as_mut().reset(Instant::now() + pause);
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)));
        }
        let over = over.as_mut().poll(context);
        over.map(|()| Some(Err(Error::ConnectionReadTimeout)))
    })
}
