//! Which devices the processes of a cgroup may use: the kernel's admin-guide/cgroup-v1/devices.rst, and on v2 a
//! program of libcgroups.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use libcgroups::v2::devices::controller::Devices;
use oci_spec::runtime::LinuxDeviceCgroup;

use crate::cgroup::{Cgroup, Error, Result, Tree};

/// What every container may use, whatever its configuration says: it may make any device, and use terminals and
/// what the runtime spec gives it (config-linux.md, "Default Devices"). As libcgroups and runc have it.
const ALLOWED: [&str; 12] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 10:200 rwm",
    "c 136:* rwm",
];

impl Cgroup {
    /// Allows and denies devices by `rules`, in their order, and allows what every container may use.
    ///
    /// # Errors
    /// [`Error::NoController`] on v1 without the devices controller; [`Error::Set`] when the kernel refuses a rule.
    pub(crate) fn restrict_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        let rules: Vec<_> = rules.iter().map(with_wildcards).collect();
        match &self.tree {
            Tree::V1(_) => match self.v1_folder("devices") {
                Some(folder) => write(folder, &rules),
                None => Err(Error::NoController {
                    controller: "devices",
                }),
            },
            Tree::V2(folder) => {
                Devices::apply_devices(folder, &Some(rules)).map_err(|error| Error::BadLimit {
                    field: "devices",
                    reason: error.to_string(),
                })
            }
        }
    }
}

/// `rule` with no number where it has a negative one, by which engines mean all: runc takes the two for the same.
fn with_wildcards(rule: &LinuxDeviceCgroup) -> LinuxDeviceCgroup {
    let number = |number: Option<i64>| number.filter(|number| *number >= 0);
    let mut plain = rule.clone();
    plain
        .set_major(number(rule.major()))
        .set_minor(number(rule.minor()));
    plain
}

fn write(folder: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let open = |name| -> Result<_> {
        let path = folder.join(name);
        let file = OpenOptions::new().write(true).open(&path);
        Ok((file.map_err(Error::io("open", &path))?, path))
    };
    let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
    let mut put = |allowed: bool, rule: &str| {
        let (file, path) = if allowed { &mut allow } else { &mut deny };
        file.write_all(rule.as_bytes())
            .map_err(|source| Error::Set {
                path: path.clone(),
                value: rule.to_owned(),
                source,
            })
    };
    for rule in rules {
        put(rule.allow(), &rule.to_string())?;
    }
    ALLOWED.iter().try_for_each(|rule| put(true, rule))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn rules_come_before_what_everybody_may_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["devices.allow", "devices.deny"] {
            fs::write(file(name), "").unwrap();
        }
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "r"},
            {"allow": true, "type": "c", "major": 42, "minor": -1, "access": "rw"},
        ]))
        .unwrap();
        let rules: Vec<_> = rules.iter().map(with_wildcards).collect();
        write(folder.path(), &rules).unwrap();
        let text = |name| fs::read_to_string(file(name)).unwrap();
        assert_eq!(text("devices.deny"), "a *:* rwm");
        assert!(
            text("devices.allow").starts_with("b 8:1 rc 42:* rwc *:* m"),
            "{}",
            text("devices.allow")
        );
    }
}
