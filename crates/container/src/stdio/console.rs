//! The daemon's side of a process's terminal: the pseudo terminal's master (pty(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, Interest};
use tokio::sync::Notify;

use super::copy::Source;
use crate::sys;

/// A terminal's master in the daemon's event loop. The terminal hangs up (SIGHUP to the processes
/// in it) when the last clone of this has gone.
#[derive(Clone)]
pub struct Console(Arc<Master>);

struct Master {
    fd: AsyncFd<OwnedFd>,
    /// Whether the input has ended, and the word of it for whoever reads the output.
    ended: AtomicBool,
    end: Notify,
}

/// A terminal as long as it is there.
pub(super) struct WeakConsole(Weak<Master>);

impl Console {
    /// Puts `master` into the running tokio runtime.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or watched.
    #[expect(
        deprecated,
        reason = "the safe constructor: an OwnedFd stays open for as long as the AsyncFd has it"
    )]
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self(Arc::new(Master {
            fd: AsyncFd::new(master)?,
            ended: AtomicBool::new(false),
            end: Notify::new(),
        })))
    }

    /// Opens the terminal itself, as its processes have it.
    ///
    /// # Errors
    /// ioctl(2)'s.
    pub(super) fn open_slave(&self) -> io::Result<OwnedFd> {
        sys::open_terminal(self.0.fd.get_ref().as_fd())
    }

    pub(super) fn downgrade(&self) -> WeakConsole {
        WeakConsole(Arc::downgrade(&self.0))
    }
}

impl WeakConsole {
    /// Sets the terminal's size in characters, if it has not hung up.
    ///
    /// # Errors
    /// ioctl(2)'s.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match self.0.upgrade() {
            Some(master) => sys::set_window_size(master.fd.get_ref().as_fd(), rows, columns),
            None => Ok(()),
        }
    }
}

impl Source for Console {
    async fn readable(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.0.fd.readable() => ready.map(drop),
            () = self.0.end.notified() => Ok(()),
        }
    }

    /// The end is where no process has the terminal open any more, which read(2) calls `EIO`, or,
    /// when the input has ended, what has been written by then.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |master: &OwnedFd| match rustix::io::read(master, &mut *buffer) {
            Err(rustix::io::Errno::IO) => Ok(0),
            read => Ok(read?),
        };
        match self.0.fd.try_io(Interest::READABLE, read) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && self.0.ended.load(Ordering::Relaxed) =>
            {
                Ok(0)
            }
            read => read,
        }
    }
}

impl AsyncWrite for Console {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.fd.poll_write_ready(context))?;
            let write = |master: &AsyncFd<OwnedFd>| Ok(rustix::io::write(master, bytes)?);
            if let Ok(written) = guard.try_io(write) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of a terminal's input is a hangup, as with the runc shim: whoever reads the output
    /// comes to an end, too.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.end.notify_one();
        Poll::Ready(Ok(()))
    }
}
