//! The compile worker: a process that can do nothing but turn one module into native code.
//!
//! Its further arguments are [`PACKAGE`], if its standard input is one, and, if there is one more, how to compile, as
//! JSON ([`Flags`]). Its standard input is the module, or a program and what it may be composed with (`parts.rs`); in a
//! package, before it, what of it is to be run before it is compiled (`package.rs`). Its
//! standard output is the file that takes the code, and its
//! standard error takes one line of JSON at the end, the [`Report`]. Text before that line comes
//! from a compiler that panicked or ran out of memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use wasmparser::{Parser, Payload, TypeRef};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, UnknownImportError};

use crate::artifact::Kind;
use crate::cache::is_full;
use crate::engine::Concurrency;
use crate::initialize::initialize;
use crate::package::{Job, PACKAGE};
use crate::recognize::recognize;
use crate::serve::Handler;
use crate::settings::Flags;
use crate::{compose, engine, sandbox, unknown};

/// The first argument with which a program has to call [`worker_main`]. The others are the worker's own.
pub const WORKER_ACTION: &str = "compile-worker";

/// The largest module that is accepted, in bytes.
pub const MAX_MODULE_BYTES: u64 = 1 << 30;

/// What became of a module.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Report {
    /// Standard output holds its native code.
    Compiled(Kind),
    /// It is not wasm that can run here: a sentence about it that leaves out its name.
    Refused(String),
    /// The worker could not isolate itself, and has not read the module.
    Exposed(String),
    /// The module could not be read, or the code not be written.
    Failed(String),
    /// There is no room for the code.
    Full {
        /// How large the code is.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
}

/// Isolates the process, then compiles the module on standard input to standard output.
///
/// For the hidden action [`WORKER_ACTION`] of a program, called before it has done anything else:
/// there must be one thread, and the user must be root. The exit code is 0 when there is code.
pub fn worker_main() -> ExitCode {
    let report = run();
    match tell(&report) {
        Ok(()) if matches!(report, Report::Compiled(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn tell(report: &Report) -> io::Result<()> {
    let line = serde_json::to_string(report).expect("a report is plain text");
    writeln!(io::stderr(), "\n{line}")
}

fn run() -> Report {
    let mut args = std::env::args().skip(2).peekable();
    let is_package = args.next_if(|arg| arg == PACKAGE).is_some();
    let flags = args.next();
    let job = match is_package.then(Job::read).transpose() {
        Ok(job) => job,
        Err(error) => return Report::Failed(format!("reading what is to be run: {error}")),
    };
    if let Err(error) = sandbox::enter(job.as_ref()) {
        return Report::Exposed(error.to_string());
    }
    let flags = match flags.map_or(Ok(Flags::default()), |flags| serde_json::from_str(&flags)) {
        Ok(flags) => flags,
        Err(error) => return Report::Failed(format!("reading how to compile: {error}")),
    };
    let mut wasm = Vec::new();
    if let Err(error) = io::stdin().read_to_end(&mut wasm) {
        return Report::Failed(format!("reading the module: {error}"));
    }
    let made = compose::program(wasm)
        .and_then(|wasm| match &job {
            Some(job) => initialized(wasm, job, &flags),
            None => Ok(wasm),
        })
        .and_then(|wasm| compile(&wasm, &flags));
    match made {
        Ok((kind, code)) => match write(&code) {
            Ok(()) => Report::Compiled(kind),
            Err(error) => {
                let reason = format!("writing its native code: {error}");
                match is_full(&error) {
                    true => Report::Full {
                        bytes: code.len() as u64,
                        reason,
                    },
                    false => Report::Failed(reason),
                }
            }
        },
        Err(reason) => Report::Refused(reason),
    }
}

/// The module that `wasm` is after its initialisation.
fn initialized(wasm: Vec<u8>, job: &Job, flags: &Flags) -> Result<Vec<u8>, String> {
    if is_component(&wasm) {
        return Err(
            "it is a component; only modules can be initialised beforehand (preinit.function)"
                .into(),
        );
    }
    if let Some((module, name)) = foreign_import(&wasm, flags) {
        return Err(unknown_import(module, name));
    }
    initialize(&wasm, job, flags, |reason| {
        // Whoever waits goes by the exit code, should this fail.
        let _ = tell(&Report::Refused(reason));
        std::process::exit(1)
    })
}

/// Writes to standard output as it stands, without the standard library's search for line ends.
fn write(code: &[u8]) -> io::Result<()> {
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    File::from(output).write_all(code)
}

/// Compiles `wasm` and checks that everything it imports is there.
fn compile(wasm: &[u8], flags: &Flags) -> Result<(Kind, Vec<u8>), String> {
    recognize(&wasm[..wasm.len().min(8)])
        .map_err(|what| format!("it is {what}, and no wasm module or component"))?;
    if is_component(wasm) {
        let compile = |kind, concurrency, engine: wasmtime::Result<Engine>| {
            let code = compile_component(wasm, &engine.map_err(text)?, concurrency, flags)?;
            Ok((kind, code))
        };
        let server = |kind, concurrency| {
            let engine = engine::server_engine(flags, concurrency, None);
            compile(kind, concurrency, engine)
        };
        let concurrently = || server(Kind::ConcurrentServer, Concurrency::On);
        match handler(wasm) {
            None => compile(Kind::Component, Concurrency::On, engine::engine(flags)),
            Some(Handler::P3) => concurrently(),
            // It may still have something of 0.3 in it.
            Some(Handler::P2) => {
                server(Kind::Server, Concurrency::Off).or_else(|_: String| concurrently())
            }
        }
    } else {
        if let Some((module, name)) = foreign_import(wasm, flags) {
            return Err(unknown_import(module, name));
        }
        let engine = engine::engine(flags).map_err(text)?;
        let module = Module::from_binary(&engine, wasm).map_err(text)?;
        check_module(&engine, &module, flags)?;
        Ok((Kind::Module, module.serialize().map_err(text)?))
    }
}

/// Whether the layer field of the header says component (component-model/Binary.md).
pub(crate) fn is_component(wasm: &[u8]) -> bool {
    wasm.get(6..8) == Some(&[1, 0])
}

fn compile_component(
    wasm: &[u8],
    engine: &Engine,
    concurrency: Concurrency,
    flags: &Flags,
) -> Result<Vec<u8>, String> {
    let component = Component::from_binary(engine, wasm).map_err(text)?;
    let linker = engine::component_linker(engine, concurrency, flags).map_err(text)?;
    unknown::link_component(&linker, &component, concurrency, flags).map_err(|error| {
        let imports = engine::component_imports(flags);
        format!("{}; {imports}", text(error))
    })?;
    component.serialize().map_err(text)
}

/// The handler of HTTP requests that a component exports, the newest. What is malformed has none;
/// the compiler tells what is wrong with it.
fn handler(wasm: &[u8]) -> Option<Handler> {
    let mut found = None;
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload {
            Ok(Payload::Version { .. }) => depth += 1,
            Ok(Payload::End(_)) => depth -= 1,
            Ok(Payload::ComponentExportSection(exports)) if depth == 1 => {
                let names = exports.into_iter().flatten().map(|export| export.name.name);
                found = names.filter_map(Handler::named).chain(found).max();
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    found
}

/// An import of a core module from where nothing is provided. Looked for beforehand, since a large
/// module is compiled for minutes; what else is wrong with imports, or the module, is found later.
fn foreign_import<'a>(wasm: &'a [u8], flags: &Flags) -> Option<(&'a str, &'a str)> {
    let imports = Parser::new(0)
        .parse_all(wasm)
        .find_map(|payload| match payload {
            Ok(Payload::ImportSection(imports)) => Some(Some(imports)),
            Ok(Payload::CodeSectionStart { .. }) | Err(_) => Some(None),
            Ok(_) => None,
        })??;
    imports
        .into_imports()
        .map_while(Result::ok)
        .find(|import| {
            let may_trap = flags.unknown_imports_trap && matches!(import.ty, TypeRef::Func(_));
            !may_trap && !engine::MODULE_IMPORTS.contains(&import.module)
        })
        .map(|import| (import.module, import.name))
}

fn check_module(engine: &Engine, module: &Module, flags: &Flags) -> Result<(), String> {
    let linker = engine::module_linker(engine).map_err(text)?;
    match unknown::link_module(&linker, module, flags) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.downcast_ref::<UnknownImportError>() {
            Some(import) => unknown_import(import.module(), import.name()),
            None => text(error),
        }),
    }
}

fn unknown_import(module: &str, name: &str) -> String {
    format!(
        "it imports {module:?}.{name:?}, which nothing provides; {}",
        engine::module_imports()
    )
}

/// The error and its causes on one line.
fn text(error: wasmtime::Error) -> String {
    format!("{error:#}")
}
