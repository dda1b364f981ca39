//! What is known of one connection's client: whether it has requests, and takes their responses.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    /// Parts of responses that it has made room for.
    taken: AtomicU64,
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

    /// Waits until the client has had no request for a time.
    pub(super) async fn asks_nothing(&self, time: Duration) {
        loop {
            self.requests.wait_for(false).await;
            if timeout(time, self.requests.wait_for(true)).await.is_err() {
                return;
            }
        }
    }

    /// Waits until there has been something for the client all of a time, of which it has taken
    /// nothing.
    pub(super) async fn takes_nothing(&self, time: Duration) {
        loop {
            self.untaken.wait_for(true).await;
            let before = self.taken.load(Ordering::Relaxed);
            sleep(time).await;
            let is_same = self.taken.load(Ordering::Relaxed) == before;
            if is_same && self.untaken.now() > 0 {
                return;
            }
        }
    }
}
