//! Linux containers: their birth from the zygote with libcontainer, root file system, cgroup,
//! streams and end. Wasm reaches a container through [`Guests`], which the caller implements.
//!
//! Reading order: [`Bundle`] (what is asked for), [`Zygote`] (who clones), `helper` and `init`
//! (the steps of a birth), [`Container`] (the daemon's side), [`Stdio`], [`Reaper`], [`cgroup`].

mod birth;
mod bundle;
mod capture;
pub mod cgroup;
mod entrypoint;
mod guest;
mod helper;
mod hooks;
mod init;
mod message;
mod reaper;
pub mod rootfs;
mod stdio;
mod sys;
mod zygote;

use std::path::Path;

pub use birth::Container;
pub use bundle::{Bundle, BundleError};
pub use capture::Capturing;
pub use guest::{Guest, Guests, Invocation};
pub use hooks::{HOOK_ACTION, run_hook};
pub use reaper::{Exit, Reaper};
pub use stdio::{ContainerStdio, Stdio, StdioError, StdioPaths};
pub use sys::{close_inherited, stdin_from_null};
pub use zygote::{Create, Target, Zygote};

/// Frees what a container left whose daemon is gone: kills its processes, removes its cgroup and
/// state, runs its poststop hooks, and takes down the mounts on `rootfs`. For a process with one
/// thread, such as the shim's `delete`.
///
/// # Errors
/// What could not be freed; the rest has been.
pub fn delete_orphan(target: &Target, rootfs: &Path) -> Result<(), String> {
    let deleted = helper::delete(target);
    rootfs::unmount(rootfs).map_err(|error| error.to_string())?;
    deleted
}
