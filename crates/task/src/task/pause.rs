//! Pause and Resume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use container::blocking;
use container::cgroup::{self, Cgroup};
use nix::sys::signal::Signal;
use tokio::sync::{Mutex, MutexGuard};

use super::{Phase, Task};
use crate::error::Error;
use crate::events::{Publisher, TaskPaused, TaskResumed};
use crate::process::signal;

/// Whoever freezes or thaws the cgroup, one after the other.
#[derive(Default)]
pub struct Freezer {
    turn: Mutex<()>,
    pausing: AtomicBool,
}

impl Freezer {
    /// Whether a pause is under way.
    pub fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Relaxed)
    }

    /// Waits for the end of a pause under way, and keeps others off. On v1 a process that was sent
    /// SIGKILL and is frozen before it could die lives until it is thawed.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

/// Says `pausing` for as long as it lives, also when its client goes away.
struct Pausing<'a>(&'a AtomicBool);

impl<'a> Pausing<'a> {
    fn begin(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Task {
    /// Stops all of the task's processes where they are.
    ///
    /// # Errors
    /// When the task does not run, or its cgroup cannot be frozen.
    pub async fn pause(self: &Arc<Self>, publisher: &Publisher) -> Result<(), Error> {
        let mut phase = self.lifecycle.lock().await;
        let refused = match *phase {
            Phase::Running => None,
            Phase::Created => Some("cannot pause task in created state"),
            Phase::Paused => Some("cannot pause a paused container"),
            Phase::Stopped => Some("cannot pause a stopped container"),
            Phase::Deleted => Some("cannot pause a deleted process"),
        };
        if let Some(refused) = refused {
            return Err(Error::Unknown(refused.into()));
        }
        let pausing = Pausing::begin(&self.freezer.pausing);
        let turn = self.freezer.turn().await;
        let frozen = self.with_cgroup(Cgroup::freeze).await;
        drop(turn);
        frozen.map_err(|reason| Error::Unknown(format!("OCI runtime pause failed: {reason}")))?;
        *phase = Phase::Paused;
        drop(pausing);
        publisher.publish(TaskPaused {
            container_id: self.id.clone(),
            ..TaskPaused::default()
        });
        Ok(())
    }

    /// Lets the processes of a paused task go on.
    ///
    /// # Errors
    /// When the task is not paused, or its cgroup cannot be thawed.
    pub async fn resume(self: &Arc<Self>, publisher: &Publisher) -> Result<(), Error> {
        let mut phase = self.lifecycle.lock().await;
        let refused = match *phase {
            Phase::Paused => None,
            Phase::Created => Some("cannot resume task in created state"),
            Phase::Running => Some("cannot resume a running process"),
            Phase::Stopped => Some("cannot resume a stopped container"),
            Phase::Deleted => Some("cannot resume a deleted process"),
        };
        if let Some(refused) = refused {
            return Err(Error::Unknown(refused.into()));
        }
        let turn = self.freezer.turn().await;
        let thawed = self.with_cgroup(Cgroup::thaw).await;
        drop(turn);
        thawed.map_err(|reason| Error::Unknown(format!("OCI runtime resume failed: {reason}")))?;
        *phase = Phase::Running;
        publisher.publish(TaskResumed {
            container_id: self.id.clone(),
            ..TaskResumed::default()
        });
        Ok(())
    }

    /// Sends SIGKILL, and sees to it that a paused process dies of it.
    pub(super) async fn kill_even_if_frozen(&self, all: bool) -> Result<(), Error> {
        let _turn = self.freezer.turn().await;
        if all {
            // This thaws too.
            self.kill_all(Signal::SIGKILL as u32);
            return Ok(());
        }
        signal(&self.container.init, Signal::SIGKILL as u32)?;
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.thaw_v1()
        {
            log::warn!("{}: {error}", self.id);
        }
        Ok(())
    }

    /// Runs what blocks the thread on the task's cgroup.
    async fn with_cgroup(
        self: &Arc<Self>,
        run: fn(&Cgroup) -> cgroup::Result<()>,
    ) -> Result<(), String> {
        let task = self.clone();
        let ran = blocking(move || match &task.cgroup {
            Some(cgroup) => run(cgroup).map_err(|error| error.to_string()),
            None => Err("cgroup does not exist".to_owned()),
        });
        match ran.await {
            Ok(result) => result,
            Err(error) => Err(error.to_string()),
        }
    }
}
