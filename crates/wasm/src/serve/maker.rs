//! What instances of a guest that handles requests are made from.

use std::sync::Arc;

use wasmtime::{Engine, Store, UpdateDeadline};

use super::Target;
use super::awake::Awake;
use super::settings::Settings;
use super::shared::Shared;
use crate::guest::{Blocking, Invocation, limited_store, tell, world};
use crate::state::{Common, State};
use crate::stdio::Output;

/// Makes stores, for one thread.
pub(super) struct Maker {
    pub(super) engine: Engine,
    pub(super) invocation: Arc<Invocation>,
    pub(super) settings: Arc<Settings>,
    pub(super) stdout: Output,
    pub(super) common: Common,
    pub(super) shared: Arc<Shared>,
    pub(super) awake: Arc<Awake>,
}

impl Maker {
    /// The guest's name in messages.
    pub(super) fn name(&self) -> &str {
        self.invocation.args.first().map_or("guest", String::as_str)
    }

    /// A store whose guest lets others on at each tick of the clock, its time limit included.
    pub(super) fn store(&self) -> wasmtime::Result<Store<State>> {
        let mut wasi = world(&self.invocation, &self.settings.set, Blocking::Forbidden)?;
        wasi.stdout(self.stdout.clone());
        let memory = Some(self.settings.max_memory);
        let mut store = limited_store(
            &self.engine,
            wasi,
            &self.common,
            &self.invocation.env,
            memory,
        )?;
        if let Some(figures) = &self.shared.figures {
            store.data_mut().count_requests(&figures.outgoing);
        }
        store.set_epoch_deadline(1);
        // By the runtime's own way to yield, after which it looks at sockets and clocks: otherwise it does so once in dozens of ticks.
        store.epoch_deadline_callback(|_| {
            let others = Box::pin(tokio::task::yield_now());
            Ok(UpdateDeadline::YieldCustom(1, others))
        });
        Ok(store)
    }

    /// Writes that a request took too long, `target` being its method and path.
    pub(super) fn tell_late(&self, target: &Target) {
        let (name, time) = (self.name(), self.settings.longer_than());
        tell(&format!("{name}: a request took {time}: {target}\n"));
    }

    /// What `making` an instance comes to, unless it takes too long.
    pub(super) async fn in_time<T>(
        &self,
        making: impl Future<Output = wasmtime::Result<T>>,
    ) -> wasmtime::Result<T> {
        match tokio::time::timeout(self.settings.request_time, making).await {
            Ok(made) => made,
            Err(_) => Err(wasmtime::format_err!(
                "its start took {}",
                self.settings.longer_than()
            )),
        }
    }
}
