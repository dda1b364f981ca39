//! Where the machine's cgroups are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::poll::eventually;

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

/// Removes a cgroup that the last process is about to leave: one that ends lets go of its arguments,
/// by which it can be known, before it is out of its cgroup.
///
/// # Errors
/// It does not become empty.
pub fn remove(folder: &Path) -> Result<()> {
    eventually("the cgroup is left by all", || fs::remove_dir(folder).ok())
        .with_context(|| folder.display().to_string())
}
