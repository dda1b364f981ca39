//! What a daemon has once, for all its tasks.

use std::fs::File;
use std::sync::Arc;

use container::{Bundle, Logging, Module, Reaper, Wanted, Zygote};
use wasm::Initialization;

use crate::events::Publisher;
use crate::guests::{Caches, Which};
use crate::images::Images;
use crate::logs::Logs;
use crate::sandbox::Slot;
use crate::settings::Options;

/// What all tasks of a daemon share.
pub struct Daemon {
    /// Who clones containers.
    pub zygote: Arc<Zygote>,
    /// Who waits for their ends.
    pub reaper: Reaper,
    /// Who tells containerd.
    pub publisher: Publisher,
    /// Compiled guests.
    pub caches: Caches,
    /// Guests that are no files.
    pub images: Images,
    /// Where what all of it logs goes.
    pub logs: Logs,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod without a container of its own that the tasks belong to, if they do.
    pub sandbox: Slot,
}

impl Daemon {
    /// What a logger of the process `id` is to know.
    pub fn logging<'a>(&'a self, id: &'a str) -> Logging<'a> {
        Logging {
            id,
            namespace: &self.namespace,
            reaper: &self.reaper,
        }
    }

    /// The native code that is `wanted`, which a process of the container `id` is to run; `None` where
    /// there is no such module.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub async fn artifact(
        &self,
        id: &str,
        bundle: &Bundle,
        options: &Options,
        wanted: Wanted,
    ) -> Result<Option<File>, String> {
        let preinit = &options.guest.preinit;
        let initialization = preinit.function.clone().map(|function| Initialization {
            function,
            time: preinit.time,
            files: wanted
                .given
                .into_iter()
                .map(|it| (it.path, it.file))
                .collect(),
        });
        let which = &Which {
            folder: options.cache_dir.as_deref(),
            flags: options.guest.flags(),
            size: options.cache_size.unwrap_or(wasm::DEFAULT_CACHE_SIZE),
            first: initialization.map(Arc::new),
        };
        let name = match wanted.module {
            Module::File { file, path } => {
                return self.caches.artifact(which, file, path).await.map(Some);
            }
            Module::Layer { name } => name,
        };
        let entrypoint = bundle.process().and_then(|it| it.args().as_ref()?.first());
        let entrypoint = entrypoint.map_or("", String::as_str);
        let found = self.images.layer(id, &name, entrypoint).await;
        let Some(layer) = found.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let (key, name) = (layer.key(), layer.name());
        if let Some(known) = self.caches.known(which, key, name.clone()).await? {
            return Ok(Some(known));
        }
        let module = layer.read().await.map_err(|error| error.to_string())?;
        let made = self.caches.artifact_of(which, key, module, name);
        made.await.map(Some)
    }
}
