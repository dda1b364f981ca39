//! Linux containers: their birth from the zygote with libcontainer, root file system, cgroup,
//! streams and end. Wasm reaches a container through [`Guests`], which the caller implements.
//!
//! Reading order: [`Bundle`] (what is asked for), [`Zygote`] (who clones), `helper`, `create`, `build`
//! and `init` (the steps of a birth), [`Container`] (the daemon's side), [`Pod`] (what containers share),
//! [`Stdio`], [`Reaper`], [`cgroup`].

mod adapt;
mod binds;
mod birth;
mod birthmark;
mod blocking;
mod build;
mod bundle;
mod capabilities;
mod capture;
pub mod cgroup;
mod cgroup_mounts;
mod checkpoint;
mod confinement;
mod create;
mod cwd;
mod delete;
mod entrypoint;
mod environment;
mod exec;
mod explain;
mod features;
mod given;
mod guest;
mod helper;
mod holder;
mod home;
mod hooks;
mod idmap;
mod init;
mod keyring;
mod limit;
mod loopback;
mod memory;
mod message;
mod mounts;
mod newer_calls;
mod notify;
mod orphan;
mod paths;
mod pod;
mod program;
mod reaper;
pub mod rootfs;
mod stdio;
mod sys;
mod users;
mod zygote;

pub use birth::{Container, Module, Process, Wanted};
pub use blocking::blocking;
pub use bundle::{Bundle, BundleError, mount_point};
pub use capabilities::parse_process;
pub use capture::Capturing;
pub use checkpoint::{Checkpoint, Restore};
pub use exec::Exec;
pub use features::features;
pub use given::Given;
pub use guest::{Guest, Guests, Invocation};
pub use hooks::{HOOK_ACTION, run_hook};
pub use keyring::keyring_name;
pub use limit::raise_descriptor_limit;
pub use memory::OomKills;
pub use orphan::{Orphan, delete_orphan};
pub use pod::{Pod, PodInit};
pub use reaper::{Exit, Reaper, adopt_orphans};
pub use stdio::{Console, Logging, ProcessStdio, Stdio, StdioError, StdioPaths};
pub use sys::{
    close_inherited, fork_single_threaded, read_program_in_huge_pages, set_arguments, share_arena,
    stdio_from_null, trim_memory,
};
pub use zygote::{Create, Target, ZYGOTE_ACTION, Zygote, clone_zygote, run_zygote};
