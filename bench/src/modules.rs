//! What a module's size costs at a create: to compile it, to hash it, to map its native code.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lighter_test::options::RuntimeOptions;
use lighter_test::{Containerd, Rootfs, guest, module};
use serde::Serialize;

use crate::figures::Figures;

/// The modules, small ones first, each with the function that is its program if that has a name of
/// its own.
const MODULES: [(&str, &str); 8] = [
    ("tiny.wasm", ""),
    ("hello-rust.wasm", ""),
    ("tool.wasm", ""),
    ("quickjs.wasm", ""),
    ("go-program.wasm", ""),
    ("ruby.wasm", ""),
    ("python.wasm", ""),
    ("python-scientific.wasm", "#run"),
];

/// How often what can be done again is.
const TURNS: usize = 9;

/// How long a file is left alone before its digest is remembered.
const REST: Duration = Duration::from_secs(3);

/// What one module costs.
#[derive(Serialize)]
pub struct Module {
    /// Its name.
    pub name: &'static str,
    /// Its size in kilobytes.
    pub size: f64,
    /// That of its native code.
    pub code: f64,
    /// Milliseconds of a create that compiles it.
    pub compiled: f64,
    /// Of one that finds the code of a module that it has not seen before: it has to be hashed.
    pub hashed: Figures,
    /// Of one that finds the code of a module that it knows.
    pub mapped: Figures,
}

/// Measures each module.
///
/// # Errors
/// A container that is not created.
pub fn measure(engine: &Containerd) -> Result<Vec<Module>> {
    MODULES
        .into_iter()
        .map(|(name, function)| {
            eprintln!("creates of {name}");
            one(engine, name, function).with_context(|| name.to_owned())
        })
        .collect()
}

fn one(engine: &Containerd, name: &'static str, function: &str) -> Result<Module> {
    let cache = engine.folder().join(format!("cache-of-{name}"));
    let settings = format!(
        "cache_dir = {:?}\nengine.unknown_imports_trap = true\n",
        cache.display().to_string()
    );
    let program = format!("/{name}{function}");
    let create = |rootfs: &Rootfs| -> Result<f64> {
        let mut container = engine
            .container(rootfs)
            .args([&program])
            .options(RuntimeOptions::body(&settings))
            .record()?;
        let begin = Instant::now();
        container.create_task()?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        container.delete()?;
        container.remove()?;
        Ok(took)
    };
    // The same module once more, as another file, for each turn.
    let rootfs = |turn: usize| -> Result<Rootfs> {
        let base = Rootfs::busybox().file("/turn", turn.to_string());
        Ok(match name {
            "tiny.wasm" => base.file(&program, module::exporting("_start")),
            _ => base.guest(name)?,
        })
    };
    let first = rootfs(0)?;
    let compiled = create(&first)?;
    let code = size_of_code(&cache)?;
    thread::sleep(REST);
    // From here on both digests are known, that of the code as well.
    create(&first)?;
    let turns = |turn: &dyn Fn(usize) -> Result<f64>| -> Result<Figures> {
        Ok(Figures::of((1..=TURNS).map(turn).collect::<Result<_>>()?))
    };
    let mapped = turns(&|_| create(&first))?;
    let hashed = turns(&|turn| create(&rootfs(turn)?))?;
    fs::remove_dir_all(&cache)?;
    let size = match name {
        "tiny.wasm" => module::exporting("_start").len() as u64,
        _ => fs::metadata(guest(name)?)?.len(),
    };
    Ok(Module {
        name,
        size: size as f64 / 1000.0,
        code: code as f64 / 1000.0,
        compiled,
        hashed,
        mapped,
    })
}

/// The largest file of a cache that has the code of one module.
fn size_of_code(cache: &Path) -> Result<u64> {
    let mut largest = 0;
    for entry in fs::read_dir(cache)? {
        let folder = entry?.path();
        if folder.is_dir() {
            for file in fs::read_dir(&folder)? {
                largest = largest.max(file?.metadata()?.len());
            }
        }
    }
    Ok(largest)
}
