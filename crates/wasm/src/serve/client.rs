//! What is known of one connection's client: whether it has requests, and takes their responses.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::awake::Awake;
use super::shared::{Count, Counted};

/// A request of a client, and how it takes the response: until this is dropped.
pub(super) struct Asked {
    _request: Option<Counted>,
    untaken: Option<Counted>,
    client: Arc<Client>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.client.awake.answered();
    }
}

impl Asked {
    /// There is room for the next part: its connection asks for it.
    pub(super) fn has_room(&mut self) {
        if self.untaken.take().is_some() {
            self.client.taken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// There is a part for the client.
    pub(super) fn is_given(&mut self) {
        self.untaken = self.client.untaken.take(usize::MAX);
    }
}

/// A connection's client.
pub(super) struct Client {
    /// Where it is.
    pub(super) address: IpAddr,
    /// Its requests that are not over.
    requests: Arc<Count>,
    /// Responses whose next part it has to make room for.
    untaken: Arc<Count>,
    /// Parts of responses that it has made room for, and writes of which its connection has taken something.
    taken: AtomicU64,
    /// Whether its connection takes no more at the moment.
    is_full: AtomicBool,
    /// Whether it has been told for long enough that it is to ask nothing more.
    is_dismissed: AtomicBool,
    /// Whether it has asked all the same.
    is_deaf: AtomicBool,
    /// What its thread knows of its requests.
    awake: Arc<Awake>,
}

impl Client {
    /// That at the other end of `stream`, whose thread is `awake`.
    pub(super) fn of(stream: &TcpStream, awake: Arc<Awake>) -> Self {
        // One that has broken off has none.
        let address = stream
            .peer_addr()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        Self {
            address,
            requests: Arc::default(),
            untaken: Arc::default(),
            taken: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            is_dismissed: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            awake,
        }
    }

    /// A request of it has come.
    pub(super) fn asks(self: &Arc<Self>) -> Asked {
        self.awake.asked();
        Asked {
            _request: self.requests.take(usize::MAX),
            untaken: None,
            client: self.clone(),
        }
    }

    /// No request of it counts any more.
    pub(super) fn dismiss(&self) {
        self.is_dismissed.store(true, Ordering::Relaxed);
    }

    /// Whether it has been dismissed.
    pub(super) fn is_dismissed(&self) -> bool {
        self.is_dismissed.load(Ordering::Relaxed)
    }

    /// A request of it has come that does not count: it is to be waited for no longer than its earlier ones.
    pub(super) fn asks_in_vain(&self) {
        self.is_deaf.store(true, Ordering::Relaxed);
    }

    /// Its connection `stream`, which tells how it takes what is written.
    pub(super) fn through<S>(self: &Arc<Self>, stream: S) -> Through<S> {
        Through {
            stream,
            client: self.clone(),
        }
    }

    /// Waits until the client has had no request for a time, and has been sent all that there was for it.
    pub(super) async fn asks_nothing(&self, time: Duration) {
        loop {
            self.requests.wait_for(false).await;
            let before = self.taken.load(Ordering::Relaxed);
            // Also one that is over by the time that this task has its turn.
            let next = timeout(time, self.requests.wait_for_next()).await;
            let is_deaf = self.is_deaf.load(Ordering::Relaxed);
            let is_waiting = self.is_full.load(Ordering::Relaxed);
            let has_all = is_deaf && !is_waiting;
            if next.is_err() && (has_all || self.has_taken_nothing_since(before)) {
                return;
            }
        }
    }

    /// Waits until there has been something for the client all of a time, of which it has taken
    /// nothing: it opens no window (RFC 9113, section 5.2). Where it is the connection that takes no more, the kernel ends
    /// that.
    pub(super) async fn takes_nothing(&self, time: Duration) {
        loop {
            self.untaken.wait_for(true).await;
            let before = self.taken.load(Ordering::Relaxed);
            sleep(time).await;
            if self.has_taken_nothing_since(before) && self.untaken.now() > 0 {
                return;
            }
        }
    }

    /// Whether it has taken as many parts as `before`, and nothing waits to be written.
    fn has_taken_nothing_since(&self, before: u64) -> bool {
        self.taken.load(Ordering::Relaxed) == before && !self.is_full.load(Ordering::Relaxed)
    }
}

/// The connection to a client, where much may wait of responses that are over for the guest.
pub(super) struct Through<S> {
    stream: S,
    client: Arc<Client>,
}

impl<S> Through<S> {
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.client
            .is_full
            .store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.client.taken.fetch_add(1, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Through<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Through<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
