//! The crate `wasm` in the terms of the crate `container`, and the cache of compiled guests.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use container::{Guest, Guests, Invocation, Reaper};
use tokio::time::Instant;

use crate::options::Options;

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

/// How often the log tells that a guest is still being compiled.
const NEWS_EVERY: Duration = Duration::from_secs(5);

/// A cache's folder, and how large it may become.
type Key = (PathBuf, wasm::Size);

/// The caches that the containers of this daemon use; nearly always one.
#[derive(Clone)]
pub struct Caches {
    open: Arc<Mutex<HashMap<Key, Arc<wasm::Cache>>>>,
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
    /// cache that `options` name.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn artifact(
        &self,
        options: &Options,
        module: File,
        path: String,
    ) -> Result<File, String> {
        let folder = options.cache_dir.as_deref();
        let folder = folder.unwrap_or(Path::new(wasm::DEFAULT_CACHE_DIR));
        let size = options.cache_size.unwrap_or(wasm::DEFAULT_CACHE_SIZE);
        let (caches, key, name) = (self.clone(), (folder.to_owned(), size), path.clone());
        let since = Instant::now();
        let mut made = tokio::task::spawn_blocking(move || {
            let cache = caches.cache(key)?;
            cache.artifact(&module, &name, &|command| {
                log::info!("{name}: compiling it, as there is no native code of it yet");
                let began = Instant::now();
                let status = caches.reaper.run(command);
                log::info!("{name}: that took {:.1} s", began.elapsed().as_secs_f64());
                status
            })
        });
        // A large module takes a minute, and another container may be the one that compiles it.
        let mut waiting = tokio::time::interval_at(since + NEWS_EVERY, NEWS_EVERY);
        let made = loop {
            tokio::select! {
                made = &mut made => break made,
                _ = waiting.tick() => log::info!(
                    "{path}: waiting for its native code since {} s",
                    since.elapsed().as_secs()
                ),
            }
        };
        match made {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("looking for a guest's native code: {error}")),
        }
    }

    fn cache(&self, (folder, size): Key) -> Result<Arc<wasm::Cache>, wasm::CacheError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = open.get(&(folder.clone(), size)) {
            return Ok(cache.clone());
        }
        let cache = wasm::Cache::open(&folder, "/proc/self/exe")?.with_limit(size);
        let cache = Arc::new(cache);
        open.insert((folder, size), cache.clone());
        Ok(cache)
    }
}
