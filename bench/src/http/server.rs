//! Servers of one component: containers of this shim, and `wasmtime serve`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lighter_test::{Container, Containerd, Rootfs};
use nix::sys::signal::Signal;

use crate::memory;
use crate::wasmtime::Wasmtime;

/// The component's path in a container.
const GUEST: &str = "/hello-http.wasm";

/// How long a server may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many requests one instance gets where instances are reused: as many as there are.
const REUSE: &str = "1000000000";

/// What all servers are started from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The daemon of the containers.
    pub engine: &'a Containerd,
    /// Their root file system.
    pub rootfs: &'a Rootfs,
    /// The other servers' program.
    pub wasmtime: &'a Wasmtime,
    /// The component's native code for that.
    pub precompiled: &'a Path,
}

/// A kind of server.
#[derive(Clone, Copy)]
pub struct Kind {
    /// How the tables and SPECIFICATION.md call it.
    pub name: &'static str,
    is_ours: bool,
    is_reusing: bool,
}

/// The model, which every other kind is compared with.
pub const MODEL: &str = "wasmtime";

/// Every kind.
pub const KINDS: [Kind; 4] = [
    Kind {
        name: MODEL,
        is_ours: false,
        is_reusing: false,
    },
    Kind {
        name: "http",
        is_ours: true,
        is_reusing: false,
    },
    Kind {
        name: "wasmtime-reuse",
        is_ours: false,
        is_reusing: true,
    },
    Kind {
        name: "http-reuse",
        is_ours: true,
        is_reusing: true,
    },
];

/// A server that answers.
pub struct Server<'a> {
    /// Its port on this machine.
    pub port: u16,
    held: Held<'a>,
}

enum Held<'a> {
    Container(Box<Container<'a>>),
    Process(Process),
}

/// A process that ends when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Server<'a> {
    /// Starts a server of this kind. Returns it when it has answered a request, and how many
    /// milliseconds that took.
    ///
    /// # Errors
    /// It does not start, or not in time.
    pub fn start(from: Sources<'a>, kind: &Kind) -> Result<(Self, f64)> {
        let port = free_port()?;
        let (held, begin) = match kind.is_ours {
            true => {
                let mut builder = from
                    .engine
                    .container(from.rootfs)
                    .args([GUEST])
                    .env("PORT", &port.to_string())
                    .host_network();
                if kind.is_reusing {
                    builder = builder.env("LIGHTER_HTTP_REUSE", REUSE);
                }
                let begin = Instant::now();
                let container = builder.create()?;
                container.start()?;
                (Held::Container(Box::new(container)), begin)
            }
            false => {
                let begin = Instant::now();
                let mut command = Command::new(from.wasmtime.program());
                command.args(["serve", "-Scli", "--allow-precompiled", "--addr"]);
                command.arg(format!("127.0.0.1:{port}"));
                if kind.is_reusing {
                    command.args(["--max-instance-reuse-count", REUSE]);
                }
                command.arg(from.precompiled);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let child = command.spawn().context("start wasmtime serve")?;
                (Held::Process(Process(child)), begin)
            }
        };
        let server = Self { port, held };
        while server.ask().is_err() {
            ensure!(begin.elapsed() < PATIENCE, "{} does not answer", kind.name);
            thread::sleep(Duration::from_micros(200));
        }
        Ok((server, begin.elapsed().as_secs_f64() * 1000.0))
    }

    fn ask(&self) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(())
    }

    /// Kilobytes of memory (PSS) of all processes that are there for it.
    ///
    /// # Errors
    /// One of them cannot be looked at.
    pub fn memory(&self) -> Result<f64> {
        let pids = match &self.held {
            Held::Container(container) => memory::processes(container.id(), container)?,
            Held::Process(process) => BTreeSet::from([process.0.id()]),
        };
        pids.into_iter().map(memory::pss).sum()
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end, or leaves something behind.
    pub fn end(self) -> Result<()> {
        if let Held::Container(container) = self.held {
            container.kill(Signal::SIGKILL)?;
            container.finish()?;
        }
        Ok(())
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
