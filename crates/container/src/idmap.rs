//! Mounts whose files belong to others than on disk: to the users of a container's user namespace.
//! The kernel has them since 5.12 (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::syscall::SyscallError;
use libcontainer::syscall::linux::{self, MountAttr};
use libcontainer::syscall::syscall::create_syscall;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::users;

/// mount_setattr(2); libcontainer does not name it.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Which ids of a file system stand for which of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    /// A table of user_namespaces(7) for users.
    pub users: String,
    /// One for groups.
    pub groups: String,
}

impl IdMap {
    /// The mapping that mount options of containerd ask for, as `uidmap=0:100000:65536`: ids on
    /// disk, on the machine, and how many; several with commas between them. Returns it and
    /// the rest of the options.
    ///
    /// # Errors
    /// When a mapping is malformed, or only users or only groups are mapped.
    pub(crate) fn of_options(options: &[String]) -> Result<(Option<Self>, Vec<String>), String> {
        let (mut users, mut groups, mut rest) = (None, None, Vec::new());
        for option in options {
            if let Some(mapping) = option.strip_prefix("uidmap=") {
                users = Some(parse(mapping)?);
            } else if let Some(mapping) = option.strip_prefix("gidmap=") {
                groups = Some(parse(mapping)?);
            } else {
                rest.push(option.clone());
            }
        }
        match (users, groups) {
            (Some(users), Some(groups)) => Ok((Some(Self { users, groups }), rest)),
            (None, None) => Ok((None, rest)),
            _ => Err("uidmap= and gidmap= go together".to_owned()),
        }
    }

    /// Copies the mount at `source`, those below it too if `recursive`, and lets this map the
    /// copy's ids, and those of the ones below if `all`; the copy is not mounted anywhere yet.
    ///
    /// # Errors
    /// Which step failed and why.
    pub(crate) fn copy(
        &self,
        source: &Path,
        recursive: bool,
        all: bool,
    ) -> Result<OwnedFd, String> {
        let copy = copy(source, recursive)?;
        let holder = users::namespace(&self.users, &self.groups)?;
        let namespace = File::open(users::path(&holder))
            .map_err(|error| format!("opening a user namespace: {error}"))?;
        let attributes = MountAttr {
            attr_set: MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: namespace.as_raw_fd() as u64,
        };
        set_attributes(&copy, all, &attributes).map_err(|error| {
            format!("mapping the ids of {} (the kernel and the file system have to know id-mapped mounts): {error}", source.display())
        })?;
        Ok(copy)
    }
}

/// Sets the attributes of a copy, and of the mounts below it if `all`.
///
/// # Errors
/// mount_setattr(2)'s.
pub(crate) fn set_attributes(
    copy: &OwnedFd,
    all: bool,
    attributes: &MountAttr,
) -> Result<(), SyscallError> {
    let flags = match all {
        true => linux::AT_EMPTY_PATH | linux::AT_RECURSIVE,
        false => linux::AT_EMPTY_PATH,
    };
    let itself = Path::new("");
    create_syscall().mount_setattr(
        copy.as_fd(),
        itself,
        flags,
        attributes,
        size_of::<MountAttr>(),
    )
}

/// Copies the mount at `source`, those below it too if `recursive`; the copy is not mounted
/// anywhere yet.
///
/// # Errors
/// open_tree(2)'s.
pub(crate) fn copy(source: &Path, recursive: bool) -> Result<OwnedFd, String> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
        .map_err(|error| format!("taking the mount of {}: {error}", source.display()))
}

/// Mounts a copy on `target`.
///
/// # Errors
/// move_mount(2)'s.
pub(crate) fn attach(copy: &OwnedFd, target: &Path) -> Result<(), String> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(copy, "", CWD, target, flags)
        .map_err(|error| format!("mounting on {}: {error}", target.display()))
}

/// A mapping as containerd writes it, as a table of user_namespaces(7).
fn parse(mappings: &str) -> Result<String, String> {
    let line = |mapping: &str| {
        let numbers: Vec<u32> = mapping
            .split(':')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let [inside, outside, size] = numbers[..] else {
            return None;
        };
        Some(format!("{inside} {outside} {size}\n"))
    };
    mappings
        .split(',')
        .map(line)
        .collect::<Option<_>>()
        .ok_or_else(|| format!("the id mapping {mappings:?} is not of the form ID:ID:SIZE,..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(options: &[&str]) -> Result<(Option<IdMap>, Vec<String>), String> {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        IdMap::of_options(&options)
    }

    #[test]
    fn options_of_containerd_are_tables_of_the_kernel() {
        let (map, rest) =
            options(&["uidmap=0:1000:10,10:5000:1", "ro", "gidmap=0:2000:11"]).unwrap();
        let map = map.unwrap();
        assert_eq!(map.users, "0 1000 10\n10 5000 1\n");
        assert_eq!(map.groups, "0 2000 11\n");
        assert_eq!(rest, ["ro"]);
        assert_eq!(options(&["ro"]).unwrap(), (None, vec!["ro".to_owned()]));
    }

    #[test]
    fn what_is_no_mapping_is_named() {
        for wrong in ["0:1000", "0:1000:-1", "", "0:1:2:3", "a:b:c"] {
            let error = options(&[&format!("uidmap={wrong}"), "gidmap=0:1:1"]).unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
        assert!(options(&["uidmap=0:1:1"]).unwrap_err().contains("gidmap"));
    }
}
