//! Who compiles what at the moment.
//!
//! Each module locks a byte of its own in one file, so no lock outlives its process and no lock
//! file needs to be removed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};

use crate::digest::Digest;

/// Waits until nobody else compiles the module with this digest, here or in another process, and
/// keeps others from it until the file that is returned is closed.
pub(super) fn of_module(directory: &Path, module: &Digest) -> io::Result<File> {
    let file = open(directory)?;
    let (first, _) = module.split_first_chunk().expect("a digest has 32 bytes");
    // Offsets have 63 bits and the byte must have an end.
    let byte = range(i64::from_be_bytes(*first) & (i64::MAX >> 1), 1);
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte)) {
            Ok(_) => return Ok(file),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The lock of all modules; `None` while any is compiled.
pub(super) fn of_all(directory: &Path) -> io::Result<Option<File>> {
    let file = open(directory)?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(0, 0))) {
        Ok(_) => Ok(Some(file)),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A length of 0 has no end (fcntl_locking(2)).
fn range(start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join("lock"))
}
