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
        let cache = &Which {
            folder: options.cache_dir.as_deref(),
            flags: options.guest.flags(),
            size: options.cache_size.unwrap_or(wasm::DEFAULT_CACHE_SIZE),
        };
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
        let name = match wanted.module {
            Module::File { file, path } => {
                let made = match initialization {
                    Some(it) => self.caches.initialized(cache, it, file, path).await,
                    None => self.caches.artifact(cache, file, path).await,
                };
                return made.map(Some);
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
        let read = || async { layer.read().await.map_err(|error| error.to_string()) };
        if let Some(it) = initialization {
            let it = Arc::new(it);
            let known = self.caches.known_initialized(cache, &it, key, name.clone());
            if let Some(known) = known.await? {
                return Ok(Some(known));
            }
            let made = self
                .caches
                .initialized_of(cache, it, key, read().await?, name);
            return made.await.map(Some);
        }
        if let Some(known) = self.caches.known(cache, key).await? {
            return Ok(Some(known));
        }
        let made = self.caches.artifact_of(cache, key, read().await?, name);
        made.await.map(Some)
    }
}
