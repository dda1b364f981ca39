//! CPython with its scientific packages printing a line: a module of 99 MB, started when it is new and
//! again, and from where its initialisation ends.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lighter_test::options::RuntimeOptions;
use lighter_test::{Containerd, Rootfs, guest};
use serde::Serialize;

use crate::wasmtime::Wasmtime;

const MODULE: &str = "python-scientific.wasm";
const LIBRARY: &str = "/usr/local/lib/python315.zip";
/// The function of the module that is the interpreter's main program.
const MAIN: &str = "run";

const PROGRAM: [&str; 2] = ["-c", "print('a line')"];
const PRINTED: &str = "a line\n";

/// How often it is started again.
const AGAIN: u32 = 10;

/// How long new native code is left alone before it is used again.
const REST: Duration = Duration::from_secs(3);

/// The model; this shim's containers; and those whose initialisation has been run.
pub const KINDS: [&str; 3] = ["wasmtime", "wasm", "preinit"];

const PREINIT: &str =
    "[preinit]\nfunction = 'wizer.initialize'\nfiles = ['/usr/local/lib/python315.zip']\n";

/// What starts of one kind took, in milliseconds until CPython had ended.
#[derive(Serialize)]
pub struct Starts {
    /// The kind's name.
    pub kind: &'static str,
    /// The module is compiled.
    pub first: f64,
    /// Its native code is there.
    pub again: Vec<f64>,
    /// Of these, milliseconds from the start call until the line was there. Nothing of a process, which
    /// has no such call.
    pub printed: Vec<f64>,
}

/// One start: its milliseconds as those of [`Starts::again`] and [`Starts::printed`].
struct Took(f64, Option<f64>);

/// Starts it under wasmtime's command line and in containers, in turns.
///
/// # Errors
/// The first start that fails.
pub fn measure(engine: &Containerd, wasmtime: &Wasmtime) -> Result<Vec<Starts>> {
    let rootfs = Rootfs::base()
        .guest(MODULE)?
        .copy(guest("python315.zip")?, LIBRARY);
    let folder = engine.folder().join("root-of-python");
    rootfs.write(&folder)?;
    let begin = Instant::now();
    let precompiled = wasmtime.compile(MODULE)?;
    let compiled = milliseconds(begin);
    let cache = engine.folder().join("cache-of-python");
    let settings = format!(
        "cache_dir = {:?}\nengine.unknown_imports_trap = true\n",
        cache.display().to_string()
    );
    let starts: [&dyn Fn() -> Result<Took>; 3] = [
        &|| in_process(wasmtime, &precompiled, &folder),
        &|| in_container(engine, &rootfs, &settings),
        &|| in_container(engine, &rootfs, &format!("{settings}{PREINIT}")),
    ];
    let mut all = Vec::new();
    for (kind, start) in KINDS.into_iter().zip(starts) {
        all.push(Starts {
            kind,
            first: start()?.0,
            again: Vec::new(),
            printed: Vec::new(),
        });
    }
    // With the compilation, as those of containers are.
    all[0].first += compiled;
    // Only what has been there for a while is not hashed at every start.
    thread::sleep(REST);
    for start in starts {
        start()?;
    }
    for _ in 0..AGAIN {
        for (start, of) in starts.iter().zip(&mut all) {
            let Took(again, printed) = start()?;
            of.again.push(again);
            of.printed.extend(printed);
        }
    }
    Ok(all)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn in_process(wasmtime: &Wasmtime, precompiled: &Path, root: &Path) -> Result<Took> {
    let begin = Instant::now();
    let output = Command::new(wasmtime.program())
        .args(["run", "--allow-precompiled", "-Wunknown-imports-trap"])
        .arg(format!("--dir={}::/", root.display()))
        .arg(format!("--invoke={MAIN}"))
        .arg(precompiled)
        .args(PROGRAM)
        .output()
        .context("start wasmtime run")?;
    let took = milliseconds(begin);
    // It prints what the function returns.
    ensure!(
        output.stdout == format!("{PRINTED}0\n").as_bytes(),
        "wasmtime run: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Took(took, None))
}

fn in_container(engine: &Containerd, rootfs: &Rootfs, settings: &str) -> Result<Took> {
    let main = format!("/{MODULE}#{MAIN}");
    let mut container = engine
        .container(rootfs)
        .args([&[main.as_str()], &PROGRAM[..]].concat())
        .options(RuntimeOptions::body(settings))
        .record()?;
    let begin = Instant::now();
    container.create_task()?;
    let started = Instant::now();
    container.start()?;
    container.wait()?;
    let took = milliseconds(begin);
    let first = container.first_output();
    let printed = first.map(|first| first.duration_since(started).as_secs_f64() * 1000.0);
    let output = container.finish()?.success()?;
    ensure!(output == PRINTED, "CPython printed {output:?}");
    Ok(Took(took, printed))
}
