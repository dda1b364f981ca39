//! The zygote: a process with one thread, cloned from the daemon before that has more. One that dies
//! is replaced by another run of the shim's program, as the daemon must not be cloned any more.
//!
//! It waits for requests and clones a helper for each, as the daemon's child, so that one that
//! hangs in a hook or dies harms no other. The helper uses libcontainer, which clones the
//! container's init, again as the daemon's child. See [`crate::helper`].

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, setgroups};
use pathrs::procfs::ProcfsHandle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Restore};
use crate::exec::Exec;
use crate::guest::Guests;
use crate::message::{self, AsyncSocket};
use crate::orphan::Orphan;
use crate::pod::Pod;
use crate::rootfs::Mount;
use crate::{cgroup, helper, limit, sys};

/// Which container, and where libcontainer keeps its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The container's id.
    pub id: String,
    /// The folder that holds a folder of state a container.
    pub root: PathBuf,
}

/// A container whose init has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The container.
    pub(crate) target: Target,
    /// Whether all of its processes have ended with the init.
    pub(crate) owned_pid_namespace: bool,
}

/// What is asked of the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Build a container up to where the OCI runtime spec says "created". Descriptors: the
    /// init's socket to the daemon, the birthmark, and, without a terminal, the init's stdin,
    /// stdout and stderr.
    Create(Create),
    /// Add a process to a container. Descriptors: the process's socket to the daemon, the pidfd of
    /// the container's init, and, without a terminal, the process's stdin, stdout and stderr.
    Exec {
        /// The process.
        exec: Box<Exec>,
        /// The pid of the container's init.
        init: i32,
    },
    /// Let a created container's init run its entrypoint, and run the hooks that come then.
    Start(Target),
    /// Make a checkpoint of a container.
    Checkpoint {
        /// What is to be made.
        checkpoint: Checkpoint,
        /// The pid of the container's init.
        init: i32,
    },
    /// Free everything of a container whose init has ended.
    Delete(Ended),
    /// Free what there is of a container whose helper was killed while it built it.
    Clear(Orphan),
    /// Make a pod's files and namespaces. Descriptor: the birthmark.
    Pod(Pod),
    /// Make a pod's pid namespace with its init. Descriptor: the birthmark.
    PodInit(Pod),
}

/// The container to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// Its id, and where its state goes.
    pub target: Target,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The mounts that make up its root file system, on the bundle's mount point; empty where it
    /// is there already.
    pub mounts: Vec<Mount>,
    /// Whether its process gets a terminal.
    pub terminal: bool,
    /// Whether its cgroup is named as the systemd driver names them, and made by systemd where that can be ([`Create::by_systemd`]).
    pub systemd_cgroup: bool,
    /// Whether to move the root mount (`MS_MOVE`) where pivot_root(2) does not work, as on a ramdisk.
    pub no_pivot_root: bool,
    /// The name of its processes' session keyring ([`keyring_name`](crate::keyring_name)); without one they have the daemon's.
    pub keyring: Option<String>,
    /// Its settings for guests, in the words of whoever implements [`Guests`].
    pub guest: String,
    /// The pod that it belongs to, if its sandbox has no container.
    pub pod: Option<Pod>,
    /// The checkpoint that it is to be restored from, if it is. Then its processes stand still
    /// once it is created.
    pub restore: Option<Restore>,
}

impl Create {
    /// Whether systemd makes the container's cgroup. On v1 it is folders like any other's, at the places where systemd would make them.
    pub(crate) fn by_systemd(&self) -> bool {
        self.systemd_cgroup && !cgroup::is_v1()
    }
}

/// What there is to know of a created container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Created {
    /// The pid of its init.
    pub(crate) pid: i32,
    /// Whether hooks run once it has started (`poststart`).
    pub(crate) has_hooks: bool,
    /// Whether all of its processes end with the init.
    pub(crate) owns_pid_namespace: bool,
}

/// What the zygote's helpers answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The container is created; the master of its terminal, if it has one, comes along.
    Created(Created),
    /// The process, such as a pod's init, is added, and this is its pid; a pidfd of it comes along,
    /// and the master of its terminal, if it has one.
    Added(i32),
    /// It is done.
    Done,
    /// It failed, and why.
    Failed(String),
}

/// The action of the shim's program by which it becomes a zygote.
pub const ZYGOTE_ACTION: &str = "zygote";

/// How soon after a zygote's death its successor's is looked for, so that zygotes that cannot live
/// do not keep the machine busy.
const PAUSE: Duration = Duration::from_secs(1);

/// For how long nothing must come until a zygote does what is for later, and gives back what it took to begin.
const CALM: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What the daemon says to whoever begins with a request.
const BEGIN: () = ();

/// How often a request is sent before it is given up, as all who were to do it are killed before
/// they begin.
const ATTEMPTS: usize = 5;

/// Clones the first zygote; it makes its `guests` itself, and calls `orphaned` when the daemon has
/// ended, however it did. To be called while the process has one thread and no descriptors open
/// that a container must not inherit; its stdin and stdout are replaced by /dev/null. Returns the
/// socket for [`Zygote::watch`].
///
/// # Errors
/// When the process has more threads, or cannot be cloned.
pub fn clone_zygote<G>(guests: G, orphaned: impl FnOnce()) -> io::Result<OwnedFd>
where
    G: FnOnce() -> Result<Rc<dyn Guests>, String>,
{
    let (ours, theirs) = message::pair()?;
    match sys::fork_single_threaded()? {
        Some(_) => Ok(ours),
        None => {
            drop(ours);
            if let Err(error) = run_zygote(theirs, guests) {
                log::error!("the zygote: {error}");
            }
            orphaned();
            sys::exit_now(0)
        }
    }
}

/// Is the zygote of the daemon at the other end of `socket`, until that has ended. The process has
/// one thread; its stdin and stdout are replaced by /dev/null.
///
/// # Errors
/// When it cannot begin.
pub fn run_zygote<G>(socket: OwnedFd, guests: G) -> io::Result<()>
where
    G: FnOnce() -> Result<Rc<dyn Guests>, String>,
{
    sys::stdio_from_null()?;
    let _ = prctl::set_name(c"lighter-zygote");
    // Containers get what their specs say, and nothing of what containerd was started with: nobody else clears the groups, and
    // runc has this mask as well.
    if let Err(error) = setgroups(&[]) {
        log::warn!("giving up supplementary groups: {error}");
    }
    umask(Mode::from_bits_truncate(0o022));
    // Who has made the pair of sockets.
    let daemon = Pid::from_raw(socket_peercred(&socket)?.pid.as_raw_pid());
    let guests = guests();
    // Known to all that it clones.
    cgroup::look_for_mounts();
    let _ = sys::find_arguments();
    // libcontainer reads /proc through a mount of its own, which the library keeps: made here it is
    // made, and taken down, once, not in every helper. Without it they make theirs.
    let _ = ProcfsHandle::new();
    // So that what it clones begins with little.
    sys::trim_heap();
    serve(socket, daemon, &guests);
    // It goes with the process, and so sooner.
    mem::forget(guests);
    Ok(())
}

/// The daemon's handle on its zygote, and on those that follow one that died.
pub struct Zygote {
    socket: Mutex<Arc<AsyncSocket>>,
    successor: Box<dyn Fn() -> io::Result<Command> + Send + Sync>,
}

impl Zygote {
    /// Watches over the zygote at the other end of `first`, in the running tokio runtime, whose
    /// tasks must all be on the thread that is the daemon's first: to the kernel what a zygote
    /// clones are the children of the thread that started it, which are killed when that ends
    /// (`PR_SET_PDEATHSIG`). `successor` is a command that becomes a zygote with
    /// [`run_zygote`], whose socket is its stdin.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn watch<S>(first: OwnedFd, successor: S) -> io::Result<Arc<Self>>
    where
        S: Fn() -> io::Result<Command> + Send + Sync + 'static,
    {
        let zygote = Arc::new(Self {
            socket: Mutex::new(Arc::new(AsyncSocket::new(first)?)),
            successor: Box::new(successor),
        });
        tokio::spawn(zygote.clone().keep());
        Ok(zygote)
    }

    /// Replaces each zygote that dies.
    async fn keep(self: Arc<Self>) {
        loop {
            let socket = self.socket().clone();
            // It says nothing by itself: what comes is its end.
            let _ = socket.receive::<()>().await;
            if let Err(error) = self.replace(&socket) {
                log::error!("{error}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The socket to a successor of the zygote that was at `dead`, which others may have started.
    fn replace(&self, dead: &Arc<AsyncSocket>) -> io::Result<Arc<AsyncSocket>> {
        let mut current = self.socket();
        if Arc::ptr_eq(&current, dead) {
            let start = || -> io::Result<AsyncSocket> {
                let (ours, theirs) = message::pair()?;
                // The reaper waits for it.
                let successor = (self.successor)()?.stdin(theirs).spawn()?;
                limit::restore(successor.id());
                AsyncSocket::new(ours)
            };
            let started = start().map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("the zygote has died, and starting another failed: {error}"),
                )
            })?;
            *current = Arc::new(started);
            log::warn!("the zygote has died; another one has been started");
        }
        Ok(current.clone())
    }

    fn socket(&self) -> MutexGuard<'_, Arc<AsyncSocket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        for _ in 0..ATTEMPTS {
            let (ours, theirs) = message::pair()?;
            // Who begins takes this; a socket that is closed with it unread resets the connection.
            message::send(&ours, &BEGIN, &[])?;
            let mut all = vec![theirs.as_fd()];
            all.extend_from_slice(fds);
            let socket = self.socket().clone();
            match socket.send_large(request, &all).await {
                Err(error) if is_gone(&error) => {
                    self.replace(&socket)?.send_large(request, &all).await?;
                }
                sent => sent?,
            }
            drop(theirs);
            match AsyncSocket::new(ours)?.receive().await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {
                    return Err(io::Error::other(
                        "the process that was to do it was killed before it answered; the shim's log may say more",
                    ));
                }
                // Whoever had it was killed before it was begun.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(
            "whatever process was to do it was killed before it began; the shim's log may say more",
        ))
    }
}

/// Takes the word of the daemon that a request may begin, which waits at `reply_to`.
fn begin(reply_to: &OwnedFd) {
    if let Err(error) = message::receive::<()>(reply_to) {
        log::warn!("the daemon does not say that a request may begin: {error}");
    }
}

/// Whether sending or receiving failed as there is nobody at the other end.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Whether nothing comes for a while.
fn is_calm(socket: &OwnedFd) -> bool {
    let mut coming = [PollFd::new(socket, PollFlags::IN)];
    matches!(poll(&mut coming, Some(&CALM)), Ok(0))
}

/// Answers requests until the daemon has ended.
fn serve(socket: OwnedFd, daemon: Pid, guests: &Result<Rc<dyn Guests>, String>) {
    let mut settled = false;
    // What it asked for before it ended is not to be done: nobody waits for it any more.
    while Pid::parent() == daemon {
        if !settled && is_calm(&socket) {
            if let Ok(guests) = guests {
                guests.settle();
            }
            sys::trim_memory();
            settled = true;
        }
        let (request, fds): (Request, _) = match message::receive_large(&socket) {
            Ok(Some(received)) => received,
            Ok(None) => return,
            Err(error) => {
                log::error!("the zygote cannot read a request: {error}");
                continue;
            }
        };
        let mut fds = fds.into_iter();
        let Some(reply_to) = fds.next() else {
            log::error!("the zygote got a request that nobody waits for");
            continue;
        };
        match sys::clone_sibling() {
            Ok(Some(_)) => {}
            Ok(None) => {
                // Its end tells the daemon of the zygote's.
                drop(socket);
                // The helper must not outlive the daemon, which is its parent.
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                if Pid::parent() != daemon {
                    sys::exit_now(1);
                }
                let _ = prctl::set_name(c"lighter-helper");
                begin(&reply_to);
                let (reply, fds) =
                    helper::run(request, fds.collect(), guests, reply_to.as_raw_fd());
                let fds: Vec<BorrowedFd> = fds.iter().map(OwnedFd::as_fd).collect();
                if let Err(error) = message::send(&reply_to, &reply, &fds) {
                    log::error!("nobody takes the answer {reply:?}: {error}");
                }
                sys::exit_now(0);
            }
            Err(error) => {
                begin(&reply_to);
                let reply = Reply::Failed(format!("no process could be made: {error}"));
                // The daemon sees the socket's end at worst.
                let _ = message::send(&reply_to, &reply, &[]);
            }
        }
    }
}
