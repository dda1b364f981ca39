//! The memory of containers that do nothing, and of everything that serves them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lighter_test::{Container, Containerd, Rootfs};
use serde::Serialize;

use crate::kind::Kind;

/// How long the containers are left alone before they are looked at: threads that serve only for
/// a moment have gone by then.
pub const REST: Duration = Duration::from_secs(5);

/// What an idle container of one kind takes, on the average of all that were held at once.
#[derive(Serialize)]
pub struct Idle {
    /// The kind's name.
    pub kind: String,
    /// How many were held.
    pub containers: u32,
    /// Kilobytes of memory; a page that several processes share counts in parts (PSS).
    pub pss: f64,
    /// Kilobytes of memory that no other process shares.
    pub private: f64,
    /// Processes: the shim's and the container's own.
    pub processes: f64,
    /// Their threads.
    pub threads: f64,
    /// Kilobytes of PSS by the name of the process.
    pub parts: BTreeMap<String, f64>,
}

/// Holds `count` idle containers of a kind and looks at their processes.
///
/// # Errors
/// A container that fails, or a process that cannot be looked at.
pub fn idle(engine: &Containerd, rootfs: &Rootfs, kind: &Kind, count: u32) -> Result<Idle> {
    let mut held = Vec::new();
    for _ in 0..count {
        let container = kind.container(engine, rootfs).create()?;
        container.start()?;
        held.push(container);
    }
    thread::sleep(REST);
    let mut sum = Idle {
        kind: kind.name.clone(),
        containers: count,
        pss: 0.0,
        private: 0.0,
        processes: 0.0,
        threads: 0.0,
        parts: BTreeMap::new(),
    };
    let mut pids = BTreeSet::new();
    for container in &held {
        pids.extend(processes(kind.group(container), container)?);
    }
    // Counted as a whole: many small shares do not add up to exactly as much.
    sum.processes = pids.len() as f64 / f64::from(count);
    for pid in pids {
        sum.add(pid, 1.0 / f64::from(count))
            .with_context(|| format!("look at process {pid}"))?;
    }
    for container in held {
        container.kill(nix::sys::signal::Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(sum)
}

/// The shim's processes that have the id `group` in their arguments, and the container's only one. That is what it is
/// said to be once it has started: not every shim tells it before, or lists a container's processes.
///
/// # Errors
/// containerd does not tell the container's.
pub fn processes(group: &str, container: &Container) -> Result<BTreeSet<u32>> {
    let mut pids: BTreeSet<u32> = container.engine().shims_of(group).into_iter().collect();
    pids.insert(container.state()?.pid);
    Ok(pids)
}

/// Kilobytes of memory of a process; a page that several share counts in parts (PSS).
///
/// # Errors
/// The process has gone.
pub fn pss(pid: u32) -> Result<f64> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?,
        "Pss",
    )
}

impl Idle {
    fn add(&mut self, pid: u32, share: f64) -> Result<()> {
        let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (rollup, status) = (of("smaps_rollup")?, of("status")?);
        let pss = field(&rollup, "Pss")? * share;
        self.pss += pss;
        self.private +=
            (field(&rollup, "Private_Clean")? + field(&rollup, "Private_Dirty")?) * share;
        self.threads += field(&status, "Threads")? * share;
        let name = of("comm")?.trim_end().to_owned();
        *self.parts.entry(name).or_default() += pss;
        Ok(())
    }
}

/// The number in the line `NAME:   NUMBER` of a file of /proc/PID, proc(5).
///
/// # Errors
/// There is no such line.
pub fn field(text: &str, name: &str) -> Result<f64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next())
        .with_context(|| format!("no line {name}"))?;
    value.parse().with_context(|| format!("{name}: {value}"))
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Pss_Dirty:  5 kB\nPss:                  17 kB\nThreads:\t3\n";
        assert_eq!(field(text, "Pss").unwrap(), 17.0);
        assert_eq!(field(text, "Threads").unwrap(), 3.0);
        assert!(field(text, "Rss").is_err());
    }
}
