//! The limits of a container: its first ones, and new ones while it runs.
//!
//! A request is `resources` in the OCI runtime spec's words, which are those of cgroup v1. It says
//! only what is to change: what it leaves out, and what is zero or empty, stays as it is, as in
//! runc's `update`. Devices and network classes are no part of an update there nor here, and
//! RDMA and the kernel's memory no part of anything.
//!
//! - `v1`, `v2`: from the request to the kernel's files
//! - `devices`: which devices may be used
//! - `systemd`: the same for the manager of the cgroup, so that it does not undo it

mod devices;
mod systemd;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::members::write_existing;
use super::{Cgroup, Error, Result, Tree};
use crate::reaper::Reaper;

/// One file of the kernel and what it is to say.
#[derive(Debug, Clone, PartialEq)]
struct Setting {
    path: PathBuf,
    value: String,
    /// Whether a kernel without this file already does what the value says.
    optional: bool,
}

impl Setting {
    fn new(path: PathBuf, value: impl ToString) -> Self {
        Self {
            path,
            value: value.to_string(),
            optional: false,
        }
    }
}

/// Settings of one controller: which are valid may depend on the others.
type Group = Vec<Setting>;

impl Cgroup {
    /// Sets the limits that this cgroup, a new one, begins with. Some of them may be set where it
    /// fails.
    ///
    /// # Errors
    /// As [`Cgroup::update`].
    pub(crate) fn limit(&self, resources: &LinuxResources) -> Result<()> {
        let groups = match &self.tree {
            Tree::V1(_) => v1::first_settings(self, resources)?,
            Tree::V2(folder) => v2::settings(folder, resources)?,
        };
        for group in groups {
            apply(group, |_| {})?;
        }
        self.restrict_devices(resources.devices().as_deref().unwrap_or_default())
    }

    /// Changes the limits of the cgroup to those of `resources`; all of them or, but for limits by
    /// device, none. Where `systemd` manages the cgroup it is told, by a program that `systemd`
    /// reaps.
    ///
    /// Blocks the thread: for microseconds, or for as long as the kernel takes to free memory.
    ///
    /// # Errors
    /// [`Error::BadLimit`] when the request makes no sense here; [`Error::NoFile`] when the cgroup
    /// lacks a controller; [`Error::Set`] when the kernel refuses a value; [`Error::InUse`] when
    /// more memory is in use than is to be allowed; [`Error::Systemd`].
    pub fn update(&self, resources: &LinuxResources, systemd: Option<&Reaper>) -> Result<()> {
        let groups = match &self.tree {
            Tree::V1(_) => v1::settings(self, resources)?,
            Tree::V2(folder) => v2::settings(folder, resources)?,
        };
        if let (Tree::V2(folder), Some(reaper)) = (&self.tree, systemd) {
            systemd::tell(folder, &groups, reaper)?;
        }
        let mut undo = Vec::new();
        for group in groups {
            if let Err(error) = apply(group, |path| undo.extend(before(path))) {
                // The last first, as one may have made room for the other.
                for (path, before) in undo.iter().rev() {
                    if let Err(error) = write_existing(path, before) {
                        log::warn!("setting {} back to {before:?}: {error}", path.display());
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A file and what is to be written to it to have what there is now; nothing for lists by device, which are not
/// written as they are read.
fn before(path: &Path) -> Option<(PathBuf, String)> {
    let text = fs::read_to_string(path).ok()?;
    (text.lines().count() == 1).then(|| (path.to_owned(), text))
}

/// Writes the settings, and has each file noted before it is written. A setting that the kernel calls
/// invalid is tried again after the others: a memory limit cannot be above that of memory and swap
/// together, a quota must hold the burst, and so on, whichever of them is written first.
fn apply(mut group: Group, mut note: impl FnMut(&Path)) -> Result<()> {
    while !group.is_empty() {
        let (mut invalid, tried) = (Vec::new(), group.len());
        for setting in group {
            note(&setting.path);
            match write_existing(&setting.path, &setting.value) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    invalid.push((setting, error));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting.optional => {}
                Err(error) => return Err(refused(setting, error)),
            }
        }
        if invalid.len() == tried {
            let (setting, error) = invalid.swap_remove(0);
            return Err(refused(setting, error));
        }
        group = invalid.into_iter().map(|(setting, _)| setting).collect();
    }
    Ok(())
}

fn refused(setting: Setting, error: io::Error) -> Error {
    let Setting { path, value, .. } = setting;
    let folder = path.parent().unwrap_or(Path::new(""));
    match error.raw_os_error() {
        Some(libc::ENOENT) if folder.exists() => Error::NoFile { path },
        // v1 refuses to go below what it cannot free.
        Some(libc::EBUSY) if path.ends_with(v1::MEMORY_LIMIT) => Error::InUse {
            limit: value,
            usage: number_in(&folder.join("memory.usage_in_bytes")),
            path,
        },
        _ => Error::Set {
            path,
            value,
            source: error,
        },
    }
}

/// What a file says, for a message.
fn number_in(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim_end().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

/// A limit that counts when it is there and not zero.
fn given<T: Default + PartialEq>(limit: Option<T>) -> Option<T> {
    limit.filter(|limit| *limit != T::default())
}

/// A list of processors or memory nodes, which counts when it is not empty.
fn listed(list: &Option<String>) -> Option<&str> {
    list.as_deref().filter(|list| !list.is_empty())
}

/// A number of bytes or processes as v2 and `pids.max` spell it.
fn or_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        _ => limit.to_string(),
    }
}

/// Fails unless `size` is spelt as in a file's name.
fn page_size(size: &str) -> Result<&str> {
    let plain = size.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match plain && !size.is_empty() {
        true => Ok(size),
        false => Err(Error::BadLimit {
            field: "hugepageLimits.pageSize",
            reason: format!("{size:?} is no size of pages, such as 2MB"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_named_and_the_rest_undone() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("a"), "1\n").unwrap();
        let mut undo = Vec::new();
        let group = vec![
            Setting::new(file("a"), 2),
            Setting {
                optional: true,
                ..Setting::new(file("swap"), 0)
            },
            Setting::new(file("b"), 3),
        ];
        let error = apply(group, |path| undo.extend(before(path))).unwrap_err();
        assert!(matches!(error, Error::NoFile { .. }), "{error}");
        assert!(error.to_string().contains("/b"), "{error}");
        assert_eq!(undo, [(file("a"), "1\n".to_owned())]);
    }

    #[test]
    fn page_sizes_stay_in_their_folder() {
        assert!(page_size("2MB").is_ok());
        for wrong in ["", "../../2MB", "2MB/x"] {
            assert!(page_size(wrong).is_err(), "{wrong}");
        }
    }
}
