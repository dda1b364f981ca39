//! The kinds of container that are compared.

use anyhow::Result;
use lighter_test::{
    Builder, Container, Containerd, RUNC, Rootfs, WASMTIME, module, options::RuntimeOptions,
};

/// A kind of container: what it runs, and under which shim.
#[derive(Clone, Copy)]
pub struct Kind {
    /// How the tables and SPECIFICATION.md call it.
    pub name: &'static str,
    runtime: &'static str,
    args: &'static [&'static str],
    /// The shim's settings.
    settings: &'static str,
    /// How many idle ones are looked at, at least.
    pub least_idle: u32,
}

/// The model, which every other kind is compared with.
pub const MODEL: &str = "runc";

/// Kinds that end at once, for measuring a life.
pub const BRIEF: [Kind; 4] = [
    Kind {
        name: MODEL,
        runtime: RUNC,
        args: &["/bin/true"],
        settings: "",
        least_idle: 1,
    },
    Kind {
        name: "linux",
        runtime: WASMTIME,
        args: &["/bin/true"],
        settings: "",
        least_idle: 1,
    },
    Kind {
        name: "wasm",
        runtime: WASMTIME,
        args: &["/hello.wasm"],
        settings: "",
        least_idle: 1,
    },
    Kind {
        name: "wasm-tiny",
        runtime: WASMTIME,
        args: &["/tiny.wasm"],
        settings: "",
        least_idle: 1,
    },
];

/// Kinds that wait until they are killed, for measuring memory.
pub const IDLE: [Kind; 4] = [
    Kind {
        name: MODEL,
        runtime: RUNC,
        args: &["/bin/sleep", "86400"],
        settings: "",
        least_idle: 1,
    },
    Kind {
        name: "linux",
        runtime: WASMTIME,
        args: &["/bin/sleep", "86400"],
        settings: "",
        least_idle: 1,
    },
    ALONE,
    GROUPED,
];

/// Idle guests, each with a daemon of its own.
pub const ALONE: Kind = Kind {
    name: "wasm",
    runtime: WASMTIME,
    args: &["/tool.wasm", "sleep", "86400"],
    settings: "",
    least_idle: 1,
};

/// Idle guests in one daemon.
pub const GROUPED: Kind = Kind {
    name: "wasm-grouped",
    settings: "group_by = 'namespace'",
    least_idle: 100,
    ..ALONE
};

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
    /// What the processes of the shim have in their arguments that serve `container`: its id, or its
    /// group's.
    pub fn group<'a>(&self, container: &'a Container) -> &'a str {
        match self.settings {
            "" => container.id(),
            _ => "*",
        }
    }

    /// Begins a container of this kind.
    pub fn container<'a>(&self, engine: &'a Containerd, rootfs: &Rootfs) -> Builder<'a> {
        let builder = engine
            .container(rootfs)
            .runtime(self.runtime)
            .args(self.args);
        match self.settings {
            "" => builder,
            settings => builder.options(RuntimeOptions::body(settings)),
        }
    }
}
