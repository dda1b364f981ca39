//! What is set of guests: the network, files, limits, serving, interfaces, compiling and initialisation.

mod compiling;
mod files;
mod interfaces;
mod keyvalue;
mod limits;
mod network;
mod peers;
mod preinit;
mod serving;

use std::time::Duration;

use anyhow::Result;
use lighter_test::{Builder, Containerd, Output, Rootfs, options::RuntimeOptions};

const TOOL: &str = "/tool.wasm";
const COMPONENT: &str = "/tool-component.wasm";
const WASI: &str = "/tool-wasi.wasm";
/// The same, of WASI 0.3.
const WASI_P3: &str = "/tool-wasi-p3.wasm";
const COUNTER: &str = "/counter.wasm";
/// The same, of WASI 0.3.
const COUNTER_P3: &str = "/counter-p3.wasm";
const SERVER: &str = "/tool-http.wasm";
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest of the tests' file system with settings.
fn guest<'a>(engine: &'a Containerd, settings: &str, args: &[&str]) -> Result<Builder<'a>> {
    Ok(engine
        .container(&Rootfs::guests()?)
        .args(args)
        .options(RuntimeOptions::body(settings)))
}

fn run(engine: &Containerd, settings: &str, args: &[&str]) -> Result<Output> {
    guest(engine, settings, args)?.run()
}

/// Runs a module that is written as text.
fn run_text(engine: &Containerd, settings: &str, text: &str) -> Result<Output> {
    text_guest(engine, settings, text)?.run()
}

fn text_guest<'a>(engine: &'a Containerd, settings: &str, text: &str) -> Result<Builder<'a>> {
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(text)?);
    Ok(engine
        .container(&rootfs)
        .args(["/text.wasm"])
        .options(RuntimeOptions::body(settings)))
}
