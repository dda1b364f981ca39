//! The figures of cgroup v1: the kernel's admin-guide/cgroup-v1.

use std::collections::HashMap;
use std::path::Path;

use super::{Rdma, file, rdma_entries};
use crate::cgroup::{Cgroup, Result};

/// The kernel's unit of CPU time towards user space, in nanoseconds: USER_HZ is 100 on every
/// architecture that Rust builds for, time(7).
const TICK: u64 = 1_000_000_000 / 100;

/// What v1's controllers count. A group is none when its controller is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Huge pages, by page size.
    pub hugetlb: Vec<Hugetlb>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Option<Memory>,
    /// Block devices.
    pub blkio: Option<Blkio>,
    /// RDMA devices.
    pub rdma: Option<Rdma>,
    /// The out-of-memory killer.
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// Bytes in use.
    pub usage: u64,
    /// The most bytes that were ever in use.
    pub max: u64,
    /// Allocations that met the limit.
    pub failcnt: u64,
    /// The size, as in `2MB`.
    pub pagesize: String,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 is no limit.
    pub limit: u64,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// Time withheld by the quota.
    pub throttling: Throttling,
}

/// Processor time used, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// In the kernel, to a hundredth of a second.
    pub kernel: u64,
    /// In user space, to a hundredth of a second.
    pub user: u64,
    /// On each processor.
    pub per_cpu: Vec<u64>,
}

/// Time withheld by the quota.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods of enforcement that went by.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time withheld, in nanoseconds.
    pub throttled_time: u64,
}

/// What one set of processes uses: the lines of memory.stat. Bytes, but for the four counts of
/// events that begin with `pg`.
#[expect(
    missing_docs,
    reason = "the names are memory.stat's, defined in memory.rst section 5.2"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub cache: u64,
    pub rss: u64,
    pub rss_huge: u64,
    pub mapped_file: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub pgpgin: u64,
    pub pgpgout: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
}

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of the cgroup's own processes.
    pub own: MemoryUse,
    /// With the cgroups below: memory.stat's lines that begin with `total_`.
    pub total: MemoryUse,
    /// The lowest memory limit from here up, in bytes.
    pub hierarchical_memory_limit: u64,
    /// The lowest limit of memory and swap together from here up, in bytes.
    pub hierarchical_swap_limit: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together (`memsw`).
    pub swap: MemoryEntry,
    /// Kernel memory.
    pub kernel: MemoryEntry,
    /// Kernel memory of TCP buffers.
    pub kernel_tcp: MemoryEntry,
}

/// Use and limit of one kind of memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// At most.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// The most that was ever in use.
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// The out-of-memory killer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryOomControl {
    /// 1 when it is switched off for the cgroup.
    pub oom_kill_disable: u64,
    /// 1 while the cgroup is out of memory.
    pub under_oom: u64,
    /// Processes killed.
    pub oom_kill: u64,
}

/// Block devices, each figure by device and operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blkio {
    /// Bytes transferred.
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Requests completed.
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Requests waiting.
    pub io_queued_recursive: Vec<BlkioEntry>,
    /// Time from dispatch to completion, in nanoseconds.
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Time in queues, in nanoseconds.
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Requests merged with others.
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Time given to the cgroup, in milliseconds.
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors transferred.
    pub sectors_recursive: Vec<BlkioEntry>,
}

/// One figure of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`, or empty where there is no choice.
    pub op: String,
    /// The device's file; empty when /proc/partitions does not have it.
    pub device: String,
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// The figure.
    pub value: u64,
}

/// Reads all controllers of a v1 cgroup.
pub(super) fn read(cgroup: &Cgroup, huge_page_sizes: &[String]) -> Result<Metrics> {
    let mut metrics = Metrics::default();
    if let Some(folder) = cgroup.v1_folder("hugetlb") {
        metrics.hugetlb = hugetlb(folder, huge_page_sizes)?;
    }
    if let Some(folder) = cgroup.v1_folder("pids") {
        metrics.pids = pids(folder)?;
    }
    if let Some(folder) = cgroup.v1_folder("cpu") {
        metrics.cpu.throttling = throttling(folder)?;
    }
    if let Some(folder) = cgroup.v1_folder("cpuacct") {
        metrics.cpu.usage = cpu_usage(folder)?;
    }
    if let Some(folder) = cgroup.v1_folder("memory") {
        metrics.memory = memory(folder)?;
        metrics.memory_oom_control = oom_control(folder)?;
    }
    if let Some(folder) = cgroup.v1_folder("blkio") {
        let partitions = file::read(Path::new("/proc/partitions"))?.unwrap_or_default();
        metrics.blkio = Some(blkio(folder, &devices(&partitions))?);
    }
    if let Some(folder) = cgroup.v1_folder("rdma") {
        metrics.rdma = rdma(folder)?;
    }
    Ok(metrics)
}

fn hugetlb(folder: &Path, sizes: &[String]) -> Result<Vec<Hugetlb>> {
    let mut pages = Vec::new();
    for size in sizes {
        let value = |name: &str| file::single(&folder.join(format!("hugetlb.{size}.{name}")), 0);
        if let Some(usage) = value("usage_in_bytes")? {
            pages.push(Hugetlb {
                usage,
                max: value("max_usage_in_bytes")?.unwrap_or(0),
                failcnt: value("failcnt")?.unwrap_or(0),
                pagesize: size.clone(),
            });
        }
    }
    Ok(pages)
}

fn pids(folder: &Path) -> Result<Option<Pids>> {
    let current = file::single(&folder.join("pids.current"), 0)?;
    let limit = file::single(&folder.join("pids.max"), 0)?;
    Ok(current
        .zip(limit)
        .map(|(current, limit)| Pids { current, limit }))
}

fn throttling(folder: &Path) -> Result<Throttling> {
    let path = folder.join("cpu.stat");
    let text = file::read(&path)?.unwrap_or_default();
    let table = file::table(&path, &text)?;
    Ok(Throttling {
        periods: get(&table, "nr_periods"),
        throttled_periods: get(&table, "nr_throttled"),
        throttled_time: get(&table, "throttled_time"),
    })
}

fn cpu_usage(folder: &Path) -> Result<CpuUsage> {
    let path = folder.join("cpuacct.stat");
    let text = file::read(&path)?.unwrap_or_default();
    let table = file::table(&path, &text)?;
    let path = folder.join("cpuacct.usage_percpu");
    let text = file::read(&path)?.unwrap_or_default();
    let each = text
        .split_whitespace()
        .map(|field| file::number(field).ok_or_else(|| file::malformed(&path, &text, "numbers")));
    Ok(CpuUsage {
        total: file::single(&folder.join("cpuacct.usage"), 0)?.unwrap_or(0),
        kernel: get(&table, "system").saturating_mul(TICK),
        user: get(&table, "user").saturating_mul(TICK),
        per_cpu: each.collect::<Result<_>>()?,
    })
}

fn memory(folder: &Path) -> Result<Option<Memory>> {
    let path = folder.join("memory.stat");
    let Some(text) = file::read(&path)? else {
        return Ok(None);
    };
    let table = file::table(&path, &text)?;
    let usage = |prefix: &str| {
        let value = |name: &str| get(&table, &format!("{prefix}{name}"));
        MemoryUse {
            cache: value("cache"),
            rss: value("rss"),
            rss_huge: value("rss_huge"),
            mapped_file: value("mapped_file"),
            dirty: value("dirty"),
            writeback: value("writeback"),
            pgpgin: value("pgpgin"),
            pgpgout: value("pgpgout"),
            pgfault: value("pgfault"),
            pgmajfault: value("pgmajfault"),
            inactive_anon: value("inactive_anon"),
            active_anon: value("active_anon"),
            inactive_file: value("inactive_file"),
            active_file: value("active_file"),
            unevictable: value("unevictable"),
        }
    };
    Ok(Some(Memory {
        own: usage(""),
        total: usage("total_"),
        hierarchical_memory_limit: get(&table, "hierarchical_memory_limit"),
        hierarchical_swap_limit: get(&table, "hierarchical_memsw_limit"),
        usage: memory_entry(folder, "memory")?,
        swap: memory_entry(folder, "memory.memsw")?,
        kernel: memory_entry(folder, "memory.kmem")?,
        kernel_tcp: memory_entry(folder, "memory.kmem.tcp")?,
    }))
}

/// The four files of one kind of memory. Swap accounting and kernel memory are options of the
/// kernel, and newer kernels have dropped some of these files.
fn memory_entry(folder: &Path, kind: &str) -> Result<MemoryEntry> {
    let value = |name: &str| -> Result<u64> {
        Ok(file::single(&folder.join(format!("{kind}.{name}")), 0)?.unwrap_or(0))
    };
    Ok(MemoryEntry {
        limit: value("limit_in_bytes")?,
        usage: value("usage_in_bytes")?,
        max: value("max_usage_in_bytes")?,
        failcnt: value("failcnt")?,
    })
}

fn oom_control(folder: &Path) -> Result<Option<MemoryOomControl>> {
    let path = folder.join("memory.oom_control");
    let Some(text) = file::read(&path)? else {
        return Ok(None);
    };
    let table = file::table(&path, &text)?;
    Ok(Some(MemoryOomControl {
        oom_kill_disable: get(&table, "oom_kill_disable"),
        under_oom: get(&table, "under_oom"),
        oom_kill: get(&table, "oom_kill"),
    }))
}

fn rdma(folder: &Path) -> Result<Option<Rdma>> {
    let current = file::read(&folder.join("rdma.current"))?;
    let limit = file::read(&folder.join("rdma.max"))?;
    Ok(current.zip(limit).map(|(current, limit)| Rdma {
        current: rdma_entries(&current),
        limit: rdma_entries(&limit),
    }))
}

type Devices = HashMap<(u64, u64), String>;

/// The device files by number. A device that is listed twice goes by its first name.
fn devices(partitions: &str) -> Devices {
    let mut devices = Devices::new();
    for line in partitions.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [major, minor, _, name] = fields[..]
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            devices
                .entry((major, minor))
                .or_insert_with(|| format!("/dev/{name}"));
        }
    }
    devices
}

/// CFQ's figures where the kernel has that scheduler and it has seen requests, else those of the
/// throttling layer above all schedulers.
fn blkio(folder: &Path, devices: &Devices) -> Result<Blkio> {
    let entries = |name: &str| blkio_entries(&folder.join(format!("blkio.{name}")), devices);
    let cfq = Blkio {
        io_service_bytes_recursive: entries("io_service_bytes_recursive")?,
        io_serviced_recursive: entries("io_serviced_recursive")?,
        io_queued_recursive: entries("io_queued_recursive")?,
        io_service_time_recursive: entries("io_service_time_recursive")?,
        io_wait_time_recursive: entries("io_wait_time_recursive")?,
        io_merged_recursive: entries("io_merged_recursive")?,
        io_time_recursive: entries("time_recursive")?,
        sectors_recursive: entries("sectors_recursive")?,
    };
    if cfq != Blkio::default() {
        return Ok(cfq);
    }
    Ok(Blkio {
        io_service_bytes_recursive: entries("throttle.io_service_bytes")?,
        io_serviced_recursive: entries("throttle.io_serviced")?,
        ..Blkio::default()
    })
}

/// The lines `major:minor [operation] value`; a last line `Total value` sums them up.
fn blkio_entries(path: &Path, devices: &Devices) -> Result<Vec<BlkioEntry>> {
    let text = file::read(path)?.unwrap_or_default();
    let mut entries = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line
            .split([' ', ':'])
            .filter(|field| !field.is_empty())
            .collect();
        let (major, minor, op, value) = match fields[..] {
            ["Total", _] => continue,
            [major, minor, value] => (major, minor, "", value),
            [major, minor, op, value] => (major, minor, op, value),
            _ => {
                return Err(file::malformed(
                    path,
                    line,
                    "major:minor [operation] number",
                ));
            }
        };
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| file::malformed(path, line, "whole numbers"))
        };
        let (major, minor) = (number(major)?, number(minor)?);
        entries.push(BlkioEntry {
            op: op.to_owned(),
            device: devices.get(&(major, minor)).cloned().unwrap_or_default(),
            major,
            minor,
            value: number(value)?,
        });
    }
    Ok(entries)
}

fn get(table: &HashMap<&str, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::Tree;

    /// A cgroup whose controllers' files all lie in one folder.
    fn cgroup(folder: &Path, files: &[(&str, &str)]) -> Cgroup {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        let names = [
            "cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma",
        ];
        let controllers = names.map(|name| (name.to_owned(), folder.to_path_buf()));
        Cgroup {
            tree: Tree::V1(controllers.to_vec()),
        }
    }

    #[test]
    fn each_figure_comes_from_its_file_in_its_unit() {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = cgroup(
            folder.path(),
            &[
                (
                    "cpu.stat",
                    "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
                ),
                ("cpuacct.stat", "user 4\nsystem 5\n"),
                ("cpuacct.usage", "90000001\n"),
                ("cpuacct.usage_percpu", "6 7 \n"),
                (
                    "memory.stat",
                    "cache 8\npgpgin 9\nhierarchical_memsw_limit 10\ntotal_cache 11\n",
                ),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 12\n",
                ),
                ("memory.usage_in_bytes", "13\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.kmem.tcp.max_usage_in_bytes", "14\n"),
                ("pids.current", "15\n"),
                ("pids.max", "max\n"),
                ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
                ("hugetlb.2MB.failcnt", "16\n"),
                (
                    "blkio.throttle.io_serviced",
                    "8:0 Read 17\n8:0 Total 18\nTotal 18\n",
                ),
                ("blkio.throttle.io_service_bytes", "Total 0\n"),
                ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
                ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
            ],
        );
        let metrics = read(&cgroup, &["2MB".to_owned(), "1GB".to_owned()]).unwrap();

        let throttling = Throttling {
            periods: 1,
            throttled_periods: 2,
            throttled_time: 3,
        };
        assert_eq!(metrics.cpu.throttling, throttling);
        let usage = CpuUsage {
            total: 90_000_001,
            user: 40_000_000,
            kernel: 50_000_000,
            per_cpu: vec![6, 7],
        };
        assert_eq!(metrics.cpu.usage, usage);
        let memory = metrics.memory.unwrap();
        assert_eq!(
            (memory.own.cache, memory.own.pgpgin, memory.total.cache),
            (8, 9, 11)
        );
        assert_eq!(memory.hierarchical_swap_limit, 10);
        assert_eq!(
            (memory.usage.usage, memory.usage.limit),
            (13, 9_223_372_036_854_771_712)
        );
        assert_eq!(
            (memory.kernel_tcp.max, memory.swap),
            (14, MemoryEntry::default())
        );
        assert_eq!(metrics.memory_oom_control.unwrap().oom_kill, 12);
        assert_eq!(
            metrics.pids,
            Some(Pids {
                current: 15,
                limit: 0
            })
        );
        let pages = Hugetlb {
            usage: 2_097_152,
            max: 0,
            failcnt: 16,
            pagesize: "2MB".to_owned(),
        };
        assert_eq!(metrics.hugetlb, [pages]);
        let blkio = metrics.blkio.unwrap();
        let ops: Vec<(&str, u64, u64, u64)> = blkio
            .io_serviced_recursive
            .iter()
            .map(|entry| (entry.op.as_str(), entry.major, entry.minor, entry.value))
            .collect();
        assert_eq!(ops, [("Read", 8, 0, 17), ("Total", 8, 0, 18)]);
        assert_eq!(blkio.io_service_bytes_recursive, []);
        let rdma = metrics.rdma.unwrap();
        assert_eq!(
            (rdma.current[0].hca_objects, rdma.limit[0].hca_handles),
            (2000, u32::MAX)
        );
    }

    #[test]
    fn missing_files_leave_groups_out() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = read(&cgroup(folder.path(), &[]), &["2MB".to_owned()]).unwrap();
        let empty = Metrics {
            blkio: Some(Blkio::default()),
            ..Metrics::default()
        };
        assert_eq!(metrics, empty);
    }

    #[test]
    fn cfq_comes_before_throttling_and_devices_have_names() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("blkio.io_serviced_recursive", "8:0 Read 1\nTotal 1\n"),
            ("blkio.sectors_recursive", "8:1 2\n"),
            ("blkio.throttle.io_serviced", "8:0 Read 3\nTotal 3\n"),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let partitions = "major minor  #blocks  name\n\n   8   0  100 sda\n   8   0  100 copy\n";
        let figures = blkio(folder.path(), &devices(partitions)).unwrap();
        let entry = |op: &str, device: &str, minor, value| BlkioEntry {
            op: op.to_owned(),
            device: device.to_owned(),
            major: 8,
            minor,
            value,
        };
        assert_eq!(
            figures.io_serviced_recursive,
            [entry("Read", "/dev/sda", 0, 1)]
        );
        assert_eq!(figures.sectors_recursive, [entry("", "", 1, 2)]);
    }

    #[test]
    fn a_line_out_of_form_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = cgroup(
            folder.path(),
            &[("blkio.throttle.io_serviced", "8:0 Read\n")],
        );
        let error = read(&cgroup, &[]).unwrap_err().to_string();
        assert!(error.contains("blkio.throttle.io_serviced"), "{error}");
        assert!(error.contains("8:0 Read"), "{error}");
    }
}
