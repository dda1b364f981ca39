//! What containers have left behind.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{Containerd, cri, poll::eventually};

impl Containerd {
    /// Everything of the tests' containers that is on the machine now, one line
    /// each: processes of shims and in containers, mounts, cgroups, sockets and
    /// bundles. Nothing when no container is.
    pub fn remains(&self) -> Vec<String> {
        let mut remains = self.processes();
        remains.extend(self.mounts());
        remains.extend(self.cgroups());
        remains.extend(self.files());
        remains
    }

    /// Waits until [`Containerd::remains`] is empty: shims end on their own a
    /// moment after their last container is deleted.
    ///
    /// # Errors
    /// Something stays; the message lists it.
    pub fn ensure_clean(&self) -> Result<()> {
        eventually("nothing is left behind", || {
            self.remains().is_empty().then_some(())
        })
        .with_context(|| self.remains().join("\n"))
    }

    /// What of one container remains: as [`Containerd::remains`], but only what
    /// carries the container's id. For tests that run beside others.
    pub fn remains_of(&self, id: &str) -> Vec<String> {
        let part = |line: &String| {
            line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
                .any(|word| word == id)
        };
        let mut remains: Vec<String> = self.remains().into_iter().filter(part).collect();
        for namespace in [self.namespace(), cri::NAMESPACE] {
            let socket = self.shim_socket_in(namespace, id);
            if socket.exists() {
                remains.push(format!("socket {} of {id}", socket.display()));
            }
        }
        remains
    }

    /// Waits until nothing of one container remains.
    ///
    /// # Errors
    /// Something stays; the message lists it.
    pub fn ensure_gone(&self, id: &str) -> Result<()> {
        eventually("nothing of the container is left behind", || {
            self.remains_of(id).is_empty().then_some(())
        })
        .with_context(|| self.remains_of(id).join("\n"))
    }

    /// The socket of the shim that serves a container or pod: containerd's
    /// naming, which all shims follow (`SocketAddress` in its pkg/shim).
    pub fn shim_socket(&self, id: &str) -> PathBuf {
        self.shim_socket_in(self.namespace(), id)
    }

    /// As [`Containerd::shim_socket`], in another containerd namespace.
    fn shim_socket_in(&self, namespace: &str, id: &str) -> PathBuf {
        let name = self.socket().join(namespace).join(id);
        let hash = Sha256::digest(name.as_os_str().as_encoded_bytes());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Path::new("/run/containerd/s").join(hash)
    }

    /// The processes that serve a container or pod: those with its id in their
    /// arguments, without short-lived ones of `start` and `delete`, and without
    /// inits that have not started yet, which are clones of their shim but live in a pid
    /// namespace of their own.
    pub fn shims_of(&self, id: &str) -> Vec<u32> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace("self");
        self.shims()
            .into_iter()
            .filter(|(_, arguments)| arguments.iter().any(|a| a == id))
            .filter(|(_, arguments)| !arguments.iter().any(|a| a == "start" || a == "delete"))
            .filter(|(pid, _)| namespace(&pid.to_string()) == ours)
            .map(|(pid, _)| pid)
            .collect()
    }

    /// How many files the daemon has open.
    ///
    /// # Errors
    /// The daemon does not run.
    pub fn open_files(&self) -> Result<usize> {
        open_files(self.pid()?)
    }

    /// All processes of shims that serve this daemon's containers; the containers' own are not among them.
    pub fn shim_processes(&self) -> Vec<u32> {
        self.shims().into_iter().map(|(pid, _)| pid).collect()
    }

    /// Processes that were started to serve this daemon's containers.
    fn shims(&self) -> Vec<(u32, Vec<String>)> {
        let address = self.socket().display().to_string();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let bytes = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments: Vec<String> = bytes
                .split(|byte| *byte == 0)
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect();
            let shim = arguments[0].contains("containerd-shim-");
            if shim && arguments.contains(&address) {
                found.push((pid, arguments));
            }
        }
        found
    }

    fn processes(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .shims()
            .iter()
            .map(|(pid, arguments)| format!("process {pid}: {}", arguments.join(" ")))
            .collect();
        for cgroup in self.cgroup_folders() {
            let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines() {
                lines.push(format!("process {pid} in {}", cgroup.display()));
            }
        }
        lines
    }

    fn mounts(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder().display());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            // The harness's own look at a snapshot is no container's.
            .filter(|path| path.starts_with(&folder) && !path.contains("/look-"))
            .filter(|path| !path.contains("/rootfs-"))
            .map(|path| format!("mount {path}"))
            .collect()
    }

    fn cgroups(&self) -> Vec<String> {
        self.cgroup_folders()
            .iter()
            .map(|folder| format!("cgroup {}", folder.display()))
            .collect()
    }

    /// The containers' cgroups, of every hierarchy.
    fn cgroup_folders(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let mut hierarchies = vec![top.to_owned()];
        hierarchies.extend(subfolders(top));
        hierarchies
            .iter()
            .flat_map(|hierarchy| subfolders(&hierarchy.join(self.namespace())))
            .collect()
    }

    /// Bundles, and sockets that are not the daemon's own.
    fn files(&self) -> Vec<String> {
        // Those of tasks and of sandboxes, of every namespace: CRI has one of its own.
        let bundles = |top: PathBuf| -> Vec<PathBuf> {
            [
                "io.containerd.runtime.v2.task",
                "io.containerd.sandbox.controller.v1.shim",
            ]
            .iter()
            .flat_map(|plugin| subfolders(&top.join(plugin)))
            .flat_map(|namespace| subfolders(&namespace))
            .collect()
        };
        let mut lines: Vec<String> = bundles(self.state())
            .iter()
            .chain(&bundles(self.folder().join("root")))
            .map(|folder| format!("bundle {}", folder.display()))
            .collect();
        let mut folders = vec![self.state()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_socket() => {
                        lines.push(format!("socket {}", entry.path().display()));
                    }
                    _ => {}
                }
            }
        }
        lines
    }
}

/// How many files a process has open.
///
/// # Errors
/// It does not run.
pub fn open_files(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&folder)
        .with_context(|| folder.clone())?
        .count())
}

/// Fails unless a process is gone, a dead one that nobody has waited for
/// included.
///
/// # Errors
/// It stays.
pub fn ensure_dead(pid: u32) -> Result<()> {
    ensure!(pid != 0, "pid 0 is no process of a container");
    eventually("the process is gone", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .with_context(|| {
        fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|_| pid.to_string())
    })
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
