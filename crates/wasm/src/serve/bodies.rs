//! Bodies on their way between a client and a guest.

use std::mem;
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

/// A body whose frames have at most [`PIECE`] bytes.
struct InPieces {
    body: WasiBody,
    rest: Bytes,
}

/// How large a piece of a response is at most when its connection gets it, in bytes. Whether the client takes
/// anything is judged by pieces; and a piece is kept, in HTTP/2 one for each request, until it has been sent.
const PIECE: usize = 64 << 10;

impl Body for InPieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        let mut data = mem::take(&mut self.rest);
        if data.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) if length(&frame) > PIECE as u64 => {
                    data = frame.into_data().unwrap_or_default();
                }
                frame => return Poll::Ready(frame),
            }
        }
        self.rest = data.split_off(data.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
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
    let body = InPieces {
        body,
        rest: Bytes::new(),
    };
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_large_frame_is_given_in_pieces_to_its_end() {
        let all: Bytes = (0..3 * PIECE + 1).map(|at| at as u8).collect();
        let mut body = InPieces {
            body: whole(all.clone()),
            rest: Bytes::new(),
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut given = Vec::new();
        for left in [3 * PIECE + 1, 2 * PIECE + 1, PIECE + 1, 1] {
            assert!(!body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => {
                    assert_eq!(length(&frame), left.min(PIECE) as u64);
                    given.extend_from_slice(&frame.into_data().unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(body.is_end_stream());
        assert_eq!(given, all);
    }
}
