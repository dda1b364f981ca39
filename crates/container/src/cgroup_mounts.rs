//! The mount of its cgroups that a container has on a machine of v1.
//!
//! libcontainer (0.7) looks up which part of each hierarchy it is to mount by the pid of its parent or of its own. In a
//! pid namespace that the container has joined, that is nobody's in /proc, or another's. It also leaves the options of
//! the mount to itself. So the mount is said in other words here, in those that runc acts on: a tmpfs, and in it, for each
//! hierarchy, the container's own folder.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use crate::cgroup::{self, Cgroup};

/// What the folder of the hierarchies is mounted with, whatever is asked for.
const FOLDER: [&str; 4] = ["nosuid", "nodev", "noexec", "mode=755"];

/// Where `spec`, of the container `id`, asks for a mount of cgroups, has it mount their folders, which need not exist yet.
/// `systemd` is as for [`Cgroup::of_spec`]. Nothing is done for v2.
///
/// # Errors
/// When there is no such cgroup, or a mount cannot be said.
pub(crate) fn spell_out(spec: &mut Spec, id: &str, systemd: bool) -> Result<(), String> {
    if !cgroup::is_v1() || !spec.mounts().iter().flatten().any(is_cgroups) {
        return Ok(());
    }
    let cgroup = Cgroup::of_spec(spec, id, systemd).map_err(|error| error.to_string())?;
    spell_out_at(spec, &cgroup, &cgroup::v1_mount_points())
        .map_err(|error| format!("preparing the mount of cgroups: {error}"))
}

fn spell_out_at<P: AsRef<Path>>(
    spec: &mut Spec,
    cgroup: &Cgroup,
    points: &[P],
) -> Result<(), OciSpecError> {
    let folders = cgroup.folders();
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        if !is_cgroups(mount) {
            mounts.push(mount.clone());
            continue;
        }
        mounts.push(folder(mount)?);
        for point in points.iter().map(AsRef::as_ref) {
            // Others are no business of the container's.
            let Some(own) = folders.iter().find(|folder| folder.starts_with(point)) else {
                continue;
            };
            for name in names(point) {
                mounts.push(part(mount, name, own)?);
            }
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn is_cgroups(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("cgroup")
}

/// The names of a hierarchy: that of the folder where the machine has it, and those of its controllers where these
/// share it (`cpu,cpuacct`).
fn names(point: &Path) -> Vec<&str> {
    let name = point.file_name().and_then(|name| name.to_str());
    let shared = name.filter(|name| name.contains(','));
    let controllers = shared.into_iter().flat_map(|name| name.split(','));
    name.into_iter().chain(controllers).collect()
}

fn folder(mount: &Mount) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(mount.destination())
        .typ("tmpfs")
        .source("tmpfs")
        .options(FOLDER.map(str::to_owned))
        .build()
}

fn part(mount: &Mount, name: &str, own: &Path) -> Result<Mount, OciSpecError> {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("bind".to_owned());
    MountBuilder::default()
        .destination(mount.destination().join(name))
        .typ("bind")
        .source(own)
        .options(options)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_hierarchy_shows_the_containers_own_folder() {
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/cg", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]},
            ],
        }))
        .unwrap();
        let cgroup = Cgroup::v1(&[
            ("cpu", "/sys/cpu,cpuacct/a/b"),
            ("cpuacct", "/sys/cpu,cpuacct/a/b"),
            ("memory", "/sys/memory/a/b"),
        ]);
        spell_out_at(
            &mut spec,
            &cgroup,
            &["/sys/cpu,cpuacct", "/sys/memory", "/sys/rdma"],
        )
        .unwrap();
        let part = |name: &str, own: &str| {
            json!({
                "destination": format!("/cg/{name}"), "type": "bind", "source": format!("/sys/{own}/a/b"),
                "options": ["nosuid", "ro", "bind"],
            })
        };
        assert_eq!(
            serde_json::to_value(spec.mounts()).unwrap(),
            json!([
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/cg", "type": "tmpfs", "source": "tmpfs", "options": FOLDER},
                part("cpu,cpuacct", "cpu,cpuacct"),
                part("cpu", "cpu,cpuacct"),
                part("cpuacct", "cpu,cpuacct"),
                part("memory", "memory"),
            ])
        );
    }
}
