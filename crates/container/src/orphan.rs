//! Freeing what a container left whose daemon is gone.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bundle::{Bundle, mount_point};
use crate::cgroup::Cgroup;
use crate::zygote::Target;
use crate::{birthmark, helper, rootfs};

/// How long processes that are still on their way into the container may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before looking again: they end by themselves when they notice.
const PAUSE: Duration = Duration::from_millis(5);

/// A container without a daemon.
pub struct Orphan {
    /// The container.
    pub target: Target,
    /// Its bundle's folder.
    pub bundle: PathBuf,
    /// Whether systemd made its cgroup.
    pub systemd_cgroup: bool,
}

/// Kills the orphan's processes, removes its cgroup and state, runs its poststop hooks, and takes
/// down the mounts of its root file system, at whatever point its daemon died. For a process with
/// one thread, such as the shim's `delete`.
///
/// # Errors
/// What could not be freed; the rest has been.
pub fn delete_orphan(orphan: &Orphan) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    let freed = loop {
        let freed = helper::delete(&orphan.target).and_then(|()| remove_cgroup(orphan));
        match birthmark::is_free(&orphan.bundle) {
            Ok(true) => break freed,
            Ok(false) if Instant::now() < until => sleep(PAUSE),
            Ok(false) => break Err("processes are still on their way into it".to_owned()),
            Err(error) => break Err(format!("asking for the bundle's lock: {error}")),
        }
    };
    // Nobody is left who could make anything; what the last of them made goes now.
    let freed = freed
        .and_then(|()| helper::delete(&orphan.target))
        .and_then(|()| remove_cgroup(orphan));
    rootfs::unmount(&mount_point(&orphan.bundle)).map_err(|error| error.to_string())?;
    freed
}

/// Removes the cgroup that the bundle's configuration names: a container whose state was never
/// saved has no other trace of it.
fn remove_cgroup(orphan: &Orphan) -> Result<(), String> {
    let Some(path) = cgroups_path(&orphan.bundle) else {
        return Ok(());
    };
    Cgroup::at(&path, orphan.systemd_cgroup)
        .and_then(|cgroup| cgroup.remove())
        .map_err(|error| error.to_string())
}

fn cgroups_path(bundle: &Path) -> Option<PathBuf> {
    let bundle = Bundle::load(bundle).ok()?;
    bundle.cgroups_path().map(Path::to_owned)
}
