//! Update: new limits for a container that is there.

use std::sync::Arc;

use container::{Reaper, blocking};
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::LinuxResources;

use super::{Phase, Task};
use crate::error::Error;

impl Task {
    /// Changes the limits that `resources` names: `resources` of the OCI runtime spec as JSON, as
    /// in every request of containerd's clients.
    ///
    /// # Errors
    /// When the task has ended, the request cannot be read, or a limit cannot be set.
    pub async fn update(
        self: &Arc<Self>,
        resources: Option<&Any>,
        reaper: &Reaper,
    ) -> Result<(), Error> {
        // Held to the end, so that one update follows the other.
        let phase = self.lifecycle.lock().await;
        let refused = match *phase {
            Phase::Created | Phase::Running | Phase::Paused => None,
            Phase::Stopped => Some("cannot update a stopped container"),
            Phase::Deleted => Some("cannot update a deleted process"),
        };
        if let Some(refused) = refused {
            return Err(Error::Unknown(refused.into()));
        }
        let resources = resources.ok_or_else(|| {
            Error::InvalidArgument("an update needs resources, and there are none".into())
        })?;
        let resources: LinuxResources =
            serde_json::from_slice(&resources.value).map_err(|error| {
                Error::Unknown(format!(
                    "the resources of an update cannot be read: {error}"
                ))
            })?;
        let (task, reaper) = (self.clone(), reaper.clone());
        let updated = blocking(move || match &task.cgroup {
            Some(cgroup) => {
                let systemd = task.cgroup_of_systemd.then_some(&reaper);
                cgroup
                    .update(&resources, systemd)
                    .map_err(|error| error.to_string())
            }
            None => Err("cgroup does not exist".to_owned()),
        });
        let reason = match updated.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        Err(Error::Unknown(format!(
            "OCI runtime update failed: {reason}"
        )))
    }
}
