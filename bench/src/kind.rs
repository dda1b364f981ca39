//! The kinds of container that are compared.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lighter_test::options::RuntimeOptions;
use lighter_test::{Builder, Container, Containerd, RUNC, Rootfs, WASMTIME, module};

/// A kind of container: what it runs, and under which shim.
#[derive(Clone)]
pub struct Kind {
    /// How the tables and SPECIFICATION.md call it.
    pub name: String,
    runtime: String,
    args: &'static [&'static str],
    /// The shim's settings.
    settings: &'static str,
    /// How many are held at once at least when their memory is measured: what they share is to be
    /// shared by as many as the kind is for.
    pub least_idle: u32,
}

/// The model, which every other kind is compared with.
pub const MODEL: &str = "runc";

const TRUE: &[&str] = &["/bin/true"];
const SAY: &[&str] = &["/bin/echo", "hello"];
const HELLO: &[&str] = &["/hello.wasm"];
const TINY: &[&str] = &["/tiny.wasm"];
const SLEEP: &[&str] = &["/bin/sleep", "86400"];
const IDLE: &[&str] = &["/tool.wasm", "sleep", "86400"];

/// Kinds that end at once, for measuring a life.
pub fn brief(peer: Option<&Peer>) -> Vec<Kind> {
    let mut kinds = vec![
        Kind::new(MODEL, RUNC, TRUE),
        Kind::new("linux", WASMTIME, TRUE),
        Kind::new("wasm", WASMTIME, HELLO),
        Kind::new("wasm-tiny", WASMTIME, TINY),
        Kind::in_one_daemon(HELLO),
    ];
    kinds.extend(peer.map(|peer| Kind::new(&peer.name, &peer.runtime, HELLO)));
    kinds
}

/// Kinds that say something, for measuring when they do.
pub fn speaking(peer: Option<&Peer>) -> Vec<Kind> {
    let mut kinds = vec![
        Kind::new(MODEL, RUNC, SAY),
        Kind::new("linux", WASMTIME, SAY),
        Kind::new("wasm", WASMTIME, HELLO),
    ];
    kinds.extend(peer.map(|peer| Kind::new(&peer.name, &peer.runtime, HELLO)));
    kinds
}

/// Kinds that wait until they are killed, for measuring memory.
pub fn idle(peer: Option<&Peer>) -> Vec<Kind> {
    let mut kinds = vec![
        Kind::new(MODEL, RUNC, SLEEP),
        Kind::new("linux", WASMTIME, SLEEP),
        Kind::alone(),
        Kind::grouped(),
    ];
    kinds.extend(peer.map(|peer| Kind::new(&peer.name, &peer.runtime, IDLE)));
    kinds
}

/// Another shim that runs wasm.
pub struct Peer {
    /// Its name in the tables: its runtime's, without what all have in common.
    name: String,
    runtime: String,
    /// The folder of its program.
    pub folder: PathBuf,
}

impl Peer {
    /// The shim that is the program at `path`, which is named as containerd wants it
    /// (containerd's docs/runtime-v2.md): `containerd-shim-NAME-VERSION`.
    ///
    /// # Errors
    /// There is none, or it is named otherwise.
    pub fn new(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("find the shim {}", path.display()))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name
            .and_then(|name| name.strip_prefix("containerd-shim-"))
            .and_then(|name| name.rsplit_once('-'))
            .with_context(|| {
                format!(
                    "{} is not named containerd-shim-NAME-VERSION",
                    path.display()
                )
            })?;
        let runtime = format!("io.containerd.{}.{}", name.0, name.1);
        ensure!(
            runtime != WASMTIME && runtime != RUNC,
            "a shim for the runtime {runtime} is measured as it is: another needs another name"
        );
        Ok(Self {
            name: format!("peer {}", name.0),
            runtime,
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
        })
    }
}

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
    fn new(name: &str, runtime: &str, args: &'static [&'static str]) -> Self {
        Self {
            name: name.to_owned(),
            runtime: runtime.to_owned(),
            args,
            settings: "",
            least_idle: 1,
        }
    }

    /// Idle guests, each with a daemon of its own.
    pub fn alone() -> Self {
        Self::new("wasm", WASMTIME, IDLE)
    }

    /// Idle guests in one daemon.
    pub fn grouped() -> Self {
        Self {
            least_idle: 100,
            ..Self::in_one_daemon(IDLE)
        }
    }

    fn in_one_daemon(args: &'static [&'static str]) -> Self {
        Self {
            settings: "group_by = 'namespace'",
            ..Self::new("wasm-grouped", WASMTIME, args)
        }
    }

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
            .runtime(&self.runtime)
            .args(self.args);
        match self.settings {
            "" => builder,
            settings => builder.options(RuntimeOptions::body(settings)),
        }
    }
}
