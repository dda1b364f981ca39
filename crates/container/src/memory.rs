//! Whether the kernel has killed for want of memory.
//!
//! The cgroup of a container whose create fails is gone, and its counters with it, before anybody
//! could read them; so may that of a container which systemd cleans up after. So the machine's counter is
//! asked before and after.

use std::fs;

use crate::bundle::Bundle;

/// The machine's count of processes killed for want of memory at one moment.
#[derive(Clone, Copy, Debug)]
pub struct OomKills(u64);

impl OomKills {
    /// The count now; 0 where the kernel does not tell it (before Linux 4.13).
    pub fn now() -> Self {
        let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        Self(count(&counters).unwrap_or_default())
    }

    /// Whether the kernel has killed since.
    pub(crate) fn have_risen(&self) -> bool {
        Self::now().0 > self.0
    }

    /// `reason`, why the container of `bundle` could not be made, and that memory may be the cause, if
    /// the kernel has killed since.
    pub fn explain(&self, reason: &str, bundle: &Bundle) -> String {
        if !self.have_risen() {
            return reason.to_owned();
        }
        let limit = bundle.memory_limit().map_or_else(
            || "the container has no memory limit".to_owned(),
            |limit| format!("the container's memory limit is {limit} bytes"),
        );
        format!("{reason}: the kernel has killed a process for want of memory; {limit}")
    }
}

fn count(vmstat: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    vmstat.lines().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read() {
        assert_eq!(count("nr_free_pages 5\noom_kill 7\ndrop 1\n"), Some(7));
        assert_eq!(count("nr_free_pages 5\n"), None);
    }
}
