//! Where a server's figures are read: its own small server, on the thread that runs no guest.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exposition;
use super::shared::Shared;
use crate::settings::Endpoint;

/// Who reads at a time; others wait to be accepted.
const READERS: usize = 8;

/// How long a reader may take.
const TIME: Duration = Duration::from_secs(10);

/// The path of the figures.
const PATH: &str = "/metrics";

/// Where readers come.
pub(super) enum Listener {
    Address(TcpListener),
    Socket {
        listener: UnixListener,
        _file: Socket,
    },
}

/// A socket's file, for as long as it is listened on.
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // If it has gone already, so much the better.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens for readers. Needs an event loop.
///
/// # Errors
/// A sentence that names the place and its setting.
pub(super) fn listen(place: &Endpoint) -> Result<Listener, String> {
    let listener = match place {
        Endpoint::Address(address) => listen_on_address(*address).map(Listener::Address),
        Endpoint::Socket(path) => listen_on_socket(path),
    };
    listener.map_err(|error| format!("cannot listen on {place} (http.metrics): {error}"))
}

fn listen_on_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(READERS as u32)
}

fn listen_on_socket(path: &Path) -> io::Result<Listener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    Ok(Listener::Socket {
        listener: listener?,
        _file: Socket(path.to_owned()),
    })
}

/// Whether there is a socket of a container that was killed: nobody listens there. What is no
/// socket refuses to be connected to as well.
fn is_left_over(path: &Path) -> bool {
    let found = std::fs::symlink_metadata(path);
    if !found.is_ok_and(|found| found.file_type().is_socket()) {
        return false;
    }
    let answer = UnixStream::connect(path);
    answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Lets readers read, for ever.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>) {
    let readers = Arc::new(Semaphore::new(READERS));
    loop {
        // It is never closed.
        let Ok(permit) = readers.clone().acquire_owned().await else {
            return;
        };
        let accepted = match &listener {
            Listener::Address(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| answer(stream, shared.clone(), permit)),
            Listener::Socket { listener, .. } => listener
                .accept()
                .await
                .map(|(stream, _)| answer(stream, shared.clone(), permit)),
        };
        if accepted.is_err() {
            // Mostly too many open files: some will be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Answers one request.
fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    shared: Arc<Shared>,
    permit: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request| {
        let response = page(&request, &shared);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIME)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::spawn(async move {
        // A reader who breaks off or is slow gets no more.
        let _ = tokio::time::timeout(TIME, connection).await;
        drop(permit);
    });
}

fn page(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let (status, text) = match &shared.figures {
        Some(figures) if is_read && request.uri().path() == PATH => {
            (StatusCode::OK, exposition::text(figures, shared))
        }
        _ if is_read => (
            StatusCode::NOT_FOUND,
            format!("the figures are at {PATH}\n"),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "figures can only be read\n".into(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    match status {
        StatusCode::OK => {
            let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
            headers.insert(CONTENT_TYPE, kind);
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        _ => {}
    }
    response
}
