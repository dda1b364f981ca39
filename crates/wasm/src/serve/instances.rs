//! Instances of a guest that handles requests: wasmtime-wasi-http's handler says when it needs one,
//! this makes it, limits it and takes it back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};

use super::Pre;
use super::settings::{REUSE_AT_A_TIME, Settings};
use super::shared::{Counted, Shared};
use crate::guest::{Invocation, complain, limited_store, world};
use crate::state::{Common, State};
use crate::stdio::Output;

/// Makes a guest's instances, for one thread.
pub(super) struct Instances {
    pub(super) engine: Engine,
    pub(super) pre: Pre,
    pub(super) invocation: Arc<Invocation>,
    pub(super) settings: Arc<Settings>,
    pub(super) stdout: Output,
    pub(super) common: Common,
    pub(super) shared: Arc<Shared>,
}

impl Instances {
    /// The guest's name in messages.
    pub(super) fn name(&self) -> &str {
        self.invocation.args.first().map_or("guest", String::as_str)
    }

    fn store(&self) -> wasmtime::Result<Store<State>> {
        let mut wasi = world(&self.invocation, &self.settings.set)?;
        wasi.stdout(self.stdout.clone());
        let memory = Some(self.settings.max_memory);
        let mut store = limited_store(
            &self.engine,
            wasi,
            &self.common,
            &self.invocation.env,
            memory,
        )?;
        // At each tick of the clock a guest that computes lets others on, its time limit included.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(store)
    }
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Worker>> {
        let counted = self.shared.instances.take(usize::MAX);
        let mut store = self.store()?;
        let make = async {
            Ok(match &self.pre {
                Pre::P2(pre) => (
                    Proxy::P2(pre.instantiate_async(&mut store).await?),
                    self.settings.reuse_of_p2(),
                    1,
                ),
                Pre::P3(pre) => (
                    Proxy::P3(pre.instantiate_async(&mut store).await?),
                    self.settings.reuse_of_p3(),
                    REUSE_AT_A_TIME,
                ),
            })
        };
        let time = self.settings.request_time;
        let made: wasmtime::Result<_> = match tokio::time::timeout(time, make).await {
            Ok(made) => made,
            Err(_) => Err(wasmtime::format_err!(
                "its start took longer than {} s",
                time.as_secs()
            )),
        };
        let (proxy, requests, at_a_time) = made?;
        Ok(Instance {
            store,
            proxy,
            view: State::http,
            expiration: Expiration {
                sleep: Box::pin(tokio::time::sleep(time)),
                request_time: time,
                idle_time: self.settings.set.http.idle_time.0,
            },
            state: Worker {
                name: self.name().to_owned(),
                requests,
                at_a_time,
                request_time: time,
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

/// One instance at its work.
pub(super) struct Worker {
    name: String,
    requests: usize,
    at_a_time: usize,
    request_time: Duration,
    _counted: Option<Counted>,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = ();

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
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        Box::pin(tokio::time::sleep(self.request_time))
    }

    fn drop(&self, store: Store<State>, result: wasmtime::Result<()>) {
        if let Err(error) = result {
            complain(&self.name, &error);
        }
        drop(store);
    }
}
