//! The daemon's side of a container's life: building it, letting it run, adding processes, freeing it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::blocking::blocking;
use crate::cgroup::{self, Cgroup};
use crate::checkpoint::Checkpoint;
use crate::delete::delete_plain;
use crate::exec::Exec;
use crate::given::Given;
use crate::message::{self, AsyncSocket};
use crate::orphan::Orphan;
use crate::program::{FromInit, ToInit};
use crate::stdio::{Console, ProcessStdio};
use crate::zygote::{Create, Created, Ended, Reply, Request, Target, Zygote};
use crate::{birthmark, notify, sys};

/// How long a start waits for the guest's instantiation. One that takes longer is running code
/// of its own (a start function), which makes it as started as any.
const INSTANTIATION: Duration = Duration::from_secs(1);

/// A process in a container: a child of the daemon.
pub struct Process {
    /// Its pid, which may be another's once it has been reaped.
    pub pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// The child `pid`, which may have ended.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped as well.
    pub(crate) fn new(pid: i32) -> io::Result<Self> {
        // It may be a zombie by now, but if it has not been reaped its pid is not another's.
        let handle = rustix::process::Pid::from_raw(pid)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))?;
        Ok(Self {
            pid: Pid::from_raw(pid),
            handle,
        })
    }

    /// Sends the signal numbered `signal` to the process.
    ///
    /// # Errors
    /// `ESRCH` when it has ended and been reaped, `EINVAL` when there is no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::send_signal(self.handle.as_fd(), signal)
    }
}

/// A created container.
pub struct Container {
    target: Target,
    /// Its init process.
    pub init: Process,
    socket: AsyncSocket,
    kind: Kind,
    /// Whether hooks run once it has started.
    has_hooks: bool,
    /// Whether all of its processes end with the init.
    owns_pid_namespace: bool,
}

/// What the init of a container is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A program that the kernel executes.
    Linux,
    /// Wasm.
    Guest,
    /// A program that was restored from a checkpoint, and stands still.
    Restored,
}

/// Wasm that a process in a container is to run.
#[derive(Debug)]
pub enum Module {
    /// An open file of the root file system.
    File {
        /// The file.
        file: File,
        /// Its path in the container, for messages.
        path: String,
    },
    /// Nothing in the root file system; perhaps a layer of the image.
    Layer {
        /// What the process's first argument calls it, without a function.
        name: String,
    },
}

/// Wasm that native code is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// The wasm.
    pub module: Module,
    /// What the code is to be made with.
    pub given: Vec<Given>,
}

impl Container {
    /// Builds a container up to where the OCI runtime spec says "created". `artifact` gives a
    /// module's native code, or nothing where there is no such module. Returns the process's
    /// terminal, too, if it has one.
    ///
    /// # Errors
    /// The reason, with nothing left behind.
    pub async fn create<F>(
        zygote: &Zygote,
        create: Create,
        stdio: ProcessStdio,
        artifact: impl Fn(Wanted) -> F,
    ) -> Result<(Self, Option<Console>), String>
    where
        F: Future<Output = Result<Option<File>, String>>,
    {
        let socket = |error: io::Error| format!("making a socket to the container's init: {error}");
        let (ours, theirs) = message::pair().map_err(socket)?;
        let init = AsyncSocket::new(ours).map_err(socket)?;
        // Held from here on by the message and whoever comes of it.
        let birthmark = birthmark::take(&create.bundle)
            .map_err(|error| format!("locking the bundle: {error}"))?;
        let target = create.target.clone();
        let orphan = Orphan {
            target: target.clone(),
            bundle: create.bundle.clone(),
            systemd_cgroup: create.systemd_cgroup,
            is_begun: true,
        };
        let mut kind = match create.restore {
            Some(_) => Kind::Restored,
            None => Kind::Linux,
        };
        let request = Request::Create(create);
        let mut call = pin!(async {
            let mut fds = vec![theirs.as_fd(), birthmark.as_fd()];
            fds.extend(stdio.streams());
            let answer = zygote.call(&request, &fds).await;
            drop(birthmark);
            match answer {
                Ok(answer) => Ok(answer),
                // Nobody is left who would clean up.
                Err(error) => Err(match free(zygote, &Request::Clear(orphan)).await {
                    Ok(()) => error.to_string(),
                    Err(leftover) => format!("{error}; and {leftover}"),
                }),
            }
        });
        let (mut told, mut given) = (None, Vec::new());
        loop {
            tokio::select! {
                biased;
                said = init.receive() => match said {
                    Ok(Some((FromInit::Failed(reason), _))) => told = Some(reason),
                    said => {
                        if answer(&init, said, &mut given, &artifact).await {
                            kind = Kind::Guest;
                        }
                    }
                },
                reply = &mut call => return match reply? {
                    (Reply::Created(created), fds) => {
                        let master = fds.into_iter().next();
                        Self::created(zygote, target, created, init, master, kind).await
                    }
                    (Reply::Failed(reason), _) => Err(told.unwrap_or(reason)),
                    (Reply::Added(_) | Reply::Done, _) => {
                        Err("the zygote answered a create with something else".to_owned())
                    }
                },
            }
        }
    }

    async fn created(
        zygote: &Zygote,
        target: Target,
        created: Created,
        init: AsyncSocket,
        master: Option<OwnedFd>,
        kind: Kind,
    ) -> Result<(Self, Option<Console>), String> {
        let ended = Ended {
            target,
            owned_pid_namespace: created.owns_pid_namespace,
        };
        // Without a process it has ended, been reaped, and its pid perhaps given to another.
        let taken = Process::new(created.pid)
            .map_err(|error| format!("the container's init ended at once ({error})"))
            .and_then(|process| Ok((process, console(master)?)));
        match taken {
            Ok((process, console)) => {
                let container = Self {
                    target: ended.target,
                    init: process,
                    socket: init,
                    kind,
                    has_hooks: created.has_hooks,
                    owns_pid_namespace: created.owns_pid_namespace,
                };
                Ok((container, console))
            }
            Err(reason) => match free(zygote, &Request::Delete(ended)).await {
                Ok(()) => Err(reason),
                Err(leftover) => Err(format!("{reason}, and left something: {leftover}")),
            },
        }
    }

    /// Lets the container's init run its entrypoint, and waits until it does.
    ///
    /// # Errors
    /// The reason why it does not.
    pub async fn start(&self, zygote: &Zygote) -> Result<(), String> {
        if self.kind == Kind::Restored {
            return self.go_on();
        }
        // A helper runs hooks, and has the words for an init that is not there.
        if self.has_hooks || notify::tell(&self.target).is_err() {
            ask(zygote, &Request::Start(self.target.clone())).await?;
        }
        match tokio::time::timeout(INSTANTIATION, self.socket.receive()).await {
            Ok(Ok(Some((FromInit::Failed(reason), _)))) => Err(reason),
            Ok(Err(error)) => Err(format!("reading from the container's init: {error}")),
            // Started; or the socket was closed by a successful execve(2); or still at it.
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    /// Lets the processes of a restored container go on.
    fn go_on(&self) -> Result<(), String> {
        let go_on = || {
            let cgroup = Cgroup::of(self.init.pid.as_raw() as u32)?;
            cgroup.kill_all(Signal::SIGCONT as i32)
        };
        go_on().map_err(|error: cgroup::Error| error.to_string())
    }

    /// Whether the container's own program is wasm.
    pub fn is_guest(&self) -> bool {
        self.kind == Kind::Guest
    }

    /// Makes a checkpoint of the container, which must run or be frozen, and be no guest's. Where that
    /// fails it goes on as before.
    ///
    /// # Errors
    /// The reason, which is criu's mostly.
    pub async fn checkpoint(&self, zygote: &Zygote, checkpoint: Checkpoint) -> Result<(), String> {
        let init = self.init.pid.as_raw();
        ask(zygote, &Request::Checkpoint { checkpoint, init }).await
    }

    /// Adds a process to the container, which must not have ended, and lets it run. `artifact` is
    /// that of [`Container::create`]. `born` is called with the process, and its terminal if it has
    /// one, as soon as there is one.
    ///
    /// # Errors
    /// Why it does not run; if it was born, it ends by itself.
    pub async fn exec<F>(
        &self,
        zygote: &Zygote,
        exec: Exec,
        stdio: ProcessStdio,
        artifact: impl Fn(Wanted) -> F,
        born: impl FnOnce(Process, Option<Console>),
    ) -> Result<(), String>
    where
        F: Future<Output = Result<Option<File>, String>>,
    {
        let socket = |error: io::Error| format!("making a socket to the process: {error}");
        let (ours, theirs) = message::pair().map_err(socket)?;
        let ours = AsyncSocket::new(ours).map_err(socket)?;
        let request = Request::Exec {
            exec: Box::new(exec),
            init: self.init.pid.as_raw(),
        };
        let mut fds = vec![theirs.as_fd(), self.init.handle.as_fd()];
        fds.extend(stdio.streams());
        let replied = zygote.call(&request, &fds).await;
        let (reply, fds) = replied.map_err(|error| error.to_string())?;
        let mut fds = fds.into_iter();
        match (reply, fds.next()) {
            (Reply::Added(pid), Some(handle)) => {
                let process = Process {
                    pid: Pid::from_raw(pid),
                    handle,
                };
                match console(fds.next()) {
                    Ok(console) => born(process, console),
                    Err(reason) => {
                        // It may be gone already.
                        let _ = process.signal(Signal::SIGKILL as i32);
                        born(process, None);
                        return Err(reason);
                    }
                }
            }
            (Reply::Failed(reason), _) => return Err(reason),
            _ => return Err("the zygote answered an exec with something else".to_owned()),
        }
        // Only the process has them now.
        drop((theirs, stdio));
        let (mut said, mut given) = (ours.receive().await, Vec::new());
        while let Ok(Some((asked, _))) = &said {
            let is_asking = match asked {
                FromInit::Given { .. } => false,
                FromInit::Wasm { .. } | FromInit::Absent { .. } => true,
                FromInit::Started | FromInit::Failed(_) => break,
            };
            answer(&ours, said, &mut given, &artifact).await;
            if !is_asking {
                said = ours.receive().await;
                continue;
            }
            said = match tokio::time::timeout(INSTANTIATION, ours.receive()).await {
                Ok(said) => said,
                Err(_) => return Ok(()),
            };
        }
        match said {
            Ok(Some((FromInit::Failed(reason), _))) => Err(reason),
            Err(error) => Err(format!("reading from the process: {error}")),
            // Instantiated; or the socket was closed by a successful execve(2).
            Ok(_) => Ok(()),
        }
    }

    /// Frees everything of the container but its root file system's mounts. Its init must have
    /// ended; other processes of it are killed. Who has come into its cgroup when no process of it was left stays there.
    ///
    /// # Errors
    /// What could not be freed, and why.
    pub async fn delete(&self, zygote: &Zygote) -> Result<(), String> {
        let ended = Ended {
            target: self.target.clone(),
            owned_pid_namespace: self.owns_pid_namespace,
        };
        let plain = ended.clone();
        // A helper is cloned only where there is work for one.
        if let Ok(Some(deleted)) = blocking(move || delete_plain(&plain)).await {
            return deleted;
        }
        free(zygote, &Request::Delete(ended)).await
    }
}

/// The terminal of this master, if there is one, in the daemon's hands.
fn console(master: Option<OwnedFd>) -> Result<Option<Console>, String> {
    master
        .map(Console::new)
        .transpose()
        .map_err(|error| format!("serving the process's terminal: {error}"))
}

/// Has `request` free something. What one helper has not done before it was killed, the next does.
async fn free(zygote: &Zygote, request: &Request) -> Result<(), String> {
    match zygote.call(request, &[]).await {
        Ok((Reply::Failed(reason), _)) => Err(reason),
        Ok(_) => Ok(()),
        Err(error) => {
            log::warn!("{request:?} is tried again: {error}");
            ask(zygote, request).await
        }
    }
}

async fn ask(zygote: &Zygote, request: &Request) -> Result<(), String> {
    match zygote.call(request, &[]).await {
        Ok((Reply::Failed(reason), _)) => Err(reason),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Answers what a process has asked; whether it has been sent native code. What it gives is kept in
/// `given` for what it asks next.
async fn answer<F>(
    init: &AsyncSocket,
    asked: io::Result<Option<(FromInit, Vec<OwnedFd>)>>,
    given: &mut Vec<Given>,
    artifact: &impl Fn(Wanted) -> F,
) -> bool
where
    F: Future<Output = Result<Option<File>, String>>,
{
    let module = match asked {
        Ok(Some((FromInit::Wasm { path }, fds))) => match fds.into_iter().next() {
            Some(file) => Ok(Module::File {
                file: File::from(file),
                path,
            }),
            None => Err("the container's init sent no file".to_owned()),
        },
        Ok(Some((FromInit::Absent { name }, _))) => Ok(Module::Layer { name }),
        Ok(Some((FromInit::Given { paths }, fds))) => {
            let files = paths.into_iter().zip(fds);
            given.extend(files.map(|(path, fd)| Given {
                path,
                file: File::from(fd),
            }));
            return false;
        }
        // The daemon holds the other end itself until the create is over.
        Ok(None) => return false,
        Ok(Some((other, _))) => {
            log::warn!("a container's init said {other:?} before its start");
            return false;
        }
        Err(error) => {
            log::warn!("listening to a container's init: {error}");
            return false;
        }
    };
    let made = match module {
        Ok(module) => {
            let given = std::mem::take(given);
            artifact(Wanted { module, given }).await
        }
        Err(reason) => Err(reason),
    };
    let sent = match &made {
        Ok(Some(file)) => init.send(&ToInit::Artifact, &[file.as_fd()]).await,
        Ok(None) => init.send(&ToInit::Absent, &[]).await,
        Err(reason) => init.send(&ToInit::Refused(reason.clone()), &[]).await,
    };
    if let Err(error) = sent {
        // The init fails then, and the zygote's reply says how.
        log::warn!("talking to a container's init: {error}");
    }
    matches!(made, Ok(Some(_)))
}
