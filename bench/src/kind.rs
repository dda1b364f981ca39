//! The kinds of container that are compared.

use anyhow::Result;
use lighter_test::{Builder, Containerd, RUNC, Rootfs, WASMTIME, module};

/// A kind of container: what it runs, and under which shim.
#[derive(Clone, Copy)]
pub struct Kind {
    /// How the tables and SPECIFICATION.md call it.
    pub name: &'static str,
    runtime: &'static str,
    args: &'static [&'static str],
}

/// The model, which every other kind is compared with.
pub const MODEL: &str = "runc";

/// Kinds that end at once, for measuring a life.
pub const BRIEF: [Kind; 4] = [
    Kind {
        name: MODEL,
        runtime: RUNC,
        args: &["/bin/true"],
    },
    Kind {
        name: "linux",
        runtime: WASMTIME,
        args: &["/bin/true"],
    },
    Kind {
        name: "wasm",
        runtime: WASMTIME,
        args: &["/hello.wasm"],
    },
    Kind {
        name: "wasm-tiny",
        runtime: WASMTIME,
        args: &["/tiny.wasm"],
    },
];

/// Kinds that wait until they are killed, for measuring memory.
pub const IDLE: [Kind; 3] = [
    Kind {
        name: MODEL,
        runtime: RUNC,
        args: &["/bin/sleep", "86400"],
    },
    Kind {
        name: "linux",
        runtime: WASMTIME,
        args: &["/bin/sleep", "86400"],
    },
    Kind {
        name: "wasm",
        runtime: WASMTIME,
        args: &["/tool.wasm", "sleep", "86400"],
    },
];

/// What all of them start from.
///
/// # Errors
/// A guest was not built.
pub fn rootfs() -> Result<Rootfs> {
    Ok(Rootfs::busybox()
        .guest("hello.wasm")?
        .guest("tool.wasm")?
        .guest("hello-http.wasm")?
        .file("/tiny.wasm", module::exporting("_start")))
}

impl Kind {
    /// Begins a container of this kind.
    pub fn container<'a>(&self, engine: &'a Containerd, rootfs: &Rootfs) -> Builder<'a> {
        engine
            .container(rootfs)
            .runtime(self.runtime)
            .args(self.args)
    }
}
