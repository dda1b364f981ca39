//! How many descriptors the daemon may have open.
//!
//! Each container takes some ten, and what systemd gives services by default is 1024 at first
//! (the soft limit), of many more that they may ask for. The daemon does, but its containers must not
//! get more for it: some programs go through all descriptors that there could be.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What the daemon was started with.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process have as many descriptors open as it may ask for. To be called once the zygote
/// has been cloned, whose children keep what there was before.
pub fn raise_descriptor_limit() {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => drop(BEFORE.set(before)),
        Err(error) => log::warn!("asking for more open files than {before:?}: {error}"),
    }
}

/// Gives the child `pid` the limit that this process had before.
pub(crate) fn restore(pid: u32) {
    let (Some(before), Some(child)) = (BEFORE.get(), Pid::from_raw(pid as i32)) else {
        return;
    };
    let before = Rlimit {
        current: before.current,
        maximum: before.maximum,
    };
    if let Err(error) = prlimit(Some(child), Resource::Nofile, before) {
        log::warn!("giving process {pid} its limit of open files: {error}");
    }
}
