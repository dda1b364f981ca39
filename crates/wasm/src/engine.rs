//! The one configuration of wasmtime, and what guests may import.
//!
//! The compile worker and the process that runs a guest must agree on both: native code is only
//! accepted by an engine configured as the one that made it, and a module whose imports the
//! worker could resolve must not fail later in the container.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use wasmtime::{Config, Engine, Result, WasmBacktraceDetails, component};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::WasiP1Ctx;

/// What a guest's host functions work on. WASI 0.1 needs a table of its own beside the context
/// that all versions share; it is carried by components too, so that one type serves both.
pub(crate) type State = WasiP1Ctx;

/// Makes the engine: every wasm proposal that wasmtime enables by itself, as `wasmtime run` does.
///
/// Starts no thread, so that a process may still be cloned afterwards. Installs wasmtime's signal
/// handlers for traps.
pub(crate) fn engine() -> Result<Engine> {
    let mut config = Config::new();
    // Left alone, the environment decides this, and two processes could differ.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    // Traps are unwound by frame pointers. These tables would only serve a native debugger, and
    // cost time at each load.
    config.native_unwind_info(false);
    Engine::new(&config)
}

/// What core modules may import: WASI 0.1, and the draft before it that old toolchains emit.
pub(crate) fn module_linker(engine: &Engine) -> Result<wasmtime::Linker<State>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state| state)?;
    wasmtime_wasi::p0::add_to_linker_async(&mut linker, |state| state)?;
    // wasmtime-wasi makes a trap of codes from 126 on; a task may exit with any.
    linker.allow_shadowing(true);
    for version in ["wasi_snapshot_preview1", "wasi_unstable"] {
        linker.func_wrap(version, "proc_exit", |code: i32| -> Result<()> {
            Err(I32Exit(code).into())
        })?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

/// What components may import: WASI 0.2 and 0.3.
pub(crate) fn component_linker(engine: &Engine) -> Result<component::Linker<State>> {
    let mut linker = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Names, as 32 hexadecimal digits, everything that native code depends on apart from the module:
/// wasmtime's version, its settings, and this machine's instruction set. `format` is the version of
/// the file that holds the code.
pub(crate) fn compatibility(engine: &Engine, format: &[u8]) -> String {
    /// Feeds what would be hashed to SHA-256: the standard library's hasher is allowed to change.
    struct Feed(Sha256);
    impl Hasher for Feed {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            unreachable!("the digest is taken from the field")
        }
    }
    let mut feed = Feed(Sha256::new_with_prefix(format));
    engine.precompile_compatibility_hash().hash(&mut feed);
    crate::digest::hex(&feed.0.finalize()[..16])
}
