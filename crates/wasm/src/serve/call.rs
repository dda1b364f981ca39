//! One request that a guest of WASI 0.2 is at.
//!
//! Whoever waits for the response, and then for its body, has the guest go on. So a request is the
//! work of one task alone, and what the guest has written by the time it pauses goes out at once.

use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use hyper::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _};

use super::Target;
use super::bodies::{self, Next};
use super::failure::Failure;
use super::figures;
use super::plain::{Instance, Plain};
use super::shared::Counted;
use crate::guest::complain;

type Answer = Result<Response<WasiBody>, ErrorCode>;

/// A call of a guest. One that is dropped before its end goes on by itself.
pub(super) struct Call {
    /// `None` once it has ended.
    work: Option<Work>,
    answer: oneshot::Receiver<Answer>,
}

/// The part of a call that is left.
struct Work {
    plain: Arc<Plain>,
    guest: Pin<Box<dyn Future<Output = (Instance, wasmtime::Result<()>)> + Send>>,
    target: Target,
    /// When its time is over; set when it first pauses.
    limit: Option<Pin<Box<Sleep>>>,
    _counted: (Arc<Counted>, Counted),
}

impl Call {
    /// Begins to call `instance`, which goes back to `plain` at the end.
    pub(super) fn begin(
        plain: Arc<Plain>,
        mut instance: Instance,
        request: Request<WasiBody>,
        counted: Arc<Counted>,
    ) -> wasmtime::Result<Self> {
        if let Some(figures) = plain.maker.shared.figures.as_ref()
            && instance.requests == 0
        {
            figures.instances.add(1);
        }
        instance.requests += 1;
        let target = Target::of(&request);
        let (sender, answer) = oneshot::channel();
        let mut http = instance.store.data_mut().http();
        let request = http.new_incoming_request(Scheme::Http, request)?;
        let response = http.new_response_outparam(sender)?;
        let running = plain.maker.shared.instances.take(usize::MAX);
        let running = running.ok_or_else(|| wasmtime::format_err!("too many instances"))?;
        let guest = Box::pin(async move {
            let Instance { store, proxy, .. } = &mut instance;
            let handler = proxy.wasi_http_incoming_handler();
            let result = handler.call_handle(&mut *store, request, response).await;
            store.data_mut().break_off_bodies();
            (instance, result)
        });
        Ok(Self {
            work: Some(Work {
                plain,
                guest,
                target,
                limit: None,
                _counted: (counted, running),
            }),
            answer,
        })
    }

    /// The guest's response, with a body that has the guest go on.
    pub(super) async fn response(mut self) -> Result<Response<WasiBody>, Failure> {
        let answer = poll_fn(|context| {
            // Nothing of a response has been sent when its guest fails now.
            let ended = self.poll(context)?;
            match Pin::new(&mut self.answer).poll(context) {
                Poll::Ready(Ok(answer)) => Poll::Ready(answer.map_err(Failure::of)),
                Poll::Ready(Err(_)) if ended.is_ready() => {
                    Poll::Ready(Err(Failure::Other(wasmtime::format_err!(
                        "the guest never invoked response-outparam.set, so there is no response"
                    ))))
                }
                // It has given up the answer's resource, and is still at work.
                Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
            }
        });
        let response = answer.await?;
        if let Some(work) = &mut self.work {
            // What it does afterwards has its own time.
            work.limit = None;
        }
        let (parts, body) = response.into_parts();
        let mut driven = Driven {
            body,
            call: self,
            is_late: false,
            ahead: [None, None],
        };
        let look_ahead = |context: &mut Context<'_>| Poll::Ready(driven.look_ahead(context));
        let body = match poll_fn(look_ahead).await {
            Some(data) => bodies::whole(data),
            None => driven.boxed_unsync(),
        };
        Ok(Response::from_parts(parts, body))
    }

    /// Has the guest go on. Ready once it has ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(work) = &mut self.work else {
            return Poll::Ready(Ok(()));
        };
        let ended = work.poll(context);
        if ended.is_ready() {
            self.work = None;
        }
        ended
    }
}

impl Work {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let guest = AssertUnwindSafe(|| self.guest.as_mut().poll(context));
        let Ok(polled) = catch_unwind(guest) else {
            // Mostly for want of a thread: the host's fault, of which others are not to suffer. It may not be polled again.
            let error = wasmtime::format_err!("the host panicked while the guest was at work");
            self.count(figures::Failure::of(&error));
            complain(self.plain.maker.name(), &error);
            return Poll::Ready(Err(Failure::Trapped));
        };
        if let Poll::Ready((instance, result)) = polled {
            if let Err(error) = &result {
                self.count(figures::Failure::of(error));
                complain(self.plain.maker.name(), error);
            }
            self.plain.give_back(instance, result.is_ok());
            return Poll::Ready(result.map_err(|_| Failure::Trapped));
        }
        let time = self.plain.maker.settings.request_time;
        let limit = self
            .limit
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        if limit.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.count(figures::Failure::Time);
        self.plain.maker.tell_late(&self.target);
        Poll::Ready(Err(Failure::Late))
    }

    fn count(&self, failure: figures::Failure) {
        if let Some(figures) = &self.plain.maker.shared.figures {
            figures.failures(failure).add(1);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(mut work) = self.work.take() else {
            return;
        };
        // Without an event loop the server is ending.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = poll_fn(|context| work.poll(context)).await;
            });
        }
    }
}

/// The body of a response whose guest may still be at it.
struct Driven {
    body: WasiBody,
    call: Call,
    /// Whether the guest was ended in the middle of it.
    is_late: bool,
    /// What was taken from the body before it was asked for, in turn.
    ahead: [Option<Next>; 2],
}

impl Driven {
    /// Has the guest go on until it pauses, ends, or has written twice; it would go on as far before anything is sent,
    /// too. Returns the body if that is all of it and not empty: its client is told then how long it is.
    fn look_ahead(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        for at in 0..self.ahead.len() {
            let Poll::Ready(next) = self.next(context) else {
                break;
            };
            let is_data = matches!(&next, Some(Ok(frame)) if frame.is_data());
            self.ahead[at] = Some(next);
            if !is_data {
                break;
            }
        }
        match &mut self.ahead {
            [Some(Some(Ok(frame))), Some(None)] => frame.data_mut().map(mem::take),
            _ => None,
        }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                // It looks as if it were whole.
                Poll::Ready(None) if self.is_late => {
                    self.is_late = false;
                    return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
                }
                Poll::Ready(frame) => return Poll::Ready(frame),
                Poll::Pending if self.call.work.is_none() => return Poll::Pending,
                Poll::Pending => {}
            }
            match self.call.poll(context) {
                Poll::Ready(result) => self.is_late = matches!(result, Err(Failure::Late)),
                Poll::Pending => return Pin::new(&mut self.body).poll_frame(context),
            }
        }
    }
}

impl Body for Driven {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        match self.ahead.iter_mut().find_map(Option::take) {
            Some(next) => Poll::Ready(next),
            None => self.next(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.ahead, [None, None]) && !self.is_late && self.body.is_end_stream()
    }
}

impl Failure {
    /// What the guest itself gave in place of a response.
    fn of(code: ErrorCode) -> Self {
        Self::Other(code.into())
    }
}
