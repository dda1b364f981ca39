//! Serving a component that handles requests over HTTP: `wasi:http/incoming-handler` of WASI 0.2 or
//! `wasi:http/handler` of 0.3.
//!
//! Threads: the process's first accepts connections and keeps the clock; it never runs guest code.
//! As many others as the container may use processors each serve the connections that they are
//! given, the guest's code included, from beginning to end, so that a request crosses no thread.
//!
//! Reading order: [`Server`], `settings`, `listener`, `connection` (a client's requests), `refusal`
//! (what it is told when there is no answer), `bodies`, `instances` (where guests come from and
//! go), `shared` (what the threads know of each other), `record` (what is told of a request when it
//! is over: in the `log`, and in `figures`, which `exposition` writes down for those who `scrape`).

mod bodies;
mod connection;
mod exposition;
mod figures;
mod instances;
mod listener;
mod log;
mod record;
mod refusal;
mod scrape;
mod settings;
mod shared;

use wasmtime::Engine;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::{p2, p3};

use std::sync::Arc;

use crate::guest::{EXIT_HOST_FAILURE, Invocation};
use crate::state::State;
use settings::Settings;

/// Whether a component that exports `name` handles requests.
pub(crate) fn is_handler(name: &str) -> bool {
    name.starts_with("wasi:http/incoming-handler@0.2.")
        || name.starts_with("wasi:http/handler@0.3.")
}

/// A component that handles requests, linked.
pub(crate) struct Server(Pre);

/// By the version of its world.
#[derive(Clone)]
enum Pre {
    P2(p2::bindings::ProxyPre<State>),
    P3(p3::bindings::ServicePre<State>),
}

impl Server {
    /// The server that this component is, if it is one.
    pub(crate) fn of(pre: &InstancePre<State>) -> Option<Self> {
        p3::bindings::ServicePre::new(pre.clone())
            .map(Pre::P3)
            .or_else(|_| p2::bindings::ProxyPre::new(pre.clone()).map(Pre::P2))
            .map(Self)
            .ok()
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
