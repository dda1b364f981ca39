//! Measures what SPECIFICATION.md promises: the life of a container and the memory of idle ones,
//! under this shim and under containerd's own for runc, and requests over HTTP and the start of a
//! large module beside wasmtime's own command line; all of it in one run.
//!
//! A machine is never as fast twice. So the kinds of container take turns, figures are compared
//! only within a turn, and what is promised is a ratio.
#![forbid(unsafe_code)]

mod figures;
mod first;
mod http;
mod kind;
mod life;
mod memory;
mod modules;
mod plot;
mod promise;
mod python;
mod report;
mod scale;
mod wasmtime;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lighter_test::{Containerd, Settings, Version, ensure_root};

use crate::kind::Peer;
use crate::report::Report;
use crate::wasmtime::Wasmtime;

/// Measures the guarantees of SPECIFICATION.md against containerd 2.1.
#[derive(Parser)]
struct Options {
    /// How many containers of each kind are measured, one at a time and four at a time
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many idle containers of each kind are held at once; of those in one daemon a hundred at least
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Also measure the lives, first output and memory of guests under another shim, the program
    /// containerd-shim-NAME-VERSION at PATH
    #[arg(long, value_name = "PATH")]
    peer_shim: Option<PathBuf>,
    /// Measure instead how costs grow: with the number of containers up to so many, of connections, and
    /// with a module's size
    #[arg(long, value_name = "CONTAINERS", value_parser = clap::value_parser!(u32).range(10..))]
    scale: Option<u32>,
    /// Also write all figures to FOLDER/figures.json, and a picture of the lives to FOLDER/life.svg;
    /// with --scale, to FOLDER/scale.json
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("lighter-bench: a guarantee of SPECIFICATION.md is broken");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lighter-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, content))
        .with_context(|| format!("write {}", path.display()))
}

/// containerd with everything it keeps in memory. Its waits for the disk are the same under every
/// shim; in the figures they would only hide what the shims differ in. It logs as much as one that
/// nobody has told how much.
fn engine(peer: Option<&Peer>) -> Result<Containerd> {
    let mut path = vec![installed()?];
    path.extend(peer.map(|peer| peer.folder.clone()));
    Containerd::start_with(
        Version::V2_1,
        &Settings {
            parent: Some(PathBuf::from("/dev/shm")),
            path,
            log_level: Some("info"),
            unrecorded: true,
            ..Settings::default()
        },
    )
}

/// Installs the shim as `make install` does, into a folder beside what was built. As the linker leaves it,
/// a program's file is in memory in single pages, and is mapped as such by each process.
fn installed() -> Result<PathBuf> {
    let built = lighter_test::built_programs()?;
    let folder = built.join("installed");
    let path = folder.join("containerd-shim-wasmtime-v1");
    let aside = folder.join("new");
    let install = || {
        fs::create_dir_all(&folder)?;
        fs::write(&aside, fs::read(built.join("containerd-shim-wasmtime-v1"))?)?;
        fs::set_permissions(&aside, Permissions::from_mode(0o755))?;
        fs::rename(&aside, &path)
    };
    install().with_context(|| format!("install {}", path.display()))?;
    Ok(folder)
}

/// Whether every guarantee is kept.
fn run(options: &Options) -> Result<bool> {
    ensure_root()?;
    let peer = options.peer_shim.as_deref().map(Peer::new).transpose()?;
    let peer = peer.as_ref();
    let engine = engine(peer)?;
    let brief = kind::brief(peer);
    let wasmtime = Wasmtime::new(engine.folder())?;
    let machine = report::machine(&wasmtime)?;
    let rootfs = kind::rootfs()?;
    eprintln!("warming up");
    life::warm_up(&engine, &rootfs, &brief)?;
    if let Some(most) = options.scale {
        let scale = scale::measure(&engine, &rootfs, &wasmtime, machine, most)?;
        print!("{scale}");
        if let Some(folder) = &options.output {
            write(folder, "scale.json", &serde_json::to_vec_pretty(&scale)?)?;
        }
        return Ok(scale.promises.iter().all(|promise| promise.kept));
    }
    eprintln!("{} lives of each kind, one at a time", options.rounds);
    let alone = life::alone(&engine, &rootfs, &brief, options.rounds)?;
    eprintln!(
        "{} lives of each kind, {} at a time",
        options.rounds,
        life::TOGETHER
    );
    let together = life::together(&engine, &rootfs, &brief, options.rounds)?;
    eprintln!("{} first bytes of output of each kind", options.rounds);
    let first = first::measure(&engine, &rootfs, &kind::speaking(peer), options.rounds)?;
    let mut idle = Vec::new();
    for kind in kind::idle(peer) {
        let count = options.idle.max(kind.least_idle);
        eprintln!("{count} idle containers: {}", kind.name);
        idle.push(memory::idle(&engine, &rootfs, &kind, count)?);
    }
    eprintln!("requests over HTTP");
    let http = http::measure(&engine, &rootfs, &wasmtime, &http::CONNECTIONS)?;
    eprintln!("starts of CPython");
    let python = python::measure(&engine, &wasmtime)?;
    engine.ensure_clean()?;

    let mut report = Report {
        machine,
        alone,
        together,
        first,
        idle,
        http,
        python,
        promises: Vec::new(),
    };
    report.promises = promise::check(&report)?;
    print!("{report}");
    if let Some(folder) = &options.output {
        let title = "Median life of a container, one at a time, by phase";
        let picture = plot::svg(title, &report.alone);
        write(folder, "figures.json", &serde_json::to_vec_pretty(&report)?)?;
        write(folder, "life.svg", picture.as_bytes())?;
    }
    Ok(report.promises.iter().all(|promise| promise.kept))
}
