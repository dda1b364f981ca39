//! The figures of a cgroup in containerd's own messages.

use container::cgroup::Stats;
use container::cgroup::stats::{Rdma, RdmaEntry, v1, v2};
use containerd_shim::protos::cgroups::metrics as v1_message;
use containerd_shim::protos::cgroups_v2::metrics as v2_message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{MessageField, MessageFull};

/// Packs figures into the message that containerd's clients know for their cgroup version:
/// `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
pub fn to_any(stats: Stats) -> Any {
    match stats {
        Stats::V1(metrics) => pack(&v1_metrics(metrics)),
        Stats::V2(metrics) => pack(&v2_metrics(metrics)),
    }
}

/// A message as one of any kind. As everywhere in containerd, the type URL is the bare name of the
/// message (containerd/typeurl).
pub fn pack<M: MessageFull>(message: &M) -> Any {
    Any {
        type_url: M::descriptor().full_name().to_owned(),
        // Only proto2's required fields can be missing.
        value: message
            .write_to_bytes()
            .expect("a proto3 message can always be written"),
        ..Any::default()
    }
}

fn v1_metrics(metrics: v1::Metrics) -> v1_message::Metrics {
    v1_message::Metrics {
        hugetlb: metrics.hugetlb.into_iter().map(v1_hugetlb).collect(),
        pids: field(metrics.pids, |pids| v1_message::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v1_cpu(metrics.cpu)),
        memory: field(metrics.memory, v1_memory),
        blkio: field(metrics.blkio, v1_blkio),
        rdma: field(metrics.rdma, v1_rdma),
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

fn v1_hugetlb(pages: v1::Hugetlb) -> v1_message::HugetlbStat {
    v1_message::HugetlbStat {
        usage: pages.usage,
        max: pages.max,
        failcnt: pages.failcnt,
        pagesize: pages.pagesize,
        ..Default::default()
    }
}

fn v1_cpu(cpu: v1::Cpu) -> v1_message::CPUStat {
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

fn v1_memory(memory: v1::Memory) -> v1_message::MemoryStat {
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
        usage: MessageField::some(v1_memory_entry(memory.usage)),
        swap: MessageField::some(v1_memory_entry(memory.swap)),
        kernel: MessageField::some(v1_memory_entry(memory.kernel)),
        kernel_tcp: MessageField::some(v1_memory_entry(memory.kernel_tcp)),
        ..Default::default()
    }
}

fn v1_memory_entry(entry: v1::MemoryEntry) -> v1_message::MemoryEntry {
    v1_message::MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..Default::default()
    }
}

fn v1_blkio(blkio: v1::Blkio) -> v1_message::BlkIOStat {
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

fn v1_rdma(rdma: Rdma) -> v1_message::RdmaStat {
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

fn v2_metrics(metrics: v2::Metrics) -> v2_message::Metrics {
    let pids = v2_message::PidsStat {
        current: metrics.pids.current,
        limit: metrics.pids.limit,
        ..Default::default()
    };
    v2_message::Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(v2_cpu(metrics.cpu)),
        memory: MessageField::some(v2_memory(metrics.memory)),
        rdma: MessageField::some(v2_rdma(metrics.rdma)),
        io: MessageField::some(v2_io(metrics.io)),
        hugetlb: metrics.hugetlb.into_iter().map(v2_hugetlb).collect(),
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

fn v2_cpu(cpu: v2::Cpu) -> v2_message::CPUStat {
    v2_message::CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        psi: field(cpu.pressure, v2_pressure),
        nr_bursts: cpu.nr_bursts,
        burst_usec: cpu.burst_usec,
        ..Default::default()
    }
}

fn v2_memory(memory: v2::Memory) -> v2_message::MemoryStat {
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
        psi: field(memory.pressure, v2_pressure),
        ..Default::default()
    }
}

fn v2_rdma(rdma: Rdma) -> v2_message::RdmaStat {
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

fn v2_io(io: v2::Io) -> v2_message::IOStat {
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
        psi: field(io.pressure, v2_pressure),
        ..Default::default()
    }
}

fn v2_hugetlb(pages: v2::Hugetlb) -> v2_message::HugeTlbStat {
    v2_message::HugeTlbStat {
        current: pages.current,
        max: pages.max,
        pagesize: pages.pagesize,
        failcnt: pages.failcnt,
        ..Default::default()
    }
}

fn v2_pressure(pressure: v2::Pressure) -> v2_message::PSIStats {
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

/// A group of figures that may be missing.
fn field<T, M>(figures: Option<T>, message: impl FnOnce(T) -> M) -> MessageField<M> {
    MessageField::from_option(figures.map(message))
}

#[cfg(test)]
mod tests {
    use containerd_shim::protos::protobuf::Message;

    use super::*;

    #[test]
    fn v1_figures_arrive_where_clients_read_them() {
        let metrics = v1::Metrics {
            hugetlb: vec![v1::Hugetlb {
                usage: 1,
                max: 2,
                failcnt: 3,
                pagesize: "2MB".to_owned(),
            }],
            pids: Some(v1::Pids {
                current: 4,
                limit: 5,
            }),
            cpu: v1::Cpu {
                usage: v1::CpuUsage {
                    total: 6,
                    kernel: 7,
                    user: 8,
                    per_cpu: vec![9, 10],
                },
                throttling: v1::Throttling {
                    periods: 11,
                    throttled_periods: 12,
                    throttled_time: 13,
                },
            },
            memory: Some(v1::Memory {
                own: v1::MemoryUse {
                    cache: 14,
                    pgmajfault: 15,
                    ..Default::default()
                },
                total: v1::MemoryUse {
                    cache: 16,
                    unevictable: 17,
                    ..Default::default()
                },
                hierarchical_memory_limit: 18,
                usage: v1::MemoryEntry {
                    limit: 19,
                    usage: 20,
                    max: 21,
                    failcnt: 22,
                },
                kernel_tcp: v1::MemoryEntry {
                    limit: 23,
                    ..Default::default()
                },
                ..Default::default()
            }),
            blkio: Some(v1::Blkio {
                io_serviced_recursive: vec![v1::BlkioEntry {
                    op: "Read".to_owned(),
                    device: "/dev/vda".to_owned(),
                    major: 254,
                    minor: 0,
                    value: 24,
                }],
                ..Default::default()
            }),
            rdma: None,
            memory_oom_control: Some(v1::MemoryOomControl {
                oom_kill_disable: 0,
                under_oom: 1,
                oom_kill: 25,
            }),
        };
        let any = to_any(Stats::V1(metrics));
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");

        let message = v1_message::Metrics::parse_from_bytes(&any.value).unwrap();
        let pages = &message.hugetlb[0];
        assert_eq!((pages.usage, pages.max, pages.failcnt), (1, 2, 3));
        assert_eq!(pages.pagesize, "2MB");
        assert_eq!((message.pids.current, message.pids.limit), (4, 5));
        let usage = &message.cpu.usage;
        assert_eq!((usage.total, usage.kernel, usage.user), (6, 7, 8));
        assert_eq!(usage.per_cpu, [9, 10]);
        let throttling = &message.cpu.throttling;
        assert_eq!((throttling.periods, throttling.throttled_periods), (11, 12));
        assert_eq!(throttling.throttled_time, 13);
        let memory = &message.memory;
        assert_eq!((memory.cache, memory.pg_maj_fault), (14, 15));
        assert_eq!((memory.total_cache, memory.total_unevictable), (16, 17));
        assert_eq!(memory.hierarchical_memory_limit, 18);
        assert_eq!((memory.usage.limit, memory.usage.usage), (19, 20));
        assert_eq!((memory.usage.max, memory.usage.failcnt), (21, 22));
        assert_eq!(memory.kernel_tcp.limit, 23);
        let entry = &message.blkio.io_serviced_recursive[0];
        assert_eq!(
            (entry.op.as_str(), entry.device.as_str()),
            ("Read", "/dev/vda")
        );
        assert_eq!((entry.major, entry.minor, entry.value), (254, 0, 24));
        assert!(message.rdma.is_none());
        let oom = &message.memory_oom_control;
        assert_eq!(
            (oom.oom_kill_disable, oom.under_oom, oom.oom_kill),
            (0, 1, 25)
        );
    }

    #[test]
    fn v2_figures_arrive_where_clients_read_them() {
        let stall = v2::Stall {
            avg10: 0.5,
            avg60: 1.5,
            avg300: 2.5,
            total: 3,
        };
        let metrics = v2::Metrics {
            pids: v2::Pids {
                current: 4,
                limit: u64::MAX,
            },
            cpu: v2::Cpu {
                usage_usec: 5,
                burst_usec: 6,
                pressure: Some(v2::Pressure {
                    some: Some(stall),
                    full: None,
                }),
                ..Default::default()
            },
            memory: v2::Memory {
                anon: 7,
                usage: 8,
                usage_limit: 9,
                max_usage: 10,
                swap_max_usage: 11,
                ..Default::default()
            },
            rdma: Rdma {
                current: vec![RdmaEntry {
                    device: "mlx".to_owned(),
                    hca_handles: 12,
                    hca_objects: 13,
                }],
                limit: Vec::new(),
            },
            io: v2::Io {
                usage: vec![v2::IoEntry {
                    major: 254,
                    minor: 1,
                    rbytes: 14,
                    wbytes: 15,
                    rios: 16,
                    wios: 17,
                }],
                pressure: None,
            },
            hugetlb: vec![v2::Hugetlb {
                current: 18,
                max: 19,
                pagesize: "1GB".to_owned(),
                failcnt: 20,
            }],
            memory_events: Some(v2::MemoryEvents {
                oom_kill: 21,
                oom_group_kill: 22,
                ..Default::default()
            }),
        };
        let any = to_any(Stats::V2(metrics));
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");

        let message = v2_message::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((message.pids.current, message.pids.limit), (4, u64::MAX));
        assert_eq!((message.cpu.usage_usec, message.cpu.burst_usec), (5, 6));
        let some = &message.cpu.psi.some;
        assert_eq!(
            (some.avg10, some.avg60, some.avg300, some.total),
            (0.5, 1.5, 2.5, 3)
        );
        assert!(message.cpu.psi.full.is_none());
        let memory = &message.memory;
        assert_eq!((memory.anon, memory.usage, memory.usage_limit), (7, 8, 9));
        assert_eq!((memory.max_usage, memory.swap_max_usage), (10, 11));
        assert!(memory.psi.is_none());
        let device = &message.rdma.current[0];
        assert_eq!((device.hca_handles, device.hca_objects), (12, 13));
        let io = &message.io.usage[0];
        assert_eq!((io.major, io.minor), (254, 1));
        assert_eq!((io.rbytes, io.wbytes, io.rios, io.wios), (14, 15, 16, 17));
        let pages = &message.hugetlb[0];
        assert_eq!((pages.current, pages.max, pages.failcnt), (18, 19, 20));
        assert_eq!(pages.pagesize, "1GB");
        assert_eq!(message.memory_events.oom_kill, 21);
        assert_eq!(message.memory_events.oom_group_kill, 22);
    }
}
