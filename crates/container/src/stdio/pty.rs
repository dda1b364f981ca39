//! Pseudo terminals (pty(7)) as they are made for a process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::pty::{posix_openpt, unlockpt};
use nix::unistd::{Uid, fchown};
use oci_spec::runtime::Process;

use crate::sys;

/// A terminal: what its process has, and what whoever sits in front of it has.
pub(crate) struct Pty {
    /// The process's side.
    pub(crate) terminal: OwnedFd,
    /// The other.
    pub(crate) master: OwnedFd,
}

impl Pty {
    /// Makes a terminal in this process's mount namespace, for `process`; see [`Pty::new`].
    ///
    /// # Errors
    /// What failed, and why.
    pub(crate) fn open(process: &Process, owner: Uid) -> Result<Self, String> {
        let open = || -> io::Result<OwnedFd> {
            // Before there is a session of the process's own, and closed by its program's start.
            let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
            // What is no terminal's master, whatever lies at /dev/ptmx, refuses this.
            unlockpt(&master)?;
            Ok(master.into())
        };
        let master = open().map_err(|error| format!("making the process's terminal: {error}"))?;
        Self::new(master, Some(process), owner)
    }

    /// The terminal of `master`, made `owner`'s and of the size that `process` asks for, as with
    /// runc.
    ///
    /// # Errors
    /// What failed, and why.
    pub(crate) fn new(
        master: OwnedFd,
        process: Option<&Process>,
        owner: Uid,
    ) -> Result<Self, String> {
        let told = |what: &str, error: io::Error| format!("{what} the process's terminal: {error}");
        let terminal =
            sys::open_terminal(master.as_fd()).map_err(|error| told("opening", error))?;
        // Its group stays the one that devpts is mounted with.
        fchown(&terminal, Some(owner), None)
            .map_err(|error| told("giving its user", error.into()))?;
        if let Some(wanted) = process.and_then(Process::console_size) {
            let (rows, columns) = (wanted.height() as u16, wanted.width() as u16);
            sys::set_window_size(master.as_fd(), rows, columns)
                .map_err(|error| told("sizing", error))?;
        }
        Ok(Self { terminal, master })
    }
}
