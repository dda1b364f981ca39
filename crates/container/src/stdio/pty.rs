//! Pseudo terminals (pty(7)) as they are made for a process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use nix::sys::stat::makedev;
use nix::unistd::{Uid, fchown};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags, openat};
use rustix::pty::unlockpt;

use crate::sys;

/// Where terminals are made (pts(4)).
const MULTIPLEXER: &str = "/dev/ptmx";

/// A terminal: what its process has, and what whoever sits in front of it has.
pub(crate) struct Pty {
    /// The process's side.
    pub(crate) terminal: OwnedFd,
    /// The other.
    pub(crate) master: OwnedFd,
}

impl Pty {
    /// Makes a terminal in this process's mount namespace, for `process`; see [`Pty::new`]. `descriptors` is /proc/self/fd, of
    /// a /proc that is to be trusted.
    ///
    /// # Errors
    /// What failed, and why.
    pub(crate) fn open(process: &Process, owner: Uid, descriptors: &File) -> Result<Self, String> {
        let open = || -> io::Result<OwnedFd> {
            // What lies there is the container's own choice, whose cgroups this process is not in: nothing else is
            // opened, as that alone may do something.
            let found = File::options()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
                .open(MULTIPLEXER)?;
            let metadata = found.metadata()?;
            if !metadata.file_type().is_char_device() || metadata.rdev() != makedev(5, 2) {
                return Err(io::Error::other("it is not the device 5:2"));
            }
            // Before there is a session of the process's own, and closed by its program's start.
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let number = found.as_raw_fd().to_string();
            let master = openat(descriptors, number, flags, Mode::empty())?;
            unlockpt(&master)?;
            Ok(master)
        };
        let master = open().map_err(|error| {
            format!("making the process's terminal with the container's {MULTIPLEXER}: {error}")
        })?;
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
