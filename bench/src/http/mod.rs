//! A component that answers requests over HTTP, under load, and how soon it begins.

mod server;
mod wrk;

use std::thread;
use std::time::Duration;

use anyhow::Result;
use lighter_test::{Containerd, Rootfs};
use serde::Serialize;

use crate::figures::Figures;
use crate::wasmtime::Wasmtime;
use server::{KINDS, Server, Sources};
use wrk::Wrk;

pub use server::MODEL;
pub use wrk::Load;

/// Numbers of connections whose figures are guaranteed.
pub const CONNECTIONS: [u32; 3] = [1, 16, 128];

/// How long each kind of server is asked in a turn, in seconds.
const SECONDS: u32 = 2;

/// How many turns there are.
const TURNS: u32 = 5;

/// How often each kind is started.
const STARTS: u32 = 10;

/// What was measured of one kind of server.
#[derive(Serialize)]
pub struct Served {
    /// The kind's name.
    pub kind: &'static str,
    /// Milliseconds from nothing to the first answer, each time.
    pub starts: Vec<f64>,
    /// For each number of connections, a turn each.
    pub loads: Vec<Vec<Load>>,
    /// Kilobytes of memory (PSS) amid the load of the most connections, a turn each.
    pub memory: Vec<f64>,
}

impl Served {
    /// Sums up one figure of all turns with the connections that are number `at`.
    pub fn figures(&self, at: usize, of: impl Fn(&Load) -> f64) -> Figures {
        Figures::of(self.loads[at].iter().map(of).collect())
    }
}

/// Measures every kind, in turns, over each of these numbers of `connections`.
///
/// # Errors
/// The first thing that fails.
pub fn measure(
    engine: &Containerd,
    rootfs: &Rootfs,
    wasmtime: &Wasmtime,
    connections: &[u32],
) -> Result<Vec<Served>> {
    let wrk = Wrk::new(engine.folder())?;
    let from = Sources {
        engine,
        rootfs,
        wasmtime,
        precompiled: &wasmtime.compile("hello-http.wasm")?,
    };
    let start = |kind| Server::start(from, kind);
    let mut all: Vec<Served> = KINDS
        .iter()
        .map(|kind| Served {
            kind: kind.name,
            starts: Vec::new(),
            loads: vec![Vec::new(); connections.len()],
            memory: Vec::new(),
        })
        .collect();
    // What is done once is done.
    for kind in &KINDS {
        start(kind)?.0.end()?;
    }
    for _ in 0..STARTS {
        for (kind, served) in KINDS.iter().zip(&mut all) {
            let (server, took) = start(kind)?;
            served.starts.push(took);
            server.end()?;
        }
    }
    let servers: Vec<Server> = KINDS
        .iter()
        .map(|kind| Ok(start(kind)?.0))
        .collect::<Result<_>>()?;
    for (at, &count) in connections.iter().enumerate() {
        for server in &servers {
            wrk.load(server.port, count, 1)?;
        }
        for _ in 0..TURNS {
            for (server, served) in servers.iter().zip(&mut all) {
                let (load, memory) = thread::scope(|scope| {
                    let load = scope.spawn(|| wrk.load(server.port, count, SECONDS));
                    thread::sleep(Duration::from_secs(SECONDS.into()) / 2);
                    let memory = server.memory();
                    (load.join().expect("wrk's thread does not panic"), memory)
                });
                served.loads[at].push(load?);
                if at == connections.len() - 1 {
                    served.memory.push(memory?);
                }
            }
        }
    }
    servers.into_iter().try_for_each(Server::end)?;
    Ok(all)
}
