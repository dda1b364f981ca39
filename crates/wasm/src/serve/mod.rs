//! Serving a component that handles requests over HTTP: `wasi:http/incoming-handler` of WASI 0.2 or
//! `wasi:http/handler` of 0.3.
//!
//! Threads: the process's first accepts connections and keeps the clock; it never runs guest code.
//! As many others as the container may use processors each serve the connections that they are
//! given, the guest's code included, from beginning to end, so that a request crosses no thread.
//!
//! Reading order: [`Server`], `settings`, `listener`, `connection` (a client's requests), `preface`
//! (which protocol it speaks), `client` (whether it is there), `refusal` (what it is told when there
//! is no answer), `bodies`, `maker` (what instances are made from), `awake` (waiting for a request);
//! `plain` and `call` (guests of WASI 0.2), `concurrent` (those of 0.3), `failure` (why they did not
//! answer); `shared` (what the threads know of each other), `record` (what is told of a request when
//! it is over: in the `log`, and in `figures`, which `exposition` writes down for those who
//! `scrape`).

mod awake;
mod bodies;
mod call;
mod client;
mod concurrent;
mod connection;
mod exposition;
mod failure;
mod figures;
mod listener;
mod log;
mod maker;
mod plain;
mod preface;
mod record;
mod refusal;
mod scrape;
mod settings;
mod shared;

use std::fmt::{self, Display, Formatter};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use hyper::{Method, Request, Response, Uri};
use wasmtime::Engine;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::handler::{ProxyHandler, ProxyPre};
use wasmtime_wasi_http::{WasiBody, p2, p3};

use crate::engine::Concurrency;
use crate::guest::{EXIT_HOST_FAILURE, Invocation};
use crate::state::State;
use bodies::Course;
pub(crate) use bodies::with_frames;
use concurrent::{Concurrent, Given};
use failure::Failure;
use maker::Maker;
use plain::{All, Plain};
use settings::Settings;
use shared::Counted;

/// What a component handles requests by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Handler {
    /// `wasi:http/incoming-handler` of WASI 0.2.
    P2,
    /// `wasi:http/handler` of WASI 0.3.
    P3,
}

impl Handler {
    /// That which an export of this name is, if it is one.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name.starts_with("wasi:http/incoming-handler@0.2.") {
            Some(Self::P2)
        } else if name.starts_with("wasi:http/handler@0.3.") {
            Some(Self::P3)
        } else {
            None
        }
    }
}

/// How many instances there can be beside those that are at requests: of each thread one that waits
/// for a request and one that has had it.
pub(crate) fn spare_instances() -> u32 {
    2 * threads() as u32
}

/// How many threads serve: as many as the container may use processors.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// A component that handles requests, linked.
pub(crate) struct Server(Pre);

#[derive(Clone)]
enum Pre {
    Plain(p2::bindings::ProxyPre<State>, Arc<All>),
    Concurrent(Arc<ProxyPre<State>>),
}

impl Pre {
    /// What one thread serves with.
    fn guests(self, maker: Maker) -> Guests {
        match self {
            Self::Plain(pre, all) => Guests::Plain(Plain::new(maker, pre, &all)),
            Self::Concurrent(pre) => {
                Guests::Concurrent(ProxyHandler::new(Concurrent { maker, pre }))
            }
        }
    }
}

/// The guests of one thread.
#[derive(Clone)]
enum Guests {
    Plain(Arc<Plain>),
    Concurrent(ProxyHandler<Concurrent>),
}

impl Guests {
    fn maker(&self) -> &Maker {
        match self {
            Self::Plain(plain) => &plain.maker,
            Self::Concurrent(handler) => &handler.state().maker,
        }
    }

    /// Has a guest ready before the first request, where that is of use.
    fn prepare(&self) {
        if let Self::Plain(plain) = self {
            tokio::spawn(plain.clone().prepare());
        }
    }

    /// Has a guest answer `request`, whose `course` is told what becomes of it. It counts until
    /// `counted` is gone.
    async fn handle(
        &self,
        request: Request<WasiBody>,
        course: Arc<Course>,
        counted: Arc<Counted>,
    ) -> Result<Response<WasiBody>, Failure> {
        match self {
            Self::Plain(plain) => plain.handle(request, counted).await,
            Self::Concurrent(handler) => {
                let target = Target::of(&request);
                // In a box, so that a request to a guest of 0.2 does not carry the room for it about.
                let answer = Box::pin(handler.handle(Given { course, counted }, request));
                let answered = answer.await.map_err(Failure::from);
                if let Err(Failure::Late) = answered {
                    self.maker().tell_late(&target);
                }
                answered
            }
        }
    }
}

/// What a request asks for, for a message. Most requests are never told of: so it is not yet text.
struct Target {
    method: Method,
    uri: Uri,
}

impl Target {
    fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
        }
    }
}

impl Display for Target {
    fn fmt(&self, text: &mut Formatter<'_>) -> fmt::Result {
        write!(text, "{} {}", self.method, self.uri.path())
    }
}

impl Server {
    /// The server that this component is, if it is one. Its engine has `concurrency`.
    pub(crate) fn of(pre: &InstancePre<State>, concurrency: Concurrency) -> Option<Self> {
        let concurrent = |pre| Pre::Concurrent(Arc::new(pre));
        let p2 = || p2::bindings::ProxyPre::new(pre.clone());
        let pre = match concurrency {
            Concurrency::Off => p2().map(|pre| Pre::Plain(pre, Arc::default())),
            Concurrency::On => p3::bindings::ServicePre::new(pre.clone())
                .map(ProxyPre::P3)
                .or_else(|_| p2().map(ProxyPre::P2))
                .map(concurrent),
        };
        pre.map(Self).ok()
    }

    /// Serves until SIGTERM or SIGINT. `started` is called when the port is open, or with the
    /// reason why it is not. Returns the exit code.
    pub(crate) fn run(
        self,
        engine: &Engine,
        invocation: &Invocation,
        set: Arc<crate::Settings>,
        started: &mut dyn FnMut(Result<(), String>),
    ) -> i32 {
        let served = Settings::of(invocation, set)
            .and_then(|settings| listener::serve(engine, self.0, invocation, settings, started));
        match served {
            Ok(()) => 0,
            Err(reason) => {
                started(Err(reason));
                EXIT_HOST_FAILURE
            }
        }
    }
}
