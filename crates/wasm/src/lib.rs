//! WebAssembly guests: what a guest is, how it becomes native code, and how it runs.
//!
//! Three processes use this crate, and data flows one way between them:
//!
//! ```text
//! daemon                      compile worker                 container's init
//! Cache::artifact ──module──► worker_main
//!                 ◄─artifact──
//!                 ────────────────artifact───────────────► Host::load, Guest::run
//! ```
//!
//! * The daemon ([`Cache`]) only ever hashes and copies a module; it never parses it. So does
//!   `lighter cache`, which also lists and removes what is there ([`Inventory`]).
//! * The compile worker ([`worker_main`]) gives up every privilege before it reads the module.
//! * The init maps the artifact ([`Host::load`]) and runs it in its own process ([`Guest::run`]).
//!
//! Start reading at `engine.rs`: what wasm means here is decided there, once for all three.

mod artifact;
mod cache;
mod compose;
mod digest;
mod engine;
mod gate;
mod guest;
mod host;
mod initialize;
mod keyvalue;
mod logging;
mod names;
mod package;
mod parts;
mod polling;
mod recall;
mod recognize;
mod sandbox;
mod serve;
pub mod settings;
mod signals;
mod state;
mod stdio;
mod tls;
mod trust;
mod unknown;
mod worker;

pub use artifact::Kind;
pub use cache::{
    Cache, CacheError, DEFAULT_CACHE_DIR, DEFAULT_CACHE_SIZE, Entry, Inventory, Source,
};
pub use guest::{EXIT_HOST_FAILURE, EXIT_TIME_OVER, EXIT_TRAP, Guest, Invocation};
pub use host::{Host, LoadError};
pub use package::Initialization;
pub use parts::Parts;
pub use recognize::{is_wasm, recognize};
pub use settings::Settings;
pub use signals::install_termination_handlers;
pub use worker::{MAX_MODULE_BYTES, WORKER_ACTION, worker_main};
