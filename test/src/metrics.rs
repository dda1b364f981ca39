//! The figures of a task, as protobuf messages of our own with the fields that
//! the tests look at.

use anyhow::{Result, bail};
use prost::Message;
use prost_types::Any;

/// `io.containerd.cgroups.v1.Metrics`, as in github.com/containerd/cgroups
/// v3, cgroup1/stats/metrics.proto.
#[derive(Clone, PartialEq, Message)]
pub struct V1 {
    /// Processes.
    #[prost(message, optional, tag = "2")]
    pub pids: Option<Pids>,
    /// Time on the processors.
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<V1Cpu>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<V1Memory>,
}

/// Figures of the pids controller, the same in both versions.
#[derive(Clone, PartialEq, Message)]
pub struct Pids {
    /// Processes and threads now.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// How many there may be; 0 for no limit.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// Figures of the cpu and cpuacct controllers.
#[derive(Clone, PartialEq, Message)]
pub struct V1Cpu {
    /// Time used.
    #[prost(message, optional, tag = "1")]
    pub usage: Option<V1CpuUsage>,
}

/// Time used, in nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub struct V1CpuUsage {
    /// In all.
    #[prost(uint64, tag = "1")]
    pub total: u64,
    /// In the kernel.
    #[prost(uint64, tag = "2")]
    pub kernel: u64,
    /// Outside of it.
    #[prost(uint64, tag = "3")]
    pub user: u64,
}

/// Figures of the memory controller.
#[derive(Clone, PartialEq, Message)]
pub struct V1Memory {
    /// Cached file pages, in bytes.
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    /// Anonymous memory, in bytes.
    #[prost(uint64, tag = "2")]
    pub rss: u64,
    /// All that is charged.
    #[prost(message, optional, tag = "33")]
    pub usage: Option<V1MemoryEntry>,
}

/// One kind of charge, in bytes.
#[derive(Clone, PartialEq, Message)]
pub struct V1MemoryEntry {
    /// The limit.
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    /// Now.
    #[prost(uint64, tag = "2")]
    pub usage: u64,
    /// The most there was.
    #[prost(uint64, tag = "3")]
    pub max: u64,
    /// How often the limit was met.
    #[prost(uint64, tag = "4")]
    pub failcnt: u64,
}

/// `io.containerd.cgroups.v2.Metrics`, as in github.com/containerd/cgroups
/// v3, cgroup2/stats/metrics.proto.
#[derive(Clone, PartialEq, Message)]
pub struct V2 {
    /// Processes.
    #[prost(message, optional, tag = "1")]
    pub pids: Option<Pids>,
    /// Time on the processors.
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<V2Cpu>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<V2Memory>,
}

/// Time used, in microseconds.
#[derive(Clone, PartialEq, Message)]
pub struct V2Cpu {
    /// In all.
    #[prost(uint64, tag = "1")]
    pub usage_usec: u64,
    /// Outside of the kernel.
    #[prost(uint64, tag = "2")]
    pub user_usec: u64,
    /// In the kernel.
    #[prost(uint64, tag = "3")]
    pub system_usec: u64,
}

/// Figures of the memory controller, in bytes.
#[derive(Clone, PartialEq, Message)]
pub struct V2Memory {
    /// Anonymous memory.
    #[prost(uint64, tag = "1")]
    pub anon: u64,
    /// Cached file pages.
    #[prost(uint64, tag = "2")]
    pub file: u64,
    /// All that is charged.
    #[prost(uint64, tag = "32")]
    pub usage: u64,
    /// The limit.
    #[prost(uint64, tag = "33")]
    pub usage_limit: u64,
}

/// Reads the figures of cgroup v1.
///
/// # Errors
/// They are of another type, or damaged.
pub fn v1(any: &Any) -> Result<V1> {
    read(any, "io.containerd.cgroups.v1.Metrics")
}

/// Reads the figures of cgroup v2.
///
/// # Errors
/// They are of another type, or damaged.
pub fn v2(any: &Any) -> Result<V2> {
    read(any, "io.containerd.cgroups.v2.Metrics")
}

fn read<M: Message + Default>(any: &Any, name: &str) -> Result<M> {
    if any.type_url.rsplit('/').next() != Some(name) {
        bail!("figures of type {}, not {name}", any.type_url);
    }
    Ok(M::decode(any.value.as_slice())?)
}
