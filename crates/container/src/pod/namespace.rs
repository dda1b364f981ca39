//! Entering and leaving namespaces, in processes that are cloned for it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, sethostname, setresgid, setresuid};

use super::{Pod, sysctl};
use crate::sys;

/// A kind of namespace.
pub(super) struct Kind {
    /// The name of its file in /proc/PID/ns.
    pub name: &'static str,
    flag: CloneFlags,
}

pub(super) const NET: Kind = kind("net", CloneFlags::CLONE_NEWNET);
pub(super) const IPC: Kind = kind("ipc", CloneFlags::CLONE_NEWIPC);
pub(super) const UTS: Kind = kind("uts", CloneFlags::CLONE_NEWUTS);
pub(super) const PID: Kind = kind("pid", CloneFlags::CLONE_NEWPID);
pub(super) const USER: Kind = kind("user", CloneFlags::CLONE_NEWUSER);

const fn kind(name: &'static str, flag: CloneFlags) -> Kind {
    Kind { name, flag }
}

impl Kind {
    /// Moves this process into the namespace of `file`.
    pub fn enter(&self, file: impl AsFd) -> Result<(), String> {
        setns(file, self.flag).map_err(|error| format!("entering the pod's {}: {error}", self.name))
    }

    /// Moves this process into a new one; for pid, its next child.
    pub fn leave(&self) -> Result<(), String> {
        unshare(self.flag).map_err(|error| format!("making the pod's {}: {error}", self.name))
    }
}

/// Moves this process into the pod's user namespace, as its root, if it has one. `network` is the
/// pod's network namespace.
pub(super) fn enter_users(network: Option<&File>, pod: &Pod) -> Result<(), String> {
    let (Some(network), Some(_)) = (network, pod.users) else {
        return Ok(());
    };
    let users = sys::owning_user_namespace(network.as_fd())
        .map_err(|error| format!("asking for the owner of the pod's network: {error}"))?;
    USER.enter(users)?;
    let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
    setresgid(gid, gid, gid)
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|error| format!("becoming root in the pod's user namespace: {error}"))
}

/// Opens the pod's network namespace, if it has one.
pub(super) fn open_network(pod: &Pod) -> Result<Option<File>, String> {
    let open = |path: &Path| {
        File::open(path).map_err(|error| format!("the pod's network {}: {error}", path.display()))
    };
    pod.network.as_deref().map(open).transpose()
}

/// Moves this process into the pod's network and new namespaces of the kinds that it has, and sets
/// them up.
pub(super) fn enter_new(pod: &Pod) -> Result<(), String> {
    let network = open_network(pod)?;
    enter_users(network.as_ref(), pod)?;
    if pod.ipc {
        IPC.leave()?;
    }
    if let Some(hostname) = &pod.hostname {
        UTS.leave()?;
        sethostname(hostname)
            .map_err(|error| format!("setting the pod's host name {hostname:?}: {error}"))?;
    }
    if let Some(network) = network {
        NET.enter(network)?;
    }
    pod.sysctls
        .iter()
        .try_for_each(|(name, value)| sysctl::set(name, value))
}
