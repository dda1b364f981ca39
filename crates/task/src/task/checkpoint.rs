//! Checkpoint.

use std::path::PathBuf;

use container::Checkpoint;
use containerd_shim::api::CheckpointTaskRequest;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::shim::oci::CheckpointOptions;

use super::{Phase, Task};
use crate::daemon::Daemon;
use crate::error::Error;

impl Task {
    /// Makes the checkpoint that `request` asks for. Where that fails the task goes on as before.
    ///
    /// # Errors
    /// When the task does not run, is a guest or has a terminal, and criu's reasons.
    pub async fn checkpoint(
        &self,
        daemon: &Daemon,
        request: &CheckpointTaskRequest,
    ) -> Result<(), Error> {
        if self.container.is_guest() {
            return Err(Error::Unimplemented(format!(
                "{} runs WebAssembly, of which this shim makes no checkpoints; of Linux containers \
                 it does",
                self.id
            )));
        }
        let phase = self.lifecycle.lock().await;
        let refused = match *phase {
            Phase::Running | Phase::Paused => None,
            Phase::Created => Some("cannot checkpoint a task in created state"),
            Phase::Stopped => Some("cannot checkpoint a stopped container"),
            Phase::Deleted => Some("cannot checkpoint a deleted process"),
        };
        if let Some(refused) = refused {
            return Err(Error::Unknown(refused.into()));
        }
        if self.paths.terminal {
            return Err(Error::Unimplemented(format!(
                "{} has a terminal, and this shim makes no checkpoints of containers with one",
                self.id
            )));
        }
        let checkpoint = self.wanted(request)?;
        let _turn = self.freezer.turn().await;
        let done = self.container.checkpoint(&daemon.zygote, checkpoint).await;
        done.map_err(|reason| Error::Unknown(format!("OCI runtime checkpoint failed: {reason}")))
    }

    fn wanted(&self, request: &CheckpointTaskRequest) -> Result<Checkpoint, Error> {
        let invalid = |reason: String| Error::InvalidArgument(reason);
        if request.path.is_empty() {
            return Err(invalid("a checkpoint needs the path of a folder".into()));
        }
        let options = match request.options.as_ref() {
            None => CheckpointOptions::default(),
            Some(any)
                if any
                    .type_url
                    .ends_with("containerd.runc.v1.CheckpointOptions") =>
            {
                CheckpointOptions::parse_from_bytes(&any.value).map_err(|error| {
                    invalid(format!(
                        "the checkpoint's options cannot be decoded: {error}"
                    ))
                })?
            }
            Some(any) => {
                return Err(invalid(format!(
                    "the checkpoint's options have the type {}; containerd.runc.v1.CheckpointOptions \
                     is taken",
                    any.type_url
                )));
            }
        };
        Ok(Checkpoint {
            bundle: self.bundle.clone(),
            images: PathBuf::from(&request.path),
            work: (!options.work_path.is_empty()).then(|| options.work_path.into()),
            leave_running: !options.exit,
            open_tcp: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            file_locks: options.file_locks,
            empty_namespaces: options.empty_namespaces.to_vec(),
        })
    }
}
