//! The shim as containerd knows it: the actions of its command line, the task service, and the
//! events. How a container is made and how wasm runs is the business of the crates `container`
//! and `wasm`.
//!
//! Reading order: [`start`] and `group`, [`serve`](fn@serve) and `departure` (a daemon's beginning
//! and end), `service` (the calls), `task` (one container's life), `images` (wasm that is no file),
//! `events`, `logs`, `settings` (what can be set, and where); then `sandbox` and `sandbox_service`.

#![forbid(unsafe_code)]

mod any;
mod calm;
mod daemon;
mod delete;
mod departure;
mod error;
mod events;
mod exec;
mod group;
mod guests;
mod images;
mod info;
mod logs;
mod memo;
mod metrics;
mod pod_config;
mod process;
mod sandbox;
mod sandbox_service;
mod serve;
mod service;
mod settings;
mod socket;
mod start;
mod task;

pub use delete::delete;
pub use info::{print_info, print_version};
pub use serve::zygote;
pub use start::start;

/// The runtime's name, as containerd's users write it.
pub const RUNTIME: &str = "io.containerd.wasmtime.v1";
