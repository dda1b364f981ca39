//! The daemon's side of a container's life: building it, letting it run, freeing it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::init::{FromInit, ToInit};
use crate::message::{self, AsyncSocket};
use crate::stdio::ContainerStdio;
use crate::zygote::{Create, Reply, Request, Target, Zygote};
use crate::{birthmark, sys};

/// How long a start waits for the guest's instantiation. One that takes longer is running code
/// of its own (a start function), which makes it as started as any.
const INSTANTIATION: Duration = Duration::from_secs(1);

/// A created container.
pub struct Container {
    target: Target,
    /// Its init process, a child of the daemon.
    pub pid: Pid,
    handle: OwnedFd,
    init: AsyncSocket,
}

impl Container {
    /// Builds a container up to where the OCI runtime spec says "created". `artifact` turns an
    /// open wasm file, and its path for messages, into its native code.
    ///
    /// # Errors
    /// The reason, with nothing left behind.
    pub async fn create<F>(
        zygote: &Zygote,
        create: Create,
        stdio: ContainerStdio,
        artifact: impl Fn(File, String) -> F,
    ) -> Result<Self, String>
    where
        F: Future<Output = Result<File, String>>,
    {
        let socket = |error: io::Error| format!("making a socket to the container's init: {error}");
        let (ours, theirs) = message::pair().map_err(socket)?;
        let init = AsyncSocket::new(ours).map_err(socket)?;
        // Held from here on by the message and whoever comes of it.
        let birthmark = birthmark::take(&create.bundle)
            .map_err(|error| format!("locking the bundle: {error}"))?;
        let target = create.target.clone();
        let request = Request::Create(create);
        let fds = [
            theirs.as_fd(),
            stdio.stdin.as_fd(),
            stdio.stdout.as_fd(),
            stdio.stderr.as_fd(),
            birthmark.as_fd(),
        ];
        let mut call = pin!(async {
            let reply = zygote.call(&request, &fds).await;
            reply.map_err(|error| error.to_string())
        });
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                said = init.receive() => match said {
                    Ok(Some((FromInit::Failed(reason), _))) => told = Some(reason),
                    said => answer(&init, said, &artifact).await,
                },
                reply = &mut call => return match reply? {
                    Reply::Created(pid) => Self::created(zygote, target, pid, init).await,
                    Reply::Failed(reason) => Err(told.unwrap_or(reason)),
                    Reply::Done => Err("the zygote answered a create with something else".to_owned()),
                },
            }
        }
    }

    async fn created(
        zygote: &Zygote,
        target: Target,
        pid: i32,
        init: AsyncSocket,
    ) -> Result<Self, String> {
        // The init is this process's child and may be a zombie by now, but not reaped and its pid
        // given to another: then there is no handle to be had.
        let opened = rustix::process::Pid::from_raw(pid)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match opened {
            Ok(handle) => Ok(Self {
                target,
                pid: Pid::from_raw(pid),
                handle,
                init,
            }),
            Err(error) => {
                let ended = format!("the container's init ended at once ({error})");
                match ask(zygote, &Request::Delete(target)).await {
                    Ok(()) => Err(ended),
                    Err(leftover) => Err(format!("{ended}, and left something: {leftover}")),
                }
            }
        }
    }

    /// Sends the signal numbered `signal` to the init.
    ///
    /// # Errors
    /// `ESRCH` when it has ended and been reaped, `EINVAL` when there is no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::send_signal(self.handle.as_fd(), signal)
    }

    /// Lets the container's init run its entrypoint, and waits until it does.
    ///
    /// # Errors
    /// The reason why it does not.
    pub async fn start(&self, zygote: &Zygote) -> Result<(), String> {
        ask(zygote, &Request::Start(self.target.clone())).await?;
        match tokio::time::timeout(INSTANTIATION, self.init.receive()).await {
            Ok(Ok(Some((FromInit::Failed(reason), _)))) => Err(reason),
            Ok(Err(error)) => Err(format!("reading from the container's init: {error}")),
            // Started; or the socket was closed by a successful execve(2); or still at it.
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    /// Frees everything of the container but its root file system's mounts. Its init must have
    /// ended; other processes of it are killed.
    ///
    /// # Errors
    /// What could not be freed, and why.
    pub async fn delete(&self, zygote: &Zygote) -> Result<(), String> {
        ask(zygote, &Request::Delete(self.target.clone())).await
    }
}

async fn ask(zygote: &Zygote, request: &Request) -> Result<(), String> {
    match zygote.call(request, &[]).await {
        Ok(Reply::Failed(reason)) => Err(reason),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn answer<F>(
    init: &AsyncSocket,
    asked: io::Result<Option<(FromInit, Vec<OwnedFd>)>>,
    artifact: &impl Fn(File, String) -> F,
) where
    F: Future<Output = Result<File, String>>,
{
    let sent = match asked {
        Ok(Some((FromInit::Wasm { path }, fds))) => {
            let made = match fds.into_iter().next() {
                Some(module) => artifact(File::from(module), path).await,
                None => Err("the container's init sent no file".to_owned()),
            };
            match made {
                Ok(file) => init.send(&ToInit::Artifact, &[file.as_fd()]).await,
                Err(reason) => init.send(&ToInit::Refused(reason), &[]).await,
            }
        }
        Ok(Some((other, _))) => Err(io::Error::other(format!(
            "it said {other:?} before its start"
        ))),
        // The daemon holds the other end itself until the create is over.
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        // The init fails then, and the zygote's reply says how.
        log::warn!("talking to a container's init: {error}");
    }
}
