//! What is told of a request when it is over: in the log, and in the figures.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response, StatusCode};
use wasmtime_wasi_http::{Error, WasiBody};

use super::log::Entry;
use super::maker::Maker;
use super::shared::Shared;

/// What is known of a request. It is told when this is dropped: its response has been sent, or its
/// client has gone.
pub(super) struct Record {
    entry: Option<Entry>,
    shared: Arc<Shared>,
    begun: Instant,
    status: Option<StatusCode>,
    sent: u64,
}

impl Record {
    /// That of a request that has come from `client` now, if anything is to be told.
    pub(super) fn of<B>(maker: &Maker, client: IpAddr, request: &Request<B>) -> Option<Self> {
        let is_logged = maker.settings.set.http.log;
        (is_logged || maker.shared.figures.is_some()).then(|| Self {
            entry: is_logged.then(|| Entry::new(&maker.stdout, client, request)),
            shared: maker.shared.clone(),
            begun: Instant::now(),
            status: None,
            sent: 0,
        })
    }

    /// The response to the request, which ends with its body.
    pub(super) fn end_with(mut self, response: Response<WasiBody>) -> Response<WasiBody> {
        self.status = Some(response.status());
        response.map(|body| Recorded { body, record: self }.boxed_unsync())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        if let Some(entry) = &self.entry {
            entry.write(self.status, self.sent, took);
        }
        if let Some(figures) = &self.shared.figures {
            figures.request(self.status, took);
            figures.sent.add(self.sent);
        }
    }
}

/// A response's body that is counted.
struct Recorded {
    body: WasiBody,
    record: Record,
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
