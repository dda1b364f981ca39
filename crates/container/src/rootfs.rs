//! Mounting a container's root file system, and taking it down.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::idmap::{self, IdMap};

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
        let mounted = std::fs::create_dir_all(&target)
            .map_err(|reason| error(reason.to_string()))
            .and_then(|()| mount_one(entry, &target, rootfs).map_err(error));
        if let Err(failure) = mounted {
            if let Err(leftover) = unmount(rootfs) {
                log::warn!("{leftover}");
            }
            return Err(failure);
        }
    }
    Ok(())
}

/// Mounts `entry` on `target`. Where containerd's own options `uidmap=` and `gidmap=` (its
/// core/mount) ask for it, its ids are mapped: an overlay's, which has no such mounts itself, by
/// its lower layers.
fn mount_one(entry: &Mount, target: &Path, rootfs: &Path) -> Result<(), String> {
    let (map, mut options) = IdMap::of_options(&entry.options)?;
    let lower = match &map {
        Some(map) if entry.kind == "overlay" => Some(Lower::map(map, &mut options, rootfs)?),
        _ => None,
    };
    mount::mount_rootfs(Some(&entry.kind), Some(&entry.source), &options, target).map_err(
        |reason| match reason {
            containerd_shim::Error::MountError { err, .. } => err.desc().to_owned(),
            other => other.to_string(),
        },
    )?;
    match map {
        Some(map) if lower.is_none() => {
            let copy = map.copy(target, false, false)?;
            idmap::attach(&copy, target)
        }
        _ => Ok(()),
    }
}

/// An overlay's lower layers with other ids, mounted beside the root file system until the overlay
/// is.
struct Lower(PathBuf);

impl Lower {
    /// Mounts the folder that holds all of the layers in `options`, ids mapped by `map`, and has
    /// `options` name them there.
    fn map(map: &IdMap, options: &mut [String], rootfs: &Path) -> Result<Self, String> {
        let layers = options.iter_mut().find_map(|option| {
            let layers = option.strip_prefix("lowerdir=")?.to_owned();
            Some((option, layers))
        });
        let (option, layers) = layers.ok_or("an overlay without lowerdir=")?;
        let layers: Vec<&Path> = layers.split(':').map(Path::new).collect();
        let common = common_folder(&layers)
            .ok_or("the overlay's lower layers have no folder in common but /")?;
        let lower = Self(lower_layers(rootfs));
        std::fs::create_dir_all(&lower.0)
            .map_err(|error| format!("making {}: {error}", lower.0.display()))?;
        let copy = map.copy(common, false, false)?;
        idmap::attach(&copy, &lower.0)?;
        let moved: Vec<String> = layers
            .iter()
            .filter_map(|layer| layer.strip_prefix(common).ok())
            .map(|layer| lower.0.join(layer).display().to_string())
            .collect();
        *option = format!("lowerdir={}", moved.join(":"));
        Ok(lower)
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        // An overlay keeps what it was made of.
        if let Err(error) = take_down(&self.0) {
            log::warn!("{error}");
        }
    }
}

/// Where lower layers with other ids are mounted for a while.
fn lower_layers(rootfs: &Path) -> PathBuf {
    rootfs.with_extension("lower")
}

/// The folder that all of `layers` are in, if it is not the root.
fn common_folder<'a>(layers: &[&'a Path]) -> Option<&'a Path> {
    let first = *layers.first()?;
    first
        .ancestors()
        .skip(1)
        .find(|folder| layers.iter().all(|layer| layer.starts_with(folder)))
        .filter(|folder| folder.parent().is_some())
}

/// Takes down everything that is mounted on `rootfs`, and what a mount that was cut short left
/// beside it. Nothing mounted, or no such folder, is as good.
///
/// # Errors
/// umount2(2)'s, naming the folder.
pub fn unmount(rootfs: &Path) -> io::Result<()> {
    take_down(rootfs)?;
    take_down(&lower_layers(rootfs))
}

fn take_down(folder: &Path) -> io::Result<()> {
    loop {
        match umount2(folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            // EINVAL: not a mount point (any more).
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => {
                return Err(io::Error::other(format!(
                    "unmounting {}: {}",
                    folder.display(),
                    error.desc()
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn ids_of_a_root_are_mapped() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["layers/1", "layers/2", "upper", "work"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("layers/1/file"), "").unwrap();
        let rootfs = folder.path().join("bundle/rootfs");
        let maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        let path = |name: &str| folder.path().join(name).display().to_string();
        let lower = format!("lowerdir={}:{}", path("layers/2"), path("layers/1"));
        let upper = format!("upperdir={}", path("upper"));
        let work = format!("workdir={}", path("work"));
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            ..bind(Path::new(""), &[maps[0], maps[1], &work, &upper, &lower])
        };
        let bind = bind(
            &folder.path().join("layers/1"),
            &["rbind", maps[0], maps[1]],
        );
        for mount in [overlay, bind] {
            super::mount(&[mount], &rootfs).unwrap();
            let owner = std::fs::metadata(rootfs.join("file")).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
            assert!(!lower_layers(&rootfs).join("1").exists());
            unmount(&rootfs).unwrap();
            assert!(!rootfs.join("file").exists());
        }
    }

    #[test]
    fn layers_have_a_folder_in_common() {
        fn common(layers: &[&'static str]) -> Option<&'static Path> {
            let layers: Vec<&'static Path> = layers.iter().map(|l| Path::new(*l)).collect();
            common_folder(&layers)
        }
        assert_eq!(common(&["/s/1/fs", "/s/12/fs"]), Some(Path::new("/s")));
        assert_eq!(common(&["/s/1/fs"]), Some(Path::new("/s/1")));
        assert_eq!(common(&["/s/1", "/t/1"]), None);
        assert_eq!(common(&[]), None);
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
