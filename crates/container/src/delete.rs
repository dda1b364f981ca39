//! Freeing what a container has.

use std::fs;
use std::io;
use std::path::Path;

use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::hooks::run_hooks;
use oci_spec::runtime::Hook;

use crate::cgroup::{self, Cgroup};
use crate::explain::explain;
use crate::zygote::{Ended, Target};

/// Kills what is left of a container and frees its cgroup and state. One that is not there is
/// as good as deleted. `is_empty`: of the container there is no process left, so that who is in its cgroup is another's.
///
/// # Errors
/// When its cgroup or state cannot be freed.
pub(crate) fn delete(target: &Target, is_empty: bool) -> Result<(), String> {
    let folder = target.root.join(&target.id);
    if !folder.exists() {
        return Ok(());
    }
    let deleted = Container::load(folder.clone()).and_then(|mut container| {
        container.refresh_status()?;
        let plain = match container.status() {
            ContainerStatus::Stopped => Plain::of(&container, &folder),
            _ => None,
        };
        match plain {
            Some(plain) => plain.free(&container, is_empty),
            None => container.delete(true),
        }
    });
    let result = match deleted {
        Ok(()) => Ok(()),
        // The runtime spec has failing poststop hooks logged and the deletion go on.
        Err(error @ LibcontainerError::Hook(_)) => {
            log::warn!("{}: a poststop hook: {}", target.id, explain(&error, None));
            Ok(())
        }
        Err(error) => Err(explain(&error, None)),
    };
    remove_state(&folder).and(result)
}

/// [`delete`] for a container whose init has ended, where no hooks are to be run: what any process with threads may do.
/// Nothing where more is to be done.
pub(crate) fn delete_plain(ended: &Ended) -> Option<Result<(), String>> {
    let target = &ended.target;
    let folder = target.root.join(&target.id);
    let container = Container::load(folder.clone()).ok()?;
    let plain = Plain::of(&container, &folder)?;
    if plain.hooks.iter().flatten().next().is_some() {
        return None;
    }
    let removed = plain.free_cgroup(&target.id, ended.owned_pid_namespace);
    let removed = removed.map_err(|error| error.to_string());
    Some(remove_state(&folder).and(removed))
}

fn remove_state(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!(
            "removing the container's state {}: {error}",
            folder.display()
        )),
        _ => Ok(()),
    }
}

/// What is left of a container that has ended, where that is a cgroup and perhaps hooks: as nearly
/// always. libcontainer looks through /proc/self/mountinfo and /proc/self/cgroup once more for every
/// controller of cgroup v1, which takes longer than to remove the cgroup.
struct Plain {
    cgroup: Cgroup,
    hooks: Option<Vec<Hook>>,
}

impl Plain {
    /// What is left of `container`, which has ended and whose state is in `folder`; nothing where there may be more.
    fn of(container: &Container, folder: &Path) -> Option<Self> {
        let state = &container.state;
        let more = [&state.intel_rdt_dir, &state.intel_rdt_monitoring_dir]
            .into_iter()
            .any(Option::is_some)
            || state.clean_up_intel_rdt_subdirectory == Some(true)
            // It has a unit to be stopped.
            || container.systemd();
        if more {
            return None;
        }
        let config = YoukiConfig::load(folder).ok()?;
        Some(Self {
            cgroup: Cgroup::at(&config.cgroup_path, false).ok()?,
            hooks: config.hooks.and_then(|hooks| hooks.poststop().clone()),
        })
    }

    /// Frees the cgroup of the container `id`.
    fn free_cgroup(&self, id: &str, is_empty: bool) -> cgroup::Result<()> {
        if !is_empty {
            return self.cgroup.remove();
        }
        match self.cgroup.remove_empty() {
            Err(cgroup::Error::Taken { path, pids }) => {
                let path = path.display();
                log::warn!(
                    "{id}: others are in its cgroup {path} and keep it (processes {pids:?})"
                );
                Ok(())
            }
            removed => removed,
        }
    }

    /// Frees it, as [`Container::delete`] does, but for the state.
    fn free(&self, container: &Container, is_empty: bool) -> Result<(), LibcontainerError> {
        let removed = self.free_cgroup(container.id(), is_empty);
        removed.map_err(|error| LibcontainerError::Other(error.to_string()))?;
        run_hooks(
            self.hooks.as_ref(),
            Some(&container.state),
            None,
            None,
            None,
        )?;
        Ok(())
    }
}
