//! From an artifact to a guest that is ready to run.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{self, Component};
use wasmtime::error::Context as _;
use wasmtime::{Engine, ExternType, FuncType, Module, ValType};
use wasmtime_wasi::{p2, p3};

use crate::artifact::{self, Kind};
use crate::engine::{self, Concurrency};
use crate::guest::{ComponentEntry, Entry, Guest, Work};
use crate::serve::{self, Server};
use crate::settings::{Flags, Settings};
use crate::state::State;
use crate::{names, signals, unknown};

/// The entry function of a core module that nobody named (WASI application ABI, "command").
const START: &str = "_start";

/// What a reactor module exports to be called before anything else (WASI application ABI).
pub(crate) const INITIALIZE: &str = "_initialize";

/// Why an artifact cannot become a guest.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not native code that this program has made.
    #[error("the native code is not one of this program's artifacts: {0}")]
    Artifact(String),
    /// The kernel would not map the file, or read it.
    #[error("cannot map the native code: {0}")]
    Map(String),
    /// There is no engine with these settings.
    #[error("cannot set up wasmtime with these settings: {0}")]
    Engine(String),
    /// The process would not end on signals.
    #[error("cannot install signal handlers: {0}")]
    Signals(io::Error),
    /// An import is missing: the code was made where the guest may import more.
    #[error("the module's imports do not resolve: {0}")]
    Link(String),
    /// There is nothing to call.
    #[error("the {what} has no entry function: {wanted}; it exports {exports}")]
    NoEntry {
        /// "module" or "component".
        what: &'static str,
        /// What was looked for and not found.
        wanted: String,
        /// What there is instead.
        exports: String,
    },
}

/// The engine, and what guests may import. Made once and used for any number of guests.
pub struct Host(World);

/// An engine, and what may be imported there.
struct World {
    engine: Engine,
    modules: wasmtime::Linker<State>,
    /// Takes ten times as long to make, and is of no use to most.
    components: OnceCell<component::Linker<State>>,
}

impl World {
    fn new(flags: &Flags) -> wasmtime::Result<Self> {
        let engine = engine::running_engine(flags)?;
        let modules = engine::module_linker(&engine)?;
        Ok(Self {
            engine,
            modules,
            components: OnceCell::new(),
        })
    }

    /// What components may import with these `flags`, the world's own.
    fn components(&self, flags: &Flags) -> wasmtime::Result<&component::Linker<State>> {
        if let Some(made) = self.components.get() {
            return Ok(made);
        }
        let made = engine::component_linker(&self.engine, Concurrency::On, flags)?;
        Ok(self.components.get_or_init(|| made))
    }
}

impl Host {
    /// Prepares wasmtime, and glibc for name look-ups in a root that is not trusted. Starts no
    /// thread, and may be followed by clones of the process. To be called in the host's own root.
    ///
    /// # Errors
    /// What wasmtime says of its configuration on this machine, and glibc of its own.
    pub fn new() -> wasmtime::Result<Self> {
        names::use_builtin_sources().context("cannot fix the sources of host names")?;
        World::new(&Flags::default()).map(Self)
    }

    /// Makes what guests to come may need and would have to make themselves, each for itself.
    ///
    /// # Errors
    /// What wasmtime says; those guests will fail with it.
    pub fn settle(&self) -> wasmtime::Result<()> {
        self.0.components(&Flags::default()).map(drop)
    }

    /// Maps `artifact`, links it, and finds what to call: `function`, or else what its world says
    /// (`_start` of a module; of a component a handler of HTTP requests, else `wasi:cli/run`).
    ///
    /// `function` names an export of a module or component, or `interface#function` of a
    /// component. It may take no parameters and return nothing or an integer, of a component also
    /// a `result`; what its return means is told at [`Guest::run`].
    ///
    /// `settings` must have the flags that the artifact was compiled with. Those that need another
    /// engine than everybody's cost the time to make one.
    ///
    /// From here on signals end the process: see
    /// [`install_termination_handlers`](crate::install_termination_handlers). To be called in the
    /// container's init, with its final root and user. No code of the guest runs yet.
    ///
    /// # Errors
    /// Every [`LoadError`].
    pub fn load(
        &self,
        artifact: File,
        function: Option<&str>,
        settings: Settings,
    ) -> Result<Guest, LoadError> {
        signals::install_termination_handlers()
            .map_err(|error| LoadError::Signals(error.into()))?;
        let kind = artifact::kind(&artifact)
            .map_err(|error| LoadError::Map(error.to_string()))?
            .ok_or_else(|| LoadError::Artifact("it does not end as one".into()))?;
        let set_up = |error| LoadError::Engine(format!("{error:#}"));
        let flags = settings.flags();
        let concurrency = match kind {
            Kind::Server => Some(Concurrency::Off),
            Kind::ConcurrentServer => Some(Concurrency::On),
            Kind::Module | Kind::Component => None,
        };
        let (engine, work) = if let Some(concurrency) = concurrency {
            let (engine, linker) = for_servers(&flags, concurrency, &settings).map_err(set_up)?;
            let work = load_component(&engine, &linker, concurrency, &flags, artifact, function)?;
            (engine, work)
        } else if flags.are_common() {
            self.0.load(kind, &flags, artifact, function)?
        } else {
            let world = World::new(&flags).map_err(set_up)?;
            world.load(kind, &flags, artifact, function)?
        };
        Ok(Guest {
            engine,
            work,
            settings: Arc::new(settings),
        })
    }
}

/// The engine of guests that serve requests, of which there are few: not made beforehand.
fn for_servers(
    flags: &Flags,
    concurrency: Concurrency,
    settings: &Settings,
) -> wasmtime::Result<(Engine, component::Linker<State>)> {
    let pool = engine::pool(&settings.pool, serve::spare_instances());
    let engine = engine::server_engine(flags, concurrency, Some(pool))?;
    let linker = engine::component_linker(&engine, concurrency, flags)?;
    Ok((engine, linker))
}

impl World {
    /// Loads what runs once.
    fn load(
        &self,
        kind: Kind,
        flags: &Flags,
        artifact: File,
        function: Option<&str>,
    ) -> Result<(Engine, Work), LoadError> {
        let work = match kind {
            Kind::Module => Work::Once(self.load_module(flags, artifact, function)?),
            Kind::Component | Kind::Server | Kind::ConcurrentServer => load_component(
                &self.engine,
                self.components(flags)
                    .map_err(|error| LoadError::Engine(format!("{error:#}")))?,
                Concurrency::On,
                flags,
                artifact,
                function,
            )?,
        };
        Ok((self.engine.clone(), work))
    }

    fn load_module(
        &self,
        flags: &Flags,
        artifact: File,
        function: Option<&str>,
    ) -> Result<Entry, LoadError> {
        // SAFETY: the file was written by the compile worker and is in a folder of root's, and
        // nobody has it open for writing; wasmtime refuses other versions of its format.
        let module = unsafe { Module::deserialize_open_file(&self.engine, artifact) }
            .map_err(|error| LoadError::Map(format!("{error:#}")))?;
        let name = function.unwrap_or(START);
        let callable = |export| matches!(export, ExternType::Func(ty) if is_entry(&ty));
        if !module.get_export(name).is_some_and(callable) {
            let exports = module
                .exports()
                .filter(|export| matches!(export.ty(), ExternType::Func(_)))
                .map(|export| match callable(export.ty()) {
                    true => export.name().to_owned(),
                    false => format!("{} (which takes or returns other values)", export.name()),
                });
            return Err(LoadError::NoEntry {
                what: "module",
                wanted: match function {
                    None => format!(
                        "{START:?}, a function without parameters that returns nothing, is \
                         missing; append #FUNCTION to its path to call another"
                    ),
                    Some(name) => format!(
                        "{name:?}, a function without parameters that returns nothing or an \
                         i32, is missing"
                    ),
                },
                exports: list(exports),
            });
        }
        Ok(Entry::Module {
            initialize: name != INITIALIZE && module.get_export(INITIALIZE).is_some(),
            pre: unknown::link_module(&self.modules, &module, flags).map_err(|error| {
                // Its code may come from where it may import more.
                LoadError::Link(format!("{error:#}; {}", engine::module_imports()))
            })?,
            function: name.to_owned(),
        })
    }
}

fn load_component(
    engine: &Engine,
    linker: &component::Linker<State>,
    concurrency: Concurrency,
    flags: &Flags,
    artifact: File,
    function: Option<&str>,
) -> Result<Work, LoadError> {
    let component =
        map_component(engine, artifact).map_err(|error| LoadError::Map(format!("{error:#}")))?;
    let linked = unknown::link_component(linker, &component, concurrency, flags);
    let pre = linked.map_err(|error| {
        // Its code may come from where it may import more.
        LoadError::Link(format!("{error:#}; {}", engine::component_imports(flags)))
    })?;
    let exports = component.component_type();
    let exports = || list(exports.exports(engine).map(|(name, _)| name.to_owned()));
    let entry = match function {
        None => {
            if let Some(server) = Server::of(&pre, concurrency) {
                return Ok(Work::Serve(server));
            } else if let Ok(indices) = p3::bindings::CommandIndices::new(&pre) {
                ComponentEntry::Run3(indices)
            } else if let Ok(indices) = p2::bindings::CommandIndices::new(&pre) {
                ComponentEntry::Run2(indices)
            } else {
                return Err(LoadError::NoEntry {
                    what: "component",
                    wanted: "it is not of the wasi:cli/command world, which exports \
                             wasi:cli/run of version 0.2 or 0.3, nor does it export \
                             wasi:http/incoming-handler or wasi:http/handler; append \
                             #FUNCTION or #INTERFACE#FUNCTION to its path to call another"
                        .into(),
                    exports: exports(),
                });
            }
        }
        Some(name) => {
            let (interface, function) = match name.rsplit_once('#') {
                Some((interface, function)) => (Some(interface), function),
                None => (None, name),
            };
            let instance = match interface {
                None => Some(None),
                Some(interface) => component.get_export_index(None, interface).map(Some),
            };
            let found =
                instance.and_then(|instance| component.get_export(instance.as_ref(), function));
            match found {
                Some((ComponentItem::ComponentFunc(ty), index)) if is_component_entry(&ty) => {
                    ComponentEntry::Function(index)
                }
                _ => {
                    return Err(LoadError::NoEntry {
                        what: "component",
                        wanted: format!(
                            "{name:?}, a function without parameters that returns nothing, \
                             an integer or a result, is missing"
                        ),
                        exports: exports(),
                    });
                }
            }
        }
    };
    let sockets = component
        .component_type()
        .imports(engine)
        .any(|(name, _)| name.starts_with("wasi:sockets/"));
    Ok(Work::Once(Entry::Component {
        pre,
        entry,
        sockets,
    }))
}

/// Maps a component's code.
///
/// wasmtime maps components by path only, so the path is the open file's own under /proc. A
/// container need not have a /proc; the code is copied into memory then.
fn map_component(engine: &Engine, mut artifact: File) -> wasmtime::Result<Component> {
    let directory = File::open("/proc/self/fd");
    let is_proc = |directory: &File| {
        fstatfs(directory).is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC)
    };
    if directory.is_ok_and(|directory| is_proc(&directory)) {
        let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
        // SAFETY: as in `World::load_module`; only procfs itself can say what this path leads to.
        return unsafe { Component::deserialize_file(engine, Path::new(&path)) };
    }
    let mut code = Vec::new();
    artifact.rewind()?;
    artifact.read_to_end(&mut code)?;
    // SAFETY: as in `World::load_module`.
    unsafe { Component::deserialize(engine, &code) }
}

/// Whether a core function can be called without knowing more about it.
fn is_entry(ty: &FuncType) -> bool {
    ty.params().len() == 0
        && match ty.results().len() {
            0 => true,
            1 => ty.results().all(|result| matches!(result, ValType::I32)),
            _ => false,
        }
}

/// Whether a component's function can be called without knowing more about it.
fn is_component_entry(ty: &ComponentFunc) -> bool {
    use component::Type;
    ty.params().len() == 0
        && ty.results().len() <= 1
        && ty.results().all(|result| {
            matches!(
                result,
                Type::Result(_)
                    | Type::S8
                    | Type::U8
                    | Type::S16
                    | Type::U16
                    | Type::S32
                    | Type::U32
            )
        })
}

/// Names for a message.
fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    match names.is_empty() {
        true => "nothing".into(),
        false => names.join(", "),
    }
}
