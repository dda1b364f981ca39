//! What a process in a container runs: finding it from inside, readying it, becoming it.
//!
//! By then the process is inside its namespaces, cgroup, root file system and seccomp filter and
//! has the container's user and capabilities. It looks at the program with those, so that what a
//! path means is what the container's own kernel calls say. A wasm file is handed, open, to the
//! daemon, which answers with its native code; the daemon's side is [`crate::birth`]. Where there
//! is no such file, the daemon is asked whether the image has a layer of this name.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{AccessFlags, access, execve};
use oci_spec::runtime::{PosixRlimit, Process};
use serde::{Deserialize, Serialize};

use crate::entrypoint::{self, Entrypoint, EntrypointError};
use crate::given::Given;
use crate::guest::{Guest, Guests, Invocation};
use crate::{given, home, limit, message, sys};

/// What an init tells the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// Files of the container that the entrypoint's native code is made with; their descriptors come
    /// along. Said before the entrypoint is.
    Given {
        /// Their paths in the container.
        paths: Vec<String>,
    },
    /// The entrypoint is this wasm file; its descriptor comes along.
    Wasm {
        /// The path in the container, for messages.
        path: String,
    },
    /// The entrypoint is no file of the root file system.
    Absent {
        /// Its name.
        name: String,
    },
    /// The guest has been instantiated.
    Started,
    /// The process could not be started, and why.
    Failed(String),
}

/// What the daemon answers to [`FromInit::Wasm`] and [`FromInit::Absent`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// The guest's native code; its descriptor comes along.
    Artifact,
    /// There is none, and why.
    Refused(String),
    /// The image has no layer of that name either.
    Absent,
}

/// PATH where the container has none, as execvp(3) has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A program that is ready to run.
pub(crate) enum Program {
    /// What the kernel executes.
    Linux(PathBuf),
    /// Wasm, with the descriptors that were open before it was loaded.
    Guest(Box<dyn Guest>, Vec<RawFd>),
}

/// A process on its way to its program.
#[derive(Clone)]
pub(crate) struct Launcher {
    guests: Rc<dyn Guests>,
    settings: Rc<str>,
    daemon: Rc<OwnedFd>,
    reply_to: RawFd,
}

impl Launcher {
    /// One that runs wasm with `guests`, as `settings` say, and talks to the daemon over `daemon`. `reply_to` is where
    /// the helper that it comes of is to answer.
    pub(crate) fn new(
        guests: Rc<dyn Guests>,
        settings: String,
        daemon: OwnedFd,
        reply_to: RawFd,
    ) -> Self {
        Self {
            guests,
            settings: settings.into(),
            daemon: Rc::new(daemon),
            reply_to,
        }
    }

    /// Finds and readies what `process` is to run.
    ///
    /// # Errors
    /// Why it cannot be run, in words for the caller of create or exec.
    pub(crate) fn resolve(&self, process: &Process) -> Result<Program, String> {
        // The helper's alone: its end tells the daemon of the helper's.
        sys::close_descriptors(&[self.reply_to], self.daemon.as_fd());
        let invocation = invocation(process)?;
        let path = variable(&invocation.env, "PATH").unwrap_or(DEFAULT_PATH);
        let name = &invocation.args[0];
        match entrypoint::find(name, path, self.guests.recognizes()) {
            Ok(Entrypoint::Linux(path)) => Ok(Program::Linux(path)),
            Ok(Entrypoint::Wasm {
                path,
                file,
                function,
            }) => {
                let mut shims = sys::open_descriptors();
                shims.retain(|fd| *fd != file.as_raw_fd());
                let path = path.display().to_string();
                let artifact = self.artifact(&FromInit::Wasm { path }, &[file.as_fd()])?;
                let artifact = artifact.ok_or("the shim takes the entrypoint for no file")?;
                self.load(artifact, function.as_deref(), shims)
            }
            Err(missing @ (EntrypointError::NotFound(_) | EntrypointError::NotOnPath(_))) => {
                let shims = sys::open_descriptors();
                let (artifact, function) = self.layer(name)?.ok_or_else(|| missing.to_string())?;
                self.load(artifact, function, shims)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The native code of the layer that `name` means, and the function that it names, which it does only
    /// where no layer has the whole name, as with files.
    fn layer<'a>(&self, name: &'a str) -> Result<Option<(File, Option<&'a str>)>, String> {
        let ask = |name: &str| {
            let name = name.to_owned();
            self.artifact(&FromInit::Absent { name }, &[])
        };
        if let Some(artifact) = ask(name)? {
            return Ok(Some((artifact, None)));
        }
        let (name, function) = entrypoint::split(name);
        if function.is_none() {
            return Ok(None);
        }
        Ok(ask(name)?.map(|artifact| (artifact, function)))
    }

    /// The guest in `artifact`. `shims` were open before.
    fn load(
        &self,
        artifact: File,
        function: Option<&str>,
        shims: Vec<RawFd>,
    ) -> Result<Program, String> {
        let guest = self.guests.load(artifact, function, &self.settings)?;
        Ok(Program::Guest(guest, shims))
    }

    /// Becomes `program`; returns only why that was not possible, which the daemon has been told. A guest whose user
    /// `has_home` not is told of none: `/` is what Linux programs are used to. The program gets `limit`, if there is one that was [set
    /// apart](limit::set_apart).
    pub(crate) fn run(
        &self,
        program: Program,
        mut invocation: Invocation,
        has_home: bool,
        limit: Option<&PosixRlimit>,
    ) -> String {
        if let Some(Err(reason)) = limit.map(limit::lower) {
            return self.fail(reason);
        }
        match program {
            Program::Guest(guest, shims) => {
                if !has_home {
                    home::remove(&mut invocation.env);
                }
                if let Err(error) = sys::forget_environment() {
                    return self.fail(format!("hiding the shim's environment: {error}"));
                }
                self.run_guest(guest, &shims, invocation)
            }
            Program::Linux(path) => {
                let error = exec_linux(&path, &invocation);
                self.fail(format!("exec {}: {}", path.display(), words(&path, &error)))
            }
        }
    }

    /// Tells the daemon why there will be no program.
    pub(crate) fn fail(&self, reason: String) -> String {
        self.tell(FromInit::Failed(reason.clone()));
        reason
    }

    /// The native code that `question` asks the daemon for; `None` where that knows no such guest.
    fn artifact(
        &self,
        question: &FromInit,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<File>, String> {
        let paths = self.guests.files(&self.settings)?;
        if !paths.is_empty() {
            given::each(&paths, |files| self.give(files))?;
        }
        let ask = || -> io::Result<Option<(ToInit, Vec<OwnedFd>)>> {
            message::send(&*self.daemon, question, fds)?;
            message::receive(&*self.daemon)
        };
        match ask() {
            Ok(Some((ToInit::Artifact, fds))) => match fds.into_iter().next() {
                Some(artifact) => Ok(Some(File::from(artifact))),
                None => Err("the shim sent no native code for the guest".to_owned()),
            },
            Ok(Some((ToInit::Refused(reason), _))) => Err(reason),
            Ok(Some((ToInit::Absent, _))) => Ok(None),
            Ok(None) => Err("the shim went away while it was asked for native code".to_owned()),
            Err(error) => Err(format!("asking the shim for native code failed: {error}")),
        }
    }

    /// Hands files to the daemon.
    fn give(&self, files: &mut Vec<Given>) -> io::Result<()> {
        let paths = files.iter().map(|given| given.path.clone()).collect();
        let fds: Vec<_> = files.iter().map(|given| given.file.as_fd()).collect();
        message::send(&*self.daemon, &FromInit::Given { paths }, &fds)?;
        files.clear();
        Ok(())
    }

    fn tell(&self, message: FromInit) {
        // The daemon may be gone; the process goes on without it.
        if let Err(error) = message::send(&*self.daemon, &message, &[]) {
            log::warn!("telling the shim {message:?} failed: {error}");
        }
    }

    fn run_guest(&self, guest: Box<dyn Guest>, shims: &[RawFd], invocation: Invocation) -> ! {
        name_process(&invocation.args);
        // From here on only the guest runs: nothing may reach the log or any other descriptor
        // of the shim's. What the guest's own loading has opened stays: memories are mapped
        // from the artifact when they are made.
        log::set_max_level(log::LevelFilter::Off);
        sys::close_descriptors(shims, self.daemon.as_fd());
        sys::trim_stack();
        let code = guest.run(invocation, &mut |started| {
            self.tell(match started {
                Ok(()) => FromInit::Started,
                Err(reason) => FromInit::Failed(reason),
            });
            // The guest, which may do nothing for long, needs little of what it took to get here.
            sys::trim_memory();
        });
        sys::exit_now(code)
    }
}

/// How `process` calls its program.
///
/// # Errors
/// When it has no arguments, or one that no program can be given.
pub(crate) fn invocation(process: &Process) -> Result<Invocation, String> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err("the process has no args".to_owned());
    }
    if let Some(wrong) = args.iter().find(|arg| arg.contains('\0')) {
        return Err(format!("the argument {wrong:?} has a NUL in it"));
    }
    Ok(Invocation {
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().display().to_string(),
    })
}

fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Has the process look like its program to people who look at ps, and to `docker top`.
fn name_process(args: &[String]) {
    let name = args[0].rsplit('/').next().unwrap_or(&args[0]);
    if let Ok(name) = CString::new(name) {
        // The kernel cuts it to 15 bytes.
        let _ = nix::sys::prctl::set_name(&name);
    }
    let _ = sys::set_arguments(args.iter().map(String::as_str));
}

/// The kernel's reason not to execute `path` as runc words it, by which Docker tells exit codes.
fn words(path: &Path, error: &io::Error) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match errno {
        // The file itself has been found.
        Some(Errno::ENOENT) => {
            "no such file or directory: the interpreter or loader that it names".to_owned()
        }
        // Nobody has looked into the file.
        Some(Errno::ENOEXEC) if access(path, AccessFlags::R_OK).is_err() => {
            "permission denied: it is no Linux program, and wasm must be readable".to_owned()
        }
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn exec_linux(path: &Path, invocation: &Invocation) -> io::Error {
    let strings = |list: &[String]| -> Result<Vec<CString>, NulError> {
        list.iter()
            .map(|text| CString::new(text.as_str()))
            .collect()
    };
    let exec = || -> io::Result<Infallible> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let args = strings(&invocation.args)?;
        let env = strings(&invocation.env)?;
        // Rust's runtime ignores SIGPIPE, and tokio's children may have signals blocked; a
        // program expects neither.
        sys::set_signal_handler(Signal::SIGPIPE, SigHandler::SigDfl)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(execve(&path, &args, &env)?)
    };
    match exec() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
