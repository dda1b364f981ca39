//! A network namespace for a container and for the peers that a test plays.

use std::{fs::File, path::PathBuf, thread};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::rootfs::run;

/// A network namespace with only a loopback interface, which is up. It is
/// removed when dropped.
pub struct Network {
    name: String,
}

impl Network {
    /// Makes a namespace; `name` must be unique on the machine and at most some
    /// fifty characters.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let network = Self {
            name: name.to_owned(),
        };
        run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        Ok(network)
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` in a thread of its own inside of the namespace; what it
    /// opens there stays there. Join the handle for its result.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let path = self.path();
        thread::spawn(move || {
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            setns(file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            work()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Nothing to be done if it has gone already.
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}
