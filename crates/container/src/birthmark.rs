//! Who is still being born.
//!
//! A request for a container carries a lock on a file in its bundle, and so do the processes that
//! come of it, from the helper to the init that waits for its start; the lock goes with the last of
//! them. When a daemon dies in the middle, whoever cleans up can tell by it that none is left that
//! could make more.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// The file's name.
const FILE: &str = "lighter.lock";

/// Takes the lock: it is held for as long as a process or a message has the file open.
///
/// # Errors
/// When the file cannot be made or locked.
pub(crate) fn take(bundle: &Path) -> io::Result<File> {
    let file = File::create(bundle.join(FILE))?;
    file.lock()?;
    Ok(file)
}

/// Whether no process is on its way into the container of `bundle`.
///
/// # Errors
/// When the file is there and cannot be asked.
pub(crate) fn is_free(bundle: &Path) -> io::Result<bool> {
    let file = match File::open(bundle.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_free_before_and_after() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(is_free(bundle.path()).unwrap());
        let taken = take(bundle.path()).unwrap();
        assert!(!is_free(bundle.path()).unwrap());
        drop(taken);
        assert!(is_free(bundle.path()).unwrap());
    }
}
