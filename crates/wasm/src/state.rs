//! What a guest's host functions work on.

use std::mem;
use std::sync::Arc;

use wasmtime::StoreLimits;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::gate::{Gate, Outgoing};
use crate::keyvalue::{self, Store};
use crate::logging::Log;
use crate::settings::Settings;
use crate::stdio::Output;
use crate::trust;

/// What all instances of a guest on one event loop have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) settings: Arc<Settings>,
    /// The container's standard error.
    pub(crate) stderr: Output,
    /// `wasi:keyvalue`.
    pub(crate) store: Arc<dyn Store>,
}

/// The data of every store. WASI 0.1 needs a table of its own beside the context that all versions
/// share; it is carried by components too, so that one type serves both.
pub(crate) struct State {
    /// WASI 0.1, and the context of 0.2 and 0.3.
    pub(crate) wasi: WasiP1Ctx,
    /// `wasi:http`.
    http: WasiHttpCtx,
    /// Who sees to its requests.
    gate: Gate,
    /// `wasi:config`.
    config: WasiConfigVariables,
    /// `wasi:keyvalue`.
    store: Arc<dyn Store>,
    /// `wasi:logging`.
    log: Log,
    /// What memories and tables may take, where the store is told to ask.
    pub(crate) limits: StoreLimits,
}

impl State {
    /// With this view of the world, these limits, and in this environment, `NAME=VALUE` each.
    pub(crate) fn new(
        wasi: WasiP1Ctx,
        limits: StoreLimits,
        common: &Common,
        env: &[String],
    ) -> Self {
        let settings = &common.settings;
        Self {
            wasi,
            http: WasiHttpCtx::new(),
            config: config(settings, env),
            store: common.store.clone(),
            log: Log {
                least: settings.wasi.log_level,
                output: common.stderr.clone(),
            },
            gate: Gate {
                settings: settings.clone(),
                authorities: trust::named(env),
                outgoing: None,
            },
            limits,
        }
    }
}

impl State {
    /// The view of `wasi:config`.
    pub(crate) fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.config)
    }

    /// Has the guest's requests over HTTP counted.
    pub(crate) fn count_requests(&mut self, outgoing: &Arc<Outgoing>) {
        self.gate.outgoing = Some(outgoing.clone());
    }

    /// Breaks off the bodies that a guest of WASI 0.2 has begun and not finished. Dropped as they
    /// are they would end as if they were whole.
    pub(crate) fn break_off_bodies(&mut self) {
        for entry in self.wasi.ctx().table.iter_mut() {
            if let Some(body) = entry.downcast_mut::<HostOutgoingBody>() {
                let (whole, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1);
                mem::replace(body, whole).abort();
            }
        }
    }

    /// The view of `wasi:keyvalue`.
    pub(crate) fn keyvalue(&mut self) -> keyvalue::View<'_> {
        keyvalue::View {
            store: &self.store,
            table: self.wasi.ctx().table,
        }
    }

    /// What `wasi:logging` works on.
    pub(crate) fn log(&mut self) -> &mut Log {
        &mut self.log
    }
}

/// What variables of the environment begin with that `wasi:config` tells.
const CONFIG_PREFIX: &str = "WASI_CONFIG_";

/// What `wasi:config` tells: what the environment says, and before that what is set.
fn config(settings: &Settings, env: &[String]) -> WasiConfigVariables {
    let mut config = WasiConfigVariables::new();
    let variables = env
        .iter()
        .filter_map(|entry| entry.strip_prefix(CONFIG_PREFIX)?.split_once('='));
    for (name, value) in variables {
        config.insert(name, value);
    }
    for (name, value) in &settings.config {
        config.insert(name, value);
    }
    config
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: self.wasi.ctx().table,
            hooks: &mut self.gate,
        }
    }
}
