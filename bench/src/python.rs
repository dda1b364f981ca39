//! CPython printing a line: a module of many megabytes, started when it is new and again.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lighter_test::options::RuntimeOptions;
use lighter_test::{Containerd, Rootfs, guest};
use serde::Serialize;

use crate::wasmtime::Wasmtime;

/// The interpreter's path in a container.
const GUEST: &str = "/python.wasm";

const PROGRAM: [&str; 2] = ["-c", "print('a line')"];
const PRINTED: &str = "a line\n";

/// How often it is started again.
const AGAIN: u32 = 10;

/// How long new native code is left alone before it is used again.
const REST: Duration = Duration::from_secs(3);

/// The model, and this shim's containers.
pub const KINDS: [&str; 2] = ["wasmtime", "wasm"];

/// What starts of one kind took, in milliseconds until CPython had ended.
#[derive(Serialize)]
pub struct Starts {
    /// The kind's name.
    pub kind: &'static str,
    /// The module is compiled.
    pub first: f64,
    /// Its native code is there.
    pub again: Vec<f64>,
}

/// Starts it under wasmtime's command line and in containers, in turns.
///
/// # Errors
/// The first start that fails.
pub fn measure(engine: &Containerd, wasmtime: &Wasmtime) -> Result<Vec<Starts>> {
    let rootfs = Rootfs::base().guest("python.wasm")?;
    let precompiled = wasmtime.compile("python.wasm")?;
    let cache = engine.folder().join("cache-of-python");
    let contain = || in_container(engine, &rootfs, &cache);
    let plainly = |arguments: &[&Path]| in_process(wasmtime, arguments);
    let first = [
        plainly(&[Path::new("-Ccache=n"), &guest("python.wasm")?])?,
        contain()?,
    ];
    // Only what has been there for a while is not hashed at every start.
    thread::sleep(REST);
    contain()?;
    let mut again = [Vec::new(), Vec::new()];
    for _ in 0..AGAIN {
        again[0].push(plainly(&[Path::new("--allow-precompiled"), &precompiled])?);
        again[1].push(contain()?);
    }
    let pairs = KINDS.into_iter().zip(first.into_iter().zip(again));
    Ok(pairs
        .map(|(kind, (first, again))| Starts { kind, first, again })
        .collect())
}

fn in_process(wasmtime: &Wasmtime, arguments: &[&Path]) -> Result<f64> {
    let begin = Instant::now();
    let output = Command::new(wasmtime.program())
        .arg("run")
        .args(arguments)
        .args(PROGRAM)
        .output()
        .context("start wasmtime run")?;
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    ensure!(
        output.stdout == PRINTED.as_bytes(),
        "wasmtime run: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

fn in_container(engine: &Containerd, rootfs: &Rootfs, cache: &Path) -> Result<f64> {
    let options = format!("cache_dir = {:?}\n", cache.display().to_string());
    let mut container = engine
        .container(rootfs)
        .args([&[GUEST], &PROGRAM[..]].concat())
        .options(RuntimeOptions::body(&options))
        .record()?;
    let begin = Instant::now();
    container.create_task()?;
    container.start()?;
    container.wait()?;
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    let printed = container.finish()?.success()?;
    ensure!(printed == PRINTED, "CPython printed {printed:?}");
    Ok(took)
}
