//! The kernel's lock of moves between cgroups.
//!
//! Whoever writes to `cgroup.procs` takes a lock of the whole machine, which the kernel makes cheap
//! for those who fork and dear for those who move: the first move after a pause waits for an RCU
//! grace period, 7 to 15 ms, and those that follow soon wait no more (rcu_sync, percpu-rwsem).
//! libcontainer has each container's first process moved in this way. So that pause is begun when it
//! is known that a move will come, beside the work that is done before it.

use std::thread;

use super::{Cgroup, Error, Result, members};

/// Has the kernel get ready for a move, without waiting for it: a thread moves this process into
/// the cgroup where it is. Where that fails, moves take as long as they do.
pub fn expect_move() {
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
    for folder in own.folders().into_iter().take(1) {
        let list = folder.join("cgroup.procs");
        // 0 stands for the process that writes.
        members::write_existing(&list, "0").map_err(Error::io("write", &list))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn nothing_is_moved() {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        move_nowhere().unwrap();
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
    }
}
