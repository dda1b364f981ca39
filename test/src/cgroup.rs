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

/// Moves a process out of its cgroups into the roots of their hierarchies; gives the folders that it has left.
///
/// # Errors
/// The kernel refuses it.
pub fn leave(pid: u32) -> Result<Vec<PathBuf>> {
    let (roots, left): (Vec<_>, Vec<_>) = places(pid)?.into_iter().unzip();
    enter(pid, &roots)?;
    Ok(left)
}

/// The folders of the cgroups that a process is in.
///
/// # Errors
/// There is no such process.
pub fn of(pid: u32) -> Result<Vec<PathBuf>> {
    Ok(places(pid)?.into_iter().map(|(_, folder)| folder).collect())
}

/// The root of each hierarchy, and the folder of a process's cgroup there.
fn places(pid: u32) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut places = Vec::new();
    // cgroups(7): `hierarchy-ID:controllers:path`.
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup"))?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        // Beside those of v1 there is one of v2 that has no controllers.
        if controllers.is_empty() != unified() {
            continue;
        }
        let root = folder(controllers.trim_start_matches("name="));
        let folder = root.join(path.trim_start_matches('/'));
        places.push((root, folder));
    }
    Ok(places)
}

/// Moves a process into the cgroups with these folders.
///
/// # Errors
/// The kernel refuses it.
pub fn enter(pid: u32, folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        let list = folder.join("cgroup.procs");
        fs::write(&list, pid.to_string()).with_context(|| list.display().to_string())?;
    }
    Ok(())
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
