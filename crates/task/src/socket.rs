//! The socket on which a group's daemon listens.
//!
//! Whoever looks whether a daemon is there, takes a dead one's place, or leaves, holds the lock of
//! the socket's folder meanwhile. It is flock(2)'s, so it goes with its holder, and needs no file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The file system's part of a socket's address.
pub(crate) fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// The lock of the folder of the socket at `path`, for as long as it is open; that is made if it is
/// not there.
///
/// # Errors
/// mkdir(2)'s, open(2)'s and flock(2)'s.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let lock = || -> io::Result<File> {
        let open = match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                File::open(folder)?
            }
            opened => opened?,
        };
        open.lock()?;
        Ok(open)
    };
    lock().map_err(|reason| {
        let text = format!("locking {}: {reason}", folder.display());
        io::Error::new(reason.kind(), text)
    })
}

/// As [`lock`]; `None` where somebody has it, or there is no such folder any more.
///
/// # Errors
/// open(2)'s and flock(2)'s.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let open = File::open(path.parent().unwrap_or(Path::new("/")))?;
    match open.try_lock() {
        Ok(()) => Ok(Some(open)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A listening socket at `path`; `None` where a daemon of the group listens there already. The
/// caller holds the [`lock`].
///
/// # Errors
/// When there is none to be had.
pub(crate) fn listen(path: &Path) -> io::Result<Option<UnixListener>> {
    let error = |reason: io::Error| {
        io::Error::new(
            reason.kind(),
            format!("listening on {}: {reason}", path.display()),
        )
    };
    match UnixListener::bind(path) {
        Err(in_use) if in_use.kind() == io::ErrorKind::AddrInUse => {
            if answers(path).map_err(error)? {
                return Ok(None);
            }
            // Left by a daemon that was killed.
            fs::remove_file(path).map_err(error)?;
            UnixListener::bind(path).map(Some).map_err(error)
        }
        bound => bound.map(Some).map_err(error),
    }
}

/// Whether somebody listens at `path`; without waiting for them to take the connection.
fn answers(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(match connect(&socket, &SocketAddrUnix::new(path)?) {
        // As many as can wait there do so.
        Ok(()) | Err(Errno::AGAIN) => true,
        Err(_) => false,
    })
}

/// Removes the socket at `path` if nobody listens on it any more; whether somebody does.
///
/// # Errors
/// unlink(2)'s.
pub(crate) fn remove_dead(path: &Path) -> io::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let _place = lock(path)?;
    let lives = answers(path)?;
    if !lives {
        remove(path)?;
    }
    Ok(lives)
}

/// One daemon's socket file: at its path there may be a later daemon's.
#[derive(Clone)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Identity,
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
        match lock(&self.path) {
            Ok(_place) => self.remove_locked(),
            Err(error) => log::warn!("removing {}: {error}", self.path.display()),
        }
    }

    /// As [`SocketFile::remove`], for whoever holds the [`lock`].
    pub(crate) fn remove_locked(&self) {
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = remove(&self.path)
        {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// Device, inode, and the time at which it was made: ext4 gives the next file the last one's inode.
type Identity = (u64, u64, (i64, i64));

fn identity(path: &Path) -> io::Result<Identity> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino(), (file.mtime(), file.mtime_nsec())))
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

    fn listen_at(path: &Path) -> Option<UnixListener> {
        let _place = lock(path).unwrap();
        listen(path).unwrap()
    }

    #[test]
    fn a_socket_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s/socket");
        let living = listen_at(&path).expect("a first listener");
        assert!(listen_at(&path).is_none(), "one that answers is kept");
        assert!(remove_dead(&path).unwrap());
        assert!(path.exists(), "one that answers is not removed");
        drop(living);
        assert!(listen_at(&path).is_some(), "a dead one is replaced");
        assert!(!remove_dead(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn one_that_is_too_busy_to_answer_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _living = listen_at(&path).unwrap();
        // More than can wait, and none is taken.
        for _ in 0..8192 {
            assert!(answers(&path).unwrap());
        }
    }

    #[test]
    fn of_many_at_once_one_takes_a_dead_ones_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("socket");
        for _ in 0..50 {
            let taken: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4)
                    .map(|_| scope.spawn(move || listen_at(path)))
                    .collect();
                all.into_iter()
                    .filter_map(|one| one.join().unwrap())
                    .collect()
            });
            assert_eq!(taken.len(), 1);
            assert!(answers(path).unwrap());
        }
    }

    #[test]
    fn a_daemon_removes_no_other_daemons_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = listen_at(&path).unwrap();
        let file = SocketFile::of(&first).unwrap();
        drop(first);
        // No sooner than the file system's clock tells them apart.
        let _second = std::iter::repeat_with(|| listen_at(&path).unwrap())
            .find(|next| SocketFile::of(next).unwrap().identity.2 != file.identity.2);
        file.remove();
        assert!(path.exists());
    }
}
