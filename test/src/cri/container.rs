//! Containers of pods.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::v1;
use anyhow::{Context, Result, bail, ensure};
use containerd_client::tonic::Request;

use super::{Cri, IMAGE, Pod, stream::Streams};
use crate::{eventually, runtime::call};

/// A container to be: what [`Pod::container`] gives.
pub struct Builder<'a> {
    pod: &'a Pod<'a>,
    config: v1::ContainerConfig,
}

impl<'a> Builder<'a> {
    pub(super) fn new(pod: &'a Pod<'a>, args: Vec<String>) -> Self {
        let name = pod.cri().new_name("container");
        let config = v1::ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(v1::ContainerMetadata { name, attempt: 0 }),
            image: Some(v1::ImageSpec {
                image: IMAGE.to_owned(),
                ..Default::default()
            }),
            command: args,
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources::default()),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    // As a kubelet does: a container's namespaces are its pod's.
                    namespace_options: pod
                        .config()
                        .linux
                        .as_ref()
                        .and_then(|linux| linux.security_context.as_ref())
                        .and_then(|security| security.namespace_options.clone()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        Self { pod, config }
    }

    /// Changes the container's configuration.
    pub fn with(mut self, change: impl FnOnce(&mut v1::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the container's security context.
    pub fn security(mut self, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Self {
        let linux = self.config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
        self
    }

    /// Changes the container's limits.
    pub fn resources(mut self, change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Self {
        let linux = self.config.linux.get_or_insert_default();
        change(linux.resources.get_or_insert_default());
        self
    }

    /// Adds an environment variable.
    pub fn env(self, key: &str, value: &str) -> Self {
        self.with(|config| {
            config.envs.push(v1::KeyValue {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        })
    }

    /// Mounts a file or folder of the node.
    pub fn mount(self, host: impl Into<PathBuf>, path: &str) -> Self {
        let host = host.into().display().to_string();
        self.with(|config| {
            config.mounts.push(v1::Mount {
                container_path: path.to_owned(),
                host_path: host,
                ..Default::default()
            });
        })
    }

    /// Creates the container.
    ///
    /// # Errors
    /// What CRI says.
    pub fn create(self) -> Result<Container<'a>> {
        let pod = self.pod;
        // The kubelet's part.
        let log = PathBuf::from(&pod.config().log_directory);
        fs::create_dir_all(&log)?;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id().to_owned(),
            config: Some(self.config.clone()),
            sandbox_config: Some(pod.config().clone()),
        };
        let id = call(pod.cri().runtime().create_container(request))
            .with_context(|| format!("create {:?}", self.config.command))?
            .into_inner()
            .container_id;
        pod.members.borrow_mut().push(id.clone());
        Ok(Container {
            cri: pod.cri(),
            log: log.join(&self.config.log_path),
            id,
        })
    }

    /// Creates and starts the container.
    ///
    /// # Errors
    /// What CRI says.
    pub fn start(self) -> Result<Container<'a>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }

    /// Creates and starts the container and waits until it ends.
    ///
    /// # Errors
    /// What CRI says.
    pub fn run(self) -> Result<Ended> {
        self.start()?.wait()
    }
}

/// A line of a container's log; the format is Kubernetes' (design proposal
/// "Kubelet CRI logging"): time, stream, tag, text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was written, RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line's end follows; a part of a long line otherwise.
    pub full: bool,
    /// What the container wrote, without the line's end.
    pub text: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// A word for the reason: `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
    /// What it wrote to its standard output.
    pub output: String,
    /// What it wrote to its standard error.
    pub errors: String,
}

impl Ended {
    /// The output of a container that ended with 0.
    ///
    /// # Errors
    /// It ended with another code.
    pub fn success(self) -> Result<String> {
        ensure!(self.code == 0, "{self:?}");
        Ok(self.output)
    }
}

/// A container that has been created.
pub struct Container<'a> {
    cri: &'a Cri,
    id: String,
    log: PathBuf,
}

impl Container<'_> {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts the container.
    ///
    /// # Errors
    /// What CRI says.
    pub fn start(&self) -> Result<()> {
        let request = v1::StartContainerRequest {
            container_id: self.id.clone(),
        };
        call(self.cri.runtime().start_container(request)).context("start the container")?;
        Ok(())
    }

    /// As [`Container::start`], with a deadline, as a kubelet's.
    ///
    /// # Errors
    /// What CRI says.
    pub fn start_within(&self, time: Duration) -> Result<()> {
        let mut request = Request::new(v1::StartContainerRequest {
            container_id: self.id.clone(),
        });
        request.set_timeout(time);
        call(self.cri.runtime().start_container(request)).context("start the container in time")?;
        Ok(())
    }

    /// Stops the container: its stop signal, and SIGKILL after `grace` seconds.
    ///
    /// # Errors
    /// What CRI says.
    pub fn stop(&self, grace: i64) -> Result<()> {
        let request = v1::StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace,
        };
        call(self.cri.runtime().stop_container(request)).context("stop the container")?;
        Ok(())
    }

    /// Removes the container, which is killed if it runs.
    ///
    /// # Errors
    /// What CRI says.
    pub fn remove(&self) -> Result<()> {
        let request = v1::RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        call(self.cri.runtime().remove_container(request)).context("remove the container")?;
        Ok(())
    }

    /// Its status.
    ///
    /// # Errors
    /// What CRI says.
    pub fn status(&self) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        call(self.cri.runtime().container_status(request))?
            .into_inner()
            .status
            .context("an answer without a status")
    }

    /// The process on the node that its task began with.
    ///
    /// # Errors
    /// What CRI says; a container without a process.
    pub fn pid(&self) -> Result<u32> {
        let request = v1::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: true,
        };
        let info = call(self.cri.runtime().container_status(request))?
            .into_inner()
            .info;
        let info: serde_json::Value =
            serde_json::from_str(info.get("info").context("no information")?)?;
        let pid = info["pid"].as_u64().context("no pid")?;
        ensure!(pid != 0, "the container has no process");
        Ok(pid.try_into()?)
    }

    /// Its figures.
    ///
    /// # Errors
    /// What CRI says.
    pub fn stats(&self) -> Result<v1::ContainerStats> {
        let request = v1::ContainerStatsRequest {
            container_id: self.id.clone(),
        };
        call(self.cri.runtime().container_stats(request))?
            .into_inner()
            .stats
            .context("an answer without figures")
    }

    /// Runs a process in it to its end, as a probe does. `timeout` is in seconds; 0 is
    /// none.
    ///
    /// # Errors
    /// What CRI says: `DeadlineExceeded` when the time was not enough, for one.
    pub fn exec_sync<S: Into<String>>(
        &self,
        args: impl IntoIterator<Item = S>,
        timeout: i64,
    ) -> std::result::Result<Ended, tonic::Status> {
        let request = v1::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.into_iter().map(Into::into).collect(),
            timeout,
        };
        let answer = call(self.cri.runtime().exec_sync(request))?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended {
            code: answer.exit_code,
            reason: String::new(),
            output: text(&answer.stdout),
            errors: text(&answer.stderr),
        })
    }

    /// Runs a process in it with streams to the caller.
    ///
    /// # Errors
    /// What CRI or the streaming server says.
    pub fn exec<S: Into<String>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: bool,
        tty: bool,
    ) -> Result<Streams> {
        let request = v1::ExecRequest {
            container_id: self.id.clone(),
            cmd: args.into_iter().map(Into::into).collect(),
            stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let answer = call(self.cri.runtime().exec(request)).context("exec")?;
        Streams::open(self.cri, &answer.into_inner().url)
    }

    /// Connects to the streams of its first process.
    ///
    /// # Errors
    /// What CRI or the streaming server says.
    pub fn attach(&self, stdin: bool, tty: bool) -> Result<Streams> {
        let request = v1::AttachRequest {
            container_id: self.id.clone(),
            stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let answer = call(self.cri.runtime().attach(request)).context("attach")?;
        Streams::open(self.cri, &answer.into_inner().url)
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// What CRI says.
    pub fn update(&self, limits: v1::LinuxContainerResources) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        call(self.cri.runtime().update_container_resources(request)).context("update")?;
        Ok(())
    }

    /// Has its log opened anew, after somebody moved the file away.
    ///
    /// # Errors
    /// What CRI says.
    pub fn reopen_log(&self) -> Result<()> {
        let request = v1::ReopenContainerLogRequest {
            container_id: self.id.clone(),
        };
        call(self.cri.runtime().reopen_container_log(request)).context("reopen the log")?;
        Ok(())
    }

    /// The file of its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It does not.
    pub fn wait(&self) -> Result<Ended> {
        let status = eventually("the container ends", || {
            let status = self.status().ok()?;
            (status.state == v1::ContainerState::ContainerExited as i32).then_some(status)
        })
        .with_context(|| format!("its log: {:?}", self.lines()))?;
        Ok(Ended {
            code: status.exit_code,
            reason: status.reason,
            output: self.written("stdout")?,
            errors: self.written("stderr")?,
        })
    }

    /// The lines of its log until now.
    ///
    /// # Errors
    /// A log that cannot be read or is not of the format.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let bytes = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(parse).collect()
    }

    /// What it has written to `stdout` or `stderr` until now.
    ///
    /// # Errors
    /// As [`Container::lines`].
    pub fn written(&self, stream: &str) -> Result<String> {
        let lines = self.lines()?;
        let written = lines
            .iter()
            .filter(|line| line.stream == stream)
            .map(|line| format!("{}{}", line.text, if line.full { "\n" } else { "" }));
        Ok(written.collect())
    }

    /// Waits until a line of its log contains `text`.
    ///
    /// # Errors
    /// None does.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        eventually("the log has the text", || {
            let lines = self.lines().ok()?;
            lines.iter().any(|l| l.text.contains(text)).then_some(())
        })
        .with_context(|| format!("{text:?} in {:?}", self.lines()))
    }
}

fn parse(line: &str) -> Result<Line> {
    let mut parts = line.splitn(4, ' ');
    let (Some(time), Some(stream), Some(tag), Some(text)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("no line of a log: {line:?}");
    };
    ensure!(
        matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P"),
        "no line of a log: {line:?}"
    );
    Ok(Line {
        time: time.to_owned(),
        stream: stream.to_owned(),
        full: tag == "F",
        text: text.to_owned(),
    })
}
