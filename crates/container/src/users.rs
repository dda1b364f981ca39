//! A container's own user namespace, made ahead of the container.
//!
//! libcontainer (0.7) writes a single mapping itself and leaves several to newuidmap(1) and
//! newgidmap(1), which give even root no more than /etc/subuid allows. The kernel asks for neither
//! program (user_namespaces(7)), so the mappings are written here and libcontainer joins a
//! namespace that is there.

use std::fs;
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::holder::Holder;

/// Makes the user namespace that `spec` asks for, if it asks for a new one, and writes its path
/// into `spec`. The path is good as long as the holder that comes back.
///
/// # Errors
/// When there are no mappings, or the kernel takes none of that kind.
pub(crate) fn make(spec: &mut Spec) -> Result<Option<Holder>, String> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(None);
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let new = namespaces.iter_mut().find(|namespace| {
        namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none()
    });
    let Some(new) = new else {
        return Ok(None);
    };
    let users = table("linux.uidMappings", linux.uid_mappings().as_ref())?;
    let groups = table("linux.gidMappings", linux.gid_mappings().as_ref())?;
    let holder = namespace(&users, &groups)?;
    new.set_path(Some(path(&holder)));
    linux.set_namespaces(Some(namespaces));
    Ok(Some(holder))
}

/// Makes a user namespace in which `users` and `groups` are mapped, tables of user_namespaces(7).
///
/// # Errors
/// When the kernel makes none, or does not take the tables.
pub(crate) fn namespace(users: &str, groups: &str) -> Result<Holder, String> {
    let (holder, _) = Holder::spawn(|| {
        unshare(CloneFlags::CLONE_NEWUSER)
            .map(|()| None)
            .map_err(|error| format!("making a user namespace: {error}"))
    })?;
    for (file, table) in [("uid_map", users), ("gid_map", groups)] {
        fs::write(format!("/proc/{}/{file}", holder.pid), table).map_err(|error| {
            format!("mapping the ids of a user namespace ({file} of {table:?}): {error}")
        })?;
    }
    Ok(holder)
}

/// Where the user namespace is that `holder` holds.
pub(crate) fn path(holder: &Holder) -> PathBuf {
    format!("/proc/{}/ns/user", holder.pid).into()
}

/// `mappings` as user_namespaces(7) has them in `uid_map` and `gid_map`; `name` is that of the
/// property that they are from.
///
/// # Errors
/// When there are none.
pub(crate) fn table(name: &str, mappings: Option<&Vec<LinuxIdMapping>>) -> Result<String, String> {
    let mappings = mappings
        .filter(|mappings| !mappings.is_empty())
        .ok_or_else(|| format!("ids are to be mapped but config.json has no {name}"))?;
    let line = |mapping: &LinuxIdMapping| {
        let (inside, outside) = (mapping.container_id(), mapping.host_id());
        format!("{inside} {outside} {}\n", mapping.size())
    };
    Ok(mappings.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn every_mapping_has_a_line() {
        let mappings = from_value(json!([
            {"containerID": 0, "hostID": 1000, "size": 10},
            {"containerID": 10, "hostID": 5000, "size": 1},
        ]))
        .unwrap();
        assert_eq!(
            table("uidMappings", Some(&mappings)).unwrap(),
            "0 1000 10\n10 5000 1\n"
        );
    }

    #[test]
    fn a_new_namespace_without_mappings_is_refused() {
        let mut spec = from_value(json!({
            "ociVersion": "1.1.0",
            "linux": {
                "namespaces": [{"type": "user"}],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            },
        }))
        .unwrap();
        let error = make(&mut spec).err().unwrap();
        assert!(error.contains("linux.gidMappings"), "{error}");
    }

    #[test]
    fn a_namespace_that_is_there_is_left_alone() {
        let config = json!({
            "ociVersion": "1.1.0",
            "linux": {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}, {"type": "pid"}]},
        });
        let mut spec: Spec = from_value(config).unwrap();
        let before = spec.clone();
        assert!(make(&mut spec).unwrap().is_none());
        assert_eq!(spec, before);
    }
}
