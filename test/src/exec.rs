//! A further process in a container, driven through containerd's API.

use anyhow::{Context, Result};
use containerd_client::{
    services::v1::{
        CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
        StartRequest, WaitRequest,
    },
    types::v1::Process,
};
use nix::sys::signal::Signal;
use prost_types::Any;
use serde_json::{Value, json};

use crate::{Container, Exit, Input, Output, runtime::call, stdio::Stdio};

/// The type of the message that [`ExecProcessRequest`] carries.
const TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What the process is to be; begun with [`Container::exec`].
pub struct ExecBuilder<'a> {
    container: &'a Container<'a>,
    id: String,
    process: Value,
    input: Input,
    streams: Option<[String; 3]>,
    terminal: bool,
}

/// A process that was added to a container. Dropping it kills and deletes it.
pub struct Exec<'a> {
    container: &'a Container<'a>,
    id: String,
    /// `None` where the test has made its own.
    stdio: Option<Stdio>,
    deleted: bool,
}

impl Container<'_> {
    /// A process like the container's own with other arguments, as `ctr tasks
    /// exec` makes it.
    ///
    /// # Errors
    /// The bundle's configuration cannot be read.
    pub fn exec<const N: usize>(&self, args: [&str; N]) -> Result<ExecBuilder<'_>> {
        let config =
            std::fs::read(self.bundle().join("config.json")).context("read config.json")?;
        let mut config: Value = serde_json::from_slice(&config)?;
        let mut process = config["process"].take();
        process["args"] = json!(args.as_slice());
        process["terminal"] = json!(false);
        Ok(ExecBuilder {
            container: self,
            id: self.engine().new_id("exec"),
            process,
            input: Input::None,
            streams: None,
            terminal: false,
        })
    }
}

impl<'a> ExecBuilder<'a> {
    /// Chooses the exec id.
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    /// Sets a property of the OCI process, by its JSON pointer.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let parent = self
            .process
            .pointer_mut(parent)
            .expect("the parent is there");
        parent[name] = value;
        self
    }

    /// Gives the process a standard input.
    pub fn input(mut self, input: Input) -> Self {
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
        self.with("/terminal", json!(true))
    }

    /// Adds the process; it is not started.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn add(self) -> Result<Exec<'a>> {
        let engine = self.container.engine();
        let (stdio, [stdin, stdout, stderr]) = match self.streams {
            Some(streams) => (None, streams),
            None => {
                let stdio = Stdio::new(engine.folder(), self.input, self.terminal)?;
                let streams = [
                    stdio.stdin_path(),
                    stdio.path("stdout"),
                    stdio.path("stderr"),
                ];
                (Some(stdio), streams)
            }
        };
        let request = ExecProcessRequest {
            container_id: self.container.id().to_owned(),
            exec_id: self.id.clone(),
            stdin,
            stdout,
            stderr,
            terminal: self.terminal,
            spec: Some(Any {
                type_url: TYPE_URL.to_owned(),
                value: self.process.to_string().into_bytes(),
            }),
        };
        call(engine.client().tasks().exec(engine.request(request)))
            .with_context(|| format!("exec {} in {}", self.id, self.container.id()))?;
        Ok(Exec {
            container: self.container,
            id: self.id,
            stdio,
            deleted: false,
        })
    }

    /// Adds the process and starts it.
    ///
    /// # Errors
    /// The answer of either call.
    pub fn start(self) -> Result<Exec<'a>> {
        let exec = self.add()?;
        exec.start()?;
        Ok(exec)
    }

    /// Runs the process to its end and deletes it.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn run(self) -> Result<Output> {
        self.start()?.finish()
    }
}

impl Exec<'_> {
    /// The exec id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn container_id(&self) -> String {
        self.container.id().to_owned()
    }

    /// Starts the process; gives its pid.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn start(&self) -> Result<u32> {
        let engine = self.container.engine();
        let request = StartRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
        };
        let answer = call(engine.client().tasks().start(engine.request(request)))
            .with_context(|| format!("start {}", self.id))?;
        Ok(answer.into_inner().pid)
    }

    /// Waits for the process's end.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn wait(&self) -> Result<Exit> {
        let engine = self.container.engine();
        let request = WaitRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
        };
        let answer = call(engine.client().tasks().wait(engine.request(request)))
            .with_context(|| format!("wait for {}", self.id))?
            .into_inner();
        Ok(Exit {
            status: answer.exit_status,
            at: answer.exited_at,
        })
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        let engine = self.container.engine();
        let request = KillRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
            signal: signal as u32,
            all: false,
        };
        call(engine.client().tasks().kill(engine.request(request)))
            .with_context(|| format!("kill {}", self.id))?;
        Ok(())
    }

    /// Sets the size of the process's terminal.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        self.container.resize(&self.id, rows, columns)
    }

    /// The process's state.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn state(&self) -> Result<Process> {
        let engine = self.container.engine();
        let request = GetRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
        };
        let answer = call(engine.client().tasks().get(engine.request(request)))
            .with_context(|| format!("get {}", self.id))?;
        answer
            .into_inner()
            .process
            .context("a state without a process")
    }

    /// Deletes the process, which must not be running.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn delete(&mut self) -> Result<Exit> {
        let engine = self.container.engine();
        let request = DeleteProcessRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
        };
        let mut tasks = engine.client().tasks();
        let answer = call(tasks.delete_process(engine.request(request)))
            .with_context(|| format!("delete {}", self.id))?
            .into_inner();
        self.deleted = true;
        Ok(Exit {
            status: answer.exit_status,
            at: answer.exited_at,
        })
    }

    /// Gives bytes to the process's standard input.
    pub fn feed(&self, bytes: &[u8]) {
        if let Some(stdio) = &self.stdio {
            stdio.feed(bytes);
        }
    }

    /// Ends the process's standard input, as a client does.
    ///
    /// # Errors
    /// The answer of the call.
    pub fn end_stdin(&self) -> Result<()> {
        self.feed(&[]);
        let engine = self.container.engine();
        let request = CloseIoRequest {
            container_id: self.container_id(),
            exec_id: self.id.clone(),
            stdin: true,
        };
        call(engine.client().tasks().close_io(engine.request(request)))
            .with_context(|| format!("close the standard input of {}", self.id))?;
        Ok(())
    }

    /// Waits until the standard output has this text in it.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        let stdout = || self.stdio.as_ref().map(Stdio::stdout).unwrap_or_default();
        let output = || String::from_utf8_lossy(&stdout()).into_owned();
        crate::eventually("output", || output().contains(text).then_some(()))
            .with_context(|| format!("{text:?} in {:?}", output()))
    }

    /// Waits for the process's end, deletes it and gives all that it wrote.
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
        Ok(output)
    }
}

impl Drop for Exec<'_> {
    fn drop(&mut self) {
        if !self.deleted {
            // Each fails where the process has not come so far or has gone with its container.
            if self.kill(Signal::SIGKILL).is_ok() {
                let _ = self.wait();
            }
            let _ = self.delete();
        }
    }
}
