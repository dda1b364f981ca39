//! The figures of a cgroup in containerd's own messages.

mod v1;
mod v2;

use container::cgroup::Stats;
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::protobuf::well_known_types::any::Any;

use crate::any::any;

/// Packs figures into the message that containerd's clients know for their cgroup version:
/// `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
pub fn to_any(stats: Stats) -> Any {
    match stats {
        Stats::V1(metrics) => any("io.containerd.cgroups.v1", &v1::metrics(metrics)),
        Stats::V2(metrics) => any("io.containerd.cgroups.v2", &v2::metrics(metrics)),
    }
}

/// A group of figures that may be missing.
fn field<T, M>(figures: Option<T>, message: impl FnOnce(T) -> M) -> MessageField<M> {
    MessageField::from_option(figures.map(message))
}

#[cfg(test)]
mod tests {
    use container::cgroup::stats::{Rdma, RdmaEntry, v1, v2};
    use containerd_shim::protos::cgroups::metrics as v1_message;
    use containerd_shim::protos::cgroups_v2::metrics as v2_message;
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
