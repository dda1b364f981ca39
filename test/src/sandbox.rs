//! Pods through containerd's own Sandbox API (containerd 2), without CRI: what its `shim` sandboxer
//! asks of a shim. For what CRI never asks, such as calls out of order.

use anyhow::{Context, Result};
use containerd_client::{
    services::v1::sandbox::{
        ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest,
        ControllerShutdownRequest, ControllerStartRequest, ControllerStatusRequest,
        ControllerStatusResponse, ControllerStopRequest, ControllerWaitRequest,
        ControllerWaitResponse, controller_client::ControllerClient,
    },
    tonic::{Status, transport::Channel},
    types::{Metric, Platform, Sandbox as Record, sandbox::Runtime},
};
use prost_types::Any;
use serde_json::{Value, json};

use crate::{Containerd, WASMTIME, runtime::call};

/// The sandboxer that hands every call to the pod's shim.
const SANDBOXER: &str = "shim";

/// A sandbox, to be called in any order. It is shut down when dropped.
pub struct Sandbox<'a> {
    engine: &'a Containerd,
    id: String,
}

impl Containerd {
    /// A sandbox with a new id, which has not been created.
    pub fn sandbox(&self) -> Sandbox<'_> {
        Sandbox {
            engine: self,
            id: self.new_id("pod"),
        }
    }
}

impl Sandbox<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn controller(&self) -> ControllerClient<Channel> {
        self.engine.client().sandbox_controller()
    }

    /// Creates it, with options, which CRI sends its configuration as, and with the path of its
    /// network namespace, or an empty one.
    ///
    /// # Errors
    /// What containerd says.
    pub fn create(&self, options: Option<Any>, network: &str) -> Result<(), Status> {
        let request = ControllerCreateRequest {
            sandbox_id: self.id.clone(),
            options,
            netns_path: network.to_owned(),
            sandbox: Some(Record {
                sandbox_id: self.id.clone(),
                runtime: Some(Runtime {
                    name: WASMTIME.to_owned(),
                    options: None,
                }),
                ..Record::default()
            }),
            sandboxer: SANDBOXER.to_owned(),
            ..ControllerCreateRequest::default()
        };
        call(self.controller().create(self.engine.request(request)))?;
        Ok(())
    }

    /// Starts it; returns the pid that containerd is told.
    ///
    /// # Errors
    /// What containerd says.
    pub fn start(&self) -> Result<u32, Status> {
        let request = ControllerStartRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
        };
        let started = call(self.controller().start(self.engine.request(request)))?;
        Ok(started.into_inner().pid)
    }

    /// Creates and starts it.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run(&self, options: Option<Any>, network: &str) -> Result<u32> {
        self.create(options, network).context("create")?;
        self.start().context("start")
    }

    /// Its platform.
    ///
    /// # Errors
    /// What containerd says.
    pub fn platform(&self) -> Result<Platform> {
        let request = ControllerPlatformRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
        };
        let answer = call(self.controller().platform(self.engine.request(request)))?;
        answer.into_inner().platform.context("no platform")
    }

    /// Its status; `verbose` with information for people.
    ///
    /// # Errors
    /// What containerd says.
    pub fn status(&self, verbose: bool) -> Result<ControllerStatusResponse, Status> {
        let request = ControllerStatusRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
            verbose,
        };
        Ok(call(self.controller().status(self.engine.request(request)))?.into_inner())
    }

    /// Its figures.
    ///
    /// # Errors
    /// What containerd says.
    pub fn metrics(&self) -> Result<Metric> {
        let request = ControllerMetricsRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
        };
        let answer = call(self.controller().metrics(self.engine.request(request)))?;
        answer.into_inner().metrics.context("no figures")
    }

    /// Stops it, with seconds of grace for its containers.
    ///
    /// # Errors
    /// What containerd says.
    pub fn stop(&self, grace: u32) -> Result<(), Status> {
        let request = ControllerStopRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
            timeout_secs: grace,
        };
        call(self.controller().stop(self.engine.request(request)))?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What containerd says.
    pub fn wait(&self) -> Result<ControllerWaitResponse, Status> {
        let request = ControllerWaitRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
        };
        Ok(call(self.controller().wait(self.engine.request(request)))?.into_inner())
    }

    /// Shuts it down, and its shim with it.
    ///
    /// # Errors
    /// What containerd says.
    pub fn shutdown(&self) -> Result<(), Status> {
        let request = ControllerShutdownRequest {
            sandbox_id: self.id.clone(),
            sandboxer: SANDBOXER.to_owned(),
        };
        call(self.controller().shutdown(self.engine.request(request)))?;
        Ok(())
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        // It may never have been, or be gone.
        let _ = self.shutdown();
    }
}

/// The namespaces of a pod's container as CRI writes them for the sandbox's `pid`. With
/// `pids` it shares the pod's processes, else it has a pid namespace of its own.
pub fn cri_namespaces(pid: u32, pids: bool) -> impl Fn(&mut Value) {
    move |spec| {
        let shared = |kind: &str, name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            json!({"type": kind, "path": path})
        };
        let mut namespaces = vec![
            json!({"type": "mount"}),
            shared("network", "net"),
            shared("ipc", "ipc"),
            shared("uts", "uts"),
        ];
        namespaces.push(if pids {
            shared("pid", "pid")
        } else {
            json!({"type": "pid"})
        });
        spec["linux"]["namespaces"] = json!(namespaces);
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("hostname");
        }
    }
}
