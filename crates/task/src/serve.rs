//! The daemon: serves the tasks of one group until containerd shuts it down.

use std::cell::Cell;
use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use container::{Capturing, Reaper, ZYGOTE_ACTION, Zygote};
use containerd_shim::Flags;
use containerd_shim::logger::FifoLogger;
use containerd_shim::protos::sandbox_async::create_sandbox;
use containerd_shim::protos::shim_async::create_task;
use containerd_shim::protos::ttrpc::r#async::Server;
use containerd_shim::protos::ttrpc::r#async::transport::Listener;
use log::LevelFilter;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::Daemon;
use crate::departure::Departure;
use crate::events::Publisher;
use crate::group::Kind;
use crate::guests::{Caches, guests};
use crate::images::Images;
use crate::logs::{self, Logs};
use crate::sandbox::Slot;
use crate::sandbox_service::SandboxService;
use crate::service::Service;
use crate::socket::{self, SocketFile};
use crate::start::{TASK_V2, TASK_V3, WANTED, placed};

/// Where containerd listens for events: set by it for every shim.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How long the last events may take to be handed over.
const FAREWELL: Duration = Duration::from_secs(10);

/// The arguments by which people and programs know the daemon of `flags`, the program's name first.
pub(crate) fn arguments(flags: &Flags) -> Vec<String> {
    let name = env::args_os().next().unwrap_or_default();
    let mut arguments = vec![name.to_string_lossy().into_owned()];
    for (name, value) in [
        ("-namespace", &flags.namespace),
        ("-id", &flags.id),
        ("-address", &flags.address),
    ] {
        if !value.is_empty() {
            arguments.extend([name.to_owned(), value.clone()]);
        }
    }
    arguments.extend(flags.debug.then(|| "-debug".to_owned()));
    arguments
}

/// Serves until containerd shuts the daemon down, with these `arguments`. stdin is the listening socket, which
/// [`start`](crate::start) has made; the descriptor of stdout is where that says that containerd
/// knows of it.
///
/// # Errors
/// What keeps the daemon from serving.
pub(crate) fn serve(flags: &Flags, arguments: Vec<String>) -> io::Result<()> {
    container::close_inherited();
    let bundle = env::current_dir()?;
    // The bundle may go while others of its group are there.
    env::set_current_dir("/")?;
    let (logged, log) = logs::pipe()?;
    let log = File::from(OwnedFd::from(log));
    log_to(&log, flags)?;
    let file = SocketFile::of(&listener()?)?;
    let kind = wait_until_placed().inspect_err(|_| file.remove())?;
    let left = file.clone();
    // The daemon's alone.
    let logged = Rc::new(Cell::new(Some(logged)));
    let zygotes = logged.clone();
    let guests_of_zygote = move || {
        drop(zygotes.take());
        guests()
    };
    // The zygote knows then, too.
    container::cgroup::look_for_mounts();
    // The one moment at which there is one thread and nothing open but stdio and the log.
    let zygote = container::clone_zygote(guests_of_zygote, move || left.remove())?;
    container::raise_descriptor_limit();
    container::adopt_orphans();
    container::share_arena();
    container::cgroup::expect_move();
    let listener = listener()?;
    let is_wanted = io::stdout().as_fd().try_clone_to_owned()?;
    container::stdio_from_null()?;
    // One thread serves everything; more come and go with blocking calls.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let logged = logged.take();
    let logs = logged.map(|logged| Logs::new(logged, bundle.clone()));
    let logs = logs.ok_or_else(|| io::Error::other("the log's pipe is gone"))?;
    let successor = successor(arguments, &file, log);
    let departure = Departure::new(file.clone(), kind, &bundle);
    let parts = Parts {
        zygote,
        listener,
        is_wanted,
        kind,
        departure: Arc::new(departure),
        logs: logs.clone(),
    };
    let ended = runtime.block_on(run(flags, parts, successor));
    // All that it still has goes with the process, and so sooner: tasks, connections, and a module that is being
    // compiled for nobody.
    mem::forget(runtime);
    if let Err(error) = &ended {
        log::error!("serving: {error}");
        file.remove();
    }
    logs.flush();
    ended
}

/// Makes commands that start a zygote in the place of one that died, with the daemon's `arguments`, its
/// socket, and its log as stdout. See [`zygote`].
fn successor(
    arguments: Vec<String>,
    socket: &SocketFile,
    log: File,
) -> impl Fn() -> io::Result<Command> + Send + Sync + use<> {
    let socket = socket.path().to_owned();
    move || {
        let mut command = Command::new("/proc/self/exe");
        if let Some((name, arguments)) = arguments.split_first() {
            command.arg0(name).args(arguments);
        }
        command
            .arg("-socket")
            .arg(&socket)
            .arg(ZYGOTE_ACTION)
            .stderr(Stdio::null());
        command.stdout(log.try_clone()?);
        Ok(command)
    }
}

/// The action of a zygote that the daemon starts in the place of one that died: stdin is the
/// socket to the daemon, stdout the log.
///
/// # Errors
/// When it cannot begin.
pub fn zygote(flags: &Flags) -> io::Result<()> {
    container::close_inherited();
    let log = io::stdout().as_fd().try_clone_to_owned()?;
    log_to(&log.into(), flags)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    container::run_zygote(socket, guests)?;
    // The daemon has gone, and another may be there already.
    socket::remove_dead(Path::new(&flags.socket)).map(drop)
}

/// Waits for [`placed`]; returns the kind of the daemon's group.
fn wait_until_placed() -> io::Result<Kind> {
    let start = io::stdout().as_fd().try_clone_to_owned()?;
    let mut said = placed(Kind::Container);
    File::from(start)
        .read_exact(&mut said)
        .map_err(|error| io::Error::other(format!("the `start` of this shim has died: {error}")))?;
    let [kind] = said;
    Kind::from_byte(kind).ok_or_else(|| io::Error::other("the `start` of this shim is another's"))
}

/// The listening socket, while it is stdin.
fn listener() -> io::Result<UnixListener> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// What a daemon has when it begins to serve.
struct Parts {
    /// The socket to its zygote.
    zygote: OwnedFd,
    /// Where containerd comes to.
    listener: UnixListener,
    /// Where `start` says that containerd knows of it.
    is_wanted: OwnedFd,
    /// How its containers are found together.
    kind: Kind,
    departure: Arc<Departure>,
    logs: Logs,
}

async fn run(
    flags: &Flags,
    parts: Parts,
    successor: impl Fn() -> io::Result<Command> + Send + Sync + 'static,
) -> io::Result<()> {
    let Parts {
        zygote,
        listener,
        is_wanted,
        kind,
        departure,
        logs,
    } = parts;
    logs.relay()?;
    let address = env::var(TTRPC_ADDRESS)
        .map_err(|_| io::Error::other(format!("{TTRPC_ADDRESS} is not in the environment")))?;
    let reaper = Reaper::start()?;
    let publisher = Publisher::start(address, flags.namespace.clone());
    let daemon = Arc::new(Daemon {
        caches: Caches::new(reaper.clone()),
        images: Images::new(&flags.address, &flags.namespace),
        zygote: Zygote::watch(zygote, successor)?,
        reaper,
        publisher: publisher.clone(),
        logs,
        namespace: flags.namespace.clone(),
        sandbox: Slot::default(),
    });
    let service = Arc::new(Service::new(daemon.clone(), departure.clone()));
    end_if_unwanted(is_wanted, departure.clone())?;

    listener.set_nonblocking(true)?;
    let mut server = Server::new().add_listener(Listener::try_from(listener)?);
    let sandbox = SandboxService::new(daemon, service.clone(), departure.clone());
    server = server.register_service(create_sandbox(Arc::new(sandbox)));
    server = server.register_service(create_task(service.clone()));
    // containerd before 2.0 calls the same service, message for message, by its older name.
    let mut services = create_task(service.clone());
    let v2 = services.remove(TASK_V3).map(|v3| (TASK_V2.to_owned(), v3));
    server = server.register_service(v2.into_iter().collect());
    server.start().await.map_err(io::Error::other)?;

    outlive_signals()?;
    // One whose first container never comes ends as any without containers.
    if kind == Kind::Namespace {
        departure.consider();
    }
    let waiting = departure.clone();
    tokio::spawn(async move { waiting.give_up_first().await });
    departure.left(|| service.is_idle()).await;

    if let Err(error) = server.shutdown().await {
        log::warn!("ending the connections: {error}");
    }
    if tokio::time::timeout(FAREWELL, publisher.flush())
        .await
        .is_err()
    {
        log::error!("containerd did not take the last events in {FAREWELL:?}");
    }
    Ok(())
}

/// Ends the daemon if the `start` that has spawned it died before containerd knew of it.
fn end_if_unwanted(is_wanted: OwnedFd, departure: Arc<Departure>) -> io::Result<()> {
    let mut is_wanted = pipe::Receiver::from_owned_fd(is_wanted)?;
    tokio::spawn(async move {
        if is_wanted.read_exact(&mut [0; WANTED.len()]).await.is_err() {
            log::warn!("the `start` that began this shim was killed: nobody knows of it, it ends");
            departure.dismiss_first();
            departure.consider();
        }
    });
    Ok(())
}

/// SIGTERM and SIGINT do not end a daemon while it has containers: as with the runc shim, only
/// containerd's Shutdown does.
fn outlive_signals() -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                log::info!(
                    "the signal {} is ignored: containerd ends this shim",
                    kind.as_raw_value()
                );
            }
        });
    }
    Ok(())
}

/// Logs to `log`: the pipe of the daemon's [`Logs`].
fn log_to(log: &File, flags: &Flags) -> io::Result<()> {
    let logger = Capturing(FifoLogger::with_file(log.try_clone()?));
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(if flags.debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Info
        });
    }
    Ok(())
}
