//! containerd 2's Sandbox API: its calls, each for the one sandbox that a daemon serves.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use container::cgroup::Cgroup;
use containerd_shim::TtrpcResult;
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim::protos::ttrpc::r#async::TtrpcContext;
use serde_json::json;

use crate::RUNTIME;
use crate::daemon::Daemon;
use crate::departure::Departure;
use crate::error::Error;
use crate::metrics;
use crate::pod_config::PodConfig;
use crate::process::timestamp;
use crate::sandbox::{Phase, Sandbox};
use crate::service::Service;

/// The states of a sandbox in CRI's words, which containerd's CRI looks for
/// (`runtime.v1.PodSandboxState`).
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// How long the daemon outlives its answer to a shutdown. containerd's client may see the end of
/// the connection before the answer that came with it, and then takes the shutdown for failed.
const PARTING: Duration = Duration::from_millis(500);

/// The Sandbox API of this daemon.
pub struct SandboxService {
    daemon: Arc<Daemon>,
    tasks: Arc<Service>,
    departure: Arc<Departure>,
}

impl SandboxService {
    /// The API to the daemon's sandbox, whose containers are `tasks`. `departure` is told when
    /// containerd shuts it down.
    pub fn new(daemon: Arc<Daemon>, tasks: Arc<Service>, departure: Arc<Departure>) -> Self {
        Self {
            daemon,
            tasks,
            departure,
        }
    }

    async fn stop(&self, sandbox: &Sandbox, grace: Duration) -> Result<(), Error> {
        sandbox.close()?;
        self.tasks.stop_all(grace).await;
        sandbox.free().await
    }
}

#[async_trait]
impl containerd_shim::protos::sandbox_async::Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        let id = &request.sandbox_id;
        if !request.rootfs.is_empty() {
            log::info!("{id}: the sandbox's root file system has no meaning here");
        }
        let config = PodConfig::from_any(request.options.as_ref())?;
        self.daemon
            .sandbox
            .create(
                &self.daemon,
                id,
                request.bundle_path.as_ref(),
                &request.netns_path,
                config,
            )
            .await
            .inspect_err(|error| log::error!("create of the sandbox {id}: {error}"))?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> TtrpcResult<StartSandboxResponse> {
        let sandbox = self.daemon.sandbox.get(&request.sandbox_id)?;
        sandbox.start()?;
        Ok(StartSandboxResponse {
            pid: sandbox.pod.pid,
            created_at: MessageField::some(timestamp(sandbox.created_at)),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> TtrpcResult<PlatformResponse> {
        self.daemon.sandbox.get(&request.sandbox_id)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        let machine = image::Platform::of_this_machine();
        (platform.os, platform.architecture) = (machine.os, machine.architecture);
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> TtrpcResult<StopSandboxResponse> {
        let sandbox = self.daemon.sandbox.get(&request.sandbox_id)?;
        let grace = Duration::from_secs(request.timeout_secs.into());
        self.stop(&sandbox, grace)
            .await
            .inspect_err(|error| log::error!("stop of the sandbox {}: {error}", sandbox.id))?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> TtrpcResult<WaitSandboxResponse> {
        let exit = self.daemon.sandbox.get(&request.sandbox_id)?.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        let sandbox = self.daemon.sandbox.get(&request.sandbox_id)?;
        let mut response = SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: sandbox.pod.pid,
            state: match sandbox.phase() {
                Phase::Ready => READY,
                _ => NOT_READY,
            }
            .to_owned(),
            created_at: MessageField::some(timestamp(sandbox.created_at)),
            exited_at: sandbox
                .exit()
                .map(|exit| timestamp(exit.at))
                .map_or_else(MessageField::none, MessageField::some),
            ..SandboxStatusResponse::default()
        };
        if request.verbose {
            response
                .info
                .insert("info".to_owned(), info(&sandbox).to_string());
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> TtrpcResult<PingResponse> {
        let sandbox = self.daemon.sandbox.get(&request.sandbox_id)?;
        sandbox.expect_ready()?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        let slot = &self.daemon.sandbox;
        self.departure.dismiss(&request.sandbox_id);
        if slot.is_empty() {
            // As containerd does after a create that failed.
            self.departure.consider();
            return Ok(ShutdownSandboxResponse::default());
        }
        let sandbox = slot.get(&request.sandbox_id)?;
        // What cannot be freed here is freed by `delete`, which containerd calls after this.
        if let Err(error) = self.stop(&sandbox, Duration::ZERO).await {
            log::error!("shutdown of the sandbox {}: {error}", sandbox.id);
        }
        self.tasks.delete_all().await;
        slot.clear();
        let departure = self.departure.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PARTING).await;
            departure.insist();
        });
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        let sandbox = self.daemon.sandbox.get(&request.sandbox_id)?;
        let parent = PathBuf::from(sandbox.config.linux().cgroup_parent);
        if parent.as_os_str().is_empty() {
            return Err(Error::FailedPrecondition(format!(
                "the sandbox {} has no figures of its own: its cgroup_parent is empty",
                sandbox.id
            ))
            .into());
        }
        let stats = Cgroup::at(&parent, false)
            .and_then(|cgroup| cgroup.stats())
            .map_err(|error| Error::Unknown(error.to_string()))?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = sandbox.id.clone();
        metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metrics.data = MessageField::some(metrics::to_any(stats));
        Ok(response)
    }
}

/// What `crictl inspectp` shows, with the names that it has for every runtime (containerd's
/// `SandboxInfo`).
fn info(sandbox: &Sandbox) -> serde_json::Value {
    let network = sandbox.pod.network.as_deref();
    json!({
        "pid": sandbox.pod.pid,
        "processStatus": match sandbox.phase() {
            Phase::Creating | Phase::Created => "created",
            Phase::Ready => "running",
            Phase::Stopped => "stopped",
        },
        "netNamespaceClosed": network.is_some_and(|path| fs::metadata(path).is_err()),
        "runtimeType": RUNTIME,
        "config": sandbox.config,
    })
}
