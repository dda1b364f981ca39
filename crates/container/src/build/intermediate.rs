//! The process between the helper and the init: it joins what one has to be born into.

use std::fs;

use libcontainer::namespaces::Namespaces;
use libcontainer::syscall::syscall::create_syscall;
use nix::sys::prctl;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::place::{Birth, Place};
use crate::exec::become_id;

/// Clones this process into `place` and into those namespaces of the container that take a birth, with what is limited a process.
///
/// # Errors
/// Why there is no other process.
pub(super) fn intermediate_process(spec: &Spec, place: Place) -> Result<Birth, String> {
    let process = spec.process().as_ref().ok_or("the spec has no process")?;
    let linux = spec.linux().as_ref().ok_or("the spec has no linux")?;
    let syscall = create_syscall();
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("setting oom_score_adj to {score}: {error}"))?;
    }
    // What is in the container already is not to look into a process that has more than it.
    if linux.namespaces().is_some() {
        prctl::set_dumpable(false).map_err(|error| format!("hiding the process: {error}"))?;
    }
    let joining = |error: &dyn std::fmt::Display| format!("joining namespaces: {error}");
    let namespaces =
        Namespaces::try_from(linux.namespaces().as_ref()).map_err(|error| joining(&error))?;
    let join = |kind| -> Result<bool, String> {
        match namespaces.get(kind).map_err(|error| joining(&error))? {
            Some(namespace) => {
                let joined = namespaces.unshare_or_setns(namespace);
                joined.map_err(|error| joining(&error)).map(|()| true)
            }
            None => Ok(false),
        }
    };
    if join(LinuxNamespaceType::User)? {
        // Its root, whose ids are mapped, unlike the ones from outside.
        become_id(0, 0, syscall.as_ref())?;
    }
    for rlimit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(rlimit)
            .map_err(|error| format!("setting the limit {}: {error}", rlimit.typ()))?;
    }
    join(LinuxNamespaceType::Time)?;
    join(LinuxNamespaceType::Pid)?;
    place.clone_into()
}
