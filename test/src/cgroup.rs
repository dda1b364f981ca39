//! Where the machine's cgroups are.

use std::path::{Path, PathBuf};

/// Whether the machine has only the one hierarchy of cgroup v2.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The folder of a controller's hierarchy; on cgroup v2 there is only one.
pub fn folder(controller: &str) -> PathBuf {
    if unified() {
        PathBuf::from("/sys/fs/cgroup")
    } else {
        Path::new("/sys/fs/cgroup").join(controller)
    }
}
