//! The daemon: serves the tasks of one group until containerd shuts it down.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
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
use tokio::sync::Notify;

use crate::daemon::Daemon;
use crate::events::Publisher;
use crate::guests::{Caches, guests};
use crate::images::Images;
use crate::sandbox::Slot;
use crate::sandbox_service::SandboxService;
use crate::service::Service;
use crate::socket::{self, SocketFile};
use crate::start::{PLACED, TASK_V2, TASK_V3, WANTED};

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
    let log = OpenOptions::new().write(true).open("log").ok();
    log_to(log.as_ref(), flags)?;
    let file = SocketFile::of(&listener()?)?;
    wait_until_placed().inspect_err(|_| file.remove())?;
    let left = file.clone();
    // The one moment at which there is one thread and nothing open but stdio and the log.
    let zygote = container::clone_zygote(guests, move || left.remove())?;
    container::cgroup::expect_move();
    let listener = listener()?;
    let is_wanted = io::stdout().as_fd().try_clone_to_owned()?;
    container::stdio_from_null()?;
    // One thread serves everything; more come and go with blocking calls.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    let successor = successor(arguments, &file, log);
    let ended = runtime.block_on(run(flags, zygote, successor, listener, is_wanted));
    // A module that is being compiled for nobody ends with the daemon, and is not waited for.
    runtime.shutdown_background();
    ended?;
    file.remove();
    Ok(())
}

/// Makes commands that start a zygote in the place of one that died, with the daemon's `arguments`, its
/// socket, and its log as stdout. See [`zygote`].
fn successor(
    arguments: Vec<String>,
    socket: &SocketFile,
    log: Option<File>,
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
        match &log {
            Some(log) => command.stdout(log.try_clone()?),
            None => command.stdout(Stdio::null()),
        };
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
    log_to(Some(&log.into()), flags)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    container::run_zygote(socket, guests)?;
    // The daemon has gone, and another may be there already.
    socket::remove_dead(Path::new(&flags.socket))
}

/// Waits for [`PLACED`].
fn wait_until_placed() -> io::Result<()> {
    let start = io::stdout().as_fd().try_clone_to_owned()?;
    let mut said = [0; PLACED.len()];
    File::from(start)
        .read_exact(&mut said)
        .map_err(|error| io::Error::other(format!("the `start` of this shim has died: {error}")))
}

/// The listening socket, while it is stdin.
fn listener() -> io::Result<UnixListener> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

async fn run(
    flags: &Flags,
    zygote: OwnedFd,
    successor: impl Fn() -> io::Result<Command> + Send + Sync + 'static,
    listener: UnixListener,
    is_wanted: OwnedFd,
) -> io::Result<()> {
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
        namespace: flags.namespace.clone(),
        sandbox: Slot::default(),
    });
    let ended = Arc::new(Notify::new());
    let service = Arc::new(Service::new(daemon.clone(), ended.clone()));
    end_if_unwanted(is_wanted, service.clone())?;

    listener.set_nonblocking(true)?;
    let mut server = Server::new().add_listener(Listener::try_from(listener)?);
    let sandbox = SandboxService::new(daemon, service.clone(), ended.clone());
    server = server.register_service(create_sandbox(Arc::new(sandbox)));
    server = server.register_service(create_task(service.clone()));
    // containerd before 2.0 calls the same service, message for message, by its older name.
    let mut services = create_task(service);
    let v2 = services.remove(TASK_V3).map(|v3| (TASK_V2.to_owned(), v3));
    server = server.register_service(v2.into_iter().collect());
    server.start().await.map_err(io::Error::other)?;

    outlive_signals()?;
    ended.notified().await;

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
fn end_if_unwanted(is_wanted: OwnedFd, service: Arc<Service>) -> io::Result<()> {
    let mut is_wanted = pipe::Receiver::from_owned_fd(is_wanted)?;
    tokio::spawn(async move {
        if is_wanted.read_exact(&mut [0; WANTED.len()]).await.is_err() {
            log::warn!("the `start` that began this shim was killed: nobody knows of it, it ends");
            service.end_if_idle();
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

/// Logs to `log`: the FIFO that containerd has put into the bundle. Without one, as when the daemon
/// is started by hand, there is no log.
fn log_to(log: Option<&File>, flags: &Flags) -> io::Result<()> {
    let Some(log) = log else {
        return Ok(());
    };
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
