//! What a guest's host functions work on.

use std::sync::Arc;

use wasmtime::StoreLimits;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::gate::Gate;
use crate::settings::Settings;

/// The data of every store. WASI 0.1 needs a table of its own beside the context that all versions
/// share; it is carried by components too, so that one type serves both.
pub(crate) struct State {
    /// WASI 0.1, and the context of 0.2 and 0.3.
    pub(crate) wasi: WasiP1Ctx,
    /// `wasi:http`.
    http: WasiHttpCtx,
    /// Who sees to its requests.
    gate: Gate,
    /// What memories and tables may take, where the store is told to ask.
    pub(crate) limits: StoreLimits,
}

impl State {
    /// With this view of the world and these limits.
    pub(crate) fn new(wasi: WasiP1Ctx, limits: StoreLimits, settings: Arc<Settings>) -> Self {
        Self {
            wasi,
            http: WasiHttpCtx::new(),
            gate: Gate(settings),
            limits,
        }
    }
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
