//! The crate `wasm` in the terms of the crate `container`, and the cache of compiled guests.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, ExitStatus};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use container::{Guest, Guests, Invocation, Reaper, blocking};
use tokio::time::Instant;
use wasm::Initialization;
use wasm::settings::{Flags, Size};

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
    fn recognizes(&self) -> fn(&[u8]) -> Result<(), String> {
        wasm::recognize
    }

    fn files(&self, settings: &str) -> Result<Vec<String>, String> {
        let preinit = read(settings)?.preinit;
        Ok(preinit.function.map(|_| preinit.files).unwrap_or_default())
    }

    fn settle(&self) {
        if let Err(error) = self.0.settle() {
            log::warn!("preparing for components: {error:#}");
        }
    }

    fn load(
        &self,
        artifact: File,
        function: Option<&str>,
        settings: &str,
    ) -> Result<Box<dyn Guest>, String> {
        let settings = read(settings)?;
        match self.0.load(artifact, function, settings) {
            Ok(guest) => Ok(Box::new(Loaded(guest))),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The settings of a guest on their way to its process; those that nobody has set are no words.
pub fn write(settings: &wasm::Settings) -> String {
    match *settings == wasm::Settings::default() {
        true => String::new(),
        false => serde_json::to_string(settings).expect("settings are plain"),
    }
}

fn read(settings: &str) -> Result<wasm::Settings, String> {
    match settings {
        "" => Ok(wasm::Settings::default()),
        text => serde_json::from_str(text)
            .map_err(|error| format!("reading the guest's settings: {error}")),
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

/// A cache's folder, how the code there is compiled, and how large it may become.
type Key = (PathBuf, Flags, Size);

/// The caches that the containers of this daemon use; nearly always one.
#[derive(Clone)]
pub struct Caches {
    open: Arc<Mutex<HashMap<Key, Arc<wasm::Cache>>>>,
    reaper: Reaper,
}

/// Which native code of a module.
pub struct Which<'a> {
    /// The folder of the cache that has it; nothing is the built-in one.
    pub folder: Option<&'a Path>,
    /// How it is compiled.
    pub flags: Flags,
    /// How large the cache may become.
    pub size: Size,
    /// What is run of the module before it is compiled.
    pub first: Option<Arc<Initialization>>,
}

impl Caches {
    /// No cache is opened before it is needed. Compile workers are reaped by `reaper`.
    pub fn new(reaper: Reaper) -> Self {
        Self {
            open: Arc::default(),
            reaper,
        }
    }

    /// The native code of the open file `module`, which `path` stands for in messages.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn artifact(
        &self,
        which: &Which<'_>,
        module: File,
        path: String,
    ) -> Result<File, String> {
        let (first, name) = (which.first.clone(), path.clone());
        let making = self.in_cache(which, move |cache, reaper| {
            let run = |command| compile(&name, command, reaper);
            match first {
                None => cache.artifact(&module, &name, &run),
                Some(first) => cache.initialized(&first, &module, &name, &run),
            }
        });
        with_news(&path, making).await
    }

    /// The native code of the module that `key` stands for and `name` in messages, if it is there.
    ///
    /// # Errors
    /// Why the cache cannot be used, and what is wrong with what the module is to be given first.
    pub async fn known(
        &self,
        which: &Which<'_>,
        key: [u8; 32],
        name: String,
    ) -> Result<Option<File>, String> {
        let first = which.first.clone();
        self.in_cache(which, move |cache, _| match first {
            None => Ok(cache.known(&key)),
            Some(first) => cache.known_initialized(&first, &key, &name),
        })
        .await
    }

    /// As [`Caches::artifact`], of what the caller knows to be what `key` stands for; see
    /// [`wasm::Cache::artifact_of`].
    ///
    /// # Errors
    /// Why there is none.
    pub async fn artifact_of(
        &self,
        which: &Which<'_>,
        key: [u8; 32],
        module: File,
        path: String,
    ) -> Result<File, String> {
        let (first, name) = (which.first.clone(), path.clone());
        let making = self.in_cache(which, move |cache, reaper| {
            let run = |command| compile(&name, command, reaper);
            match first {
                None => cache.artifact_of(&key, module, &name, &run),
                Some(first) => cache.initialized_of(&first, &key, &module, &name, &run),
            }
        });
        with_news(&path, making).await
    }

    /// Has `work` done with a cache, where it may block.
    async fn in_cache<T: Send + 'static>(
        &self,
        which: &Which<'_>,
        work: impl FnOnce(&wasm::Cache, &Reaper) -> Result<T, wasm::CacheError> + Send + 'static,
    ) -> Result<T, String> {
        let caches = self.clone();
        let folder = which
            .folder
            .unwrap_or(Path::new(wasm::DEFAULT_CACHE_DIR))
            .to_owned();
        let key = (folder, which.flags.clone(), which.size);
        let done = blocking(move || {
            let cache = caches.cache(key)?;
            work(&cache, &caches.reaper)
        });
        match done.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("looking for a guest's native code: {error}")),
        }
    }

    fn cache(&self, key: Key) -> Result<Arc<wasm::Cache>, wasm::CacheError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = open.get(&key) {
            return Ok(cache.clone());
        }
        let cache = wasm::Cache::open(&key.0, "/proc/self/exe", key.1.clone())?;
        let cache = Arc::new(cache.with_limit(key.2));
        open.insert(key, cache.clone());
        Ok(cache)
    }
}

/// Runs the compile worker, and has the log tell of it.
fn compile(name: &str, command: Command, reaper: &Reaper) -> io::Result<ExitStatus> {
    log::info!("{name}: compiling it, as there is no native code of it yet");
    let began = Instant::now();
    let status = reaper.run(command);
    log::info!("{name}: that took {:.1} s", began.elapsed().as_secs_f64());
    status
}

/// Has the log tell while `making` goes on: a large module takes a minute, and another container may
/// be the one that compiles it.
async fn with_news<T>(path: &str, making: impl Future<Output = T>) -> T {
    let since = Instant::now();
    let mut waiting = tokio::time::interval_at(since + NEWS_EVERY, NEWS_EVERY);
    let mut making = pin!(making);
    loop {
        tokio::select! {
            made = &mut making => return made,
            _ = waiting.tick() => log::info!(
                "{path}: waiting for its native code since {} s",
                since.elapsed().as_secs()
            ),
        }
    }
}
