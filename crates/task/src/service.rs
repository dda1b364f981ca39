//! The task service: containerd's calls, each by its container's id.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use container::{Exit, cgroup};
use containerd_shim::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::types::task::ProcessInfo;
use containerd_shim::{TtrpcContext, TtrpcResult};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::any::any;
use crate::calm::Calm;
use crate::daemon::Daemon;
use crate::departure::Departure;
use crate::error::Error;
use crate::events::TaskExecAdded;
use crate::exec::ExecProcess;
use crate::metrics;
use crate::process::timestamp;
use crate::task::Task;

/// All tasks of this daemon.
#[derive(Clone)]
pub struct Service {
    daemon: Arc<Daemon>,
    tasks: Arc<Mutex<HashMap<String, Slot>>>,
    departure: Arc<Departure>,
    calm: Calm,
}

/// A task's place: taken from the moment its create begins, so that an id is never used twice.
enum Slot {
    Creating(Creating),
    Task(Arc<Task>),
}

/// A create under way.
///
/// ttrpc drops a call whose deadline has passed, at whatever it waits for; and of a caller who has
/// gone away it does not tell, but containerd deletes then what it asked for. A create is therefore
/// made aside of its call: given up, it undoes what it has done, and has it settled before an
/// answer to that delete.
#[derive(Clone, Default)]
struct Creating {
    /// That nobody wants the task any more.
    given_up: CancellationToken,
    /// That the place has a task, or is free again.
    settled: CancellationToken,
}

impl Service {
    /// A service without tasks, in the running tokio runtime. `departure` is told when containerd wants no more of it.
    pub fn new(daemon: Arc<Daemon>, departure: Arc<Departure>) -> Self {
        Self {
            daemon,
            tasks: Arc::default(),
            departure,
            calm: Calm::start(),
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, id: &str) -> Result<Arc<Task>, Error> {
        match self.tasks().get(id) {
            Some(Slot::Task(task)) => Ok(task.clone()),
            _ => Err(Error::NotFound("container not created".into())),
        }
    }

    /// Whether there are neither tasks nor a sandbox: the daemon of a group serves on until the last
    /// has gone.
    pub fn is_idle(&self) -> bool {
        self.tasks().is_empty() && self.daemon.sandbox.is_empty()
    }

    /// Ends all tasks: those that SIGTERM has not ended after `grace`, with SIGKILL.
    pub async fn stop_all(&self, grace: Duration) {
        let tasks = self.all();
        let all_ended = async {
            for task in &tasks {
                task.wait().await;
            }
        };
        if !grace.is_zero() {
            signal_all(&tasks, Signal::SIGTERM).await;
            if tokio::time::timeout(grace, all_ended).await.is_ok() {
                return;
            }
        }
        signal_all(&tasks, Signal::SIGKILL).await;
        for task in &tasks {
            task.wait().await;
        }
    }

    /// Frees all tasks, which have been stopped.
    pub async fn delete_all(&self) {
        for task in self.all() {
            match task.delete(&self.daemon).await {
                Ok(_) => drop(self.tasks().remove(task.id())),
                Err(error) => log::error!("delete of {}: {error}", task.id()),
            }
        }
    }

    fn all(&self) -> Vec<Arc<Task>> {
        let tasks = self.tasks();
        let tasks = tasks.values().filter_map(|slot| match slot {
            Slot::Task(task) => Some(task.clone()),
            Slot::Creating(_) => None,
        });
        tasks.collect()
    }

    /// The creates under way: of `id`, or all.
    fn creating(&self, id: Option<&str>) -> Vec<Creating> {
        let tasks = self.tasks();
        let tasks = tasks
            .iter()
            .filter(|(its, _)| id.is_none_or(|id| id == *its));
        let creating = tasks.filter_map(|(_, slot)| match slot {
            Slot::Creating(creating) => Some(creating.clone()),
            Slot::Task(_) => None,
        });
        creating.collect()
    }

    /// Makes the task that `request` asks for in its place, which is free again where that fails.
    async fn make(
        &self,
        request: &CreateTaskRequest,
        creating: Creating,
    ) -> Result<Arc<Task>, Error> {
        let _settled_at_the_end = creating.settled.drop_guard();
        self.calm.disturb();
        self.daemon.logs.add(request.bundle.as_ref());
        let made = Task::create(&self.daemon, request, &creating.given_up).await;
        let made = match made {
            Ok(task) => {
                let slot = Slot::Task(task.clone());
                self.tasks().insert(request.id.clone(), slot);
                let linger = task.options().group_linger;
                self.departure.set_linger(linger.map(|time| time.0));
                self.keep(task, &creating.given_up).await
            }
            Err(error) => Err(error),
        };
        made.inspect_err(|error| {
            log::error!("create of {}: {error}", request.id);
            self.forget(&request.id, &request.bundle);
        })
    }

    fn forget(&self, id: &str, bundle: &str) {
        self.tasks().remove(id);
        self.daemon.logs.remove(bundle.as_ref());
    }

    /// Gives the task, unless nobody wants it any more, and then deletes it.
    async fn keep(
        &self,
        task: Arc<Task>,
        given_up: &CancellationToken,
    ) -> Result<Arc<Task>, Error> {
        let wanted = match given_up.is_cancelled() {
            true => Err(Error::given_up()),
            // One that was stopped meanwhile has not seen this task, or has seen it and stopped it.
            false => self.daemon.sandbox.expect_ready(),
        };
        if wanted.is_err()
            && let Err(leftover) = task.delete(&self.daemon).await
        {
            log::warn!("delete of {}: {leftover}", task.id());
        }
        wanted.map(|()| task)
    }

    /// Frees `process` and forgets it; returns its pid, and how it ended, if it ever ran.
    async fn free(&self, process: Process) -> Result<(u32, Option<Exit>), Error> {
        match process {
            Process::Init(task) => {
                let exit = task.delete(&self.daemon).await?;
                // Another call may have freed it, and its id be a new container's by now.
                let is_its =
                    |slot: &Slot| matches!(slot, Slot::Task(its) if Arc::ptr_eq(its, &task));
                let is_known = self.tasks().get(task.id()).is_some_and(is_its);
                if is_known {
                    self.forget(task.id(), &task.bundle());
                }
                Ok((task.pid(), Some(exit)))
            }
            Process::Exec(_, exec) => {
                let exit = exec.delete().await?;
                Ok((exec.pid(), exit))
            }
        }
    }

    /// The process of a task that is meant: its init where `exec_id` is empty.
    fn process(&self, id: &str, exec_id: &str) -> Result<Process, Error> {
        let task = self.task(id)?;
        if exec_id.is_empty() {
            return Ok(Process::Init(task));
        }
        match task.exec(exec_id) {
            Some(exec) => Ok(Process::Exec(task, exec)),
            None => Err(Error::NotFound(format!("process does not exist {exec_id}"))),
        }
    }
}

async fn signal_all(tasks: &[Arc<Task>], signal: Signal) {
    for task in tasks {
        if let Err(error) = task.kill(signal as u32, false).await {
            // Mostly one that has ended by itself.
            log::debug!("{signal} to {}: {error}", task.id());
        }
    }
}

/// A process that a client can name.
enum Process {
    Init(Arc<Task>),
    Exec(Arc<Task>, Arc<ExecProcess>),
}

/// When a process ended; nothing if it has not.
fn exited_at(exit: Option<Exit>) -> MessageField<Timestamp> {
    exit.map(|exit| timestamp(exit.at))
        .map_or_else(MessageField::none, MessageField::some)
}

#[async_trait]
impl containerd_shim::Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        let creating = Creating::default();
        match self.tasks().entry(request.id.clone()) {
            Entry::Occupied(_) => {
                return Err(Error::AlreadyExists(format!("container {}", request.id)).into());
            }
            Entry::Vacant(slot) => slot.insert(Slot::Creating(creating.clone())),
        };
        let _dropped_with_the_call = creating.given_up.clone().drop_guard();
        let service = self.clone();
        let (id, bundle) = (request.id.clone(), request.bundle.clone());
        let made = tokio::spawn(async move { service.make(&request, creating).await });
        let task = made.await.unwrap_or_else(|panic| {
            self.forget(&id, &bundle);
            Err(Error::Unknown(panic.to_string()))
        })?;
        Ok(CreateTaskResponse {
            pid: task.pid(),
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        self.calm.disturb();
        let process = self.process(&request.id, &request.exec_id)?;
        let daemon = self.daemon.clone();
        // To its end, whatever becomes of the call: what has been born is to be known as running, and its end to be told.
        let started = tokio::spawn(async move {
            match process {
                Process::Init(task) => task.start(&daemon).await,
                Process::Exec(_, exec) => exec.start(&daemon).await,
            }
        });
        let started = started
            .await
            .unwrap_or_else(|error| Err(Error::Unknown(error.to_string())));
        let pid = started.inspect_err(|error| {
            log::error!("start of {} {}: {error}", request.id, request.exec_id);
        })?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let (task, pid, stdio, (status, exit)) = match self
            .process(&request.id, &request.exec_id)?
        {
            Process::Init(task) => {
                let (pid, stdio, status) = (task.pid(), task.stdio().clone(), task.status().await);
                (task, pid, stdio, status)
            }
            Process::Exec(task, exec) => {
                let (pid, stdio, status) = (exec.pid(), exec.stdio().clone(), exec.status().await);
                (task, pid, stdio, status)
            }
        };
        Ok(StateResponse {
            id: if request.exec_id.is_empty() {
                request.id
            } else {
                request.exec_id
            },
            bundle: task.bundle(),
            pid,
            status: status.into(),
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exited_at(exit),
            ..StateResponse::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let exit = match self.process(&request.id, &request.exec_id)? {
            Process::Init(task) => Some(task.wait().await),
            Process::Exec(_, exec) => exec.wait().await,
        };
        Ok(WaitResponse {
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exited_at(exit),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        match self.process(&request.id, &request.exec_id)? {
            Process::Init(task) => task.kill(request.signal, request.all).await?,
            // Its children are the container's, as with the runc shim.
            Process::Exec(_, exec) => exec.kill(request.signal)?,
        }
        Ok(Empty::default())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> TtrpcResult<DeleteResponse> {
        self.calm.disturb();
        for creating in self.creating(Some(&request.id)) {
            creating.given_up.cancel();
            creating.settled.cancelled().await;
        }
        let process = self.process(&request.id, &request.exec_id)?;
        let service = self.clone();
        // To its end, whatever becomes of the call: the next would begin it anew, with the hooks that have run.
        let deleted = tokio::spawn(async move { service.free(process).await });
        let deleted = deleted
            .await
            .unwrap_or_else(|error| Err(Error::Unknown(error.to_string())));
        let (pid, exit) = deleted.inspect_err(|error| {
            log::error!("delete of {} {}: {error}", request.id, request.exec_id);
        })?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exited_at(exit),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let task = self.task(&request.id)?;
        let mut pids = match task.cgroup() {
            Some(cgroup) => cgroup.processes(),
            None => return Err(Error::NotFound("cgroup does not exist".into()).into()),
        };
        if task.status().await.0 == Status::STOPPED {
            // systemd has removed the cgroup by now.
            pids = pids.or_else(|_| Ok(Vec::new()));
        }
        let mut pids = pids.map_err(|error: cgroup::Error| Error::Unknown(error.to_string()))?;
        if pids.is_empty() {
            // A containerd that starts (1.7 and later) takes a shim without processes for one that
            // was left over when it died, and ends it. How this one ended is still to be asked.
            pids.push(task.pid());
        }
        let execs = task.execs();
        let processes = pids.into_iter().map(|pid| {
            let exec = execs.iter().find(|exec| exec.pid() == pid);
            let details = exec.map(|exec| {
                let details = ProcessDetails {
                    exec_id: exec.id().to_owned(),
                    ..ProcessDetails::default()
                };
                any("containerd.runc.v1", &details)
            });
            ProcessInfo {
                pid,
                info: MessageField::from_option(details),
                ..ProcessInfo::default()
            }
        });
        Ok(PidsResponse {
            processes: processes.collect(),
            ..PidsResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let task = self.task(&request.id)?;
        let Some(cgroup) = task.cgroup() else {
            return Err(Error::NotFound("cgroup does not exist".into()).into());
        };
        let stats = cgroup
            .stats()
            .map_err(|error| Error::Unknown(error.to_string()))?;
        Ok(StatsResponse {
            stats: MessageField::some(metrics::to_any(stats)),
            ..StatsResponse::default()
        })
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            match process {
                Process::Init(task) => task.close_stdin(),
                Process::Exec(_, exec) => exec.close_stdin(),
            }
        }
        Ok(Empty::default())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> TtrpcResult<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            // As in the runc shim, an unknown task is no error here.
            task_pid: self.task(&request.id).map_or(0, |task| task.pid()),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        self.departure.dismiss(&request.id);
        let service = self.clone();
        // Not asked again: a create that fails leaves nobody to wait for.
        let end = async move {
            for creating in service.creating(None) {
                creating.settled.cancelled().await;
            }
            service.departure.consider();
        };
        tokio::spawn(end);
        Ok(Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let task = self.task(&request.id)?;
        task.pause(&self.daemon.publisher)
            .await
            .inspect_err(|error| log::error!("pause of {}: {error}", request.id))?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        let task = self.task(&request.id)?;
        task.resume(&self.daemon.publisher)
            .await
            .inspect_err(|error| log::error!("resume of {}: {error}", request.id))?;
        Ok(Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> TtrpcResult<Empty> {
        let task = self.task(&request.id)?;
        task.checkpoint(&self.daemon, &request)
            .await
            .inspect_err(|error| log::error!("checkpoint of {}: {error}", request.id))?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let (id, exec_id) = (request.id.clone(), request.exec_id.clone());
        self.task(&id)?.add_exec(request).await?;
        self.daemon.publisher.publish(TaskExecAdded {
            container_id: id,
            exec_id,
            ..TaskExecAdded::default()
        });
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let (rows, columns) = (request.height, request.width);
        match self.process(&request.id, &request.exec_id)? {
            Process::Init(task) => task.resize(rows, columns)?,
            Process::Exec(_, exec) => exec.resize(rows, columns).await?,
        }
        Ok(Empty::default())
    }

    /// The request's annotations are for runtimes with words of their own; as the runc shim, this
    /// one has none.
    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let task = self.task(&request.id)?;
        task.update(request.resources.as_ref(), &self.daemon.reaper)
            .await
            .inspect_err(|error| log::error!("update of {}: {error}", request.id))?;
        Ok(Empty::default())
    }
}
