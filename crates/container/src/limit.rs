//! How many descriptors a process may have open.
//!
//! Each container takes some ten of the daemon, and what systemd gives services by default is 1024 at first
//! (the soft limit), of many more that they may ask for. The daemon does, but its containers must not
//! get more for it: some programs go through all descriptors that there could be.
//!
//! A container's process that is to have few itself needs more on its way to its program.

use std::sync::OnceLock;

use nix::sys::resource::Resource::RLIMIT_NOFILE;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// More than a process has open on its way to its program.
const ON_THE_WAY: u64 = 64;

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

/// Lets `process` have what it needs on its way. Returns the limit that it asks for, if that is less: for [`lower`].
pub(crate) fn set_apart(process: &mut Process) -> Option<PosixRlimit> {
    let mut limits = process.rlimits().clone()?;
    let limit = limits.iter_mut().find(|limit| {
        limit.typ() == PosixRlimitType::RlimitNofile
            && limit.soft() <= limit.hard()
            && limit.soft() < ON_THE_WAY
    })?;
    let asked = *limit;
    *limit = PosixRlimitBuilder::default()
        .typ(asked.typ())
        .soft(ON_THE_WAY)
        .hard(asked.hard().max(ON_THE_WAY))
        .build()
        .ok()?;
    process.set_rlimits(Some(limits));
    Some(asked)
}

/// Sets `limit`, which [`set_apart`] has returned, for this process.
///
/// # Errors
/// setrlimit(2)'s, in words.
pub(crate) fn lower(limit: &PosixRlimit) -> Result<(), String> {
    nix::sys::resource::setrlimit(RLIMIT_NOFILE, limit.soft(), limit.hard())
        .map_err(|error| format!("setting the limit {}: {error}", limit.typ()))
}
