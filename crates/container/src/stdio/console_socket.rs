//! Where libcontainer hands over the master of a terminal that it has made inside a container.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A socket for one master, as the runc shim and runc have it between them; its file goes when
/// this is dropped.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `folder`, which only root may enter, under a name of the calling process's own.
    ///
    /// # Errors
    /// bind(2)'s.
    pub(crate) fn listen(folder: &Path) -> io::Result<Self> {
        let name = format!("console-{}.sock", std::process::id());
        let path = folder.join(&name);
        // The last process with this pid may have been killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // By the folder's descriptor: a bundle's path may be longer than a socket's address.
        let folder = File::open(folder)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
        Ok(Self { listener, path })
    }

    /// The socket's path, for libcontainer.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master that libcontainer has sent by now.
    ///
    /// # Errors
    /// accept(2)'s and recvmsg(2)'s; there is nothing to wait for.
    pub(crate) fn receive(&self) -> io::Result<OwnedFd> {
        // libcontainer connects before it clones the process, and that sends before it says that
        // it is ready.
        self.listener.set_nonblocking(true)?;
        let (connection, _) = self.listener.accept()?;
        connection.set_nonblocking(true)?;
        // The text that comes along is a name that means nothing here.
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(
            &connection,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .ok_or_else(|| io::Error::other("a message without a descriptor came"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}
