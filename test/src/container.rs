//! A container that a test drives through containerd's API.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use containerd_client::{
    services::v1::{
        CheckpointTaskRequest, CloseIoRequest, Container as Record, CreateContainerRequest,
        CreateRequest, CreateTaskRequest, CreateTaskResponse, DeleteContainerRequest,
        DeleteTaskRequest, GetRequest, KillRequest, ListPidsRequest, MetricsRequest,
        PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest,
        WaitRequest, container::Runtime,
    },
    tonic::{Code, Request, Response, Status},
    types::{Descriptor, v1::Process},
};
use nix::sys::signal::Signal;
use prost::Message;
use prost_types::{Any, Timestamp};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    Containerd, Input, Rootfs,
    events::Event,
    options::CheckpointOptions,
    rootfs::SNAPSHOTTER,
    runtime::call,
    spec::{RESOURCES_TYPE_URL, TYPE_URL, default_spec, mount},
    stdio::Stdio,
};

/// The runtime under test.
pub const WASMTIME: &str = "io.containerd.wasmtime.v1";
/// containerd's own runtime, the model for every behaviour of tasks.
pub const RUNC: &str = "io.containerd.runc.v2";

/// `containerd.runc.v1.ProcessDetails`, what is told of a process in a list.
#[derive(Clone, PartialEq, Message)]
struct ProcessDetails {
    #[prost(string, tag = "1")]
    exec_id: String,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Its exit status as containerd tells it: the code, or 128 and the signal.
    pub status: u32,
    /// When it ended.
    pub at: Option<Timestamp>,
}

/// What a whole run gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// The task's exit status.
    pub status: u32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The standard output as text, of a run that must have ended with 0.
    ///
    /// # Errors
    /// It ended with another status; the message has the standard error.
    pub fn success(&self) -> Result<String> {
        anyhow::ensure!(
            self.status == 0,
            "exit status {}; stdout: {}; stderr: {}",
            self.status,
            self.text(),
            self.errors()
        );
        Ok(self.text())
    }
}

/// A container to be: everything a client chooses before it creates the task.
/// Without any choice it is root in a container of containerd's default
/// specification, under the shim's runtime.
pub struct Builder<'a> {
    engine: &'a Containerd,
    rootfs: Rootfs,
    id: String,
    runtime: String,
    image: String,
    options: Option<Any>,
    input: Input,
    spec: Value,
    streams: Option<[String; 3]>,
    terminal: bool,
    rootfs_mounts: Option<Vec<containerd_client::types::Mount>>,
    checkpoint: Option<Descriptor>,
}

impl Containerd {
    /// Begins a container over a rootfs.
    pub fn container(&self, rootfs: &Rootfs) -> Builder<'_> {
        let id = self.new_id("c");
        Builder {
            engine: self,
            rootfs: rootfs.clone(),
            spec: default_spec(&format!("/{}/{id}", self.namespace())),
            id,
            runtime: WASMTIME.to_owned(),
            image: String::new(),
            options: None,
            input: Input::None,
            streams: None,
            terminal: false,
            rootfs_mounts: None,
            checkpoint: None,
        }
    }
}

impl<'a> Builder<'a> {
    /// Takes this id, also one that another container has.
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self.spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.engine.namespace()));
        self
    }

    /// The id that the container will have.
    pub fn get_id(&self) -> &str {
        &self.id
    }

    /// Takes another runtime, such as [`RUNC`].
    pub fn runtime(mut self, name: &str) -> Self {
        self.runtime = name.to_owned();
        self
    }

    /// Has containerd say that the container is of this image; its files stay the rootfs's.
    pub fn image(mut self, name: &str) -> Self {
        self.image = name.to_owned();
        self
    }

    /// Sends runtime options; see [`crate::options`].
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// Chooses the standard input.
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Takes these paths for stdin, stdout and stderr; the harness makes none.
    pub fn streams(mut self, stdin: &str, stdout: &str, stderr: &str) -> Self {
        self.streams = Some([stdin.to_owned(), stdout.to_owned(), stderr.to_owned()]);
        self
    }

    /// Gives the process a terminal.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self.spec(|spec| spec["process"]["terminal"] = json!(true))
    }

    /// Sends these mounts for the rootfs in place of the snapshot's.
    pub fn rootfs_mounts(mut self, mounts: Vec<containerd_client::types::Mount>) -> Self {
        self.rootfs_mounts = Some(mounts);
        self
    }

    /// Restores the task from what [`Container::checkpoint`] gave.
    pub fn restore(mut self, checkpoint: &Descriptor) -> Self {
        self.checkpoint = Some(checkpoint.clone());
        self
    }

    /// The command and its arguments.
    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<String> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        self.spec(|spec| spec["process"]["args"] = json!(args))
    }

    /// One more variable of the environment.
    pub fn env(self, name: &str, value: &str) -> Self {
        let variable = json!(format!("{name}={value}"));
        self.spec(|spec| push(&mut spec["process"]["env"], variable))
    }

    /// The working directory.
    pub fn cwd(self, path: &str) -> Self {
        self.spec(|spec| spec["process"]["cwd"] = json!(path))
    }

    /// The user and group.
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.spec(|spec| spec["process"]["user"] = json!({"uid": uid, "gid": gid}))
    }

    /// One more bind mount, with options such as `ro` beside `rbind`.
    pub fn bind(self, source: &std::path::Path, destination: &str, options: &[&str]) -> Self {
        let mut all = vec!["rbind"];
        all.extend(options);
        let source = source.display().to_string();
        self.mount(mount(&source, destination, "bind", &all))
    }

    /// One more mount; see [`crate::spec::mount`].
    pub fn mount(self, mount: Value) -> Self {
        self.spec(|spec| push(&mut spec["mounts"], mount))
    }

    /// Makes the rootfs read-only.
    pub fn readonly(self) -> Self {
        self.spec(|spec| spec["root"]["readonly"] = json!(true))
    }

    /// Limits the memory, in bytes.
    pub fn memory(self, bytes: u64) -> Self {
        self.spec(|spec| {
            spec["linux"]["resources"]["memory"] = json!({"limit": bytes, "swap": bytes});
        })
    }

    /// One more annotation.
    pub fn annotation(self, name: &str, value: &str) -> Self {
        self.spec(|spec| spec["annotations"][name] = json!(value))
    }

    /// Puts the container into a pod: into the group of the shim daemon that
    /// the sandbox of this id has.
    pub fn pod(self, sandbox: &str) -> Self {
        self.annotation("io.kubernetes.cri.sandbox-id", sandbox)
    }

    /// One more hook, of a point such as `createRuntime`.
    pub fn hook(self, point: &str, hook: Value) -> Self {
        self.spec(|spec| push(&mut spec["hooks"][point], hook))
    }

    /// Joins a network namespace by its path in place of a new, empty one.
    pub fn network(self, path: &std::path::Path) -> Self {
        let path = path.display().to_string();
        self.spec(|spec| {
            for namespace in spec["linux"]["namespaces"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
        })
    }

    /// Stays in the network that the daemon is in.
    pub fn host_network(self) -> Self {
        self.spec(|spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
        })
    }

    /// Changes the specification in any way.
    pub fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Creates the container and its task. Nothing of it stays when that fails,
    /// but for what the shim itself should leave behind.
    ///
    /// # Errors
    /// The harness's own trouble, or the answer of the create call, whose code
    /// [`code`] gives.
    pub fn create(self) -> Result<Container<'a>> {
        let mut container = self.record()?;
        container.create_task()?;
        Ok(container)
    }

    /// Creates the container but no task; [`Container::create_task`] does that.
    ///
    /// # Errors
    /// The harness's own trouble, or the answer of containerd.
    pub fn record(self) -> Result<Container<'a>> {
        let parent = self.engine.snapshot_of(&self.rootfs)?;
        let mounts = self.engine.prepare_snapshot(&self.id, &parent)?;
        let mut container = Container {
            engine: self.engine,
            id: self.id,
            pid: 0,
            mounts: self.rootfs_mounts.unwrap_or(mounts),
            stdio: None,
            streams: self.streams,
            terminal: self.terminal,
            input: self.input,
            checkpoint: self.checkpoint,
            record: false,
            task: false,
        };
        let request = CreateContainerRequest {
            container: Some(Record {
                id: container.id.clone(),
                image: self.image,
                runtime: Some(Runtime {
                    name: self.runtime,
                    options: self.options,
                }),
                spec: Some(Any {
                    type_url: TYPE_URL.to_owned(),
                    value: serde_json::to_vec(&self.spec)?,
                }),
                snapshotter: SNAPSHOTTER.to_owned(),
                snapshot_key: container.id.clone(),
                labels: HashMap::new(),
                ..Default::default()
            }),
        };
        call(
            self.engine
                .client()
                .containers()
                .create(self.engine.request(request)),
        )
        .context("create the container")?;
        container.record = true;
        Ok(container)
    }

    /// Creates, starts, waits, deletes, and sees to it that nothing stays.
    ///
    /// # Errors
    /// The first of these that fails.
    pub fn run(self) -> Result<Output> {
        let container = self.create()?;
        let (engine, id) = (container.engine, container.id.clone());
        container.start()?;
        let output = container.finish()?;
        engine.ensure_gone(&id)?;
        Ok(output)
    }

    /// Tries to create and start, expecting that one of them fails, and sees to
    /// it that nothing stays. Gives the whole text of the error.
    ///
    /// # Errors
    /// Both succeed, or something stays.
    pub fn refused(self) -> Result<String> {
        let (engine, id) = (self.engine, self.id.clone());
        let error = match self.create() {
            Err(error) => error,
            Ok(container) => match container.start() {
                Err(error) => error,
                Ok(()) => anyhow::bail!("the container {id} runs"),
            },
        };
        engine.ensure_gone(&id)?;
        Ok(format!("{error:#}"))
    }
}

fn push(list: &mut Value, value: Value) {
    match list {
        Value::Array(values) => values.push(value),
        _ => *list = json!([value]),
    }
}

/// The gRPC code of an error that a call of [`Container`] gave.
pub fn code(error: &anyhow::Error) -> Code {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Status>())
        .map_or(Code::Unknown, Status::code)
}

/// A container with its task, snapshot and streams. Dropping it kills the task
/// and removes all of them.
pub struct Container<'a> {
    engine: &'a Containerd,
    id: String,
    pid: u32,
    mounts: Vec<containerd_client::types::Mount>,
    stdio: Option<Stdio>,
    streams: Option<[String; 3]>,
    terminal: bool,
    input: Input,
    checkpoint: Option<Descriptor>,
    record: bool,
    task: bool,
}

impl Container<'_> {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The daemon that has the container.
    pub fn engine(&self) -> &Containerd {
        self.engine
    }

    /// The init process, as the create call told it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The bundle's folder.
    pub fn bundle(&self) -> PathBuf {
        self.engine
            .state()
            .join("io.containerd.runtime.v2.task")
            .join(self.engine.namespace())
            .join(&self.id)
    }

    /// Creates the task; its answer's pid is [`Container::pid`] afterwards.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn create_task(&mut self) -> Result<()> {
        self.create_task_with(|request| request)
    }

    /// As [`Container::create_task`], with a deadline for containerd.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn create_task_within(&mut self, time: Duration) -> Result<()> {
        self.create_task_with(|mut request| {
            request.set_timeout(time);
            request
        })
    }

    /// Creates the task, unless `gone` comes first: then the call is given up.
    ///
    /// # Errors
    /// The answer of the call, `Cancelled` where it was given up.
    pub fn create_task_unless(&mut self, gone: oneshot::Receiver<()>) -> Result<()> {
        let request = self.create_request()?;
        let mut tasks = self.engine.client().tasks();
        let create = tasks.create(self.engine.request(request));
        let answer = call(async {
            tokio::select! {
                answer = create => answer,
                _ = gone => Err(Status::cancelled("the test gave the call up")),
            }
        });
        self.created(answer)
    }

    fn create_task_with(
        &mut self,
        change: impl FnOnce(Request<CreateTaskRequest>) -> Request<CreateTaskRequest>,
    ) -> Result<()> {
        let request = self.create_request()?;
        let mut tasks = self.engine.client().tasks();
        let request = change(self.engine.request(request));
        self.created(call(tasks.create(request)))
    }

    fn created(&mut self, answer: Result<Response<CreateTaskResponse>, Status>) -> Result<()> {
        let answer = answer.with_context(|| format!("create the task {}", self.id))?;
        self.task = true;
        self.pid = answer.into_inner().pid;
        Ok(())
    }

    fn create_request(&mut self) -> Result<CreateTaskRequest> {
        let [stdin, stdout, stderr] = match &self.streams {
            Some(streams) => streams.clone(),
            None => {
                let stdio = match self.stdio.take() {
                    Some(stdio) => stdio,
                    None => Stdio::new(self.engine.folder(), self.input.clone(), self.terminal)?,
                };
                let stdio = self.stdio.insert(stdio);
                [
                    stdio.stdin_path(),
                    stdio.path("stdout"),
                    stdio.path("stderr"),
                ]
            }
        };
        Ok(CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.mounts.clone(),
            stdin,
            stdout,
            stderr,
            terminal: self.terminal,
            checkpoint: self.checkpoint.clone(),
            ..Default::default()
        })
    }

    /// Starts the task.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn start(&self) -> Result<()> {
        let request = StartRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
        };
        call(
            self.engine
                .client()
                .tasks()
                .start(self.engine.request(request)),
        )
        .with_context(|| format!("start the task {}", self.id))?;
        Ok(())
    }

    /// Waits for the task's end.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn wait(&self) -> Result<Exit> {
        let request = WaitRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
        };
        let answer = call(
            self.engine
                .client()
                .tasks()
                .wait(self.engine.request(request)),
        )
        .with_context(|| format!("wait for the task {}", self.id))?
        .into_inner();
        Ok(Exit {
            status: answer.exit_status,
            at: answer.exited_at,
        })
    }

    /// Sends a signal to the init process.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.signal(signal as u32, false)
    }

    /// Sends a signal by its number, to the init process or to `all`.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn signal(&self, signal: u32, all: bool) -> Result<()> {
        let request = KillRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
            signal,
            all,
        };
        call(
            self.engine
                .client()
                .tasks()
                .kill(self.engine.request(request)),
        )
        .with_context(|| format!("kill the task {}", self.id))?;
        Ok(())
    }

    /// Pauses the task.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn pause(&self) -> Result<()> {
        let request = PauseTaskRequest {
            container_id: self.id.clone(),
        };
        call(
            self.engine
                .client()
                .tasks()
                .pause(self.engine.request(request)),
        )
        .with_context(|| format!("pause the task {}", self.id))?;
        Ok(())
    }

    /// Resumes the paused task.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn resume(&self) -> Result<()> {
        let request = ResumeTaskRequest {
            container_id: self.id.clone(),
        };
        call(
            self.engine
                .client()
                .tasks()
                .resume(self.engine.request(request)),
        )
        .with_context(|| format!("resume the task {}", self.id))?;
        Ok(())
    }

    /// Makes a checkpoint of the task with options, as containerd keeps it in its store: the
    /// images' descriptor.
    ///
    /// # Errors
    /// The answer of the call, or one without descriptors.
    pub fn checkpoint(&self, options: &CheckpointOptions) -> Result<Descriptor> {
        // Without a lease containerd would collect it as garbage.
        let lease = self.engine.new_id("lease");
        let request = self.engine.request(CreateRequest {
            id: lease.clone(),
            ..Default::default()
        });
        call(self.engine.client().leases().create(request)).context("make a lease")?;
        let mut request = self.engine.request(CheckpointTaskRequest {
            container_id: self.id.clone(),
            parent_checkpoint: String::new(),
            options: Some(options.any()),
        });
        let lease = lease.parse().context("a lease's name is plain ASCII")?;
        request.metadata_mut().insert("containerd-lease", lease);
        let answer = call(self.engine.client().tasks().checkpoint(request))
            .with_context(|| format!("checkpoint the task {}", self.id))?;
        let mut descriptors = answer.into_inner().descriptors.into_iter();
        descriptors.next().context("a checkpoint without images")
    }

    /// Changes the task's limits to those of `resources`, JSON in the OCI
    /// runtime spec's words.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn update(&self, resources: Value) -> Result<()> {
        let request = UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(Any {
                type_url: RESOURCES_TYPE_URL.to_owned(),
                value: serde_json::to_vec(&resources)?,
            }),
            annotations: [("lighter-test".to_owned(), "any".to_owned())].into(),
        };
        call(
            self.engine
                .client()
                .tasks()
                .update(self.engine.request(request)),
        )
        .with_context(|| format!("update the task {}", self.id))?;
        Ok(())
    }

    /// Sets the size of the terminal of the init process, or of another by its id.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
        let request = ResizePtyRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: columns,
            height: rows,
        };
        call(
            self.engine
                .client()
                .tasks()
                .resize_pty(self.engine.request(request)),
        )
        .with_context(|| format!("resize the terminal of {}", self.id))?;
        Ok(())
    }

    /// The task's state.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn state(&self) -> Result<Process> {
        let request = GetRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
        };
        let answer = call(
            self.engine
                .client()
                .tasks()
                .get(self.engine.request(request)),
        )
        .with_context(|| format!("get the task {}", self.id))?;
        answer
            .into_inner()
            .process
            .context("a state without a process")
    }

    /// The task's processes.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.processes()?.into_iter().map(|(pid, _)| pid).collect())
    }

    /// The task's processes, with the exec id of those that have one.
    ///
    /// # Errors
    /// The answer of the call, or one that cannot be read.
    pub fn processes(&self) -> Result<Vec<(u32, Option<String>)>> {
        let request = ListPidsRequest {
            container_id: self.id.clone(),
        };
        let answer = call(
            self.engine
                .client()
                .tasks()
                .list_pids(self.engine.request(request)),
        )
        .with_context(|| format!("list the processes of {}", self.id))?;
        let processes = answer.into_inner().processes.into_iter();
        processes
            .map(|process| {
                let details = process.info.map(|info| {
                    anyhow::ensure!(info.type_url == "containerd.runc.v1.ProcessDetails");
                    Ok(ProcessDetails::decode(info.value.as_slice())?.exec_id)
                });
                Ok((process.pid, details.transpose()?))
            })
            .collect()
    }

    /// The task's figures: the message as the shim sent it.
    ///
    /// # Errors
    /// The answer of the call, or one without figures.
    pub fn stats(&self) -> Result<Any> {
        let request = MetricsRequest {
            filters: vec![format!("id=={}", self.id)],
        };
        let answer = call(
            self.engine
                .client()
                .tasks()
                .metrics(self.engine.request(request)),
        )
        .with_context(|| format!("figures of the task {}", self.id))?;
        let metric = answer.into_inner().metrics.into_iter().next();
        metric
            .and_then(|metric| metric.data)
            .ok_or_else(|| anyhow!("no figures for {}", self.id))
    }

    /// Deletes the stopped task.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn delete(&mut self) -> Result<Exit> {
        let request = DeleteTaskRequest {
            container_id: self.id.clone(),
        };
        let answer = call(
            self.engine
                .client()
                .tasks()
                .delete(self.engine.request(request)),
        )
        .with_context(|| format!("delete the task {}", self.id))?
        .into_inner();
        self.task = false;
        Ok(Exit {
            status: answer.exit_status,
            at: answer.exited_at,
        })
    }

    /// Has the task deleted, and gives that up after so much time.
    ///
    /// # Errors
    /// The answer of the call, that it was given up too.
    pub fn delete_within(&self, time: Duration) -> Result<()> {
        let mut request = self.engine.request(DeleteTaskRequest {
            container_id: self.id.clone(),
        });
        request.set_timeout(time);
        call(self.engine.client().tasks().delete(request))?;
        Ok(())
    }

    /// Gives bytes to the task's standard input.
    pub fn feed(&self, bytes: &[u8]) {
        if let Some(stdio) = self.stdio.as_ref().filter(|_| !bytes.is_empty()) {
            stdio.feed(bytes);
        }
    }

    /// Ends the task's standard input, as a client does: closes its end and
    /// asks the shim to close the one that it holds, if it does.
    ///
    /// # Errors
    /// The answer of the call, unless the runtime says it has none.
    pub fn end_stdin(&self) -> Result<()> {
        if let Some(stdio) = &self.stdio {
            stdio.feed(&[]);
        }
        let request = CloseIoRequest {
            container_id: self.id.clone(),
            exec_id: String::new(),
            stdin: true,
        };
        match call(
            self.engine
                .client()
                .tasks()
                .close_io(self.engine.request(request)),
        ) {
            Err(status) if status.code() != Code::Unimplemented => {
                Err(status).context("close the standard input")
            }
            _ => Ok(()),
        }
    }

    /// What the task has written to its standard output until now.
    pub fn stdout(&self) -> String {
        let bytes = self.stdio.as_ref().map(Stdio::stdout).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// When the first byte came on the task's standard output, if one has.
    pub fn first_output(&self) -> Option<Instant> {
        self.stdio.as_ref().and_then(Stdio::first_output)
    }

    /// What the task has written to its standard error until now.
    pub fn stderr(&self) -> String {
        let bytes = self.stdio.as_ref().map(Stdio::stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the standard output has this text in it.
    ///
    /// # Errors
    /// It has not in time; the message shows both streams.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        crate::eventually("output", || self.stdout().contains(text).then_some(())).with_context(
            || {
                format!(
                    "{text:?} in {:?}; stderr {:?}",
                    self.stdout(),
                    self.stderr()
                )
            },
        )
    }

    /// The container's task events until now.
    pub fn events(&self) -> Vec<Event> {
        self.engine.recorder().of(&self.id)
    }

    /// Waits for one of the container's events by its name (see
    /// [`Event::name`]) and gives all until then.
    ///
    /// # Errors
    /// It did not come in time.
    pub fn wait_for_event(&self, name: &str) -> Result<Vec<Event>> {
        self.engine.recorder().wait_for(&self.id, name)
    }

    /// A running task's file of a cgroup controller, such as
    /// `memory`/`memory.limit_in_bytes`; on cgroup v2 the controller is not used.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cgroup_file(&self, controller: &str, file: &str) -> Result<String> {
        let path = crate::cgroup::folder(controller)
            .join(self.engine.namespace())
            .join(&self.id)
            .join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Waits for the task's end, deletes it and gives all that it wrote. The
    /// exit event has come when this returns.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn finish(mut self) -> Result<Output> {
        let exit = self.wait()?;
        if let Some(stdio) = &mut self.stdio {
            stdio.drain();
        }
        let output = Output {
            status: exit.status,
            stdout: self.stdio.as_ref().map(Stdio::stdout).unwrap_or_default(),
            stderr: self.stdio.as_ref().map(Stdio::stderr).unwrap_or_default(),
        };
        let deleted = self.delete()?;
        anyhow::ensure!(
            deleted.status == exit.status,
            "delete says exit status {}, wait said {}",
            deleted.status,
            exit.status
        );
        self.remove()?;
        Ok(output)
    }

    /// Removes the container and its snapshot; the task must be deleted.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn remove(mut self) -> Result<()> {
        self.remove_record()
    }

    fn remove_record(&mut self) -> Result<()> {
        if self.record {
            let request = DeleteContainerRequest {
                id: self.id.clone(),
            };
            call(
                self.engine
                    .client()
                    .containers()
                    .delete(self.engine.request(request)),
            )
            .with_context(|| format!("delete the container {}", self.id))?;
            self.record = false;
            self.engine.remove_snapshot(&self.id)?;
        }
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() || self.task {
            let log = self.engine.log();
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| line.contains(&self.id) || line.contains("shim"))
                .collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            eprintln!("log of containerd about {}:\n{}", self.id, tail.join("\n"));
        }
        // Each of these fails when the test has done it itself.
        if self.task {
            let _ = self.signal(Signal::SIGKILL as u32, true);
            let _ = self.wait();
            let _ = self.delete();
        }
        let _ = self.remove_record();
    }
}
