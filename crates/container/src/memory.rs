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
    /// the kernel has killed since or has refused memory.
    pub fn explain(&self, reason: &str, bundle: &Bundle) -> String {
        explain(reason, self.have_risen(), bundle.memory_limit())
    }
}

/// How errors for want of memory (ENOMEM) read where libcontainer's processes pass them on, as text.
const REFUSED: [&str; 2] = ["ENOMEM", "Cannot allocate memory"];

fn explain(reason: &str, killed: bool, limit: Option<i64>) -> String {
    let cause = if killed {
        "the kernel has killed a process for want of memory"
    } else if REFUSED.iter().any(|word| reason.contains(word)) {
        "the kernel has refused memory"
    } else {
        return reason.to_owned();
    };
    let limit = limit.map_or_else(
        || "the container has no memory limit".to_owned(),
        |limit| format!("the container's memory limit is {limit} bytes"),
    );
    format!("{reason}: {cause}; {limit}")
}

fn count(vmstat: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    vmstat.lines().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_is_named() {
        let reasons = [
            ("it died", true, "it died: the kernel has killed"),
            ("unshare: ENOMEM", false, "unshare: ENOMEM: the kernel has"),
            ("fork: Cannot allocate memory", false, "refused memory"),
        ];
        for (reason, killed, words) in reasons {
            let text = explain(reason, killed, Some(4096));
            assert!(text.contains(words), "{text}");
            assert!(text.ends_with("memory limit is 4096 bytes"), "{text}");
        }
        assert_eq!(
            explain("unshare: EPERM", false, Some(4096)),
            "unshare: EPERM"
        );
    }

    #[test]
    fn the_count_is_read() {
        assert_eq!(count("nr_free_pages 5\noom_kill 7\ndrop 1\n"), Some(7));
        assert_eq!(count("nr_free_pages 5\n"), None);
    }
}
