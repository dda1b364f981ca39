//! What the containers of a pod share where no container holds it for them: containerd's Sandbox
//! API makes pods without one.
//!
//! A small file system on the `rootfs` folder of the sandbox's bundle keeps it all, so that
//! unmounting that folder, which containerd does too when it removes a bundle, frees it all:
//!
//! ```text
//! rootfs/
//!   hostname  hosts  resolv.conf     the containers' files in /etc
//!   shm/                             their /dev/shm
//!   ns/ipc  ns/uts  ns/user  ns/pid  the pod's namespaces, bound here, which keeps them
//! ```
//!
//! Only a pid namespace needs a process, its init, by the kernel's rule; a pod gets it with the
//! first container that asks for it. The network namespace comes from whoever made the pod.

mod birth;
mod init;
mod join;
mod namespace;
mod sysctl;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::bundle::{Bundle, mount_point};
use crate::reaper::{Exit, Reaper};
use crate::zygote::{Reply, Request, Zygote};
use crate::{birthmark, rootfs, sys};

pub(crate) use birth::{make, make_pid_namespace};
pub(crate) use join::join;

/// A pod, as its sandbox asks for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// The pid that containerd was told. Where a container's configuration names a namespace of
    /// this process, the pod's is meant, if it has one; if not, that of the process, which must
    /// be in the node's namespaces.
    pub pid: u32,
    /// The pod's network namespace; none for the node's.
    pub network: Option<PathBuf>,
    /// The host name; a pod with one has a UTS namespace of its own.
    pub hostname: Option<String>,
    /// Whether the pod has an IPC namespace, and a /dev/shm, of its own.
    pub ipc: bool,
    /// Whether containers that share a pid namespace share the pod's, not the node's.
    pub pids: bool,
    /// The host's user and group that are root in the pod's user namespace, which is the one that
    /// owns its network namespace; none for the node's.
    pub users: Option<(u32, u32)>,
    /// Kernel parameters of the pod's namespaces (sysctl(8)).
    pub sysctls: BTreeMap<String, String>,
    /// The text of /etc/resolv.conf; none for the node's.
    pub resolv_conf: Option<String>,
}

/// The init of a pod's pid namespace.
pub struct PodInit {
    handle: OwnedFd,
}

impl Pod {
    /// Says what of the pod cannot be made, before anything is.
    ///
    /// # Errors
    /// The first such thing.
    pub fn check(&self) -> Result<(), String> {
        if self.users.is_some() && self.network.is_none() {
            return Err(
                "a pod with a user namespace needs a network namespace that belongs to it".into(),
            );
        }
        self.sysctls
            .keys()
            .try_for_each(|name| sysctl::check(name, self))
    }

    /// Makes the pod's files and namespaces, all but a pid namespace.
    ///
    /// # Errors
    /// The reason, with nothing left behind.
    pub async fn make(&self, zygote: &Zygote) -> Result<(), String> {
        self.ask(zygote, &Request::Pod(self.clone())).await?;
        Ok(())
    }

    /// Makes the pod's pid namespace with its init. The receiver gets the init's end.
    ///
    /// # Errors
    /// The reason, with nothing left behind.
    pub async fn make_pid_namespace(
        &self,
        zygote: &Zygote,
        reaper: &Reaper,
    ) -> Result<(PodInit, oneshot::Receiver<Exit>), String> {
        let since = Instant::now();
        let request = Request::PodInit(self.clone());
        match self.ask(zygote, &request).await? {
            (Reply::Added(pid), Some(handle)) => Ok((
                PodInit { handle },
                reaper.exit_of(Pid::from_raw(pid), since),
            )),
            (reply, _) => Err(format!("the zygote answered {reply:?}, and no pidfd")),
        }
    }

    async fn ask(
        &self,
        zygote: &Zygote,
        request: &Request,
    ) -> Result<(Reply, Option<OwnedFd>), String> {
        // Whoever cleans up after a daemon that died meanwhile waits for it.
        let birthmark = birthmark::take(&self.bundle)
            .map_err(|error| format!("locking the bundle: {error}"))?;
        match zygote.call(request, &[birthmark.as_fd()]).await {
            Ok((Reply::Failed(reason), _)) => Err(reason),
            Ok((reply, handles)) => Ok((reply, handles.into_iter().next())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the container of `bundle` asks to be in the pod's pid namespace.
    pub fn shares_pids(&self, bundle: &Bundle) -> bool {
        let namespaces = bundle.spec.linux().as_ref();
        let namespaces = namespaces.and_then(|linux| linux.namespaces().as_ref());
        self.pids
            && namespaces.into_iter().flatten().any(|namespace| {
                namespace.path().as_deref() == Some(&self.asked(namespace::PID.name))
            })
    }

    /// Takes down the pod's files and lets go of its namespaces. Blocks.
    ///
    /// # Errors
    /// umount2(2)'s.
    pub fn remove(&self) -> Result<(), String> {
        rootfs::unmount(&self.folder()).map_err(|error| error.to_string())
    }

    /// Where everything of the pod is kept.
    fn folder(&self) -> PathBuf {
        mount_point(&self.bundle)
    }

    /// Where the pod's namespace of this name is bound, if it has one.
    fn namespace(&self, name: &str) -> PathBuf {
        self.folder().join("ns").join(name)
    }

    /// What a container's configuration calls the sandbox's namespace of this name.
    fn asked(&self, name: &str) -> PathBuf {
        format!("/proc/{}/ns/{name}", self.pid).into()
    }
}

impl PodInit {
    /// Ends it, and with it everything in its pid namespace.
    pub fn kill(&self) {
        // One that has ended is as good.
        let _ = sys::send_signal(self.handle.as_fd(), Signal::SIGKILL as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod with everything of its own but users.
    pub(super) fn pod() -> Pod {
        Pod {
            bundle: "/b".into(),
            pid: 7,
            network: Some("/run/netns/a".into()),
            hostname: Some("a".into()),
            ipc: true,
            pids: true,
            users: None,
            sysctls: BTreeMap::new(),
            resolv_conf: None,
        }
    }

    #[test]
    fn what_cannot_be_made_is_told_before() {
        let mut pod = pod();
        pod.check().unwrap();
        pod.users = Some((100_000, 100_000));
        pod.check().unwrap();
        pod.network = None;
        assert!(pod.check().unwrap_err().contains("network"));
    }
}
