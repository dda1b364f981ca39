//! How a guest is compiled, and what the engine that runs it must agree on.

use serde::{Deserialize, Serialize};
use wasmtime::Config;

use super::Size;

/// How a guest is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// The stack of its calls; wasmtime's own default is 512 KiB.
    pub stack_size: Option<Size>,
    /// The proposals to WebAssembly that it may use.
    pub proposals: Proposals,
    /// Whether a function that it imports and nothing provides traps when it is called.
    pub unknown_imports_trap: bool,
}

/// What of the settings an engine is made with, and what may be imported there. With the same flags
/// the code of one is that of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flags {
    pub(crate) stack_size: Option<Size>,
    pub(super) proposals: Proposals,
    /// Whether code counts what it does.
    pub(super) fuel: bool,
    /// Whether `wasi:keyvalue` may be imported.
    pub(crate) keyvalue: bool,
    /// Whether functions may be imported that nothing provides.
    pub(crate) unknown_imports_trap: bool,
}

/// The largest stack: calls of guests that go so deep do not end.
const LARGEST_STACK: Size = Size(1 << 30);

/// What the host's functions may need of a stack beside the guest, as wasmtime's defaults have it.
const ROOM_OF_HOST: u64 = (2 << 20) - (512 << 10);

impl Engine {
    /// Whether an engine can be made.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.stack_size {
            Some(size) if size > LARGEST_STACK => Err(format!("it may be {LARGEST_STACK} at most")),
            _ => Ok(()),
        }
    }
}

impl Flags {
    /// Whether the engine and the linkers are those of guests of which nothing is set.
    pub(crate) fn are_common(&self) -> bool {
        let common = Self {
            unknown_imports_trap: self.unknown_imports_trap,
            ..Self::default()
        };
        *self == common
    }

    /// Sets what these say.
    pub(crate) fn apply(&self, config: &mut Config) {
        if let Some(Size(size)) = self.stack_size {
            config.max_wasm_stack(size as usize);
            config.async_stack_size((size + ROOM_OF_HOST) as usize);
        }
        if self.fuel {
            config.consume_fuel(true);
        }
        self.proposals.apply(config);
    }
}

/// Makes a struct of switches by wasmtime's methods for them.
macro_rules! proposals {
    ($($(#[$doc:meta])* $name:ident => $method:ident,)*) => {
        /// Proposals to WebAssembly, each switched on or off, or as wasmtime has it.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Proposals {
            $($(#[$doc])* pub $name: Option<bool>,)*
        }

        impl Proposals {
            fn apply(&self, config: &mut Config) {
                $(if let Some(enable) = self.$name {
                    config.$method(enable);
                })*
            }
        }
    };
}

proposals! {
    /// Bulk memory operations.
    bulk_memory => wasm_bulk_memory,
    /// Custom page sizes.
    custom_page_sizes => wasm_custom_page_sizes,
    /// Exception handling.
    exceptions => wasm_exceptions,
    /// Extended constant expressions.
    extended_const => wasm_extended_const,
    /// Typed function references.
    function_references => wasm_function_references,
    /// Garbage collection.
    gc => wasm_gc,
    /// Memories with addresses of 64 bits.
    memory64 => wasm_memory64,
    /// More than one memory in a module.
    multi_memory => wasm_multi_memory,
    /// More than one result.
    multi_value => wasm_multi_value,
    /// Reference types.
    reference_types => wasm_reference_types,
    /// Relaxed vector instructions.
    relaxed_simd => wasm_relaxed_simd,
    /// Vector instructions of a fixed width.
    simd => wasm_simd,
    /// Tail calls.
    tail_call => wasm_tail_call,
    /// Arithmetic of 128 bits.
    wide_arithmetic => wasm_wide_arithmetic,
}
