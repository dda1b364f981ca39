use std::{
    fs::File,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use crate::say::{note, say};
use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    Limit, Place,
    containerd::{Containerd, Module},
};

/// Compile guests before their first container is started
///
/// What is compiled already is left alone. Modules are compiled in processes without privileges,
/// as by the shim, as many at a time as there are processors.
#[derive(Args)]
pub struct Warm {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    limit: Limit,
    /// containerd's socket
    #[arg(
        short,
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace: ctr's is `default`, Docker's `moby`, Kubernetes' `k8s.io`
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Compile what imports functions that nothing provides, for containers whose settings have
    /// `engine.unknown_imports_trap`
    #[arg(long)]
    unknown_imports_trap: bool,
    /// Images that containerd has, whose entrypoints are compiled, composed as their containers run
    /// them, and wasm files of this machine
    #[arg(required = true, value_name = "IMAGE|FILE")]
    what: Vec<String>,
}

impl Warm {
    pub fn run(self) -> Result<()> {
        let modules = self.modules()?;
        let mut settings = wasm::Settings::default();
        settings.engine.unknown_imports_trap = self.unknown_imports_trap;
        let cache = wasm::Cache::open(&self.place.cache_dir, "/proc/self/exe", settings.flags())?
            .with_limit(self.limit.max_size);
        let count = modules.len();
        let queue = Mutex::new(modules.into_iter());
        let failed = AtomicBool::new(false);
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        // A worker ends with the thread that has started it, and that ends after its worker.
        thread::scope(|scope| {
            for _ in 0..threads.min(count) {
                scope.spawn(|| {
                    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    while let Some(module) = next() {
                        if let Err(error) = compile(&cache, module) {
                            note(format_args!("lighter: {error}"));
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        ensure!(
            !failed.into_inner(),
            "not everything could be compiled, as told above"
        );
        Ok(())
    }

    fn modules(&self) -> Result<Vec<Module>> {
        let mut modules = Vec::new();
        let mut containerd = None;
        for what in &self.what {
            if Path::new(what).is_file() {
                let file = File::open(what).with_context(|| format!("cannot read {what}"))?;
                let name = what.clone();
                let key = None;
                modules.push(Module { name, file, key });
                continue;
            }
            let containerd = match &containerd {
                Some(containerd) => containerd,
                None => containerd.insert(
                    Containerd::connect(&self.address, &self.namespace)
                        .with_context(|| format!("{what} is no file here, so an image"))?,
                ),
            };
            modules.extend(containerd.modules(what)?);
        }
        Ok(modules)
    }
}

/// Compiles one module, if that is needed, and tells how it went.
fn compile(cache: &wasm::Cache, module: Module) -> Result<(), wasm::CacheError> {
    let Module { name, file, key } = module;
    let is_new = AtomicBool::new(false);
    let since = Instant::now();
    let run = |mut command: Command| {
        is_new.store(true, Ordering::Relaxed);
        note(format_args!("compiling {name}"));
        command.status()
    };
    match key {
        Some(key) => cache.artifact_of(&key, file, &name, &run)?,
        None => cache.artifact(&file, &name, &run)?,
    };
    match is_new.into_inner() {
        true => say!("{name}: compiled in {:.1} s", since.elapsed().as_secs_f64()),
        false => say!("{name}: is there already"),
    }
    Ok(())
}
