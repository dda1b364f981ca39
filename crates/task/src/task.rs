//! One container's life as a task.
//!
//! A task is created, started, stopped and deleted, in this order; `lifecycle` is held by
//! whatever moves it on, so that an exit in the middle of a start is told after the start.

mod checkpoint;
mod create;
mod pause;
mod update;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use container::cgroup::{Cgroup, OomWatch};
use container::rootfs;
use container::{Container, Exit, Stdio, StdioPaths, blocking};
use containerd_shim::api::{ExecProcessRequest, Status};
use containerd_shim::protos::protobuf::MessageField;
use nix::sys::signal::Signal;
use tokio::sync::{Mutex, oneshot, watch};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::events::{Publisher, TaskDelete, TaskExit, TaskOOM, TaskStart};
use crate::exec::{DRAIN, ExecProcess};
use crate::memo::Memo;
use crate::process::{resize, signal, timestamp};
use crate::settings::Options;

/// The highest number of a signal (signal(7)).
const SIGNALS: u32 = 64;

/// A container that has been created and not been deleted.
pub struct Task {
    id: String,
    bundle: PathBuf,
    mount_point: PathBuf,
    memo: Memo,
    paths: StdioPaths,
    owns_pid_namespace: bool,
    /// The name of its processes' session keyring, if that is its own.
    keyring: Option<String>,
    container: Container,
    stdio: Stdio,
    cgroup: Option<Cgroup>,
    /// Whether systemd has made the cgroup, as a unit of its own.
    cgroup_of_systemd: bool,
    freezer: pause::Freezer,
    lifecycle: Mutex<Phase>,
    options: Options,
    /// The processes that were added, by exec id; empty places are being made.
    execs: SyncMutex<HashMap<String, Option<Arc<ExecProcess>>>>,
    exit: watch::Receiver<Option<Exit>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
}

impl Task {
    /// Tells of out-of-memory kills while the task lives, and of its end.
    async fn supervise(
        self: Arc<Self>,
        publisher: Publisher,
        mut oom: Option<OomWatch>,
        mut init: oneshot::Receiver<Exit>,
        exited: watch::Sender<Option<Exit>>,
    ) {
        let out_of_memory = || {
            publisher.publish(TaskOOM {
                container_id: self.id.clone(),
                ..TaskOOM::default()
            });
        };
        let mut watching = true;
        let exit = loop {
            let killed = async {
                match &mut oom {
                    Some(watch) if watching => watch.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                killed = killed => match killed {
                    Some(()) => out_of_memory(),
                    None => watching = false,
                },
                exit = &mut init => match exit {
                    Ok(exit) => break exit,
                    // The reaper goes only with the daemon.
                    Err(_) => return,
                },
            }
        };
        let killed = exit.status == 128 + Signal::SIGKILL as u32;
        if oom.is_some_and(|mut oom| oom.take(killed)) {
            out_of_memory();
        }
        if !self.owns_pid_namespace {
            // The other processes live on in somebody else's pid namespace.
            let all = true;
            if let Err(error) = self.kill_even_if_frozen(all).await {
                log::warn!("{}: {error}", self.id);
            }
        }
        self.stdio.settle().await;
        // The init is the last of a task to be told of.
        for exec in self.execs() {
            exec.settled().await;
        }

        let mut phase = self.lifecycle.lock().await;
        *phase = Phase::Stopped;
        publisher.publish(TaskExit {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..TaskExit::default()
        });
        exited.send_replace(Some(exit));
    }

    /// The name of its processes' session keyring, if that is its own.
    pub fn keyring(&self) -> Option<&str> {
        self.keyring.as_deref()
    }

    /// Starts the created task; returns its pid.
    ///
    /// # Errors
    /// In any other phase, and when the entrypoint cannot be started.
    pub async fn start(&self, daemon: &Daemon) -> Result<u32, Error> {
        let mut phase = self.lifecycle.lock().await;
        match *phase {
            Phase::Created => {}
            Phase::Running => {
                return Err(Error::Unknown("cannot start a running process".into()));
            }
            Phase::Paused => {
                return Err(Error::Unknown("cannot start a paused process".into()));
            }
            Phase::Stopped => {
                return Err(Error::Unknown("cannot start a stopped process".into()));
            }
            Phase::Deleted => {
                return Err(Error::Unknown("cannot start a deleted process".into()));
            }
        }
        self.stdio
            .open_stdin()
            .map_err(|error| Error::Unknown(error.to_string()))?;
        self.container
            .start(&daemon.zygote)
            .await
            .map_err(|reason| Error::Unknown(format!("OCI runtime start failed: {reason}")))?;
        *phase = Phase::Running;
        daemon.publisher.publish(TaskStart {
            container_id: self.id.clone(),
            pid: self.pid(),
            ..TaskStart::default()
        });
        Ok(self.pid())
    }

    /// Frees a task that is not running; returns how it ended.
    ///
    /// # Errors
    /// When it runs, or something of it cannot be freed.
    pub async fn delete(&self, daemon: &Daemon) -> Result<Exit, Error> {
        let mut phase = self.lifecycle.lock().await;
        match *phase {
            Phase::Running => {
                return Err(Error::Unknown("cannot delete a running process".into()));
            }
            Phase::Paused => {
                return Err(Error::Unknown("cannot delete a paused process".into()));
            }
            Phase::Created => {
                drop(phase);
                // An init that has gone meanwhile is as good as killed.
                let _ = signal(&self.container.init, Signal::SIGKILL as u32);
                self.wait().await;
                phase = self.lifecycle.lock().await;
            }
            Phase::Stopped | Phase::Deleted => {}
        }
        let exit = self.wait().await;
        // By another call, which its client has given up perhaps.
        if *phase == Phase::Deleted {
            return Ok(exit);
        }
        let deleted = self.container.delete(&daemon.zygote).await;
        // With the pid namespace all have ended who write, so it comes to an end if it is read; else somebody may have got away.
        let most = (!self.owns_pid_namespace).then_some(DRAIN);
        self.stdio.drain(most).await;
        self.stdio.close().await;
        let mount_point = self.mount_point.clone();
        let unmounted = blocking(move || rootfs::unmount(&mount_point)).await;
        deleted.map_err(|reason| Error::Unknown(format!("failed to delete task: {reason}")))?;
        match unmounted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(Error::Unknown(format!("failed rootfs umount: {error}")));
            }
            Err(error) => {
                return Err(Error::Unknown(format!("failed rootfs umount: {error}")));
            }
        }
        *phase = Phase::Deleted;
        // They have the task, and the task has them.
        let execs = std::mem::take(&mut *self.exec_table());
        for exec in execs.into_values().flatten() {
            exec.close_streams().await;
        }
        let memo = Memo {
            freed: true,
            ..self.memo.clone()
        };
        // Without that word `delete` looks for itself.
        if let Err(error) = memo.write(&self.bundle) {
            log::debug!("{}: noting that it has been freed: {error}", self.id);
        }
        daemon.publisher.publish(TaskDelete {
            container_id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..TaskDelete::default()
        });
        Ok(exit)
    }

    /// Sends the signal numbered `number` to the init, or to `all` processes of the task. A paused
    /// task gets SIGKILL at once, and all others when it is resumed.
    ///
    /// # Errors
    /// When the task has ended, or there is no such signal.
    pub async fn kill(&self, number: u32, all: bool) -> Result<(), Error> {
        if number == Signal::SIGKILL as u32 {
            return self.kill_even_if_frozen(all).await;
        }
        if all {
            if !(1..=SIGNALS).contains(&number) {
                return Err(Error::InvalidArgument(format!(
                    "there is no signal {number}"
                )));
            }
            self.kill_all(number);
            return Ok(());
        }
        signal(&self.container.init, number)
    }

    fn kill_all(&self, number: u32) {
        // All of it has ended: who is in the cgroup now is another's.
        if self.owns_pid_namespace && self.exit.borrow().is_some() {
            return;
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill_all(number as i32)
        {
            log::warn!("{}: {error}", self.id);
        }
    }

    /// Waits until the task has ended and its output has been handed over.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        match ended {
            Ok(Some(exit)) => exit,
            // The supervisor ends only when the daemon does.
            _ => std::future::pending().await,
        }
    }

    /// Adds the process that `request` asks for; it is not started yet.
    ///
    /// # Errors
    /// When its id is taken, the task has ended, or the process makes no sense.
    pub async fn add_exec(
        self: &Arc<Self>,
        request: ExecProcessRequest,
    ) -> Result<Arc<ExecProcess>, Error> {
        let id = request.exec_id.clone();
        match self.exec_table().entry(id.clone()) {
            Entry::Occupied(_) => return Err(Error::AlreadyExists(format!("id {id}"))),
            Entry::Vacant(place) => place.insert(None),
        };
        let added = match *self.lifecycle.lock().await {
            Phase::Created | Phase::Running => ExecProcess::new(self.clone(), request),
            Phase::Paused => Err(Error::Unknown("cannot exec in a paused state".into())),
            Phase::Stopped => Err(Error::Unknown("cannot exec in a stopped state".into())),
            Phase::Deleted => Err(Error::Unknown("cannot exec in a deleted state".into())),
        };
        match added {
            Ok(exec) => {
                let exec = Arc::new(exec);
                self.exec_table().insert(id, Some(exec.clone()));
                Ok(exec)
            }
            Err(error) => {
                self.exec_table().remove(&id);
                Err(error)
            }
        }
    }

    /// The added process with the exec id `id`.
    pub fn exec(&self, id: &str) -> Option<Arc<ExecProcess>> {
        self.exec_table().get(id).cloned().flatten()
    }

    /// All processes that were added and not deleted.
    pub fn execs(&self) -> Vec<Arc<ExecProcess>> {
        self.exec_table().values().flatten().cloned().collect()
    }

    /// Forgets the added process with the exec id `id`.
    pub fn remove_exec(&self, id: &str) {
        self.exec_table().remove(id);
    }

    fn exec_table(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<ExecProcess>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an added process may start now.
    ///
    /// # Errors
    /// When the task is paused, or its init has ended.
    pub async fn admit_exec(&self) -> Result<(), Error> {
        match *self.lifecycle.lock().await {
            Phase::Created | Phase::Running => Ok(()),
            Phase::Paused => Err(Error::Unknown(
                "cannot exec in a paused container: resume it first".into(),
            )),
            Phase::Stopped | Phase::Deleted => Err(Error::FailedPrecondition(format!(
                "container {} init process is not running",
                self.id
            ))),
        }
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The options that the task was created with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Lets the task's stdin end once its client has closed it.
    pub fn close_stdin(&self) {
        self.stdio.close_stdin();
    }

    /// Sets the size of the task's terminal, if it has one.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        resize(&self.stdio, rows, columns)
    }

    /// The pid of the init.
    pub fn pid(&self) -> u32 {
        self.container.init.pid.as_raw() as u32
    }

    /// The bundle's folder.
    pub fn bundle(&self) -> String {
        self.bundle.display().to_string()
    }

    /// Where the task's streams go.
    pub fn stdio(&self) -> &StdioPaths {
        &self.paths
    }

    /// The cgroup, if it was found.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// The task's status, and how it ended if it has.
    pub async fn status(&self) -> (Status, Option<Exit>) {
        if self.freezer.is_pausing() {
            return (Status::PAUSING, None);
        }
        let status = match *self.lifecycle.lock().await {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped | Phase::Deleted => Status::STOPPED,
        };
        (status, *self.exit.borrow())
    }
}
