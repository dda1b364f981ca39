//! The zygote: a process with one thread, cloned from the daemon before that has more.
//!
//! It waits for requests and clones a helper for each, as the daemon's child, so that one that
//! hangs in a hook or dies harms no other. The helper uses libcontainer, which clones the
//! container's init, again as the daemon's child. See [`crate::helper`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Restore};
use crate::exec::Exec;
use crate::guest::Guests;
use crate::message::{self, AsyncSocket};
use crate::pod::Pod;
use crate::rootfs::Mount;
use crate::{helper, sys};

/// Which container, and where libcontainer keeps its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The container's id.
    pub id: String,
    /// The folder that holds a folder of state a container.
    pub root: PathBuf,
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
    /// Let a created container's init run its entrypoint.
    Start(Target),
    /// Make a checkpoint of a container.
    Checkpoint {
        /// What is to be made.
        checkpoint: Checkpoint,
        /// The pid of the container's init.
        init: i32,
    },
    /// Free everything of a container whose init has ended.
    Delete(Target),
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
    /// Whether systemd makes its cgroup.
    pub systemd_cgroup: bool,
    /// Whether to move the root mount (`MS_MOVE`) where pivot_root(2) does not work, as on a ramdisk.
    pub no_pivot_root: bool,
    /// The pod that it belongs to, if its sandbox has no container.
    pub pod: Option<Pod>,
    /// The checkpoint that it is to be restored from, if it is. Then its processes stand still
    /// once it is created.
    pub restore: Option<Restore>,
}

/// What the zygote's helpers answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The container is created, and this is its init; the master of its terminal, if it has one,
    /// comes along.
    Created(i32),
    /// The process, such as a pod's init, is added, and this is its pid; a pidfd of it comes along,
    /// and the master of its terminal, if it has one.
    Added(i32),
    /// It is done.
    Done,
    /// It failed, and why.
    Failed(String),
}

/// The daemon's handle on the zygote, which ends when this is dropped.
pub struct Zygote {
    socket: OwnedFd,
    pid: Pid,
}

impl Zygote {
    /// Clones the zygote; it makes its `guests` itself, and calls `orphaned` when the daemon has
    /// ended, however it did. To be called while the process has one thread and no descriptors
    /// open that a container must not inherit; its stdin and stdout are replaced by /dev/null.
    ///
    /// # Errors
    /// When the process has more threads, or cannot be cloned.
    pub fn spawn<G>(guests: G, orphaned: impl FnOnce()) -> io::Result<Self>
    where
        G: FnOnce() -> Result<Rc<dyn Guests>, String>,
    {
        let (ours, theirs) = message::pair()?;
        let daemon = Pid::this();
        match sys::fork_single_threaded()? {
            Some(pid) => Ok(Self { socket: ours, pid }),
            None => {
                drop(ours);
                if let Err(error) = sys::stdio_from_null() {
                    log::error!("the zygote cannot give up its stdio: {error}");
                    sys::exit_now(1);
                }
                let _ = prctl::set_name(c"lighter-zygote");
                serve(&theirs, daemon, guests());
                orphaned();
                sys::exit_now(0)
            }
        }
    }

    /// The zygote's pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) async fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let (ours, theirs) = message::pair()?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        message::send(&self.socket, request, &all).map_err(|error| {
            io::Error::new(error.kind(), format!("the zygote is gone: {error}"))
        })?;
        drop(theirs);
        match AsyncSocket::new(ours)?.receive().await? {
            Some(answer) => Ok(answer),
            None => Err(io::Error::other(
                "the process that was to do it died before it answered; the shim's log may say why",
            )),
        }
    }
}

/// Answers requests until the daemon has ended.
fn serve(socket: &OwnedFd, daemon: Pid, guests: Result<Rc<dyn Guests>, String>) {
    // What it asked for before it ended is not to be done: nobody waits for it any more.
    while Pid::parent() == daemon {
        let (request, fds): (Request, _) = match message::receive(socket) {
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
                // The helper must not outlive the daemon, which is its parent.
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                if Pid::parent() != daemon {
                    sys::exit_now(1);
                }
                let _ = prctl::set_name(c"lighter-helper");
                let (reply, fds) = helper::run(request, fds.collect(), &guests);
                let fds: Vec<BorrowedFd> = fds.iter().map(OwnedFd::as_fd).collect();
                if let Err(error) = message::send(&reply_to, &reply, &fds) {
                    log::error!("nobody takes the answer {reply:?}: {error}");
                }
                sys::exit_now(0);
            }
            Err(error) => {
                let reply = Reply::Failed(format!("no process could be made: {error}"));
                // The daemon sees the socket's end at worst.
                let _ = message::send(&reply_to, &reply, &[]);
            }
        }
    }
}
