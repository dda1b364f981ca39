//! Kernel parameters of a pod.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Pod;

/// The parameters that an IPC namespace has of its own, besides `fs.mqueue.*` (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Whether the parameter is one of the pod's own namespaces: others would be changed for the
/// whole node.
pub(super) fn check(name: &str, pod: &Pod) -> Result<(), String> {
    let dotted = path(name).to_string_lossy().replace('/', ".");
    let (kind, own) = if dotted.starts_with("net.") {
        ("network", pod.network.is_some())
    } else if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
        ("IPC", pod.ipc)
    } else if dotted == "kernel.domainname" {
        ("UTS", pod.hostname.is_some())
    } else {
        return Err(format!(
            "the sysctl {name} cannot be set for a pod: it belongs to no namespace"
        ));
    };
    if dotted.contains("..") {
        return Err(format!("{name} is no sysctl"));
    }
    if own {
        Ok(())
    } else {
        Err(format!(
            "the sysctl {name} cannot be set for a pod that has the node's {kind} namespace"
        ))
    }
}

/// Sets the parameter in this process's namespaces.
pub(super) fn set(name: &str, value: &str) -> Result<(), String> {
    let file = Path::new("/proc/sys").join(path(name));
    OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| format!("setting the pod's sysctl {name} to {value:?}: {error}"))
}

/// The parameter's file below /proc/sys. The first separator says which of `.` and `/` is one; the
/// other then stands for a `.` in a name (sysctl.d(5)).
fn path(name: &str) -> PathBuf {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name.chars().map(swap).collect::<String>().into(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn both_spellings_are_one() {
        assert_eq!(path("net.ipv4.ip_forward"), path("net/ipv4/ip_forward"));
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding"),
            Path::new("net/ipv4/conf/eth0.100/forwarding")
        );
    }

    #[test]
    fn what_is_the_nodes_stays_the_nodes() {
        let mut pod = pod();
        for name in ["net.core.somaxconn", "kernel/shmmax", "fs.mqueue.msg_max"] {
            check(name, &pod).unwrap();
        }
        for name in ["vm.swappiness", "kernel.hostname", "net/../vm/swappiness"] {
            check(name, &pod).unwrap_err();
        }
        pod.network = None;
        pod.ipc = false;
        for name in ["net.core.somaxconn", "kernel.shmmax", "fs.mqueue.msg_max"] {
            check(name, &pod).unwrap_err();
        }
    }
}
