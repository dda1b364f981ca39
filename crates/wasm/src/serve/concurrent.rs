//! Guests that can be at several requests at a time: wasmtime-wasi-http's handler says when it needs
//! an instance, this makes it, limits it and takes it back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::bodies::Course;
use super::figures::Failure;
use super::maker::Maker;
use super::settings::REUSE_AT_A_TIME;
use super::shared::{Counted, Shared};
use crate::guest::complain;
use crate::state::State;

/// Makes a guest's instances, for one thread.
pub(super) struct Concurrent {
    pub(super) maker: Maker,
    pub(super) pre: Arc<ProxyPre<State>>,
}

impl HandlerState for Concurrent {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Worker>> {
        let maker = &self.maker;
        let settings = &maker.settings;
        let counted = maker.shared.instances.take(usize::MAX);
        let mut store = maker.store()?;
        if let Some(figures) = &maker.shared.figures {
            figures.instances.add(1);
        }
        let proxy = maker
            .in_time(self.pre.instantiate_async(&mut store))
            .await?;
        let (requests, at_a_time, is_p3) = match proxy {
            Proxy::P2(_) => (settings.reuse_of_p2(), 1, false),
            Proxy::P3(_) => (settings.reuse_of_p3(), REUSE_AT_A_TIME, true),
        };
        let time = settings.request_time;
        Ok(Instance {
            store,
            proxy,
            view: State::http,
            expiration: Expiration {
                sleep: Box::pin(tokio::time::sleep(time)),
                request_time: time,
                idle_time: settings.set.http.idle_time.0,
            },
            state: Worker {
                name: maker.name().to_owned(),
                requests,
                at_a_time,
                request_time: time,
                failed: is_p3.then(Arc::default),
                shared: maker.shared.clone(),
                _counted: counted,
            },
        })
    }
}

/// When an instance has taken too long, or has waited long enough for another request.
pub(super) struct Expiration {
    sleep: Pin<Box<Sleep>>,
    request_time: Duration,
    idle_time: Duration,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        let time = match status {
            WorkerStatus::Idle => self.idle_time,
            WorkerStatus::Requests | WorkerStatus::PostReturn => self.request_time,
        };
        let until = tokio::time::Instant::from_std(since + time);
        if until != self.sleep.deadline() {
            self.sleep.as_mut().reset(until);
        }
        self.sleep.as_mut().poll(context)
    }
}

/// What goes with a request to the instance that handles it.
pub(super) struct Given {
    pub(super) course: Arc<Course>,
    pub(super) counted: Arc<Counted>,
}

/// One instance at its work.
pub(super) struct Worker {
    name: String,
    requests: usize,
    at_a_time: usize,
    request_time: Duration,
    /// Becomes true before bodies end that come to no end. Those of WASI 0.2 can be told apart.
    failed: Option<Arc<AtomicBool>>,
    shared: Arc<Shared>,
    _counted: Option<Counted>,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = Given;

    fn should_accept_request(&self, now: usize, ever: usize) -> ShouldAccept {
        if ever >= self.requests {
            ShouldAccept::Never
        } else if now >= self.at_a_time {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        given: Given,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        if let Some(failed) = &self.failed {
            given.course.given_to(failed);
        }
        let time = tokio::time::sleep(self.request_time);
        // It is kept until the guest has answered or its time is over, also where nobody waits for the answer any more.
        Box::pin(async move {
            let _counted = given.counted;
            time.await;
        })
    }

    fn drop(&self, mut store: Store<State>, result: wasmtime::Result<()>) {
        if let Err(error) = result {
            if let Some(failed) = &self.failed {
                failed.store(true, Ordering::Release);
            }
            if let Some(figures) = &self.shared.figures {
                figures.failures(Failure::of(&error)).add(1);
            }
            complain(&self.name, &error);
        }
        store.data_mut().break_off_bodies();
        drop(store);
    }
}
