//! Why there is no native code.

use std::io;
use std::path::PathBuf;

use crate::worker::MAX_MODULE_BYTES;

/// Why there is no native code for a module.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be made or looked into.
    #[error("cannot use {} as the cache of compiled modules: {source}; make it a writable folder of root's, or configure another", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Someone other than this user could put code into the folder.
    #[error("the cache of compiled modules {} has owner {uid} and mode {mode:o}: others could place native code in it; make it root's with mode 0700, or name another folder", path.display())]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The engine refuses its own configuration on this machine.
    #[error("cannot set up wasmtime with these settings on this machine: {0}")]
    Engine(String),
    /// The module cannot be read.
    #[error("cannot read {name}: {source}")]
    Read {
        /// The module.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// What its initialisation is to read cannot be given to it.
    #[error("cannot give the initialisation of {name} its files (preinit.files): {source}")]
    Given {
        /// The module.
        name: String,
        /// What the system said, or what is wrong with them.
        source: io::Error,
    },
    /// The module is larger than [`MAX_MODULE_BYTES`].
    #[error("{name} has {size} bytes; a wasm module may have at most {MAX_MODULE_BYTES}")]
    TooLarge {
        /// The module.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The compiled code cannot be kept.
    #[error("cannot keep the native code of {name} in {}: {reason}; free space there, make it writable, or configure another cache folder", directory.display())]
    Write {
        /// The module.
        name: String,
        /// The folder.
        directory: PathBuf,
        /// What the system said.
        reason: String,
        /// How many bytes there is no room for, where that is the reason.
        lacking: Option<u64>,
    },
    /// The compile worker cannot be started.
    #[error("cannot start the compile worker {} for {name}: {source}", program.display())]
    Spawn {
        /// The module.
        name: String,
        /// The worker's program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The worker has not compiled, since it could not give up its privileges.
    #[error(
        "cannot isolate the compile worker for {name}: {reason}; modules are never compiled without isolation"
    )]
    Isolation {
        /// The module.
        name: String,
        /// What failed.
        reason: String,
    },
    /// The module is not wasm that can run here.
    #[error("{name} cannot run: {reason}")]
    Refused {
        /// The module.
        name: String,
        /// Why, as the compiler or the linker says it.
        reason: String,
    },
    /// The worker ended without a report.
    #[error("compiling {name} failed: {reason}")]
    Worker {
        /// The module.
        name: String,
        /// How it ended, and its last words.
        reason: String,
    },
}
