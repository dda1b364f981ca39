//! Telling a created container's init that it may run its entrypoint.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use libcontainer::notify_socket::NOTIFY_FILE;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::zygote::Target;

/// Tells the init of `target`, by the socket at which libcontainer has it wait. libcontainer's own
/// function for that changes the process's working directory on the way, which is for a process with
/// one thread.
///
/// # Errors
/// Nobody waits there: it has been told, or has ended.
pub(crate) fn tell(target: &Target) -> io::Result<()> {
    // The path may be longer than an address can be (unix(7)).
    let folder = target.root.join(&target.id);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(&folder, flags, Mode::empty())?;
    let address = format!("/proc/self/fd/{}/{NOTIFY_FILE}", folder.as_raw_fd());
    // The words are libcontainer's; what counts is that the connection ends.
    UnixStream::connect(address)?.write_all(b"start container")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_path_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            root: folder.path().join("long".repeat(40)),
            id: "id".into(),
        };
        let own = target.root.join(&target.id);
        std::fs::create_dir_all(&own).unwrap();
        assert_eq!(tell(&target).unwrap_err().kind(), io::ErrorKind::NotFound);
        let short = folder.path().join(NOTIFY_FILE);
        let listener = UnixListener::bind(&short).unwrap();
        std::fs::rename(short, own.join(NOTIFY_FILE)).unwrap();
        tell(&target).unwrap();
        let mut told = String::new();
        let (mut init, _) = listener.accept().unwrap();
        init.read_to_string(&mut told).unwrap();
        assert_eq!(told, "start container");
        drop(listener);
        let refused = tell(&target).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
