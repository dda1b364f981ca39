//! A further process of a task, from Exec to its Delete.

use std::sync::Arc;
use std::sync::{Mutex as SyncMutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use container::{Bundle, Console, Exec, Exit, Process, Stdio, StdioPaths, Wanted};
use containerd_shim::api::{ExecProcessRequest, Status};
use containerd_shim::protos::protobuf::MessageField;
use nix::sys::signal::Signal;
use oci_spec::runtime as oci;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::events::{Publisher, TaskExecStarted, TaskExit};
use crate::guests;
use crate::process::{resize, signal, stream_owner, timestamp, warn_of_capabilities};
use crate::task::Task;

/// How long the delete of a process waits for its output, which others may go on with: as the runc shim.
pub const DRAIN: Duration = Duration::from_secs(10);

/// A process that was added to a task and has not been deleted.
pub struct ExecProcess {
    id: String,
    task: Arc<Task>,
    paths: StdioPaths,
    spec: oci::Process,
    lifecycle: Mutex<Phase>,
    process: OnceLock<Process>,
    stdio: SyncMutex<Option<Arc<Stdio>>>,
    exit: watch::Sender<Option<Ended>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Stopped,
    Deleted,
}

/// How a process came to its end.
#[derive(Clone, Copy)]
enum Ended {
    /// It ran and exited.
    Exited(Exit),
    /// It never ran; waiting for it ends without an exit, as with the runc shim.
    NotStarted,
}

impl ExecProcess {
    /// The process that `request` adds to `task`, not started yet.
    ///
    /// # Errors
    /// When its spec is no OCI process.
    pub fn new(task: Arc<Task>, request: ExecProcessRequest) -> Result<Self, Error> {
        let parsed = container::parse_process(&request.spec.value);
        let (spec, unknown) = parsed.map_err(|error| {
            Error::InvalidArgument(format!(
                "the spec of exec process {}: {error}",
                request.exec_id
            ))
        })?;
        warn_of_capabilities(&format!("{} {}", task.id(), request.exec_id), &unknown);
        Ok(Self {
            id: request.exec_id,
            task,
            paths: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            spec,
            lifecycle: Mutex::new(Phase::Created),
            process: OnceLock::new(),
            stdio: SyncMutex::default(),
            exit: watch::Sender::new(None),
        })
    }

    /// Starts the process; returns its pid.
    ///
    /// # Errors
    /// When it has been started before, its task does not run, or its program cannot be run.
    pub async fn start(self: &Arc<Self>, daemon: &Daemon) -> Result<u32, Error> {
        let mut phase = self.lifecycle.lock().await;
        match *phase {
            Phase::Created => {}
            Phase::Running => {
                return Err(Error::Unknown("cannot start a running process".into()));
            }
            Phase::Stopped => {
                return Err(Error::Unknown("cannot start a stopped process".into()));
            }
            Phase::Deleted => {
                return Err(Error::Unknown("cannot start a deleted process".into()));
            }
        }
        let started = match self.task.admit_exec().await {
            Ok(()) => self.run(daemon).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => {
                *phase = Phase::Running;
                daemon.publisher.publish(TaskExecStarted {
                    container_id: self.task.id().to_owned(),
                    exec_id: self.id.clone(),
                    pid: self.pid(),
                    ..TaskExecStarted::default()
                });
                Ok(self.pid())
            }
            Err(error) => {
                self.close_streams().await;
                self.exit.send_replace(Some(Ended::NotStarted));
                Err(error)
            }
        }
    }

    async fn run(self: &Arc<Self>, daemon: &Daemon) -> Result<(), Error> {
        let bundle = Bundle::load(self.task.bundle().as_ref())
            .map_err(|error| Error::Unknown(error.to_string()))?;
        let owner = stream_owner(self.task.options(), bundle.owner_of(&self.spec));
        let (stdio, theirs) = Stdio::connect(&self.paths, owner, daemon.logging(&self.id))
            .await
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let stdio = Arc::new(stdio);
        *self.streams() = Some(stdio.clone());
        let since = Instant::now();
        let exec = Exec {
            bundle: bundle.path.clone(),
            process: self.spec.clone(),
            terminal: self.paths.terminal,
            keyring: self.task.keyring().map(str::to_owned),
            guest: guests::write(&self.task.options().guest),
        };
        let gone = CancellationToken::new();
        let artifact = |wanted: Wanted| {
            let task = &self.task;
            let made = daemon.artifact(task.id(), &bundle, task.options(), wanted);
            let gone = gone.clone();
            async move {
                tokio::select! {
                    biased;
                    made = made => made,
                    () = gone.cancelled() => Err("the process has ended meanwhile".to_owned()),
                }
            }
        };
        let (told, ended) = oneshot::channel();
        let born = |process: Process, console: Option<Console>| {
            if let Some(console) = console {
                stdio.attach(console);
            }
            let exit = daemon.reaper.exit_of(process.pid, since);
            // Only one start comes this far.
            let _ = self.process.set(process);
            let process = self.clone();
            let publisher = daemon.publisher.clone();
            let gone = gone.clone();
            tokio::spawn(async move {
                let exit = exit.await;
                gone.cancel();
                // The reaper goes only with the daemon; the start tells whether there was one.
                if let Ok(exit) = exit
                    && ended.await == Ok(())
                {
                    process.end(&publisher, exit).await;
                }
            });
        };
        self.task
            .container()
            .exec(&daemon.zygote, exec, theirs, artifact, born)
            .await
            .map_err(|reason| Error::Unknown(format!("OCI runtime exec failed: {reason}")))?;
        if let Err(error) = stdio.open_stdin() {
            // It may have ended already.
            let _ = self.kill(Signal::SIGKILL as u32);
            return Err(Error::Unknown(error.to_string()));
        }
        // Its end is waited for already; nobody else holds the sender.
        let _ = told.send(());
        Ok(())
    }

    /// Tells of the process's end. Processes that it has left may have its streams.
    async fn end(&self, publisher: &Publisher, exit: Exit) {
        let stdio = self.streams().clone();
        if let Some(stdio) = stdio {
            stdio.settle().await;
        }
        // Not before the start has been told.
        let mut phase = self.lifecycle.lock().await;
        *phase = Phase::Stopped;
        publisher.publish(TaskExit {
            container_id: self.task.id().to_owned(),
            id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..TaskExit::default()
        });
        self.exit.send_replace(Some(Ended::Exited(exit)));
    }

    /// Frees the process, which must not be running, and has its task forget it; returns how it ended, if it ever ran.
    ///
    /// # Errors
    /// When it runs.
    pub async fn delete(&self) -> Result<Option<Exit>, Error> {
        let mut phase = self.lifecycle.lock().await;
        match *phase {
            Phase::Running => {
                return Err(Error::Unknown("cannot delete a running process".into()));
            }
            Phase::Deleted => {
                return Err(Error::Unknown("cannot delete a deleted process".into()));
            }
            Phase::Created | Phase::Stopped => *phase = Phase::Deleted,
        }
        drop(phase);
        let stdio = self.streams().clone();
        if let Some(stdio) = stdio {
            stdio.drain(Some(DRAIN)).await;
        }
        self.close_streams().await;
        self.task.remove_exec(&self.id);
        Ok(self.exited())
    }

    /// Sends the signal numbered `signal` to the process.
    ///
    /// # Errors
    /// When it has not been started or has ended, or there is no such signal.
    pub fn kill(&self, number: u32) -> Result<(), Error> {
        match self.process.get() {
            None => Err(Error::FailedPrecondition("process not created".into())),
            Some(_) if self.exited().is_some() => {
                Err(Error::NotFound("process already finished".into()))
            }
            Some(process) => signal(process, number),
        }
    }

    /// Waits for the end of the process; nothing if it could not be started.
    pub async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        // The sender is in this process's own hands.
        let _ = exit.wait_for(Option::is_some).await;
        self.exited()
    }

    /// Waits until the process has ended, if it has been started.
    pub async fn settled(&self) {
        if self.process.get().is_some() {
            self.wait().await;
        }
    }

    fn exited(&self) -> Option<Exit> {
        match *self.exit.borrow() {
            Some(Ended::Exited(exit)) => Some(exit),
            Some(Ended::NotStarted) | None => None,
        }
    }

    /// Lets the process's stdin end once its client has closed it.
    pub fn close_stdin(&self) {
        if let Some(stdio) = &*self.streams() {
            stdio.close_stdin();
        }
    }

    /// Sets the size of the process's terminal, if it has one by now.
    ///
    /// # Errors
    /// When it has ended, or the terminal refuses.
    pub async fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        if *self.lifecycle.lock().await == Phase::Stopped {
            return Err(Error::Unknown("cannot resize a stopped container".into()));
        }
        match &*self.streams() {
            Some(stdio) => resize(stdio, rows, columns),
            None => Ok(()),
        }
    }

    /// Lets go of the process's streams.
    pub async fn close_streams(&self) {
        let stdio = self.streams().take();
        if let Some(stdio) = stdio {
            stdio.close().await;
        }
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Option<Arc<Stdio>>> {
        self.stdio.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exec id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pid; 0 before the start.
    pub fn pid(&self) -> u32 {
        self.process
            .get()
            .map_or(0, |process| process.pid.as_raw() as u32)
    }

    /// Where the process's streams go.
    pub fn stdio(&self) -> &StdioPaths {
        &self.paths
    }

    /// The process's status, and how it ended if it has. In a paused container every process is.
    pub async fn status(&self) -> (Status, Option<Exit>) {
        let of_task = self.task.status().await.0;
        if matches!(of_task, Status::PAUSED | Status::PAUSING) {
            return (of_task, self.exited());
        }
        let status = match *self.lifecycle.lock().await {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Stopped | Phase::Deleted => Status::STOPPED,
        };
        (status, self.exited())
    }
}
