//! Mounting a container's root file system, and taking it down.

use std::io;
use std::path::Path;

use containerd_shim::mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

/// A mount as containerd's snapshotters describe it (containerd's `types.Mount`).
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Mount {
    /// The type: `overlay`, `bind`, `ext4`, …
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// A path below the root file system's folder, or empty.
    pub target: String,
    /// Flags and data, as mount(8) spells them.
    pub options: Vec<String>,
}

/// Why a root file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error(
    "mounting the root file system ({kind} of {mount_source} with options {options:?}) on {target}: {reason}"
)]
pub struct MountError {
    kind: String,
    mount_source: String,
    options: String,
    target: String,
    reason: String,
}

/// Mounts `mounts` on `rootfs`, one over the other. What was mounted is taken down again when
/// one fails. Changes the working directory of its process where an overlay has many layers.
///
/// # Errors
/// Names the mount that failed and why.
pub fn mount(mounts: &[Mount], rootfs: &Path) -> Result<(), MountError> {
    for entry in mounts {
        let target = match entry.target.trim_start_matches('/') {
            "" => rootfs.to_owned(),
            below => rootfs.join(below),
        };
        let error = |reason: String| MountError {
            kind: entry.kind.clone(),
            mount_source: entry.source.clone(),
            options: entry.options.join(","),
            target: target.display().to_string(),
            reason,
        };
        // containerd's own words (its core/mount), which no mount(2) knows.
        if entry.options.iter().any(|o| o.starts_with("uidmap=")) {
            let reason = "it is to be id-mapped, for a pod with users of its own, and this runtime \
                          has no such mounts: do without `hostUsers: false`";
            return Err(error(reason.to_owned()));
        }
        let mounted = std::fs::create_dir_all(&target)
            .map_err(|reason| error(reason.to_string()))
            .and_then(|()| {
                mount::mount_rootfs(
                    Some(&entry.kind),
                    Some(&entry.source),
                    &entry.options,
                    &target,
                )
                .map_err(|reason| match reason {
                    containerd_shim::Error::MountError { err, .. } => error(err.desc().to_owned()),
                    other => error(other.to_string()),
                })
            });
        if let Err(failure) = mounted {
            if let Err(leftover) = unmount(rootfs) {
                log::warn!("{leftover}");
            }
            return Err(failure);
        }
    }
    Ok(())
}

/// Takes down everything that is mounted on `rootfs`. Nothing mounted, or no such folder, is
/// as good.
///
/// # Errors
/// umount2(2)'s, naming the folder.
pub fn unmount(rootfs: &Path) -> io::Result<()> {
    loop {
        match umount2(rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            // EINVAL: not a mount point (any more).
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => {
                return Err(io::Error::other(format!(
                    "unmounting {}: {}",
                    rootfs.display(),
                    error.desc()
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_mapped_root_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let mount = [bind(folder.path(), &["rbind", "uidmap=0:100000:65536"])];
        let error = super::mount(&mount, &folder.path().join("rootfs")).unwrap_err();
        assert!(error.to_string().contains("hostUsers"), "{error}");
    }

    fn bind(source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: "bind".into(),
            source: source.to_str().unwrap().into(),
            target: String::new(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn a_mount_is_made_and_taken_down() {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), "").unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let rootfs = bundle.path().join("rootfs");
        mount(&[bind(source.path(), &["rbind", "ro"])], &rootfs).unwrap();
        assert!(rootfs.join("file").exists());
        assert!(std::fs::write(rootfs.join("new"), "").is_err(), "read-only");
        unmount(&rootfs).unwrap();
        assert!(!rootfs.join("file").exists());
        unmount(&rootfs).unwrap();
    }

    #[test]
    fn a_failed_mount_is_named_and_leaves_nothing() {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), "").unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let rootfs = bundle.path().join("rootfs");
        let mounts = [
            bind(source.path(), &["rbind"]),
            bind(Path::new("/no/such"), &["rbind"]),
        ];
        let error = mount(&mounts, &rootfs).unwrap_err().to_string();
        assert!(error.contains("/no/such"), "{error}");
        assert!(!rootfs.join("file").exists());
    }
}
