//! Guests of WASI 0.2, which are at one request at a time: where their instances come from and go.
//!
//! An instance is made while nobody waits, after a response has gone out, and so is one taken
//! apart. What is left to do when a request comes is to call the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use hyper::{Request, Response};
use tokio::task;
use wasmtime::{PoolConcurrencyLimitError, Store};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};

use super::call::Call;
use super::failure::Failure;
use super::maker::Maker;
use super::shared::Counted;
use crate::state::State;

/// Has a guest's instances answer requests, for one thread.
pub(super) struct Plain {
    pub(super) maker: Maker,
    pre: ProxyPre<State>,
    /// Those that wait for a request, the one that has waited longest first.
    ready: Mutex<Vec<Instance>>,
    /// The one that has had its requests and is still to be taken apart.
    ended: Mutex<Option<Instance>>,
    /// Whether somebody looks after those that have waited too long.
    is_watched: AtomicBool,
    all: Arc<All>,
}

/// The instances of all threads, of which there can be as many as there are requests, and some.
#[derive(Default)]
pub(super) struct All(Mutex<Vec<Weak<Plain>>>);

impl All {
    /// Takes one that waits for a request, that which has waited longest of some thread's.
    fn take(&self) -> Option<Instance> {
        lock(&self.0)
            .iter()
            .filter_map(Weak::upgrade)
            .find_map(|plain| {
                let mut ready = lock(&plain.ready);
                (!ready.is_empty()).then(|| ready.remove(0))
            })
    }
}

/// A guest that can be asked.
pub(super) struct Instance {
    pub(super) store: Store<State>,
    pub(super) proxy: Proxy,
    /// How many requests it has had.
    pub(super) requests: usize,
    waiting_since: Instant,
}

impl Plain {
    pub(super) fn new(maker: Maker, pre: ProxyPre<State>, all: &Arc<All>) -> Arc<Self> {
        let plain = Arc::new(Self {
            maker,
            pre,
            ready: Mutex::default(),
            ended: Mutex::default(),
            is_watched: AtomicBool::new(false),
            all: all.clone(),
        });
        lock(&all.0).push(Arc::downgrade(&plain));
        plain
    }

    /// Has the guest answer `request`. `counted` is kept for as long as the guest is at it, which
    /// can be longer than there is anybody who waits for its answer.
    pub(super) async fn handle(
        self: &Arc<Self>,
        request: Request<WasiBody>,
        counted: Arc<Counted>,
    ) -> Result<Response<WasiBody>, Failure> {
        let instance = self.take().await.map_err(Failure::NoInstance)?;
        Call::begin(self.clone(), instance, request, counted)
            .map_err(Failure::Other)?
            .response()
            .await
    }

    async fn take(&self) -> wasmtime::Result<Instance> {
        if let Some(instance) = lock(&self.ready).pop() {
            return Ok(instance);
        }
        // Room for the new one.
        self.clear();
        // In a box: the future of a request is moved several times before it runs, and this part of it would be the
        // largest by far.
        Box::pin(self.make_for_request()).await
    }

    /// Makes one, in the place of those that wait on other threads if there is no other.
    async fn make_for_request(&self) -> wasmtime::Result<Instance> {
        loop {
            match self.make().await {
                Err(error) if error.is::<PoolConcurrencyLimitError>() => {
                    // One may have come back meanwhile.
                    if let Some(instance) = lock(&self.ready).pop() {
                        return Ok(instance);
                    }
                    match self.all.take() {
                        Some(waiting) => drop(waiting),
                        None => return Err(error),
                    }
                }
                made => return made,
            }
        }
    }

    async fn make(&self) -> wasmtime::Result<Instance> {
        // Its start is the guest's code too.
        let _running = self.maker.shared.instances.take(usize::MAX);
        let mut store = self.maker.store()?;
        let making = self.pre.instantiate_async(&mut store);
        let proxy = self.maker.in_time(making).await?;
        Ok(Instance {
            store,
            proxy,
            requests: 0,
            waiting_since: Instant::now(),
        })
    }

    fn clear(&self) {
        let ended = lock(&self.ended).take();
        drop(ended);
    }

    /// Takes back an instance that is not at a request any more; a `healthy` one may get more.
    pub(super) fn give_back(self: &Arc<Self>, mut instance: Instance, healthy: bool) {
        if healthy && instance.requests < self.maker.settings.reuse_of_p2() {
            instance.waiting_since = Instant::now();
            lock(&self.ready).push(instance);
            self.watch();
        } else {
            // One that is still there makes room first: what there can be is limited.
            let before = lock(&self.ended).replace(instance);
            drop(before);
            task::spawn(self.clone().prepare());
        }
    }

    /// Takes apart what has ended, and has an instance wait for the next request.
    pub(super) async fn prepare(self: Arc<Self>) {
        self.clear();
        if !lock(&self.ready).is_empty() {
            return;
        }
        // Whoever needs one will be told why there is none.
        if let Ok(instance) = self.make().await {
            lock(&self.ready).push(instance);
            self.watch();
        }
    }

    /// Has instances go that nobody needed for too long, unless that is seen to.
    fn watch(self: &Arc<Self>) {
        if self.is_watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let plain = self.clone();
        task::spawn(async move {
            let time = plain.maker.settings.set.http.idle_time.0;
            loop {
                let oldest = lock(&plain.ready).first().map(|first| first.waiting_since);
                let Some(oldest) = oldest else { break };
                tokio::time::sleep_until((oldest + time).into()).await;
                let now = Instant::now();
                let late = |instance: &mut Instance| now >= instance.waiting_since + time;
                let gone: Vec<Instance> = lock(&plain.ready).extract_if(.., late).collect();
                drop(gone);
            }
            plain.is_watched.store(false, Ordering::Relaxed);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
