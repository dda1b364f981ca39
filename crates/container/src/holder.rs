//! A process that holds namespaces while others take them over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::Pid;

use crate::{message, sys};

/// A process in other namespaces, which ends when this is dropped or its owner dies.
pub(crate) struct Holder {
    /// Its pid.
    pub pid: Pid,
    _socket: OwnedFd,
}

impl Holder {
    /// Clones this process, which must have one thread, and runs `enter` in the clone; returns the
    /// process that this makes, if it makes one: its pid, and a pidfd of it.
    ///
    /// # Errors
    /// The reason that `enter` gives, or why there is no clone.
    pub fn spawn(
        enter: impl FnOnce() -> Result<Option<(Pid, OwnedFd)>, String>,
    ) -> Result<(Self, Option<(i32, OwnedFd)>), String> {
        let error = |error: io::Error| format!("a process that holds namespaces: {error}");
        let (ours, theirs) = message::pair().map_err(error)?;
        let Some((pid, _)) = sys::clone_sibling().map_err(error)? else {
            drop(ours);
            let (pid, handle) = match enter() {
                Ok(Some((pid, handle))) => (Ok(Some(pid.as_raw())), Some(handle)),
                Ok(None) => (Ok(None), None),
                Err(reason) => (Err(reason), None),
            };
            let handle: Vec<BorrowedFd> = handle.iter().map(OwnedFd::as_fd).collect();
            // The other side sees the end of the socket at worst.
            let _ = message::send(&theirs, &pid, &handle);
            let _ = message::receive::<()>(&theirs);
            sys::exit_now(0)
        };
        drop(theirs);
        let answer = message::receive::<Result<Option<i32>, String>>(&ours).map_err(error)?;
        let Some((made, handle)) = answer else {
            return Err("the process that holds namespaces died".to_owned());
        };
        let made = made?.zip(handle.into_iter().next());
        Ok((Self { pid, _socket: ours }, made))
    }
}
