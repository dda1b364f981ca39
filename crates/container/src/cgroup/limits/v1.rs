//! The files of cgroup v1: the kernel's admin-guide/cgroup-v1 and scheduler/sched-bwc.rst.

use std::path::Path;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxInterfacePriority, LinuxMemory,
    LinuxResources, LinuxThrottleDevice,
};

use super::{Group, Setting, given, listed, or_max, page_size};
use crate::cgroup::{Cgroup, Error, Result};

pub(super) const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
const TOGETHER_LIMIT: &str = "memory.memsw.limit_in_bytes";

/// What `resources` means in files.
pub(super) fn settings(cgroup: &Cgroup, resources: &LinuxResources) -> Result<Vec<Group>> {
    if let Some(key) = resources
        .unified()
        .as_ref()
        .and_then(|all| all.keys().next())
    {
        return Err(Error::BadLimit {
            field: "unified",
            reason: format!("{key} is of cgroup v2, and this machine has v1"),
        });
    }
    let group = |controller, make: &dyn Fn(&Path) -> Result<Group>| group(cgroup, controller, make);
    let mut groups = Vec::new();
    if let Some(given) = resources.cpu() {
        groups.push(group("cpu", &|folder| Ok(cpu(folder, given)))?);
        groups.push(group("cpuset", &|folder| Ok(cpuset(folder, given)))?);
    }
    if let Some(given) = resources.memory() {
        groups.push(group("memory", &|folder| Ok(memory(folder, given)))?);
    }
    if let Some(limit) = resources
        .pids()
        .as_ref()
        .and_then(|pids| given(Some(pids.limit())))
    {
        groups.push(group("pids", &|folder| {
            Ok(vec![Setting::new(folder.join("pids.max"), or_max(limit))])
        })?);
    }
    if let Some(given) = resources.block_io() {
        groups.push(group("blkio", &|folder| Ok(blkio(folder, given)))?);
    }
    if let Some(limits) = resources.hugepage_limits() {
        groups.push(group("hugetlb", &|folder| hugetlb(folder, limits))?);
    }
    Ok(groups)
}

/// The same for a new cgroup, with what is set only then: what its packets are marked with.
pub(super) fn first_settings(cgroup: &Cgroup, resources: &LinuxResources) -> Result<Vec<Group>> {
    let mut groups = settings(cgroup, resources)?;
    let Some(network) = resources.network() else {
        return Ok(groups);
    };
    groups.push(group(cgroup, "net_cls", &|folder| {
        let class = given(network.class_id());
        let setting = class.map(|class| Setting::new(folder.join("net_cls.classid"), class));
        Ok(setting.into_iter().collect())
    })?);
    groups.push(group(cgroup, "net_prio", &|folder| {
        let priorities = network.priorities().iter().flatten();
        let line = |one: &LinuxInterfacePriority| format!("{} {}", one.name(), one.priority());
        Ok(priorities
            .map(|one| Setting::new(folder.join("net_prio.ifpriomap"), line(one)))
            .collect())
    })?);
    Ok(groups)
}

/// What is made for the folder of a controller, which is asked for only when there is something to set.
fn group(
    cgroup: &Cgroup,
    controller: &'static str,
    make: &dyn Fn(&Path) -> Result<Group>,
) -> Result<Group> {
    let made = match cgroup.v1_folder(controller) {
        Some(folder) => return make(folder),
        None => make(Path::new(""))?,
    };
    match made.is_empty() {
        true => Ok(made),
        false => Err(Error::NoController { controller }),
    }
}

fn cpu(folder: &Path, cpu: &LinuxCpu) -> Group {
    let mut group = Group::new();
    let mut set = |file: &str, value: Option<String>| {
        group.extend(value.map(|value| Setting::new(folder.join(file), value)));
    };
    // A cgroup that is idle has no shares.
    set("cpu.shares", given(cpu.shares()).map(|n| n.to_string()));
    set("cpu.idle", cpu.idle().map(|n| n.to_string()));
    set(
        "cpu.cfs_period_us",
        given(cpu.period()).map(|n| n.to_string()),
    );
    set(
        "cpu.cfs_quota_us",
        given(cpu.quota()).map(|n| n.max(-1).to_string()),
    );
    set("cpu.cfs_burst_us", cpu.burst().map(|n| n.to_string()));
    set(
        "cpu.rt_period_us",
        given(cpu.realtime_period()).map(|n| n.to_string()),
    );
    set(
        "cpu.rt_runtime_us",
        given(cpu.realtime_runtime()).map(|n| n.to_string()),
    );
    group
}

fn cpuset(folder: &Path, cpu: &LinuxCpu) -> Group {
    let lists = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
    lists
        .into_iter()
        .filter_map(|(file, list)| Some(Setting::new(folder.join(file), listed(list)?)))
        .collect()
}

fn memory(folder: &Path, memory: &LinuxMemory) -> Group {
    let mut group = Group::new();
    let mut set = |file: &str, value: Option<String>| {
        group.extend(value.map(|value| Setting::new(folder.join(file), value)));
    };
    let (limit, together) = (given(memory.limit()), given(memory.swap()));
    set(MEMORY_LIMIT, limit.map(|n| n.max(-1).to_string()));
    set(TOGETHER_LIMIT, together.map(|n| n.max(-1).to_string()));
    set(
        "memory.soft_limit_in_bytes",
        given(memory.reservation()).map(|n| n.max(-1).to_string()),
    );
    set(
        "memory.swappiness",
        memory.swappiness().map(|n| n.to_string()),
    );
    set(
        "memory.oom_control",
        memory
            .disable_oom_killer()
            .map(|off| u8::from(off).to_string()),
    );
    if limit.is_some_and(|limit| limit < 0) && together.is_none() {
        // Unlimited memory is not to be limited by an older limit of both.
        group.push(Setting {
            optional: true,
            ..Setting::new(folder.join(TOGETHER_LIMIT), -1)
        });
    }
    group
}

fn blkio(folder: &Path, blkio: &LinuxBlockIo) -> Group {
    let mut group = Group::new();
    let bfq = folder.join("blkio.bfq.weight").exists();
    let (weight, device) = match bfq {
        true => ("blkio.bfq.weight", "blkio.bfq.weight_device"),
        false => ("blkio.weight", "blkio.weight_device"),
    };
    if let Some(value) = given(blkio.weight()) {
        group.push(Setting::new(folder.join(weight), value));
    }
    for entry in blkio.weight_device().iter().flatten() {
        if let Some(value) = given(entry.weight()) {
            let line = format!("{}:{} {value}", entry.major(), entry.minor());
            group.push(Setting::new(folder.join(device), line));
        }
    }
    let mut throttle = |file: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            group.push(Setting::new(folder.join(file), line));
        }
    };
    throttle(
        "blkio.throttle.read_bps_device",
        blkio.throttle_read_bps_device(),
    );
    throttle(
        "blkio.throttle.write_bps_device",
        blkio.throttle_write_bps_device(),
    );
    throttle(
        "blkio.throttle.read_iops_device",
        blkio.throttle_read_iops_device(),
    );
    throttle(
        "blkio.throttle.write_iops_device",
        blkio.throttle_write_iops_device(),
    );
    group
}

fn hugetlb(folder: &Path, limits: &[LinuxHugepageLimit]) -> Result<Group> {
    let mut group = Group::new();
    for limit in limits {
        let size = page_size(limit.page_size())?;
        let used = folder.join(format!("hugetlb.{size}.limit_in_bytes"));
        group.push(Setting::new(used, limit.limit()));
        group.push(Setting {
            // Since Linux 5.7.
            optional: true,
            ..Setting::new(
                folder.join(format!("hugetlb.{size}.rsvd.limit_in_bytes")),
                limit.limit(),
            )
        });
    }
    Ok(group)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;
    use crate::cgroup::Tree;

    /// What a request writes, as `file value`, in a cgroup with all controllers but hugetlb.
    fn written(request: Value) -> Result<Vec<String>> {
        written_by(settings, request)
    }

    fn written_by(
        settings: fn(&Cgroup, &LinuxResources) -> Result<Vec<Group>>,
        request: Value,
    ) -> Result<Vec<String>> {
        let names = [
            "cpu", "cpuset", "memory", "net_cls", "net_prio", "pids", "blkio",
        ];
        let cgroup = Cgroup {
            tree: Tree::V1(
                names
                    .map(|name| (name.to_owned(), PathBuf::from("/none")))
                    .to_vec(),
            ),
        };
        let resources = serde_json::from_value(request).unwrap();
        let groups = settings(&cgroup, &resources)?;
        Ok(groups
            .into_iter()
            .flatten()
            .map(|setting| {
                let file = setting.path.file_name().unwrap().to_str().unwrap();
                format!("{file} {}", setting.value)
            })
            .collect())
    }

    #[test]
    fn every_limit_has_its_file() {
        let all = written(json!({
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 0, "idle": 0,
                    "realtimeRuntime": 1, "realtimePeriod": 2, "cpus": "0-1", "mems": "0"},
            "memory": {"limit": 64, "swap": 128, "reservation": 32, "swappiness": 0,
                       "disableOOMKiller": true},
            "pids": {"limit": 20},
            "blockIO": {"weight": 500,
                        "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
                        "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 0}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 2, "rate": 7}]},
        }))
        .unwrap();
        let expected = [
            "cpu.shares 512",
            "cpu.idle 0",
            "cpu.cfs_period_us 100000",
            "cpu.cfs_quota_us 50000",
            "cpu.cfs_burst_us 0",
            "cpu.rt_period_us 2",
            "cpu.rt_runtime_us 1",
            "cpuset.cpus 0-1",
            "cpuset.mems 0",
            "memory.limit_in_bytes 64",
            "memory.memsw.limit_in_bytes 128",
            "memory.soft_limit_in_bytes 32",
            "memory.swappiness 0",
            "memory.oom_control 1",
            "pids.max 20",
            "blkio.weight 500",
            "blkio.weight_device 8:0 100",
            "blkio.throttle.read_bps_device 8:1 0",
            "blkio.throttle.write_iops_device 8:2 7",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn packets_are_marked_from_the_beginning_only() {
        let network = json!({"network": {"classID": 4, "priorities": [
            {"name": "lo", "priority": 1}, {"name": "eth0", "priority": 2},
        ]}});
        assert_eq!(written(network.clone()).unwrap(), [""; 0]);
        let expected = [
            "net_cls.classid 4",
            "net_prio.ifpriomap lo 1",
            "net_prio.ifpriomap eth0 2",
        ];
        assert_eq!(written_by(first_settings, network).unwrap(), expected);
    }

    #[test]
    fn what_is_zero_or_missing_stays() {
        let none = written(json!({
            "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": ""},
            "memory": {"limit": 0, "swap": 0, "reservation": 0},
            "pids": {"limit": 0},
            "blockIO": {"weight": 0},
        }));
        assert_eq!(none.unwrap(), [""; 0]);
    }

    #[test]
    fn unlimited_is_minus_one_or_max() {
        let all = written(json!({
            "cpu": {"quota": -1}, "memory": {"limit": -1}, "pids": {"limit": -1},
        }));
        let expected = [
            "cpu.cfs_quota_us -1",
            "memory.limit_in_bytes -1",
            "memory.memsw.limit_in_bytes -1",
            "pids.max max",
        ];
        assert_eq!(all.unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let pages = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]});
        let error = written(pages).unwrap_err().to_string();
        assert!(error.contains("hugetlb"), "{error}");
        let unified = json!({"unified": {"memory.high": "1"}});
        let error = written(unified).unwrap_err().to_string();
        assert!(
            error.contains("memory.high") && error.contains("v1"),
            "{error}"
        );
    }
}
