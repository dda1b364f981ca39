//! Reaping the daemon's children.
//!
//! One loop waits for every child, whoever cloned it: container inits, the zygote's helpers,
//! compile workers, and what libcontainer leaves on the way. Who is interested in a child asks
//! for its exit by pid.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use nix::sys::prctl;
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How many exits nobody has asked for yet are remembered: a child may exit before its pid has
/// travelled to whoever will ask. A create leaves three that nobody asks for, and there may be a
/// thousand creates at once.
const REMEMBERED: usize = 4096;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 and the number of the signal that ended the process, as a shell
    /// and the runc shim count it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Reaps all children of this process; clones share one loop.
#[derive(Clone)]
pub struct Reaper(Arc<Mutex<Exits>>);

#[derive(Default)]
struct Exits {
    asked: HashMap<i32, oneshot::Sender<Exit>>,
    unasked: VecDeque<(i32, Instant, Exit)>,
}

/// Makes this process the parent of what its containers leave behind in a pid namespace that is not theirs, as the runc shim does:
/// who is pid 1 there may reap nobody.
pub fn adopt_orphans() {
    if let Err(error) = prctl::set_child_subreaper(true) {
        log::warn!("becoming the parent of orphans: {error}");
    }
}

impl Reaper {
    /// Starts reaping in the running tokio runtime.
    ///
    /// # Errors
    /// When no handler for SIGCHLD can be installed.
    pub fn start() -> io::Result<Self> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Self(Arc::default());
        let exits = reaper.clone();
        tokio::spawn(async move {
            loop {
                exits.reap();
                if children.recv().await.is_none() {
                    break;
                }
            }
        });
        Ok(reaper)
    }

    /// One that reaps nothing, beside others that wait for children of their own.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        Self(Arc::default())
    }

    /// The exit of the child `pid`, which was not there before `since`; an older exit of a
    /// process that had the same pid is not taken for its.
    pub fn exit_of(&self, pid: Pid, since: Instant) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut exits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let early = exits
            .unasked
            .iter()
            .position(|(unasked, at, _)| *unasked == pid.as_raw() && *at >= since);
        match early.and_then(|position| exits.unasked.remove(position)) {
            Some((_, _, exit)) => {
                // The receiver is in this function's hands still.
                let _ = sender.send(exit);
            }
            None => {
                exits.asked.insert(pid.as_raw(), sender);
            }
        }
        receiver
    }

    /// Runs `command` to its end; blocks the thread.
    ///
    /// # Errors
    /// When it cannot be started, or the daemon ends before it.
    pub fn run(&self, mut command: Command) -> io::Result<ExitStatus> {
        let since = Instant::now();
        let child = command.spawn()?;
        // Whatever the command has of this process's, such as the end of a pipe.
        drop(command);
        let exit = self
            .exit_of(Pid::from_raw(child.id() as i32), since)
            .blocking_recv()
            .map_err(|_| io::Error::other("the shim is ending"))?;
        // Back to what wait(2) encodes: a code in the second byte, or a signal in the first.
        Ok(ExitStatus::from_raw(match exit.status {
            code @ 0..=128 => (code as i32) << 8,
            signal => signal as i32 - 128,
        }))
    }

    fn reap(&self) {
        loop {
            // nix knows no real-time signals, and loses who has ended by one.
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    log::error!("waiting for child processes failed: {error}");
                    return;
                }
            };
            let signal = || status.terminating_signal().map(|signal| 128 + signal);
            // What neither exited nor was ended has only been stopped.
            let Some(status) = status.exit_status().or_else(signal) else {
                continue;
            };
            let exit = Exit {
                status: status as u32,
                at: SystemTime::now(),
            };
            let mut exits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match exits.asked.remove(&pid.as_raw_nonzero().get()) {
                // Who asked may have gone away; then nobody needs to know.
                Some(sender) => drop(sender.send(exit)),
                None => {
                    if exits.unasked.len() == REMEMBERED {
                        exits.unasked.pop_front();
                    }
                    exits
                        .unasked
                        .push_back((pid.as_raw_nonzero().get(), Instant::now(), exit));
                }
            }
        }
    }
}
