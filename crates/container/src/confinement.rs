//! What a process gives up last, before its program: system calls and capabilities.
//!
//! It is the same for a container's init and for what is added to the container. libcontainer's init could do it, but
//! leaves no place for a second filter ([`newer_calls`]) between its own and the capabilities.

use libcontainer::syscall::Syscall;
use libcontainer::{capabilities, seccomp};
use nix::sys::prctl::set_no_new_privs;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};

use crate::newer_calls;

/// What confines a process.
pub(crate) struct Confinement {
    filter: Option<LinuxSeccomp>,
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
}

impl Confinement {
    /// That of `process`, one of the container of `spec`.
    pub(crate) fn of(process: &Process, spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        Self {
            filter: linux.and_then(|linux| linux.seccomp().clone()),
            capabilities: process.capabilities().clone(),
            no_new_privileges: process.no_new_privileges() == Some(true),
        }
    }

    /// That of the process of `spec`, which libcontainer is then not told of.
    pub(crate) fn take_over(spec: &mut Spec) -> Option<Self> {
        let confinement = Self::of(spec.process().as_ref()?, spec);
        if let Some(process) = spec.process_mut() {
            process.set_capabilities(None);
        }
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Some(confinement)
    }

    /// Confines this process, which has its user and all capabilities.
    ///
    /// # Errors
    /// What cannot be given up, and why.
    pub(crate) fn put_on(&self, syscall: &dyn Syscall) -> Result<(), String> {
        // Without no_new_privs a filter needs the privileges that are about to be dropped; with it,
        // the filter comes last, so that it need not allow the steps before.
        if self.no_new_privileges {
            set_no_new_privs().map_err(|error| format!("setting no_new_privs: {error}"))?;
        } else {
            self.filter()?;
        }
        if let Some(given) = &self.capabilities {
            capabilities::drop_privileges(given, syscall)
                .map_err(|error| format!("setting its capabilities: {error}"))?;
        }
        if self.no_new_privileges {
            self.filter()?;
        }
        Ok(())
    }

    fn filter(&self) -> Result<(), String> {
        let Some(profile) = &self.filter else {
            return Ok(());
        };
        seccomp::initialize_seccomp(profile)
            .map_err(|error| format!("installing the seccomp filter: {error}"))?;
        newer_calls::answer(profile);
        Ok(())
    }
}
