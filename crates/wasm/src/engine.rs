//! The one configuration of wasmtime, and what guests may import.
//!
//! The compile worker and the process that runs a guest must agree on both: native code is only
//! accepted by an engine configured as the one that made it, and a module whose imports the
//! worker could resolve must not fail later in the container.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine, OptLevel, PoolingAllocationConfig, RegallocAlgorithm, Result,
    WasmBacktraceDetails, component,
};
use wasmtime_wasi::I32Exit;

use crate::settings::{Flags, Pool};
use crate::state::State;
use crate::{keyvalue, logging, polling};

/// Makes the engine that compiles guests that run once: with every wasm proposal that wasmtime enables by itself,
/// as `wasmtime run` does, unless `flags` say otherwise.
///
/// # Errors
/// What wasmtime says of flags that cannot be together.
pub(crate) fn engine(flags: &Flags) -> Result<Engine> {
    Engine::new(&config(flags))
}

/// Makes the engine in which those guests run. It has no compiler, which would take longer to make than all else.
///
/// Starts no thread, so that a process may still be cloned afterwards. Installs wasmtime's signal
/// handlers for traps.
///
/// # Errors
/// As [`engine`].
pub(crate) fn running_engine(flags: &Flags) -> Result<Engine> {
    Engine::new(config(flags).enable_compiler(false))
}

/// Makes the engine in which a module's initialisation runs once, in the compile worker: compiled in
/// little time, within little address space, and such that the same code does the same everywhere.
///
/// # Errors
/// As [`engine`].
pub(crate) fn initializing_engine(flags: &Flags) -> Result<Engine> {
    // Such code takes several times as much of the stack.
    let stack = 16 * flags.stack_size.map_or(512 << 10, |size| size.0 as usize);
    let stack = stack.min(1 << 30);
    let mut config = config(flags);
    config
        .cranelift_opt_level(OptLevel::None)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .consume_fuel(false)
        .max_wasm_stack(stack)
        .async_stack_size(stack + (2 << 20))
        // A worker may not make files.
        .memory_init_cow(false)
        .memory_reservation(0)
        .memory_guard_size(0);
    Engine::new(&config)
}

/// Whether code may run concurrently within one instance, as WASI 0.3 has it. What does not need
/// that is called in a fraction of the time without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concurrency {
    /// One call at a time; no WASI 0.3.
    Off,
    /// As wasmtime does by itself.
    On,
}

/// Makes an engine for guests that serve requests, like [`engine`], but its native code looks at a
/// clock (wasmtime's epoch) now and then, so that one request cannot keep a thread for ever. That
/// costs a few hundredths of the speed.
///
/// With a `pool` it has room for the instances, made beforehand: only addresses, until they
/// are used. It then has no compiler.
///
/// # Errors
/// As [`engine`].
pub(crate) fn server_engine(
    flags: &Flags,
    concurrency: Concurrency,
    pool: Option<PoolingAllocationConfig>,
) -> Result<Engine> {
    let mut config = config(flags);
    config
        .epoch_interruption(true)
        .concurrency_support(concurrency == Concurrency::On);
    if let Some(pool) = pool {
        config.allocation_strategy(pool).enable_compiler(false);
    }
    Engine::new(&config)
}

/// For how many core instances, memories and tables there is room in each place for an instance: toolchains make up to a dozen
/// modules of one program, and one or two memories. A component that has more, as one composed of many, takes several places.
const CORE_INSTANCES: u32 = 64;
const MEMORIES: u32 = 4;
const TABLES: u32 = 16;

/// How many elements a table may have: only addresses, too. What large programs have is some ten thousand.
const TABLE_ELEMENTS: u32 = 1 << 20;

/// Room for as many instances as `of` says, and `spare` ones.
pub(crate) fn pool(of: &Pool, spare: u32) -> PoolingAllocationConfig {
    let instances = of.instances.0 + spare;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .table_elements(TABLE_ELEMENTS as usize)
        .total_core_instances(instances * CORE_INSTANCES)
        .total_memories(instances * MEMORIES)
        .total_tables(instances * TABLES)
        .total_stacks(instances * 4)
        .linear_memory_keep_resident(of.memory_kept.0 as usize)
        .table_keep_resident(of.table_kept.0 as usize)
        .pagemap_scan(Enabled::Auto);
    pool
}

fn config(flags: &Flags) -> Config {
    let mut config = Config::new();
    // Left alone, the environment decides this, and two processes could differ.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    // Traps are unwound by frame pointers. These tables would only serve a native debugger, and
    // cost time at each load.
    config.native_unwind_info(false);
    flags.apply(&mut config);
    config
}

/// What else can be done about an import.
const TRAPPING: &str =
    "; with engine.unknown_imports_trap = true any other function traps when it is called";

/// The names under which core modules import WASI 0.1: its own, and the draft's.
pub(crate) const MODULE_IMPORTS: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// What core modules may import: WASI 0.1, and the draft before it that old toolchains emit.
pub(crate) fn module_linker(engine: &Engine) -> Result<wasmtime::Linker<State>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
    wasmtime_wasi::p0::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
    // wasmtime-wasi makes a trap of codes from 126 on; a task may exit with any.
    linker.allow_shadowing(true);
    for version in MODULE_IMPORTS {
        linker.func_wrap(version, "proc_exit", |code: i32| -> Result<()> {
            Err(I32Exit(code).into())
        })?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

/// The packages of WASI that every component may import from.
pub(crate) const COMPONENT_IMPORTS: [&str; 9] = [
    "cli",
    "clocks",
    "config",
    "filesystem",
    "http",
    "io",
    "logging",
    "random",
    "sockets",
];

/// What components may import: WASI 0.2 and 0.3, with requests over HTTP, `wasi:config`,
/// `wasi:logging`, and what `flags` allow.
///
/// `concurrency` is that of the engine.
pub(crate) fn component_linker(
    engine: &Engine,
    concurrency: Concurrency,
    flags: &Flags,
) -> Result<component::Linker<State>> {
    let mut linker = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    polling::replace_in_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if concurrency == Concurrency::On {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    wasmtime_wasi_config::add_to_linker(&mut linker, State::config)?;
    logging::add_to_linker(&mut linker)?;
    if flags.keyvalue {
        keyvalue::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}

/// What a module may import, for people.
pub(crate) fn module_imports() -> String {
    format!(
        "a module may import WASI 0.1 ({:?}) and nothing else{TRAPPING}",
        MODULE_IMPORTS[0]
    )
}

/// What a component may import, for people.
pub(crate) fn component_imports(flags: &Flags) -> String {
    let keyvalue = match flags.keyvalue {
        true => ", keyvalue",
        false => "; keyvalue where wasi.keyvalue is set",
    };
    format!(
        "a component may import WASI 0.2 and 0.3 (wasi:{}{keyvalue}) and nothing else{TRAPPING}",
        COMPONENT_IMPORTS.join(", ")
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers that are composed each bring a memory and a table.
    #[test]
    fn a_server_may_have_many_memories_and_large_tables() {
        let pool = pool(&Pool::default(), 1);
        let mut config = config(&Flags::default());
        config.allocation_strategy(pool);
        let engine = Engine::new(&config).unwrap();
        let parts = |count: usize, elements: u32| {
            let part = format!(
                "(core module $M (memory 1) (table {elements} funcref)) (core instance (instantiate $M))"
            );
            let parts = (0..count).map(|number| part.replace("$M", &format!("$m{number}")));
            format!("(component {})", parts.collect::<String>())
        };
        let instantiate = |text: &str| -> Result<()> {
            let bytes = wat::parse_str(text).unwrap();
            let component = component::Component::new(&engine, bytes)?;
            let mut store = wasmtime::Store::new(&engine, ());
            component::Linker::new(&engine).instantiate(&mut store, &component)?;
            Ok(())
        };
        instantiate(&parts(12, 100_000)).unwrap();
        let error = instantiate(&parts(1, TABLE_ELEMENTS + 1)).unwrap_err();
        assert!(format!("{error:#}").contains("table"), "{error:#}");
    }
}
