//! The crate `wasm` in the terms of the crate `container`, and the cache of compiled guests.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use container::{Guest, Guests, Invocation, Reaper};

/// Everything that runs guests, made in the zygote.
///
/// # Errors
/// What wasmtime has against this machine.
pub fn guests() -> Result<Rc<dyn Guests>, String> {
    let host = wasm::Host::new().map_err(|error| format!("setting up wasmtime: {error:#}"))?;
    Ok(Rc::new(Wasm(host)))
}

struct Wasm(wasm::Host);

impl Guests for Wasm {
    fn recognizes(&self) -> fn(&[u8]) -> bool {
        wasm::is_wasm
    }

    fn load(&self, artifact: File, function: Option<&str>) -> Result<Box<dyn Guest>, String> {
        match self.0.load(artifact, function) {
            Ok(guest) => Ok(Box::new(Loaded(guest))),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct Loaded(wasm::Guest);

impl Guest for Loaded {
    fn run(
        self: Box<Self>,
        invocation: Invocation,
        started: &mut dyn FnMut(Result<(), String>),
    ) -> i32 {
        let invocation = wasm::Invocation {
            args: invocation.args,
            env: invocation.env,
            cwd: invocation.cwd,
        };
        self.0.run(invocation, started)
    }
}

/// The caches that the containers of this daemon use; nearly always one.
#[derive(Clone)]
pub struct Caches {
    open: Arc<Mutex<HashMap<PathBuf, Arc<wasm::Cache>>>>,
    reaper: Reaper,
}

impl Caches {
    /// No cache is opened before it is needed. Compile workers are reaped by `reaper`.
    pub fn new(reaper: Reaper) -> Self {
        Self {
            open: Arc::default(),
            reaper,
        }
    }

    /// The native code of the open file `module`, which `path` stands for in messages, from the
    /// cache in `folder` or the built-in one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn artifact(
        &self,
        folder: Option<&Path>,
        module: File,
        path: String,
    ) -> Result<File, String> {
        self.in_cache(folder, move |cache, reaper| {
            cache.artifact(&module, &path, &|command| reaper.run(command))
        })
        .await
    }

    /// The native code that is kept under `key` in the cache in `folder` or the built-in one.
    ///
    /// # Errors
    /// Why the cache cannot be used.
    pub async fn known(
        &self,
        folder: Option<&Path>,
        key: [u8; 32],
    ) -> Result<Option<File>, String> {
        self.in_cache(folder, move |cache, _| Ok(cache.known(&key)))
            .await
    }

    /// As [`Caches::artifact`], of what the caller knows to be what `key` stands for; see
    /// [`wasm::Cache::artifact_of`].
    ///
    /// # Errors
    /// Why there is none.
    pub async fn artifact_of(
        &self,
        folder: Option<&Path>,
        key: [u8; 32],
        module: File,
        name: String,
    ) -> Result<File, String> {
        self.in_cache(folder, move |cache, reaper| {
            cache.artifact_of(&key, module, &name, &|command| reaper.run(command))
        })
        .await
    }

    /// Has `work` done with a cache, where it may block.
    async fn in_cache<T: Send + 'static>(
        &self,
        folder: Option<&Path>,
        work: impl FnOnce(&wasm::Cache, &Reaper) -> Result<T, wasm::CacheError> + Send + 'static,
    ) -> Result<T, String> {
        let caches = self.clone();
        let folder = folder
            .unwrap_or(Path::new(wasm::DEFAULT_CACHE_DIR))
            .to_owned();
        let done = tokio::task::spawn_blocking(move || {
            let cache = caches.cache(folder)?;
            work(&cache, &caches.reaper)
        });
        match done.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("looking for a guest's native code: {error}")),
        }
    }

    fn cache(&self, folder: PathBuf) -> Result<Arc<wasm::Cache>, wasm::CacheError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = open.get(&folder) {
            return Ok(cache.clone());
        }
        let cache = Arc::new(wasm::Cache::open(&folder, "/proc/self/exe")?);
        open.insert(folder, cache.clone());
        Ok(cache)
    }
}
