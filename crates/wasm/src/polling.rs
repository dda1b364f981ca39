//! `wasi:io/poll` for guests that ask again and again whether something is ready.
//!
//! wasmtime-wasi's own answers at once. On a runtime of one thread nobody would then look at clocks and descriptors, so that
//! nothing ever became ready for a guest that does nothing else but ask.

use wasmtime::Result;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi_io::bindings::wasi::io::poll::{self, Host, HostPollable};
use wasmtime_wasi_io::poll::DynPollable;

use crate::state::State;

/// The table of a guest's pollables.
struct Polling<'a>(&'a mut ResourceTable);

struct HasPolling;

impl HasData for HasPolling {
    type Data<'a> = Polling<'a>;
}

/// Puts it into `linker`, in place of what is there.
///
/// # Errors
/// wasmtime's.
pub(crate) fn replace_in_linker(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    poll::add_to_linker::<State, HasPolling>(linker, |state| Polling(state.ctx().table))?;
    linker.allow_shadowing(false);
    Ok(())
}

impl Host for Polling<'_> {
    async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        self.0.poll(pollables).await
    }
}

impl HostPollable for Polling<'_> {
    async fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        let is_ready = self.0.ready(pollable).await?;
        if !is_ready {
            // Until the runtime has looked.
            tokio::task::yield_now().await;
        }
        Ok(is_ready)
    }

    async fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        self.0.block(pollable).await
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        HostPollable::drop(self.0, pollable)
    }
}
