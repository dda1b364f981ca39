//! What is told of a request when it is over: in the log, and in the figures.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Instant;

use hyper::body::Body as _;
use hyper::{Request, Response, StatusCode};
use wasmtime_wasi_http::WasiBody;

use super::bodies::{length, with_frames};
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
        response.map(|body| {
            with_frames(body, move |body, context| {
                let record = &mut self;
                let frame = ready!(body.poll_frame(context));
                if let Some(Ok(frame)) = &frame {
                    record.sent += length(frame);
                }
                Poll::Ready(frame)
            })
        })
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
