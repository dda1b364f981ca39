//! Freeing what a container left whose daemon is gone, or the helper that was building it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, mount_point};
use crate::cgroup::{self, Cgroup};
use crate::delete::delete;
use crate::zygote::Target;
use crate::{birthmark, rootfs};

/// How long processes that are still on their way into the container may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before looking again: they end by themselves when they notice.
const PAUSE: Duration = Duration::from_millis(5);

/// How long systemd may take to notice that a cgroup is empty.
const NOTICE: Duration = Duration::from_secs(2);

/// A container without a daemon, or one whose birth was cut short.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orphan {
    /// The container.
    pub target: Target,
    /// Its bundle's folder.
    pub bundle: PathBuf,
    /// Whether systemd made its cgroup.
    pub systemd_cgroup: bool,
    /// Whether a create of it has begun. Otherwise what is in the cgroup that it was to have is not its.
    pub is_begun: bool,
}

/// Kills the orphan's processes, removes its cgroup and state, runs its poststop hooks, and takes
/// down the mounts of its root file system, at whatever point its daemon or helper died. For a
/// process with one thread, such as the shim's `delete` or another helper.
///
/// # Errors
/// What could not be freed; the rest has been.
pub fn delete_orphan(orphan: &Orphan) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while let Some(reason) = unborn(&orphan.bundle) {
        // What they have made so far goes, and they with it; what fails is tried again.
        if let Err(error) = free(orphan) {
            log::debug!("freeing {}: {error}", orphan.target.id);
        }
        if Instant::now() >= until {
            log::warn!("{}: {reason}", orphan.target.id);
            break;
        }
        sleep(PAUSE);
    }
    // Nobody is left who could make anything.
    let freed = free(orphan);
    rootfs::unmount(&mount_point(&orphan.bundle)).map_err(|error| error.to_string())?;
    freed
}

/// Why the bundle's container may yet grow, if it may.
fn unborn(bundle: &Path) -> Option<String> {
    match birthmark::is_free(bundle) {
        Ok(true) => None,
        Ok(false) => Some("processes are still on their way into it".to_owned()),
        Err(error) => Some(format!("asking for the bundle's lock: {error}")),
    }
}

/// Frees the state and then the cgroup, which also kills what the state knows nothing of.
fn free(orphan: &Orphan) -> Result<(), String> {
    if !orphan.is_begun {
        return Ok(());
    }
    let deleted = delete(&orphan.target, false);
    remove_cgroup(orphan)?;
    deleted
}

/// Removes the cgroup that the bundle's configuration names: a container whose state was never
/// saved has no other trace of it.
fn remove_cgroup(orphan: &Orphan) -> Result<(), String> {
    let Some(path) = cgroups_path(&orphan.bundle) else {
        return Ok(());
    };
    let remove = || -> cgroup::Result<()> {
        let cgroup = Cgroup::at(&path, orphan.systemd_cgroup)?;
        if orphan.systemd_cgroup {
            leave_to_systemd(&cgroup)?;
        }
        cgroup.remove()
    };
    remove().map_err(|error| error.to_string())
}

/// Kills what is in a cgroup of systemd's, and waits for systemd to remove it: that learns of the end by the
/// folder's events, and takes the unit for one that is being stopped where the folder goes before those.
fn leave_to_systemd(cgroup: &Cgroup) -> cgroup::Result<()> {
    let Some(folder) = cgroup.unified() else {
        return Ok(());
    };
    let until = Instant::now() + NOTICE;
    while folder.exists() && Instant::now() < until {
        cgroup.kill_all(Signal::SIGKILL as i32)?;
        sleep(PAUSE);
    }
    Ok(())
}

fn cgroups_path(bundle: &Path) -> Option<PathBuf> {
    let bundle = Bundle::load(bundle).ok()?;
    bundle.cgroups_path().map(Path::to_owned)
}
