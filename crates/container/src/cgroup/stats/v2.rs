//! The figures of cgroup v2: the kernel's admin-guide/cgroup-v2.rst.

use std::collections::HashMap;
use std::path::Path;

use super::{Rdma, file, rdma_entries};
use crate::cgroup::Result;

/// What v2's controllers count, including the cgroups below. A controller that is not enabled
/// shows zeros.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Processes and threads.
    pub pids: Pids,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// RDMA devices.
    pub rdma: Rdma,
    /// Block devices.
    pub io: Io,
    /// Huge pages, by page size.
    pub hugetlb: Vec<Hugetlb>,
    /// What happened for want of memory; none without the memory controller.
    pub memory_events: Option<MemoryEvents>,
}

/// Time lost waiting for a resource, by how many of the processes lost it:
/// Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// While at least one waited.
    pub some: Option<Stall>,
    /// While all of them did.
    pub full: Option<Stall>,
}

/// Time lost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stall {
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last 60 seconds.
    pub avg60: f64,
    /// Per cent of the last 300 seconds.
    pub avg300: f64,
    /// In all, in microseconds.
    pub total: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `u64::MAX` is no limit.
    pub limit: u64,
}

/// Processor time: the lines of cpu.stat, microseconds where the name says `usec`.
#[expect(missing_docs, reason = "the names are cpu.stat's")]
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    pub usage_usec: u64,
    pub user_usec: u64,
    pub system_usec: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_usec: u64,
    pub nr_bursts: u64,
    pub burst_usec: u64,
    /// None on kernels that do not account for pressure.
    pub pressure: Option<Pressure>,
}

/// Memory: the lines of memory.stat, and use and limits. Bytes, but for the counts of events.
#[expect(missing_docs, reason = "the names are memory.stat's")]
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub anon: u64,
    pub file: u64,
    pub kernel_stack: u64,
    pub slab: u64,
    pub sock: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub anon_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub workingset_refault: u64,
    pub workingset_activate: u64,
    pub workingset_nodereclaim: u64,
    pub pgrefill: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgactivate: u64,
    pub pgdeactivate: u64,
    pub pglazyfree: u64,
    pub pglazyfreed: u64,
    pub thp_fault_alloc: u64,
    pub thp_collapse_alloc: u64,
    /// In use.
    pub usage: u64,
    /// At most; `u64::MAX` is no limit.
    pub usage_limit: u64,
    /// The most that was ever in use; 0 before Linux 5.19.
    pub max_usage: u64,
    /// Swap in use.
    pub swap_usage: u64,
    /// Swap at most; `u64::MAX` is no limit.
    pub swap_limit: u64,
    /// The most swap that was ever in use; 0 before Linux 6.5.
    pub swap_max_usage: u64,
    /// None on kernels that do not account for pressure.
    pub pressure: Option<Pressure>,
}

/// What happened for want of memory: the lines of memory.events, counts.
#[expect(missing_docs, reason = "the names are memory.events'")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    pub oom_group_kill: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Io {
    /// By device.
    pub usage: Vec<IoEntry>,
    /// None on kernels that do not account for pressure.
    pub pressure: Option<Pressure>,
}

/// One block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// Bytes in use.
    pub current: u64,
    /// Bytes at most; `u64::MAX` is no limit.
    pub max: u64,
    /// The size, as in `2MB`.
    pub pagesize: String,
    /// Allocations that met the limit.
    pub failcnt: u64,
}

/// Reads all controllers of a v2 cgroup.
pub(super) fn read(folder: &Path, huge_page_sizes: &[String]) -> Result<Metrics> {
    Ok(Metrics {
        pids: Pids {
            current: single(folder, "pids.current")?,
            limit: single(folder, "pids.max")?,
        },
        cpu: cpu(folder)?,
        memory: memory(folder)?,
        rdma: Rdma {
            current: rdma_entries(&text(folder, "rdma.current")?),
            limit: rdma_entries(&text(folder, "rdma.max")?),
        },
        io: Io {
            usage: io_entries(&text(folder, "io.stat")?),
            pressure: pressure(folder, "io.pressure")?,
        },
        hugetlb: huge_page_sizes
            .iter()
            .map(|size| hugetlb(folder, size))
            .collect::<Result<_>>()?,
        memory_events: memory_events(folder)?,
    })
}

fn cpu(folder: &Path) -> Result<Cpu> {
    let path = folder.join("cpu.stat");
    let Some(text) = file::read(&path)? else {
        return Ok(Cpu::default());
    };
    let table = file::table(&path, &text)?;
    let value = |name: &str| get(&table, name);
    Ok(Cpu {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        nr_bursts: value("nr_bursts"),
        burst_usec: value("burst_usec"),
        pressure: pressure(folder, "cpu.pressure")?,
    })
}

fn memory(folder: &Path) -> Result<Memory> {
    let path = folder.join("memory.stat");
    let Some(text) = file::read(&path)? else {
        return Ok(Memory::default());
    };
    let table = file::table(&path, &text)?;
    let value = |name: &str| get(&table, name);
    Ok(Memory {
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        anon_thp: value("anon_thp"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        workingset_refault: value("workingset_refault"),
        workingset_activate: value("workingset_activate"),
        workingset_nodereclaim: value("workingset_nodereclaim"),
        pgrefill: value("pgrefill"),
        pgscan: value("pgscan"),
        pgsteal: value("pgsteal"),
        pgactivate: value("pgactivate"),
        pgdeactivate: value("pgdeactivate"),
        pglazyfree: value("pglazyfree"),
        pglazyfreed: value("pglazyfreed"),
        thp_fault_alloc: value("thp_fault_alloc"),
        thp_collapse_alloc: value("thp_collapse_alloc"),
        usage: single(folder, "memory.current")?,
        usage_limit: single(folder, "memory.max")?,
        max_usage: single(folder, "memory.peak")?,
        swap_usage: single(folder, "memory.swap.current")?,
        swap_limit: single(folder, "memory.swap.max")?,
        swap_max_usage: single(folder, "memory.swap.peak")?,
        pressure: pressure(folder, "memory.pressure")?,
    })
}

fn memory_events(folder: &Path) -> Result<Option<MemoryEvents>> {
    let path = folder.join("memory.events");
    let Some(text) = file::read(&path)? else {
        return Ok(None);
    };
    let table = file::table(&path, &text)?;
    Ok(Some(MemoryEvents {
        low: get(&table, "low"),
        high: get(&table, "high"),
        max: get(&table, "max"),
        oom: get(&table, "oom"),
        oom_kill: get(&table, "oom_kill"),
        oom_group_kill: get(&table, "oom_group_kill"),
    }))
}

fn hugetlb(folder: &Path, size: &str) -> Result<Hugetlb> {
    let path = folder.join(format!("hugetlb.{size}.events"));
    let text = file::read(&path)?.unwrap_or_default();
    Ok(Hugetlb {
        current: single(folder, &format!("hugetlb.{size}.current"))?,
        max: single(folder, &format!("hugetlb.{size}.max"))?,
        pagesize: size.to_owned(),
        failcnt: get(&file::table(&path, &text)?, "max"),
    })
}

/// The lines of io.stat: `major:minor rbytes=N wbytes=N rios=N wios=N ...`. Devices that have
/// done nothing may stand there without figures, and are left out.
fn io_entries(text: &str) -> Vec<IoEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let device = fields.next().and_then(|device| device.split_once(':'));
        let numbers = device.map(|(major, minor)| (major.parse(), minor.parse()));
        let figures: HashMap<&str, u64> = fields
            .filter_map(|field| field.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        if let Some((Ok(major), Ok(minor))) = numbers
            && !figures.is_empty()
        {
            entries.push(IoEntry {
                major,
                minor,
                rbytes: get(&figures, "rbytes"),
                wbytes: get(&figures, "wbytes"),
                rios: get(&figures, "rios"),
                wios: get(&figures, "wios"),
            });
        }
    }
    entries
}

/// A pressure file: `some avg10=F avg60=F avg300=F total=N`, and the same for `full`.
fn pressure(folder: &Path, name: &str) -> Result<Option<Pressure>> {
    let path = folder.join(name);
    let Some(text) = file::read(&path)? else {
        return Ok(None);
    };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let malformed = || file::malformed(&path, line, "averages and a total");
        let (kind, fields) = line.split_once(' ').ok_or_else(malformed)?;
        let stall = stall(fields).ok_or_else(malformed)?;
        match kind {
            "some" => pressure.some = Some(stall),
            "full" => pressure.full = Some(stall),
            _ => {}
        }
    }
    Ok(Some(pressure))
}

fn stall(fields: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for field in fields.split_whitespace() {
        let (name, value) = field.split_once('=')?;
        match name {
            "avg10" => stall.avg10 = value.parse().ok()?,
            "avg60" => stall.avg60 = value.parse().ok()?,
            "avg300" => stall.avg300 = value.parse().ok()?,
            "total" => stall.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(stall)
}

fn single(folder: &Path, name: &str) -> Result<u64> {
    Ok(file::single(&folder.join(name), u64::MAX)?.unwrap_or(0))
}

fn text(folder: &Path, name: &str) -> Result<String> {
    Ok(file::read(&folder.join(name))?.unwrap_or_default())
}

fn get(table: &HashMap<&str, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_figure_comes_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("pids.current", "1\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 2\nuser_usec 3\nsystem_usec 4\nnr_bursts 5\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.50 avg60=1.25 avg300=0.00 total=6\n\
                 full avg10=0.00 avg60=0.00 avg300=0.25 total=7\n",
            ),
            (
                "memory.stat",
                "anon 8\nworkingset_refault_anon 9\nthp_collapse_alloc 10\n",
            ),
            ("memory.current", "11\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "12\n"),
            ("memory.swap.max", "13\n"),
            (
                "memory.events",
                "low 0\nhigh 14\nmax 15\noom 16\noom_kill 17\noom_group_kill 18\n",
            ),
            (
                "io.stat",
                "8:0 rbytes=19 wbytes=20 rios=21 wios=22 dbytes=0 dios=0\n7:0 \n\
                 253:1 rbytes=23\n",
            ),
            ("hugetlb.2MB.current", "24\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 25\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=26\n"),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let metrics = read(folder.path(), &["2MB".to_owned()]).unwrap();

        assert_eq!(
            metrics.pids,
            Pids {
                current: 1,
                limit: u64::MAX
            }
        );
        let cpu = &metrics.cpu;
        assert_eq!(
            (
                cpu.usage_usec,
                cpu.user_usec,
                cpu.system_usec,
                cpu.nr_bursts
            ),
            (2, 3, 4, 5)
        );
        let pressure = cpu.pressure.clone().unwrap();
        let some = Stall {
            avg10: 0.5,
            avg60: 1.25,
            avg300: 0.0,
            total: 6,
        };
        let full = Stall {
            avg10: 0.0,
            avg60: 0.0,
            avg300: 0.25,
            total: 7,
        };
        assert_eq!(
            pressure,
            Pressure {
                some: Some(some),
                full: Some(full)
            }
        );
        let memory = &metrics.memory;
        assert_eq!((memory.anon, memory.thp_collapse_alloc), (8, 10));
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (11, u64::MAX, 12)
        );
        assert_eq!((memory.swap_usage, memory.swap_limit), (0, 13));
        assert_eq!(memory.pressure, None);
        let events = MemoryEvents {
            low: 0,
            high: 14,
            max: 15,
            oom: 16,
            oom_kill: 17,
            oom_group_kill: 18,
        };
        assert_eq!(metrics.memory_events, Some(events));
        let entry = |major, minor, rbytes, wbytes, rios, wios| IoEntry {
            major,
            minor,
            rbytes,
            wbytes,
            rios,
            wios,
        };
        assert_eq!(
            metrics.io.usage,
            [entry(8, 0, 19, 20, 21, 22), entry(253, 1, 23, 0, 0, 0)]
        );
        let pages = Hugetlb {
            current: 24,
            max: u64::MAX,
            pagesize: "2MB".to_owned(),
            failcnt: 25,
        };
        assert_eq!(metrics.hugetlb, [pages]);
        assert_eq!(metrics.rdma.limit[0].hca_objects, 26);
        assert_eq!(metrics.rdma.current, []);
    }

    #[test]
    fn missing_controllers_show_zeros() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), &[]).unwrap(), Metrics::default());
    }

    #[test]
    fn a_line_out_of_form_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("io.pressure"), "some avg10=x\n").unwrap();
        let error = read(folder.path(), &[]).unwrap_err().to_string();
        assert!(
            error.contains("io.pressure") && error.contains("avg10=x"),
            "{error}"
        );
    }
}
