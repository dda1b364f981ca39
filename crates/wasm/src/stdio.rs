//! The guest's standard streams: file descriptors 0, 1 and 2 of this process, with no thread and
//! no buffer between.
//!
//! What a guest has written is in the pipe when its call returns, so nothing is lost however the
//! process ends. Nothing is read ahead of the guest either.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// The most that one call moves, in bytes: Linux's default capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// A failed read or write in the guest's terms.
fn stream_error(error: io::Error) -> StreamError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => StreamError::Closed,
        _ => StreamError::LastOperationFailed(error.into()),
    }
}

/// Waits up to `timeout` until `file` is ready for `events`, or at its end, or broken.
fn is_ready(file: &File, events: PollFlags, timeout: PollTimeout) -> io::Result<bool> {
    loop {
        match poll(&mut [PollFd::new(file.as_fd(), events)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// File descriptor 0.
#[derive(Clone)]
pub(crate) struct Stdin(Arc<Input>);

struct Input {
    file: File,
    /// `None` where epoll(7) has nothing to tell: regular files and the like are always ready.
    watch: Option<AsyncFd<OwnedFd>>,
}

impl Stdin {
    /// Takes a duplicate of file descriptor 0. Must be called in a tokio runtime's context.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        let watched = fd.try_clone()?;
        // SAFETY: an owned descriptor is open, and the same, until it is dropped.
        let watch = match unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) } {
            Ok(watch) => Some(watch),
            Err(error) => match io::Error::from(error) {
                error if error.raw_os_error() == Some(libc::EPERM) => None,
                error => return Err(error),
            },
        };
        Ok(Self(Arc::new(Input {
            file: fd.into(),
            watch,
        })))
    }
}

impl Input {
    /// Completes when a read will not block. The descriptor is left in blocking mode, because
    /// that mode belongs to everyone who has the same pipe or terminal open; so what epoll says is
    /// only a reason to ask poll(2) again.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(watch) = &self.watch else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let mut guard = ready!(watch.poll_read_ready(context))?;
            if is_ready(&self.file, PollFlags::POLLIN, PollTimeout::ZERO)? {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }

    fn is_ready(&self) -> io::Result<bool> {
        match self.watch {
            None => Ok(true),
            Some(_) => is_ready(&self.file, PollFlags::POLLIN, PollTimeout::ZERO),
        }
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        self.0.file.is_terminal()
    }
}

impl StdinStream for Stdin {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        // An error here comes back from the read that follows.
        let _ = poll_fn(|context| self.0.poll_ready(context)).await;
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 || !self.0.is_ready().map_err(stream_error)? {
            return Ok(Bytes::new());
        }
        let mut bytes = BytesMut::zeroed(size.min(CHUNK));
        loop {
            match (&self.0.file).read(&mut bytes) {
                Ok(0) => return Err(StreamError::Closed),
                Ok(length) => {
                    bytes.truncate(length);
                    return Ok(bytes.freeze());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(Bytes::new()),
                    _ => return Err(stream_error(error)),
                },
            }
        }
    }
}

impl AsyncRead for Stdin {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.0.poll_ready(context))?;
        loop {
            match (&self.0.file).read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// File descriptor 1 or 2. A write blocks this thread, as it would in any program, while whoever
/// reads the other end is slow.
#[derive(Clone)]
pub(crate) struct Output(Arc<File>);

impl Output {
    /// Takes a duplicate of file descriptor 1.
    pub(crate) fn stdout() -> io::Result<Self> {
        let fd = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self(Arc::new(fd.into())))
    }

    /// Takes a duplicate of file descriptor 2.
    pub(crate) fn stderr() -> io::Result<Self> {
        let fd = io::stderr().as_fd().try_clone_to_owned()?;
        Ok(Self(Arc::new(fd.into())))
    }

    /// Writes all of `text`, in one piece where it is short. Nobody may be listening, which changes
    /// nothing for the guest.
    pub(crate) fn say(&self, text: &str) {
        let mut bytes = text.as_bytes();
        while let Ok(written @ 1..) = self.write_some(bytes) {
            bytes = &bytes[written..];
        }
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&*self.0).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The other holder of this pipe made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_ready(&self.0, PollFlags::POLLOUT, PollTimeout::NONE)?;
                }
                result => return result,
            }
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        while !bytes.is_empty() {
            let written = self.write_some(&bytes).map_err(stream_error)?;
            let _ = bytes.split_to(written);
        }
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write_some(bytes))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
