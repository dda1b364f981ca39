//! The kernel's lock of moves between cgroups.
//!
//! Whoever writes to `cgroup.procs` takes a lock of the whole machine, which the kernel makes cheap
//! for those who fork and dear for those who move: the first move after a pause waits for an RCU
//! grace period, 7 to 15 ms, and those that follow soon wait no more (rcu_sync, percpu-rwsem).
//! Containers get into their cgroups in other ways where they can (`build`). Where systemd makes a
//! cgroup, it is systemd that writes there. So that pause is begun when it is known that a move may
//! come, beside the work that is done before it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::thread;

use super::place::is_v1;
use super::{Cgroup, Error, Result};
use crate::sys;

/// Has the kernel get ready for a move, without waiting for it: a thread moves this process into
/// the cgroup where it is. Where that fails, moves take as long as they do. On v1 there is nothing to be done.
pub fn expect_move() {
    if is_v1() {
        return;
    }
    let move_nowhere = || {
        if let Err(error) = move_nowhere() {
            log::debug!("the kernel is not made ready for moves between cgroups: {error}");
        }
    };
    if let Err(error) = thread::Builder::new()
        .name("cgroup".into())
        .spawn(move_nowhere)
    {
        log::debug!("cannot start a thread: {error}");
    }
}

fn move_nowhere() -> Result<()> {
    let own = Cgroup::of(std::process::id())?;
    // One lock serves all hierarchies.
    let Some(folder) = own.folders().into_iter().next() else {
        return Ok(());
    };
    let path = folder.join("cgroup.procs");
    let open = OpenOptions::new().write(true).open(&path);
    let mut list = open.map_err(Error::io("open", &path))?;
    // The write cannot be interrupted, not even by SIGKILL. Whoever waits for the daemon's socket
    // to be closed must not wait for it.
    sys::keep_only(list.as_fd()).map_err(Error::io("hold nothing but", &path))?;
    // 0 stands for the process that writes.
    list.write_all(b"0").map_err(Error::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn nothing_is_moved() {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        let held = fs::File::open("/proc/self/cgroup").unwrap();
        thread::spawn(|| move_nowhere().unwrap()).join().unwrap();
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        // What others have open they keep.
        held.metadata().unwrap();
    }
}
