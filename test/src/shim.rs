//! The shim without containerd: its command line, and its ttrpc services called
//! directly, for what containerd never lets through.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::{
    Client, TaskClient,
    api::{CreateTaskRequest, CreateTaskResponse},
    sandbox_sync::SandboxClient,
    ttrpc::{Code, Error, context},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::json;

use crate::{Containerd, Rootfs, spec::default_spec, version::built_programs};

/// The shim's program under its runtime's name: `wasmtime` or `runc`.
///
/// # Errors
/// It was not built or fetched.
pub fn program(engine: &Containerd, runtime: &str) -> Result<PathBuf> {
    Ok(match runtime {
        "runc" => engine.version().programs()?.join("containerd-shim-runc-v2"),
        _ => built_programs()?.join("containerd-shim-wasmtime-v1"),
    })
}

/// A shim daemon that a test started itself. It is killed when dropped.
pub struct Shim<'a> {
    engine: &'a Containerd,
    program: PathBuf,
    bundle: PathBuf,
    id: String,
    client: TaskClient,
    sandboxes: SandboxClient,
    /// The pipe that containerd reads a shim's log from; it is not read here.
    _log: File,
}

impl<'a> Shim<'a> {
    /// Calls `start` as containerd does, with the bundle as working directory,
    /// and connects to the address that it prints.
    ///
    /// # Errors
    /// `start` fails; the message is what it wrote.
    pub fn start(engine: &'a Containerd, runtime: &str, id: &str, bundle: &Path) -> Result<Self> {
        let program = program(engine, runtime)?;
        let log = bundle.join("log");
        mkfifo(&log, Mode::S_IRWXU).context("make the log pipe")?;
        let log = File::options().read(true).write(true).open(log)?;
        let output = command(engine, &program, id, bundle, "start")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "start: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // Either the bare address or, since containerd 2, JSON with it inside.
        let address = match serde_json::from_str::<serde_json::Value>(&answer) {
            Ok(parameters) => parameters["address"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            Err(_) => answer.trim().to_owned(),
        };
        let client =
            Client::connect(&address).with_context(|| format!("connect to {address:?}"))?;
        Ok(Self {
            engine,
            program,
            bundle: bundle.to_owned(),
            id: id.to_owned(),
            client: TaskClient::new(client.clone()),
            sandboxes: SandboxClient::new(client),
            _log: log,
        })
    }

    /// The id that it was started with.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The shim's task service.
    pub fn tasks(&self) -> &TaskClient {
        &self.client
    }

    /// The shim's sandbox service.
    pub fn sandboxes(&self) -> &SandboxClient {
        &self.sandboxes
    }

    /// Calls Create for the bundle, without streams.
    ///
    /// # Errors
    /// The shim's answer.
    pub fn create(&self) -> Result<CreateTaskResponse, Error> {
        let mut request = CreateTaskRequest::new();
        request.id = self.id.clone();
        request.bundle = self.bundle.display().to_string();
        self.client.create(deadline(), &request)
    }

    /// Calls `delete`, as containerd does when a shim is lost.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn delete(&self) -> Result<Output> {
        delete(self.engine, &self.program, &self.id, &self.bundle)
    }
}

impl Drop for Shim<'_> {
    fn drop(&mut self) {
        for pid in self.engine.shims_of(&self.id) {
            let pid = nix::unistd::Pid::from_raw(pid as i32);
            // It may have ended on its own.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // `delete` is for a daemon that is gone.
        let _ = crate::eventually("the shim is gone", || {
            self.engine.shims_of(&self.id).is_empty().then_some(())
        });
        let _ = self.delete();
    }
}

/// A bundle with busybox and the guests, and a specification of its own making.
///
/// # Errors
/// It cannot be written.
pub fn bundle(engine: &Containerd, id: &str, args: &[&str]) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("bundle-")
        .tempdir_in(engine.folder())?;
    let rootfs = folder.path().join("rootfs");
    fs::create_dir(&rootfs)?;
    Rootfs::guests()?.write(&rootfs)?;
    let mut spec = default_spec(&format!("/{}/{id}", engine.namespace()));
    spec["process"]["args"] = json!(args);
    fs::write(folder.path().join("config.json"), spec.to_string())?;
    Ok(folder)
}

/// Runs a shim's `delete` for a bundle.
///
/// # Errors
/// It cannot be started.
pub fn delete(engine: &Containerd, program: &Path, id: &str, bundle: &Path) -> Result<Output> {
    command(engine, program, id, bundle, "delete")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", program.display()))
}

/// A deadline for one call.
pub fn deadline() -> context::Context {
    context::with_duration(Duration::from_secs(30))
}

/// The code and message of a failed ttrpc call.
///
/// # Errors
/// The call did not fail, or not by an answer of the shim.
pub fn refusal<T>(answer: Result<T, Error>) -> Result<(Code, String)> {
    match answer {
        Ok(_) => anyhow::bail!("the shim accepted the call"),
        Err(Error::RpcStatus(status)) => Ok((status.code(), status.message().to_owned())),
        Err(other) => Err(other.into()),
    }
}

/// The command line that containerd calls a shim with.
fn command(engine: &Containerd, program: &Path, id: &str, bundle: &Path, action: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-namespace", engine.namespace(), "-id", id, "-address"])
        .arg(engine.socket())
        .arg("-publish-binary")
        .arg("/bin/true")
        .current_dir(bundle)
        .env(
            "TTRPC_ADDRESS",
            format!("{}.ttrpc", engine.socket().display()),
        )
        .env("MAX_SHIM_VERSION", "3");
    if action == "delete" {
        command.arg("-bundle").arg(bundle);
    }
    command.arg(action);
    command
}
