//! The way into a container's cgroup.

use std::fs::File;
use std::os::fd::AsFd;

use nix::sched::CloneFlags;

use crate::cgroup::{Cgroup, Entry};
use crate::sys;

/// The way into a cgroup, for the process that is to live there.
pub(super) struct Place {
    entry: Entry,
    /// The cgroup's folder on v2.
    folder: Option<File>,
}

/// What comes of [`Place::clone_into`], for each of the two processes.
pub(super) enum Birth {
    /// This one has cloned the process with this pid.
    Of(i32),
    /// This is the one that was cloned, and has come into the cgroup, or has not, and why.
    Own(Result<(), String>),
}

impl Place {
    /// The place in `cgroup`, which is there.
    ///
    /// # Errors
    /// Why there is no such place.
    pub(super) fn of(cgroup: &Cgroup) -> Result<Self, String> {
        let entry = cgroup.entry().map_err(|error| error.to_string())?;
        let folder = cgroup.unified().map(File::open).transpose();
        let folder = folder.map_err(|error| format!("opening the container's cgroup: {error}"))?;
        Ok(Self { entry, folder })
    }

    /// Clones this process, as a sibling, into the cgroup and into new `namespaces` of these kinds.
    ///
    /// # Errors
    /// Why there is no other process.
    pub(super) fn clone_into(self, namespaces: CloneFlags) -> Result<Birth, String> {
        if let Some(folder) = &self.folder {
            match sys::clone_sibling_into(folder.as_fd(), namespaces) {
                Ok(Some(pid)) => return Ok(Birth::Of(pid.as_raw())),
                Ok(None) => return Ok(Birth::Own(Ok(()))),
                // It can still move.
                Err(error) => log::debug!("no process can be born in the cgroup: {error}"),
            }
        }
        match sys::clone_sibling_apart(namespaces) {
            Ok(Some((pid, _))) => Ok(Birth::Of(pid.as_raw())),
            Ok(None) => Ok(Birth::Own(
                self.entry.enter().map_err(|error| error.to_string()),
            )),
            Err(error) => Err(format!("cloning the container's init: {error}")),
        }
    }
}
