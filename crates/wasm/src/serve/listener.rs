//! The server's threads: one that accepts connections and keeps the clock, and those that serve.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use wasmtime::Engine;

use super::awake::Awake;
use super::connection::Protocol;
use super::figures::{Figures, Refusal};
use super::maker::Maker;
use super::scrape;
use super::settings::{Settings, TICK};
use super::shared::{Count, Counted, Shared};
use super::{Guests, Pre, threads};
use crate::guest::{Invocation, tell};
use crate::keyvalue;
use crate::signals;
use crate::state::Common;
use crate::stdio::Output;

/// How often at most it is told that no connection can be accepted: it may be so for long.
const SELDOM: Duration = Duration::from_secs(10);

/// Said to a client over the limit of connections, before its request is read.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 30\r\n\r\ntoo many connections at a time";

/// Serves until SIGTERM or SIGINT and then to the end of the requests that are under way; a second
/// such signal ends the process.
///
/// # Errors
/// Why the server could not be started.
pub(super) fn serve(
    engine: &Engine,
    pre: Pre,
    invocation: &Invocation,
    settings: Settings,
    started: &mut dyn FnMut(Result<(), String>),
) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {error}");
    allow_descriptors();
    let runtime = event_loop().map_err(|error| failed("cannot start an event loop", error))?;
    // While there is one thread, so that no signal is lost.
    let entered = runtime.enter();
    let terminated = signal_stream(Signal::SIGTERM)?;
    let interrupted = signal_stream(Signal::SIGINT)?;
    drop(entered);
    let metrics = settings.set.http.metrics.clone();
    let shared = Arc::new(Shared {
        figures: metrics.is_some().then(Figures::new),
        ..Shared::default()
    });
    let (end, ending) = watch::channel(false);
    let output = || -> io::Result<_> { Ok((Output::stdout()?, Output::stderr()?)) };
    let (stdout, stderr) =
        output().map_err(|error| failed("cannot duplicate its streams", error))?;
    let (invocation, settings) = (Arc::new(invocation.clone()), Arc::new(settings));
    let store = keyvalue::stores(&settings.set.keyvalue, &invocation.env);
    let maker = || Maker {
        engine: engine.clone(),
        invocation: invocation.clone(),
        settings: settings.clone(),
        stdout: stdout.clone(),
        common: Common {
            settings: settings.set.clone(),
            stderr: stderr.clone(),
            store: store(),
        },
        shared: shared.clone(),
        awake: Arc::new(Awake::new()),
    };
    let servers: io::Result<Vec<Server>> = (0..threads())
        .map(|_| Server::start(pre.clone().guests(maker()), ending.clone()))
        .collect();
    let servers = servers.map_err(|error| failed("cannot start a thread", error))?;
    runtime.block_on(async {
        let listener = listen(&settings)
            .map_err(|error| failed(&format!("cannot listen on {}", settings.address), error))?;
        if let Some(place) = &metrics {
            tokio::spawn(scrape::serve(scrape::listen(place)?, shared.clone()));
        }
        tokio::spawn(tick(engine.clone(), shared.instances.clone()));
        started(Ok(()));
        tokio::select! {
            () = accept(listener, &servers, &shared, settings.max_connections) => {}
            () = first(terminated) => {}
            () = first(interrupted) => {}
        }
        // Whoever waits for the container's end waits no longer than for these.
        end.send_replace(true);
        shared.connections.wait_for(false).await;
        Ok::<(), String>(())
    })?;
    for server in servers {
        server.join();
    }
    Ok(())
}

/// Lets this process have as many descriptors open as it may ask for: each connection takes one, and what containers
/// have at first is 1024 mostly.
fn allow_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Without it there are connections that cannot be accepted, which is told.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn event_loop() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn listen(settings: &Settings) -> io::Result<TcpListener> {
    let socket = match settings.address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(settings.address)?;
    socket.listen(settings.backlog)
}

/// From here on `kind` is no longer the process's end but one of its events, and a second one is
/// its end again.
fn signal_stream(kind: Signal) -> Result<tokio::signal::unix::Signal, String> {
    let stream = || -> io::Result<_> {
        signals::take_over(kind, || signal(SignalKind::from_raw(kind as i32)))
    };
    stream().map_err(|error| format!("cannot wait for {kind}: {error}"))
}

async fn first(mut signals: tokio::signal::unix::Signal) {
    signals.recv().await;
    tokio::spawn(async move {
        if signals.recv().await.is_some() {
            std::process::exit(0);
        }
    });
}

/// Keeps wasmtime's clock while there are instances that could look at it.
async fn tick(engine: Engine, instances: Arc<Count>) {
    loop {
        instances.wait_for_next().await;
        tokio::time::sleep(TICK).await;
        engine.increment_epoch();
    }
}

/// Hands connections out, each to the thread that has the fewest.
async fn accept(listener: TcpListener, servers: &[Server], shared: &Shared, most: usize) {
    let mut told: Option<Instant> = None;
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly too many open files: some will be closed.
                if told.is_none_or(|told| told.elapsed() > SELDOM) {
                    tell(&format!("accepting a connection: {error}\n"));
                    told = Some(Instant::now());
                }
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let Some(counted) = shared.connections.take(most) else {
            if let Some(figures) = &shared.figures {
                figures.refusals(Refusal::Connections).add(1);
            }
            // It is told if that does not take time.
            let _ = stream.try_write(TOO_MANY_CONNECTIONS);
            let _ = stream.shutdown().await;
            continue;
        };
        if let Some(figures) = &shared.figures {
            figures.connections.add(1);
        }
        let server = servers.iter().min_by_key(|server| server.connections.now());
        if let Some(server) = server {
            server.take(stream, counted);
        }
    }
}

/// A thread that serves.
struct Server {
    thread: JoinHandle<()>,
    given: mpsc::UnboundedSender<Given>,
    connections: Arc<Count>,
}

/// A connection on its way to its thread.
struct Given {
    stream: std::net::TcpStream,
    counted: [Option<Counted>; 2],
}

impl Server {
    fn start(guests: Guests, ending: watch::Receiver<bool>) -> io::Result<Self> {
        let (given, mut taken) = mpsc::unbounded_channel::<Given>();
        let runtime = event_loop()?;
        let connections = guests.maker().awake.connections.clone();
        let work = async move {
            let protocol = Arc::new(Protocol::new(&guests.maker().settings));
            guests.prepare();
            while let Some(Given { stream, counted }) = taken.recv().await {
                // It was made by this program's other event loop and is in order.
                let Ok(stream) = TcpStream::from_std(stream) else {
                    continue;
                };
                let (protocol, guests) = (protocol.clone(), guests.clone());
                let ending = ending.clone();
                tokio::spawn(async move {
                    protocol.serve(stream, guests, ending).await;
                    drop(counted);
                });
            }
        };
        let thread = thread::Builder::new()
            .name("http".into())
            .spawn(move || runtime.block_on(work))?;
        Ok(Self {
            thread,
            given,
            connections,
        })
    }

    fn take(&self, stream: TcpStream, counted: Counted) {
        // Small pieces of a response are sent at once.
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.into_std() {
            let ours = self.connections.take(usize::MAX);
            // The thread is there for as long as this is.
            let _ = self.given.send(Given {
                stream,
                counted: [Some(counted), ours],
            });
        }
    }

    /// Waits for the thread's end; it has no connections.
    fn join(self) {
        drop(self.given);
        let _ = self.thread.join();
    }
}
