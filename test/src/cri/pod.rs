//! Pods.

use std::{cell::RefCell, net::IpAddr};

use super::v1;
use anyhow::{Context, Result};

use super::{Cri, container::Builder, stream::Forward};
use crate::{Containerd, runtime::call};

/// A pod to be: what [`Cri::pod`] gives.
pub struct PodBuilder<'a> {
    cri: &'a Cri,
    handler: String,
    config: v1::PodSandboxConfig,
}

impl<'a> PodBuilder<'a> {
    pub(super) fn new(cri: &'a Cri, handler: &str) -> Self {
        let name = cri.new_name("pod");
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
                name: name.clone(),
            }),
            hostname: name.clone(),
            log_directory: cri.log_folder(&name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", cri.engine().namespace()),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self {
            cri,
            handler: handler.to_owned(),
            config,
        }
    }

    /// Changes the pod's configuration.
    pub fn with(mut self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the Linux part of the pod's configuration.
    pub fn linux(mut self, change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> Self {
        change(self.config.linux.get_or_insert_default());
        self
    }

    /// Changes the pod's security context.
    pub fn security(self, change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> Self {
        self.linux(|linux| change(linux.security_context.get_or_insert_default()))
    }

    /// Changes which namespaces are the pod's, a container's or the node's.
    pub fn namespaces(self, change: impl FnOnce(&mut v1::NamespaceOption)) -> Self {
        self.security(|security| change(security.namespace_options.get_or_insert_default()))
    }

    /// Runs the pod's sandbox.
    ///
    /// # Errors
    /// What CRI says.
    pub fn run(self) -> Result<Pod<'a>> {
        let request = v1::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let id = call(self.cri.runtime().run_pod_sandbox(request))
            .with_context(|| format!("run a pod with {}", self.handler))?
            .into_inner()
            .pod_sandbox_id;
        Ok(Pod {
            cri: self.cri,
            handler: self.handler,
            config: self.config,
            id,
            members: RefCell::default(),
        })
    }
}

/// A pod whose sandbox has been run.
pub struct Pod<'a> {
    cri: &'a Cri,
    handler: String,
    config: v1::PodSandboxConfig,
    id: String,
    /// The ids of its containers.
    pub(super) members: RefCell<Vec<String>>,
}

impl<'a> Pod<'a> {
    /// The id of the sandbox, which is its group's name too.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The runtime handler.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// What it was run with.
    pub fn config(&self) -> &v1::PodSandboxConfig {
        &self.config
    }

    /// The services that it was run with.
    pub fn cri(&self) -> &'a Cri {
        self.cri
    }

    fn engine(&self) -> &Containerd {
        self.cri.engine()
    }

    /// A container to be, with its arguments; the first is the program.
    pub fn container<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Builder<'_> {
        Builder::new(self, args.into_iter().map(Into::into).collect())
    }

    /// The status of the sandbox.
    ///
    /// # Errors
    /// What CRI says.
    pub fn status(&self) -> Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        call(self.cri.runtime().pod_sandbox_status(request))?
            .into_inner()
            .status
            .context("an answer without a status")
    }

    /// What the runtime tells people about the sandbox: the `info` of a verbose status.
    ///
    /// # Errors
    /// What CRI says; an answer without it.
    pub fn info(&self) -> Result<serde_json::Value> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
        };
        let answer = call(self.cri.runtime().pod_sandbox_status(request))?.into_inner();
        let info = answer.info.get("info").context("an answer without info")?;
        Ok(serde_json::from_str(info)?)
    }

    /// The address that the pod has in its network.
    ///
    /// # Errors
    /// It has none.
    pub fn ip(&self) -> Result<IpAddr> {
        let network = self.status()?.network.context("the pod has no network")?;
        network
            .ip
            .parse()
            .with_context(|| format!("the pod's address {:?}", network.ip))
    }

    /// Connects to ports of the pod, as `kubectl port-forward` has it done.
    ///
    /// # Errors
    /// What CRI or the streaming server says.
    pub fn forward(&self, ports: &[u16]) -> Result<Forward> {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: ports.iter().copied().map(Into::into).collect(),
        };
        let answer = call(self.cri.runtime().port_forward(request)).context("forward ports")?;
        Forward::open(self.cri, &answer.into_inner().url, ports)
    }

    /// Its figures.
    ///
    /// # Errors
    /// What CRI says.
    pub fn stats(&self) -> Result<v1::PodSandboxStats> {
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: self.id.clone(),
        };
        call(self.cri.runtime().pod_sandbox_stats(request))?
            .into_inner()
            .stats
            .context("an answer without figures")
    }

    /// The processes of the shim that serve this pod.
    pub fn shims(&self) -> Vec<u32> {
        self.engine().shims_of(&self.id)
    }

    /// Stops the pod: its containers, its network and its sandbox.
    ///
    /// # Errors
    /// What CRI says.
    pub fn stop(&self) -> Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        call(self.cri.runtime().stop_pod_sandbox(request)).context("stop the pod")?;
        Ok(())
    }

    /// Removes the pod and its containers.
    ///
    /// # Errors
    /// What CRI says.
    pub fn remove(&self) -> Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        call(self.cri.runtime().remove_pod_sandbox(request)).context("remove the pod")?;
        Ok(())
    }

    /// Waits until nothing of the pod is on the machine, its containers included.
    ///
    /// # Errors
    /// Something stays; the message lists it.
    pub fn ensure_gone(&self) -> Result<()> {
        for id in self.members.borrow().iter().chain([&self.id]) {
            self.engine().ensure_gone(id)?;
        }
        Ok(())
    }

    /// Stops and removes the pod and ensures that nothing of it is left.
    ///
    /// # Errors
    /// What CRI says; something that stays.
    pub fn end(self) -> Result<()> {
        self.stop()?;
        self.remove()?;
        self.ensure_gone()
    }
}
