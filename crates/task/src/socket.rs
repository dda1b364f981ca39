//! The socket on which a group's daemon listens.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The file system's part of a socket's address.
pub(crate) fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// A listening socket at `path`; `None` where a daemon of the group listens there already.
pub(crate) fn listen(path: &Path) -> io::Result<Option<UnixListener>> {
    let error = |reason: io::Error| {
        io::Error::new(
            reason.kind(),
            format!("listening on {}: {reason}", path.display()),
        )
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(error)?;
    }
    match UnixListener::bind(path) {
        Err(in_use) if in_use.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            // Left by a daemon that was killed.
            fs::remove_file(path).map_err(error)?;
            UnixListener::bind(path).map(Some).map_err(error)
        }
        bound => bound.map(Some).map_err(error),
    }
}

/// Removes the socket at `path` if nobody listens on it any more.
///
/// # Errors
/// unlink(2)'s.
pub(crate) fn remove_dead(path: &Path) -> io::Result<()> {
    if UnixStream::connect(path).is_ok() {
        return Ok(());
    }
    remove(path)
}

/// One daemon's socket file: at its path there may be a later daemon's.
#[derive(Clone)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// The file of `listener`.
    ///
    /// # Errors
    /// When it has none, or not any more.
    pub(crate) fn of(listener: &UnixListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let path = address
            .as_pathname()
            .ok_or_else(|| io::Error::other("the shim's socket has no path"))?;
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless it is gone or another's.
    pub(crate) fn remove(&self) {
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = remove(&self.path)
        {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s/socket");
        let living = listen(&path).unwrap().expect("a first listener");
        assert!(listen(&path).unwrap().is_none(), "one that answers is kept");
        remove_dead(&path).unwrap();
        assert!(path.exists(), "one that answers is not removed");
        drop(living);
        assert!(listen(&path).unwrap().is_some(), "a dead one is replaced");
        remove_dead(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_daemon_removes_no_other_daemons_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = listen(&path).unwrap().unwrap();
        let file = SocketFile::of(&first).unwrap();
        drop(first);
        // Kept until the second is there, so that its inode cannot be the first's again.
        fs::rename(&path, folder.path().join("kept")).unwrap();
        let _second = listen(&path).unwrap().unwrap();
        file.remove();
        assert!(path.exists());
    }
}
