//! The files of cgroup v2, the kernel's admin-guide/cgroup-v2.rst, for a request in v1's words.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{Group, Setting, given, listed, number_in, or_max, page_size};
use crate::cgroup::{Error, Result};

/// The kernel's period of CPU quotas, in microseconds.
const PERIOD: u64 = 100_000;

/// What `resources` means in files of `folder`.
pub(super) fn settings(folder: &Path, resources: &LinuxResources) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    if let Some(given) = resources.cpu() {
        groups.push(cpu(folder, given)?);
    }
    if let Some(given) = resources.memory() {
        groups.push(memory(folder, given)?);
    }
    if let Some(limit) = resources
        .pids()
        .as_ref()
        .and_then(|pids| given(Some(pids.limit())))
    {
        groups.push(vec![Setting::new(folder.join("pids.max"), or_max(limit))]);
    }
    if let Some(given) = resources.block_io() {
        groups.push(io(folder, given)?);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        groups.push(vec![
            Setting::new(folder.join(format!("hugetlb.{size}.max")), limit.limit()),
            Setting {
                // Since Linux 5.7.
                optional: true,
                ..Setting::new(
                    folder.join(format!("hugetlb.{size}.rsvd.max")),
                    limit.limit(),
                )
            },
        ]);
    }
    // After the others: who knows v2's own words means them.
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') || file.starts_with("cgroup.") {
            return Err(Error::BadLimit {
                field: "unified",
                reason: format!("{file:?} is no controller's file, such as memory.high"),
            });
        }
        groups.push(vec![Setting::new(folder.join(file), value)]);
    }
    Ok(groups)
}

fn cpu(folder: &Path, cpu: &LinuxCpu) -> Result<Group> {
    if given(cpu.realtime_runtime()).is_some() || given(cpu.realtime_period()).is_some() {
        return Err(Error::BadLimit {
            field: "cpu.realtimeRuntime",
            reason: "cgroup v2 has no limits of realtime scheduling".to_owned(),
        });
    }
    let mut group = Group::new();
    // A cgroup that is idle has no weight.
    if let Some(shares) = given(cpu.shares()) {
        group.push(Setting::new(folder.join("cpu.weight"), weight(shares)));
    }
    if let Some(idle) = cpu.idle() {
        group.push(Setting::new(folder.join("cpu.idle"), idle));
    }
    let (quota, period) = (given(cpu.quota()), given(cpu.period()));
    if quota.is_some() || period.is_some() {
        // One file holds both; what the request leaves out stays.
        let now = fs::read_to_string(folder.join("cpu.max")).unwrap_or_default();
        let mut now = now.split_whitespace();
        let (old_quota, old_period) = (now.next().unwrap_or("max"), now.next());
        let quota = quota.map_or(old_quota.to_owned(), or_max);
        let old_period = old_period.and_then(|text| text.parse().ok());
        let period = period.or(old_period).unwrap_or(PERIOD);
        group.push(Setting::new(
            folder.join("cpu.max"),
            format!("{quota} {period}"),
        ));
    }
    if let Some(burst) = cpu.burst() {
        group.push(Setting::new(folder.join("cpu.max.burst"), burst));
    }
    let lists = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
    for (file, list) in lists {
        group.extend(listed(list).map(|list| Setting::new(folder.join(file), list)));
    }
    Ok(group)
}

/// v1's shares (2 to 262144, usually 1024) as v2's weight (1 to 10000, usually 100), by the curve
/// that runc has since 1.3.2 and libcgroups has for new containers: it keeps both ends and the
/// usual value.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

fn memory(folder: &Path, memory: &LinuxMemory) -> Result<Group> {
    let (limit, together) = (given(memory.limit()), given(memory.swap()));
    if let Some(limit) = limit.filter(|limit| *limit > 0)
        && memory.check_before_update() == Some(true)
    {
        let usage = number_in(&folder.join("memory.current"));
        if usage.parse::<i64>().is_ok_and(|usage| usage >= limit) {
            return Err(Error::InUse {
                limit: limit.to_string(),
                usage,
                path: folder.join("memory.max"),
            });
        }
    }
    let mut group = Group::new();
    if let Some(swap) = swap(folder, limit, together)? {
        group.push(Setting {
            // A kernel without swap neither limits it nor needs to.
            optional: swap <= 0,
            ..Setting::new(folder.join("memory.swap.max"), or_max(swap))
        });
    }
    if let Some(limit) = limit {
        group.push(Setting::new(folder.join("memory.max"), or_max(limit)));
    }
    if let Some(reservation) = given(memory.reservation()) {
        group.push(Setting::new(folder.join("memory.low"), or_max(reservation)));
    }
    Ok(group)
}

/// v2's limit of swap alone (negative: none) for v1's of memory and swap together.
fn swap(folder: &Path, limit: Option<i64>, together: Option<i64>) -> Result<Option<i64>> {
    let together = match (limit, together) {
        (_, Some(together)) if together < 0 => return Ok(Some(-1)),
        // Unlimited memory is not to be limited by an older limit of both.
        (Some(limit), None) if limit < 0 => return Ok(Some(-1)),
        (_, None) => return Ok(None),
        (_, Some(together)) => together,
    };
    let wrong = |reason: String| Error::BadLimit {
        field: "memory.swap",
        reason,
    };
    let limit = limit.or_else(|| number_in(&folder.join("memory.max")).parse().ok());
    match limit {
        Some(limit) if limit > together => Err(wrong(format!(
            "{together} bytes for memory and swap together are less than {limit} for memory alone"
        ))),
        Some(limit) if limit > 0 => Ok(Some(together - limit)),
        _ => Err(wrong(
            "it is the limit of memory and swap together, and needs one of memory".to_owned(),
        )),
    }
}

fn io(folder: &Path, io: &LinuxBlockIo) -> Result<Group> {
    let mut group = Group::new();
    let bfq = folder.join("io.bfq.weight");
    if let Some(weight) = given(io.weight()) {
        group.push(match bfq.exists() {
            true => Setting::new(bfq.clone(), weight),
            // From 10 to 1000, to 1 to 10000.
            false => Setting::new(
                folder.join("io.weight"),
                1 + (u32::from(weight).saturating_sub(10)) * 9999 / 990,
            ),
        });
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = given(device.weight()) {
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            group.push(Setting::new(bfq.clone(), line));
        }
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            group.push(Setting::new(folder.join("io.max"), line));
        }
    };
    throttle("rbps", io.throttle_read_bps_device());
    throttle("wbps", io.throttle_write_bps_device());
    throttle("riops", io.throttle_read_iops_device());
    throttle("wiops", io.throttle_write_iops_device());
    Ok(group)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What a request writes, as `file value`, in a cgroup whose files say this.
    fn written(files: &[(&str, &str)], request: Value) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let resources = serde_json::from_value(request).unwrap();
        let groups = settings(folder.path(), &resources)?;
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
        let all = written(
            &[],
            json!({
                "cpu": {"shares": 1024, "quota": 50000, "period": 200000, "burst": 7, "idle": 0,
                        "cpus": "0-1", "mems": "0"},
                "memory": {"limit": 64, "swap": 96, "reservation": 32},
                "pids": {"limit": 20},
                "blockIO": {"weight": 10,
                            "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
                            "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 0}],
                            "throttleWriteIOPSDevice": [{"major": 8, "minor": 2, "rate": 7}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
                "unified": {"memory.high": "60", "cpu.weight": "3"},
            }),
        )
        .unwrap();
        let expected = [
            "cpu.weight 100",
            "cpu.idle 0",
            "cpu.max 50000 200000",
            "cpu.max.burst 7",
            "cpuset.cpus 0-1",
            "cpuset.mems 0",
            "memory.swap.max 32",
            "memory.max 64",
            "memory.low 32",
            "pids.max 20",
            "io.weight 1",
            "io.bfq.weight 8:0 100",
            "io.max 8:1 rbps=max",
            "io.max 8:2 wiops=7",
            "hugetlb.2MB.max 4",
            "hugetlb.2MB.rsvd.max 4",
            "cpu.weight 3",
            "memory.high 60",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn quota_and_period_keep_each_other() {
        let now = [("cpu.max", "30000 50000\n")];
        let quota = written(&now, json!({"cpu": {"quota": 10000}}));
        assert_eq!(quota.unwrap(), ["cpu.max 10000 50000"]);
        let period = written(&now, json!({"cpu": {"period": 100000}}));
        assert_eq!(period.unwrap(), ["cpu.max 30000 100000"]);
        let none = written(&now, json!({"cpu": {"quota": -1}}));
        assert_eq!(none.unwrap(), ["cpu.max max 50000"]);
    }

    #[test]
    fn swap_is_what_is_left_above_memory() {
        let now = [("memory.max", "64\n"), ("memory.current", "50\n")];
        let asked = |memory: Value| written(&now, json!({"memory": memory}));
        assert_eq!(
            asked(json!({"swap": 100})).unwrap(),
            ["memory.swap.max 36"],
            "above the limit that there is"
        );
        assert_eq!(
            asked(json!({"limit": 80, "swap": 80})).unwrap(),
            ["memory.swap.max 0", "memory.max 80"]
        );
        assert_eq!(
            asked(json!({"limit": -1})).unwrap(),
            ["memory.swap.max max", "memory.max max"]
        );
        for wrong in [
            json!({"limit": 80, "swap": 79}),
            json!({"limit": -1, "swap": 79}),
            json!({"limit": 50, "checkBeforeUpdate": true}),
        ] {
            assert!(asked(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn weights_keep_both_ends_and_the_usual_value() {
        let weights = [
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (1 << 30, 10_000),
        ];
        for (shares, expected) in weights {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn what_is_zero_or_missing_stays() {
        let none = written(
            &[],
            json!({
                "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "realtimeRuntime": 0},
                "memory": {"limit": 0, "swap": 0, "reservation": 0}, "pids": {"limit": 0},
            }),
        );
        assert_eq!(none.unwrap(), [""; 0]);
    }

    #[test]
    fn unified_names_files_of_controllers() {
        for wrong in ["../x.max", "cgroup.procs", "memory"] {
            let error = written(&[], json!({"unified": {wrong: "1"}})).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
