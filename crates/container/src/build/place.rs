//! The way into a container's cgroup.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;

use crate::cgroup::{Cgroup, Entry};
use crate::sys;

/// The way into a cgroup, for the process that is to live there.
pub(super) struct Place {
    /// Opens when the cgroup has its limits.
    gate: Option<PipeReader>,
    entry: Entry,
    /// The cgroup's folder on v2.
    folder: Option<File>,
}

/// Opens a [`Place`].
pub(super) struct Opener(PipeWriter);

/// What comes of [`Place::clone_into`], for each of the two processes.
pub(super) enum Birth {
    /// This one has cloned the process with this pid.
    Of(i32),
    /// This is the one that was cloned, and has come into the cgroup, or has not, and why.
    Own(Result<(), String>),
}

impl Place {
    /// Makes `cgroup`. Nobody gets there before it is opened.
    ///
    /// # Errors
    /// Why there is no such place.
    pub(super) fn make(cgroup: &Cgroup) -> Result<(Self, Opener), String> {
        cgroup.make().map_err(|error| error.to_string())?;
        let entry = cgroup.entry().map_err(|error| error.to_string())?;
        let folder = cgroup.unified().map(File::open).transpose();
        let folder = folder.map_err(|error| format!("opening the container's cgroup: {error}"))?;
        let (gate, opener) = pipe().map_err(|error| format!("making a pipe: {error}"))?;
        let place = Self {
            gate: Some(gate),
            entry,
            folder,
        };
        Ok((place, Opener(opener)))
    }

    /// Clones this process, as a sibling, into the cgroup.
    ///
    /// # Errors
    /// Why there is no other process.
    pub(super) fn clone_into(mut self) -> Result<Birth, String> {
        if let Some(folder) = self.folder.take() {
            self.wait()?;
            match sys::clone_sibling_into(folder.as_fd()) {
                Ok(Some(pid)) => return Ok(Birth::Of(pid.as_raw())),
                Ok(None) => return Ok(Birth::Own(Ok(()))),
                // It can still move.
                Err(error) => log::debug!("no process can be born in the cgroup: {error}"),
            }
        }
        match sys::clone_sibling() {
            Ok(Some((pid, _))) => Ok(Birth::Of(pid.as_raw())),
            Ok(None) => Ok(Birth::Own(self.enter())),
            Err(error) => Err(format!("cloning the container's init: {error}")),
        }
    }

    fn enter(mut self) -> Result<(), String> {
        self.wait()?;
        self.entry.enter().map_err(|error| error.to_string())
    }

    /// Waits until the place is open.
    ///
    /// # Errors
    /// When it will not be: the process that was to open it has failed, and knows why.
    fn wait(&mut self) -> Result<(), String> {
        let opened = self.gate.take().map(|mut gate| gate.read_exact(&mut [0]));
        match opened {
            Some(Err(_)) => Err("the container's cgroup has got no limits".to_owned()),
            _ => Ok(()),
        }
    }
}

impl Opener {
    /// Lets the process in. Where there is none any more, whoever was to clone it says why.
    pub(super) fn open(mut self) {
        if let Err(error) = self.0.write_all(&[0]) {
            log::debug!("nobody is let into a cgroup: {error}");
        }
    }
}
