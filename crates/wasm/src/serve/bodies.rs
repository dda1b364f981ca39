//! Bodies on their way between a client and a guest.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

use super::client::Asked;
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

/// A body whose frames are what `next` gives of another's.
pub(crate) fn with_frames<B, F>(body: B, next: F) -> WasiBody
where
    B: Body + Send + Unpin + 'static,
    F: FnMut(Pin<&mut B>, &mut Context<'_>) -> Poll<Next> + Send + Unpin + 'static,
{
    WithFrames { body, next }.boxed_unsync()
}

/// What a body says when it is asked for a frame.
pub(crate) type Next = Option<Result<Frame<Bytes>, Error>>;

struct WithFrames<B, F> {
    body: B,
    next: F,
}

impl<B, F> Body for WithFrames<B, F>
where
    B: Body + Unpin,
    F: FnMut(Pin<&mut B>, &mut Context<'_>) -> Poll<Next> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        let Self { body, next } = &mut *self;
        next(Pin::new(body), context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How many bytes of a body a frame has.
pub(super) fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// A body that is all there.
pub(super) fn whole(data: impl Into<Bytes>) -> WasiBody {
    Full::new(data.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// At most `most` bytes of a request's body.
pub(super) fn limited(
    body: Incoming,
    most: u64,
    course: Arc<Course>,
    shared: Arc<Shared>,
) -> WasiBody {
    if body.is_end_stream() {
        return whole(Bytes::new());
    }
    let mut left = most;
    with_frames(body, move |body, context| {
        let frame = ready!(body.poll_frame(context));
        let frame = frame.map(|frame| frame.map_err(Error::Hyper));
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame);
        };
        let length = length(&frame);
        Poll::Ready(Some(match left.checked_sub(length) {
            Some(rest) => {
                left = rest;
                if let Some(figures) = &shared.figures {
                    figures.received.add(length);
                }
                Ok(frame)
            }
            None => {
                course.too_large.store(true, Ordering::Relaxed);
                Err(Error::HttpRequestBodySize(None))
            }
        }))
    })
}

/// The body of the response to the request of `course`, which is `counted` and `asked` until its
/// end.
pub(super) fn answer(
    body: WasiBody,
    course: Arc<Course>,
    counted: Arc<Counted>,
    mut asked: Asked,
) -> WasiBody {
    let mut broken = None;
    with_frames(body, move |body, context| {
        let _ = &counted;
        asked.has_room();
        if let Some(error) = broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let error = match ready!(body.poll_frame(context)) {
            Some(Err(error)) => error,
            // wasmtime-wasi-http ends a body of WASI 0.3 so whose store is dropped.
            None if course.has_failed() => Error::HttpResponseIncomplete,
            frame => {
                asked.is_given();
                return Poll::Ready(frame);
            }
        };
        // The connection is dropped for an error with all that it holds. What came before is sent
        // if there is a pause.
        broken = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
