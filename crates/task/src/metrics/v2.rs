//! The figures of cgroup v2, controller by controller.

use container::cgroup::stats::{Rdma, RdmaEntry, v2};
use containerd_shim::protos::cgroups_v2::metrics as v2_message;
use containerd_shim::protos::protobuf::MessageField;

use super::field;

pub fn metrics(metrics: v2::Metrics) -> v2_message::Metrics {
    let pids = v2_message::PidsStat {
        current: metrics.pids.current,
        limit: metrics.pids.limit,
        ..Default::default()
    };
    v2_message::Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu(metrics.cpu)),
        memory: MessageField::some(memory(metrics.memory)),
        rdma: MessageField::some(rdma(metrics.rdma)),
        io: MessageField::some(io(metrics.io)),
        hugetlb: metrics.hugetlb.into_iter().map(hugetlb).collect(),
        memory_events: field(metrics.memory_events, |events| v2_message::MemoryEvents {
            low: events.low,
            high: events.high,
            max: events.max,
            oom: events.oom,
            oom_kill: events.oom_kill,
            oom_group_kill: events.oom_group_kill,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cpu(cpu: v2::Cpu) -> v2_message::CPUStat {
    v2_message::CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        psi: field(cpu.pressure, pressure),
        nr_bursts: cpu.nr_bursts,
        burst_usec: cpu.burst_usec,
        ..Default::default()
    }
}

fn memory(memory: v2::Memory) -> v2_message::MemoryStat {
    v2_message::MemoryStat {
        anon: memory.anon,
        file: memory.file,
        kernel_stack: memory.kernel_stack,
        slab: memory.slab,
        sock: memory.sock,
        shmem: memory.shmem,
        file_mapped: memory.file_mapped,
        file_dirty: memory.file_dirty,
        file_writeback: memory.file_writeback,
        anon_thp: memory.anon_thp,
        inactive_anon: memory.inactive_anon,
        active_anon: memory.active_anon,
        inactive_file: memory.inactive_file,
        active_file: memory.active_file,
        unevictable: memory.unevictable,
        slab_reclaimable: memory.slab_reclaimable,
        slab_unreclaimable: memory.slab_unreclaimable,
        pgfault: memory.pgfault,
        pgmajfault: memory.pgmajfault,
        workingset_refault: memory.workingset_refault,
        workingset_activate: memory.workingset_activate,
        workingset_nodereclaim: memory.workingset_nodereclaim,
        pgrefill: memory.pgrefill,
        pgscan: memory.pgscan,
        pgsteal: memory.pgsteal,
        pgactivate: memory.pgactivate,
        pgdeactivate: memory.pgdeactivate,
        pglazyfree: memory.pglazyfree,
        pglazyfreed: memory.pglazyfreed,
        thp_fault_alloc: memory.thp_fault_alloc,
        thp_collapse_alloc: memory.thp_collapse_alloc,
        usage: memory.usage,
        usage_limit: memory.usage_limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        max_usage: memory.max_usage,
        swap_max_usage: memory.swap_max_usage,
        psi: field(memory.pressure, pressure),
        ..Default::default()
    }
}

fn rdma(rdma: Rdma) -> v2_message::RdmaStat {
    let entries = |entries: Vec<RdmaEntry>| {
        let message = |entry: RdmaEntry| v2_message::RdmaEntry {
            device: entry.device,
            hca_handles: entry.hca_handles,
            hca_objects: entry.hca_objects,
            ..Default::default()
        };
        entries.into_iter().map(message).collect()
    };
    v2_message::RdmaStat {
        current: entries(rdma.current),
        limit: entries(rdma.limit),
        ..Default::default()
    }
}

fn io(io: v2::Io) -> v2_message::IOStat {
    let message = |entry: v2::IoEntry| v2_message::IOEntry {
        major: entry.major,
        minor: entry.minor,
        rbytes: entry.rbytes,
        wbytes: entry.wbytes,
        rios: entry.rios,
        wios: entry.wios,
        ..Default::default()
    };
    v2_message::IOStat {
        usage: io.usage.into_iter().map(message).collect(),
        psi: field(io.pressure, pressure),
        ..Default::default()
    }
}

fn hugetlb(pages: v2::Hugetlb) -> v2_message::HugeTlbStat {
    v2_message::HugeTlbStat {
        current: pages.current,
        max: pages.max,
        pagesize: pages.pagesize,
        failcnt: pages.failcnt,
        ..Default::default()
    }
}

fn pressure(pressure: v2::Pressure) -> v2_message::PSIStats {
    let stall = |stall: v2::Stall| v2_message::PSIData {
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
        total: stall.total,
        ..Default::default()
    };
    v2_message::PSIStats {
        some: field(pressure.some, stall),
        full: field(pressure.full, stall),
        ..Default::default()
    }
}
