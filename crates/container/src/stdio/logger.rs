//! Logger programs: processes beside a container that take its output from pipes, as the runc shim
//! runs them (containerd's core/runtime/v2/README.md, "Logging"; its package
//! core/runtime/v2/logging is what most are made with).

use std::ffi::{CString, NulError};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::birth::Process;
use crate::blocking::blocking;
use crate::reaper::{Exit, Reaper};

/// How long a logger may take until it is ready. The runc shim waits forever.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// What a logger whose streams have ended is given to end by itself, and then after each signal:
/// together the twelve seconds of the runc shim, which sends SIGTERM at once and may so lose output.
const END_PATIENCE: [(Duration, Option<Signal>); 3] = [
    (Duration::from_secs(10), Some(Signal::SIGTERM)),
    (Duration::from_secs(2), Some(Signal::SIGKILL)),
    (Duration::from_secs(2), None),
];

/// The lowest descriptor that means nothing to a logger.
const FIRST_FREE: RawFd = 6;

/// Whose streams a logger takes, and who reaps it.
#[derive(Clone, Copy)]
pub struct Logging<'a> {
    /// The process's id: of the container, or the exec id, as in the runc shim.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Who reaps the daemon's children.
    pub reaper: &'a Reaper,
}

/// A logger's program and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its path on the host.
    pub(super) path: PathBuf,
    /// The keys of the URI's query, each with its first value.
    pub(super) args: Vec<String>,
}

/// A logger that runs; killed when this is dropped.
pub(super) struct Logger {
    program: PathBuf,
    process: Process,
    exit: oneshot::Receiver<Exit>,
}

impl Logger {
    /// Runs `program` with what its process writes, `stdout` and `stderr`, as descriptors 3 and 4,
    /// and waits until it has closed descriptor 5 or written to it.
    ///
    /// # Errors
    /// Why it does not run, or that it was not ready in time.
    pub(super) async fn start(
        program: Program,
        logging: Logging<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Self, String> {
        let (ready, theirs) = io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
        let path = program.path.clone();
        let environment = [
            format!("CONTAINER_ID={}", logging.id),
            format!("CONTAINER_NAMESPACE={}", logging.namespace),
        ];
        let since = Instant::now();
        // It returns when the program has been loaded, from whatever disk.
        let spawned = blocking(move || {
            let pid = spawn(&program, &environment, [stdout, stderr, theirs.into()])?;
            Ok::<_, io::Error>((pid, Process::new(pid.as_raw())))
        });
        let (pid, process) = spawned
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("it cannot be run: {error}"))?;
        let exit = logging.reaper.exit_of(pid, since);
        let Ok(process) = process else {
            return Err(ended(exit.await.ok()));
        };
        let mut logger = Self {
            program: path,
            process,
            exit,
        };
        let ready = pipe::Receiver::from_owned_fd(ready.into())
            .map_err(|error| format!("watching a pipe: {error}"))?;
        match tokio::time::timeout(READY_PATIENCE, logger.ready(ready)).await {
            Ok(Ok(())) => Ok(logger),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(format!(
                "it was not ready within {} s: a logger has to close descriptor 5 when it is",
                READY_PATIENCE.as_secs()
            )),
        }
    }

    async fn ready(&mut self, mut pipe: pipe::Receiver) -> Result<(), String> {
        let mut byte = [0];
        tokio::select! {
            biased;
            read = pipe.read(&mut byte) => match read {
                Ok(0) if self.is_ending() => Err(ended((&mut self.exit).await.ok())),
                Ok(_) => Ok(()),
                Err(error) => Err(format!("waiting until it is ready: {error}")),
            },
            exit = &mut self.exit => Err(ended(exit.ok())),
        }
    }

    /// Whether the process ends or has ended: the kernel takes a process's memory away, and with it
    /// the link to its program, before it closes its files.
    fn is_ending(&self) -> bool {
        fs::read_link(format!("/proc/{}/exe", self.process.pid)).is_err()
    }

    /// Waits for the end of the logger, whose streams have ended; one that stays is killed.
    pub(super) async fn end(mut self) {
        for (patience, signal) in END_PATIENCE {
            if tokio::time::timeout(patience, &mut self.exit).await.is_ok() {
                return;
            }
            let program = self.program.display();
            match signal {
                Some(signal) => {
                    log::warn!(
                        "the logger {program} stays after its streams' end: sending {signal}"
                    );
                    // It may end at this moment.
                    let _ = self.process.signal(signal as i32);
                }
                None => log::error!("the logger {program} stays after SIGKILL"),
            }
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // Mostly it has ended.
        let _ = self.process.signal(Signal::SIGKILL as i32);
    }
}

fn ended(exit: Option<Exit>) -> String {
    match exit {
        Some(exit) => format!(
            "it ended with the exit status {} before it was ready (a logger closes descriptor 5 when it is)",
            exit.status
        ),
        None => "the shim is ending".to_owned(),
    }
}

/// Runs `program` with nothing in its environment but `environment`, and nothing open but
/// /dev/null as its standard streams and `fds` from 3 on. posix_spawn(3) makes no copy of this
/// process, which has threads, and knows descriptors beyond the standard streams, which
/// [`std::process::Command`] does not.
fn spawn(program: &Program, environment: &[String], fds: [OwnedFd; 3]) -> io::Result<Pid> {
    // Out of the way of the numbers that they are to have.
    let mut parked = Vec::new();
    for fd in &fds {
        parked.push(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE)?);
    }
    let mut files = PosixSpawnFileActions::init()?;
    for standard in 0..3 {
        files.add_open(standard, "/dev/null", OFlag::O_RDWR, Mode::empty())?;
    }
    for (fd, number) in parked.iter().zip(3..) {
        files.add_dup2(fd.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Which Rust programs ignore.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    let path = CString::new(program.path.as_os_str().as_bytes())?;
    let strings = |strings: &[String]| -> Result<Vec<CString>, NulError> {
        strings.iter().cloned().map(CString::new).collect()
    };
    let mut args = vec![path.clone()];
    args.extend(strings(&program.args)?);
    let pid = posix_spawn(
        path.as_c_str(),
        &files,
        &attributes,
        &args,
        &strings(environment)?,
    )?;
    Ok(pid)
}
