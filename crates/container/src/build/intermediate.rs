//! The process between the helper and the init, where there has to be one: it joins what one has to be born into.

use std::fs;

use libcontainer::namespaces::Namespaces;
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::place::{Birth, Place};
use crate::exec::become_id;
use crate::keyring;

/// The namespaces that the init can be born into without another process: new ones of these kinds. Nothing where there is one to
/// be joined, or a user namespace, whose ids have to be mapped before and whose limits to be set outside.
pub(super) fn born_into(spec: &Spec) -> Option<CloneFlags> {
    let linux = spec.linux().as_ref()?;
    let mut new = CloneFlags::empty();
    for namespace in linux.namespaces().iter().flatten() {
        match (namespace.typ(), namespace.path()) {
            (LinuxNamespaceType::User | LinuxNamespaceType::Time, _)
            | (LinuxNamespaceType::Pid, Some(_)) => return None,
            (LinuxNamespaceType::Pid, None) => new |= CloneFlags::CLONE_NEWPID,
            _ => {}
        }
    }
    Some(new)
}

/// Hides this process, and gives it the session keyring of that name and what is limited a process, as `spec` says.
///
/// # Errors
/// What was not possible.
pub(super) fn prepare(spec: &Spec, keyring: Option<&str>) -> Result<(), String> {
    let process = process(spec)?;
    hide(spec, process)?;
    keyring::make(keyring)?;
    limit(process)
}

/// Clones this process into `place` and into those namespaces of the container that take a birth, with what [`prepare`] gives.
///
/// # Errors
/// Why there is no other process.
pub(super) fn intermediate_process(
    spec: &Spec,
    place: Place,
    keyring: Option<&str>,
) -> Result<Birth, String> {
    let process = process(spec)?;
    let linux = spec.linux().as_ref().ok_or("the spec has no linux")?;
    hide(spec, process)?;
    // Where added processes will look for it: in this user namespace.
    keyring::make(keyring)?;
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
        become_id(0, 0, create_syscall().as_ref())?;
    }
    limit(process)?;
    join(LinuxNamespaceType::Time)?;
    join(LinuxNamespaceType::Pid)?;
    place.clone_into(CloneFlags::empty())
}

fn process(spec: &Spec) -> Result<&Process, String> {
    let process = spec.process().as_ref();
    process.ok_or_else(|| "the spec has no process".to_owned())
}

fn hide(spec: &Spec, process: &Process) -> Result<(), String> {
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("setting oom_score_adj to {score}: {error}"))?;
    }
    // What is in the container already is not to look into a process that has more than it.
    let linux = spec.linux().as_ref();
    if linux.is_some_and(|linux| linux.namespaces().is_some()) {
        prctl::set_dumpable(false).map_err(|error| format!("hiding the process: {error}"))?;
    }
    Ok(())
}

fn limit(process: &Process) -> Result<(), String> {
    let syscall = create_syscall();
    for rlimit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(rlimit)
            .map_err(|error| format!("setting the limit {}: {error}", rlimit.typ()))?;
    }
    Ok(())
}
