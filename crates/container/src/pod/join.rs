//! A container's part in its pod, as its configuration says it.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};

use super::Pod;
use super::namespace::{IPC, PID, USER, UTS};

/// Changes `spec`, which names namespaces of the sandbox's process, so that it gets the pod's, and
/// the pod's files where it has none of its own.
pub(crate) fn join(spec: &mut Spec, pod: &Pod) {
    join_namespaces(spec, pod);
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()) == Some(true);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for name in ["hostname", "hosts", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        if mounts.iter().all(|mount| *mount.destination() != target) {
            mounts.push(bind(&pod.folder().join(name), &target, read_only));
        }
    }
    // What every configuration begins with, in the place of one that is shared.
    let private = |mount: &Mount| {
        mount.destination() == Path::new("/dev/shm") && mount.typ().as_deref() == Some("tmpfs")
    };
    if pod.ipc
        && let Some(shm) = mounts.iter_mut().find(|mount| private(mount))
    {
        *shm = bind(&pod.folder().join("shm"), Path::new("/dev/shm"), false);
    }
    spec.set_mounts(Some(mounts));
}

fn join_namespaces(spec: &mut Spec, pod: &Pod) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let has = [
        ("net", pod.network.clone()),
        own(pod, UTS.name, pod.hostname.is_some()),
        own(pod, IPC.name, pod.ipc),
        own(pod, USER.name, pod.users.is_some()),
        own(pod, PID.name, pod.pids),
    ];
    for namespace in &mut namespaces {
        for (name, path) in &has {
            if path.is_some() && namespace.path().as_deref() == Some(&pod.asked(name)) {
                namespace.set_path(path.clone());
            }
        }
    }
    linux.set_namespaces(Some(namespaces));
}

fn own(pod: &Pod, name: &'static str, has: bool) -> (&'static str, Option<std::path::PathBuf>) {
    (name, has.then(|| pod.namespace(name)))
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Mount {
    // The flags of the file system that it comes from, which a user namespace must not take off.
    let mut options: Vec<String> = ["rbind", "rprivate", "nosuid", "nodev", "noexec"]
        .map(str::to_owned)
        .to_vec();
    options.push(if read_only { "ro" } else { "rw" }.to_owned());
    let mut mount = Mount::default();
    mount
        .set_destination(to.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(from.to_owned()))
        .set_options(Some(options));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};

    fn joined(config: Value, pod: &Pod) -> Value {
        let mut spec: Spec = serde_json::from_value(config).unwrap();
        join(&mut spec, pod);
        serde_json::to_value(spec).unwrap()
    }

    #[test]
    fn namespaces_of_the_sandboxs_process_are_the_pods() {
        let config = json!({
            "ociVersion": "1.1.0",
            "linux": {"namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/proc/7/ns/net"},
                {"type": "ipc", "path": "/proc/7/ns/ipc"},
                {"type": "uts", "path": "/proc/7/ns/uts"},
                {"type": "pid", "path": "/proc/8/ns/pid"},
            ]}
        });
        let mut pod = pod();
        pod.hostname = None;
        let paths: Vec<Value> = joined(config, &pod)["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|namespace| namespace["path"].clone())
            .collect();
        let expected = json!([
            null,
            "/run/netns/a",
            "/b/rootfs/ns/ipc",
            "/proc/7/ns/uts",
            "/proc/8/ns/pid"
        ]);
        assert_eq!(Value::from(paths), expected);
    }

    #[test]
    fn the_pods_files_are_there_unless_others_are() {
        let config = json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
                {"destination": "/etc/hosts", "type": "bind", "source": "/kubelets"},
            ]
        });
        let mounts = joined(config, &pod())["mounts"].clone();
        let find = |target: &str| {
            let mounts = mounts.as_array().unwrap().clone();
            mounts
                .into_iter()
                .find(|mount| mount["destination"] == target)
                .unwrap()
        };
        assert_eq!(find("/dev/shm")["source"], "/b/rootfs/shm");
        assert_eq!(find("/etc/hosts")["source"], "/kubelets");
        let resolv = find("/etc/resolv.conf");
        assert_eq!(resolv["source"], "/b/rootfs/resolv.conf");
        assert!(resolv["options"].as_array().unwrap().contains(&json!("ro")));
        assert!(
            find("/dev/shm")["options"]
                .as_array()
                .unwrap()
                .contains(&json!("rw"))
        );
    }
}
