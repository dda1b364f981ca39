//! Bodies on their way between a client and a guest.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

use super::shared::{Counted, Shared};

/// What its connection and its instance know of one request.
#[derive(Default)]
pub(super) struct Course {
    too_large: AtomicBool,
    instance: OnceLock<Arc<AtomicBool>>,
}

impl Course {
    /// Whether the request's body has turned out to be larger than it may be.
    pub(super) fn is_too_large(&self) -> bool {
        self.too_large.load(Ordering::Relaxed)
    }

    /// Names the instance that handles the request, by what becomes true when it fails. A response
    /// that ends afterwards is one that breaks off.
    pub(super) fn given_to(&self, failed: &Arc<AtomicBool>) {
        let _ = self.instance.set(failed.clone());
    }

    fn has_failed(&self) -> bool {
        let failed = self.instance.get();
        failed.is_some_and(|failed| failed.load(Ordering::Acquire))
    }
}

/// A request's body, as much of it as is allowed.
pub(super) struct Limited {
    body: Incoming,
    most: u64,
    left: u64,
    course: Arc<Course>,
    shared: Arc<Shared>,
}

impl Limited {
    /// At most `most` bytes of `body`.
    pub(super) fn new(body: Incoming, most: u64, course: Arc<Course>, shared: Arc<Shared>) -> Self {
        Self {
            body,
            most,
            left: most,
            course,
            shared,
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Some(figures) = &self.shared.figures {
            figures.received.add(self.most - self.left);
        }
    }
}

impl Body for Limited {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        Poll::Ready(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                frame.map(|frame| frame.map_err(Error::Hyper))
            }
            None => {
                self.course.too_large.store(true, Ordering::Relaxed);
                Some(Err(Error::HttpRequestBodySize(None)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, with which its request ends.
pub(super) struct Answer {
    body: WasiBody,
    course: Arc<Course>,
    broken: Option<Error>,
    _counted: Arc<Counted>,
}

impl Answer {
    /// The body of the response to the request of `course`, which is counted until its end.
    pub(super) fn new(body: WasiBody, course: Arc<Course>, counted: Arc<Counted>) -> Self {
        Self {
            body,
            course,
            broken: None,
            _counted: counted,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let error = match frame {
            Some(Err(error)) => error,
            // wasmtime-wasi-http ends a body of WASI 0.3 so whose store is dropped.
            None if self.course.has_failed() => Error::HttpResponseIncomplete,
            frame => return Poll::Ready(frame),
        };
        // The connection is dropped for an error with all that it holds. What came before is sent
        // if there is a pause.
        self.broken = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
