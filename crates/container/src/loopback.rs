//! The loopback interface of a network namespace that is the container's own: the kernel leaves it down.

use std::fs::File;

use libcontainer::network::link::LinkClient;
use libcontainer::network::wrapper::create_network_client;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// The number of every namespace's loopback interface.
const LOOPBACK: u32 = 1;

/// Brings it up where the container of `spec`, whose init is `init`, has a new network namespace, as runc does. This process is
/// in that namespace afterwards.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn bring_up(spec: &Spec, init: i32) -> Result<(), String> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let is_new = namespaces.into_iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_none()
    });
    if !is_new {
        return Ok(());
    }
    let enter = || -> std::io::Result<()> {
        let namespace = File::open(format!("/proc/{init}/ns/net"))?;
        Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
    };
    enter().map_err(|error| format!("entering the container's network namespace: {error}"))?;
    LinkClient::new(create_network_client())
        .and_then(|mut client| client.set_up(LOOPBACK))
        .map_err(|error| format!("bringing the container's loopback interface up: {error}"))
}
