//! Limits in systemd's words, systemd.resource-control(5): it writes all that it knows of a unit
//! whenever it reloads, and would undo what it was not told.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Group;
use crate::cgroup::{Error, Result};
use crate::reaper::Reaper;

/// Tells systemd of what it has words for among `groups`, for as long as the unit lives. The unit
/// is the last part of the path.
pub(super) fn tell(folder: &Path, groups: &[Group], reaper: &Reaper) -> Result<()> {
    let properties: Vec<String> = groups
        .iter()
        .flatten()
        .filter_map(|setting| {
            let file = setting.path.file_name()?.to_str()?;
            Some(properties(file, &setting.value))
        })
        .flatten()
        .collect();
    let Some(unit) = folder.file_name().filter(|_| !properties.is_empty()) else {
        return Ok(());
    };
    let mut command = Command::new("systemctl");
    command
        .args(["set-property", "--runtime", "--"])
        .arg(unit)
        .args(&properties);
    let failed = |reason: String| Error::Systemd {
        unit: unit.to_string_lossy().into_owned(),
        reason,
    };
    match said(command, reaper) {
        Ok(None) => Ok(()),
        Ok(Some(complaint)) => Err(failed(complaint)),
        Err(error) => Err(failed(format!("running systemctl: {error}"))),
    }
}

/// Runs a command that is quiet when it succeeds; what it complained about else.
fn said(mut command: Command, reaper: &Reaper) -> io::Result<Option<String>> {
    let (mut reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer);
    // This drops the command, and with it the pipe's other end.
    let status = reaper.run(command)?;
    let mut complaint = String::new();
    reader.read_to_string(&mut complaint)?;
    Ok(match status.success() {
        true => None,
        false => Some(format!("{} ({status})", complaint.trim_end())),
    })
}

/// What a file of v2 and its value are called; nothing where systemd has no word for them.
fn properties(file: &str, value: &str) -> Vec<String> {
    let or_infinity = |value: &str| match value {
        "max" => "infinity".to_owned(),
        other => other.to_owned(),
    };
    let one = |name: &str| vec![format!("{name}={}", or_infinity(value))];
    match file {
        "cpu.weight" => one("CPUWeight"),
        "cpuset.cpus" => one("AllowedCPUs"),
        "cpuset.mems" => one("AllowedMemoryNodes"),
        "memory.min" => one("MemoryMin"),
        "memory.low" => one("MemoryLow"),
        "memory.high" => one("MemoryHigh"),
        "memory.max" => one("MemoryMax"),
        "memory.swap.max" => one("MemorySwapMax"),
        "pids.max" => one("TasksMax"),
        "io.weight" => match value.trim_start_matches("default ").split_once(' ') {
            None => vec![format!("IOWeight={}", value.trim_start_matches("default "))],
            Some((device, weight)) => vec![format!("IODeviceWeight=/dev/block/{device} {weight}")],
        },
        "cpu.max" => cpu_max(value).unwrap_or_default(),
        "io.max" => {
            let mut fields = value.split_whitespace();
            let Some(device) = fields.next() else {
                return Vec::new();
            };
            fields
                .filter_map(|field| {
                    let (key, rate) = field.split_once('=')?;
                    let name = match key {
                        "rbps" => "IOReadBandwidthMax",
                        "wbps" => "IOWriteBandwidthMax",
                        "riops" => "IOReadIOPSMax",
                        "wiops" => "IOWriteIOPSMax",
                        _ => return None,
                    };
                    Some(format!("{name}=/dev/block/{device} {}", or_infinity(rate)))
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// A share of one processor, in hundredths of a per cent, of which systemd has no finer.
fn cpu_max(value: &str) -> Option<Vec<String>> {
    let mut fields = value.split_whitespace();
    let (quota, period) = (fields.next()?, fields.next().unwrap_or("100000"));
    let microseconds: u64 = period.parse().ok().filter(|period| *period > 0)?;
    let share = match quota {
        "max" => String::new(),
        quota => {
            let hundredths = quota.parse::<u64>().ok()?.saturating_mul(10_000) / microseconds;
            let hundredths = hundredths.max(1);
            format!("{}.{:02}%", hundredths / 100, hundredths % 100)
        }
    };
    Some(vec![
        format!("CPUQuota={share}"),
        format!("CPUQuotaPeriodSec={microseconds}us"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_systemds_word() {
        let cases: [(&str, &str, &[&str]); 13] = [
            ("memory.max", "64", &["MemoryMax=64"]),
            ("memory.swap.max", "max", &["MemorySwapMax=infinity"]),
            ("pids.max", "max", &["TasksMax=infinity"]),
            ("cpu.weight", "20", &["CPUWeight=20"]),
            (
                "cpu.max",
                "50000 100000",
                &["CPUQuota=50.00%", "CPUQuotaPeriodSec=100000us"],
            ),
            (
                "cpu.max",
                "12345 50000",
                &["CPUQuota=24.69%", "CPUQuotaPeriodSec=50000us"],
            ),
            (
                "cpu.max",
                "max 100000",
                &["CPUQuota=", "CPUQuotaPeriodSec=100000us"],
            ),
            ("cpuset.cpus", "0-1", &["AllowedCPUs=0-1"]),
            (
                "io.max",
                "8:0 rbps=7 wiops=max",
                &[
                    "IOReadBandwidthMax=/dev/block/8:0 7",
                    "IOWriteIOPSMax=/dev/block/8:0 infinity",
                ],
            ),
            ("io.weight", "default 50", &["IOWeight=50"]),
            ("io.weight", "8:0 50", &["IODeviceWeight=/dev/block/8:0 50"]),
            ("cpu.idle", "1", &[]),
            ("hugetlb.2MB.max", "1", &[]),
        ];
        for (file, value, expected) in cases {
            assert_eq!(properties(file, value), expected, "{file} {value}");
        }
    }
}
