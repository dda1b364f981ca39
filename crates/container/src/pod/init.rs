//! The init of a pod's pid namespace.
//!
//! The kernel ends a pid namespace with its first process, so none of the containers can be it. It
//! does nothing but be there, and containers of the pod can see it: hence it has nothing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{Gid, Uid, chdir, chroot, pause, pivot_root, setgroups, setresgid, setresuid};

use crate::{message, sys};

/// "nobody" and "nogroup", by the kernel's own convention (`DEFAULT_OVERFLOWUID`).
const NOBODY: u32 = 65534;

/// Is the init: says on `theirs` when it is, and goes on once it is told to. `ours`, the other
/// end, is the helper's.
pub(super) fn run(ours: &OwnedFd, theirs: &OwnedFd) -> ! {
    let confined = confine();
    if let Err(reason) = confined {
        let _ = message::send(theirs, &Err::<(), _>(reason), &[]);
        sys::exit_now(1);
    }
    let ready = message::send(theirs, &Ok::<(), String>(()), &[]);
    // So that the helper's death is seen here.
    sys::close_descriptors(&[ours.as_raw_fd()], theirs.as_fd());
    // Orphans of the pod come here, and the kernel reaps them.
    let reaps = sys::set_signal_handler(Signal::SIGCHLD, SigHandler::SigIgn);
    if ready.is_err() || reaps.is_err() || !matches!(message::receive::<()>(theirs), Ok(Some(_))) {
        sys::exit_now(1);
    }
    sys::close_inherited();
    loop {
        pause();
    }
}

fn confine() -> Result<(), String> {
    let error = |step: &str, error: nix::Error| format!("the pod's init: {step}: {error}");
    let _ = prctl::set_name(c"lighter-pod");
    empty_root().map_err(|reason| error("an empty root", reason))?;
    caps::clear(None, caps::CapSet::Bounding)
        .map_err(|reason| format!("the pod's init: the bounding set: {reason}"))?;
    let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    match setgroups(&[]) {
        // A user namespace may forbid it (user_namespaces(7)).
        Ok(()) | Err(nix::Error::EPERM) => {}
        Err(reason) => return Err(error("dropping its groups", reason)),
    }
    // With the last of root's ids go the capabilities.
    setresgid(gid, gid, gid)
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|reason| error("becoming nobody", reason))?;
    prctl::set_no_new_privs().map_err(|reason| error("no new privileges", reason))?;
    // The pod's own processes of the same id are not to get at it.
    prctl::set_dumpable(false).map_err(|reason| error("hiding", reason))?;
    // Changing ids has cleared it, should it have been there.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|reason| error("dying with the daemon", reason))
}

/// Puts an empty, read-only file system in the place of the whole tree.
fn empty_root() -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, private, NOTHING)?;
    // Any folder will do that is surely there.
    let folder = "/proc";
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let empty = Some("size=4k,nr_inodes=1,mode=0555");
    mount(Some("none"), folder, Some("tmpfs"), flags, empty)?;
    chdir(folder)?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The first root of an initramfs cannot be pivoted away from (pivot_root(2)).
        Err(nix::Error::EINVAL) => {
            mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING)?;
            chroot(".")?;
        }
        Err(error) => return Err(error),
    }
    chdir("/")
}
