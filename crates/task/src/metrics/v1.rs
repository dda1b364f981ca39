//! The figures of cgroup v1, controller by controller.

use container::cgroup::stats::{Rdma, RdmaEntry, v1};
use containerd_shim::protos::cgroups::metrics as v1_message;
use containerd_shim::protos::protobuf::MessageField;

use super::field;

pub fn metrics(metrics: v1::Metrics) -> v1_message::Metrics {
    v1_message::Metrics {
        hugetlb: metrics.hugetlb.into_iter().map(hugetlb).collect(),
        pids: field(metrics.pids, |pids| v1_message::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(metrics.cpu)),
        memory: field(metrics.memory, memory),
        blkio: field(metrics.blkio, blkio),
        rdma: field(metrics.rdma, rdma),
        memory_oom_control: field(metrics.memory_oom_control, |oom| {
            v1_message::MemoryOomControl {
                oom_kill_disable: oom.oom_kill_disable,
                under_oom: oom.under_oom,
                oom_kill: oom.oom_kill,
                ..Default::default()
            }
        }),
        ..Default::default()
    }
}

fn hugetlb(pages: v1::Hugetlb) -> v1_message::HugetlbStat {
    v1_message::HugetlbStat {
        usage: pages.usage,
        max: pages.max,
        failcnt: pages.failcnt,
        pagesize: pages.pagesize,
        ..Default::default()
    }
}

fn cpu(cpu: v1::Cpu) -> v1_message::CPUStat {
    let usage = v1_message::CPUUsage {
        total: cpu.usage.total,
        kernel: cpu.usage.kernel,
        user: cpu.usage.user,
        per_cpu: cpu.usage.per_cpu,
        ..Default::default()
    };
    let throttling = v1_message::Throttle {
        periods: cpu.throttling.periods,
        throttled_periods: cpu.throttling.throttled_periods,
        throttled_time: cpu.throttling.throttled_time,
        ..Default::default()
    };
    v1_message::CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttling),
        ..Default::default()
    }
}

fn memory(memory: v1::Memory) -> v1_message::MemoryStat {
    let v1::Memory { own, total, .. } = memory;
    v1_message::MemoryStat {
        cache: own.cache,
        rss: own.rss,
        rss_huge: own.rss_huge,
        mapped_file: own.mapped_file,
        dirty: own.dirty,
        writeback: own.writeback,
        pg_pg_in: own.pgpgin,
        pg_pg_out: own.pgpgout,
        pg_fault: own.pgfault,
        pg_maj_fault: own.pgmajfault,
        inactive_anon: own.inactive_anon,
        active_anon: own.active_anon,
        inactive_file: own.inactive_file,
        active_file: own.active_file,
        unevictable: own.unevictable,
        hierarchical_memory_limit: memory.hierarchical_memory_limit,
        hierarchical_swap_limit: memory.hierarchical_swap_limit,
        total_cache: total.cache,
        total_rss: total.rss,
        total_rss_huge: total.rss_huge,
        total_mapped_file: total.mapped_file,
        total_dirty: total.dirty,
        total_writeback: total.writeback,
        total_pg_pg_in: total.pgpgin,
        total_pg_pg_out: total.pgpgout,
        total_pg_fault: total.pgfault,
        total_pg_maj_fault: total.pgmajfault,
        total_inactive_anon: total.inactive_anon,
        total_active_anon: total.active_anon,
        total_inactive_file: total.inactive_file,
        total_active_file: total.active_file,
        total_unevictable: total.unevictable,
        usage: MessageField::some(memory_entry(memory.usage)),
        swap: MessageField::some(memory_entry(memory.swap)),
        kernel: MessageField::some(memory_entry(memory.kernel)),
        kernel_tcp: MessageField::some(memory_entry(memory.kernel_tcp)),
        ..Default::default()
    }
}

fn memory_entry(entry: v1::MemoryEntry) -> v1_message::MemoryEntry {
    v1_message::MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..Default::default()
    }
}

fn blkio(blkio: v1::Blkio) -> v1_message::BlkIOStat {
    let entries = |entries: Vec<v1::BlkioEntry>| {
        let message = |entry: v1::BlkioEntry| v1_message::BlkIOEntry {
            op: entry.op,
            device: entry.device,
            major: entry.major,
            minor: entry.minor,
            value: entry.value,
            ..Default::default()
        };
        entries.into_iter().map(message).collect()
    };
    v1_message::BlkIOStat {
        io_service_bytes_recursive: entries(blkio.io_service_bytes_recursive),
        io_serviced_recursive: entries(blkio.io_serviced_recursive),
        io_queued_recursive: entries(blkio.io_queued_recursive),
        io_service_time_recursive: entries(blkio.io_service_time_recursive),
        io_wait_time_recursive: entries(blkio.io_wait_time_recursive),
        io_merged_recursive: entries(blkio.io_merged_recursive),
        io_time_recursive: entries(blkio.io_time_recursive),
        sectors_recursive: entries(blkio.sectors_recursive),
        ..Default::default()
    }
}

fn rdma(rdma: Rdma) -> v1_message::RdmaStat {
    let entries = |entries: Vec<RdmaEntry>| {
        let message = |entry: RdmaEntry| v1_message::RdmaEntry {
            device: entry.device,
            hca_handles: entry.hca_handles,
            hca_objects: entry.hca_objects,
            ..Default::default()
        };
        entries.into_iter().map(message).collect()
    };
    v1_message::RdmaStat {
        current: entries(rdma.current),
        limit: entries(rdma.limit),
        ..Default::default()
    }
}
