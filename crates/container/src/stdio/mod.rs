//! A process's standard streams: pipes or a terminal, copied from and to what containerd names.
//!
//! The process never holds containerd's FIFOs themselves. A reader that goes away (containerd
//! restarting, say, or a client that detaches) then breaks nothing: our ends of the FIFOs are open
//! for reading and writing, so output waits in them for the next reader.
//!
//! Reading order: [`Stdio`], `target` (what a path or URI means), `copy`, `logger` (programs that take
//! output), `console` (the daemon's side of a terminal), `pty` and `console_socket` (the helpers').

mod console;
mod console_socket;
mod copy;
mod error;
mod logger;
mod pty;
mod target;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, fchown};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

pub use console::Console;
use console::WeakConsole;
pub(crate) use console_socket::ConsoleSocket;
use copy::{Source, Writer, copy};
pub use error::StdioError;
use logger::Logger;
pub use logger::Logging;
pub(crate) use pty::Pty;
use target::{Sink, Target, check_fifo};

/// How long the end of a process is kept back for the end of its output.
const MOMENT: Duration = Duration::from_millis(100);

/// How long output may make no progress after its process has ended before it is given up: what
/// the runc shim waits.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Where containerd wants a process's streams; an empty string is /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A FIFO to read from.
    pub stdin: String,
    /// A FIFO or file to write to, or a logger (`binary://`), which takes stderr too.
    pub stdout: String,
    /// A FIFO or file to write to; not used with a terminal, nor with a logger.
    pub stderr: String,
    /// Whether all three are one terminal.
    pub terminal: bool,
}

/// What a process is to be made with.
pub enum ProcessStdio {
    /// Its descriptors 0, 1 and 2.
    Streams {
        /// Its stdin.
        stdin: OwnedFd,
        /// Its stdout.
        stdout: OwnedFd,
        /// Its stderr.
        stderr: OwnedFd,
    },
    /// A terminal, which is made inside the container; its master is for [`Stdio::attach`].
    Terminal,
}

impl ProcessStdio {
    /// The process's descriptors in their order; none with a terminal.
    pub(crate) fn streams(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Streams {
                stdin,
                stdout,
                stderr,
            } => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Terminal => Vec::new(),
        }
    }
}

/// The copying of one process's streams; it ends, and a terminal hangs up, when this is dropped.
pub struct Stdio {
    stdin: Mutex<Stdin>,
    stdin_copy: Mutex<JoinSet<()>>,
    output: Mutex<JoinSet<()>>,
    copied: Arc<AtomicU64>,
    terminal: Mutex<Terminal>,
    logger: Mutex<Option<Logger>>,
}

/// How far a process's stdin has come.
enum Stdin {
    /// Its FIFO is opened when the process starts, not before: some clients (ctr) cannot close
    /// the stdin of a task that they are still creating, and read their own as soon as the FIFO
    /// is open.
    Waiting {
        path: PathBuf,
        sink: Writer,
        closed: bool,
    },
    /// It is copied; clients may come and go, as the FIFO is kept open for writing too.
    Open { _kept: pipe::Sender },
    /// It ends when the last client closes it, as CloseIO asked; or there is none.
    Closed,
}

/// Where a process's output goes.
enum Output {
    /// Stdout, to what it is copied to, if to anything.
    Sink(Option<Sink>),
    /// Stdout and stderr, through these pipes.
    Logger(OwnedFd, OwnedFd),
}

/// How far a process's terminal has come.
enum Terminal {
    /// The process has none.
    None,
    /// It is to be made, for these streams.
    Wanted {
        stdin: Option<PathBuf>,
        stdout: Sink,
    },
    /// It is there. Those who copy from and to it keep it so.
    Attached {
        console: WeakConsole,
        /// Keeps its output from coming to an end where its processes all close it for a while, until the first of them ends.
        slave: Option<OwnedFd>,
    },
}

impl Stdio {
    /// Opens what `paths` names and starts copying output, in the running tokio runtime; a logger
    /// gets it without a copy, and is ready when this returns. The process's ends of pipes belong
    /// to `owner`, so that its user can open /dev/stdout.
    ///
    /// # Errors
    /// Names the stream and the path.
    pub async fn connect(
        paths: &StdioPaths,
        owner: (Uid, Gid),
        logging: Logging<'_>,
    ) -> Result<(Self, ProcessStdio), StdioError> {
        let stdio = Self {
            stdin: Mutex::new(Stdin::Closed),
            stdin_copy: Mutex::default(),
            output: Mutex::default(),
            copied: Arc::default(),
            terminal: Mutex::new(Terminal::None),
            logger: Mutex::default(),
        };
        let input = input_path(&paths.stdin)?;
        let stdout = match Target::parse("stdout", &paths.stdout)? {
            Target::Logger(program) => {
                let (out, theirs_out) = io::pipe().map_err(pipe_error("stdout"))?;
                let (err, theirs_err) = io::pipe().map_err(pipe_error("stderr"))?;
                let logger = Logger::start(program, logging, out.into(), err.into()).await;
                let logger = logger.map_err(|reason| StdioError::Logger {
                    uri: paths.stdout.clone(),
                    reason,
                })?;
                *lock(&stdio.logger) = Some(logger);
                Output::Logger(theirs_out.into(), theirs_err.into())
            }
            target => Output::Sink(open("stdout", &paths.stdout, target)?),
        };
        if paths.terminal {
            let stdout: Option<Sink> = match stdout {
                Output::Sink(sink) => sink,
                Output::Logger(stdout, _) => {
                    let pipe = pipe::Sender::from_owned_fd(stdout).map_err(pipe_error("stdout"))?;
                    Some(Sink::Open(Box::new(pipe)))
                }
            };
            *lock(&stdio.terminal) = Terminal::Wanted {
                stdin: input,
                // What nobody wants must be read all the same.
                stdout: stdout.unwrap_or_else(|| Sink::Open(Box::new(tokio::io::sink()))),
            };
            return Ok((stdio, ProcessStdio::Terminal));
        }
        let stdin = match input {
            None => null("stdin")?,
            Some(path) => {
                let (theirs, ours) = io::pipe().map_err(pipe_error("stdin"))?;
                let ours = pipe::Sender::from_owned_fd(ours.into()).map_err(pipe_error("stdin"))?;
                *lock(&stdio.stdin) = Stdin::Waiting {
                    path,
                    sink: Box::new(ours),
                    closed: false,
                };
                owned("stdin", theirs.into(), owner)?
            }
        };
        let copied = |stream, sink: Option<Sink>| -> Result<OwnedFd, StdioError> {
            let Some(sink) = sink else {
                return null(stream);
            };
            let (ours, theirs) = io::pipe().map_err(pipe_error(stream))?;
            let ours = pipe::Receiver::from_owned_fd(ours.into()).map_err(pipe_error(stream))?;
            stdio.copy_output(ours, sink);
            owned(stream, theirs.into(), owner)
        };
        let (stdout, stderr) = match stdout {
            Output::Logger(stdout, stderr) => (
                owned("stdout", stdout, owner)?,
                owned("stderr", stderr, owner)?,
            ),
            Output::Sink(stdout) => {
                let stderr = Target::parse("stderr", &paths.stderr)?;
                let stderr = open("stderr", &paths.stderr, stderr)?;
                (copied("stdout", stdout)?, copied("stderr", stderr)?)
            }
        };
        Ok((
            stdio,
            ProcessStdio::Streams {
                stdin,
                stdout,
                stderr,
            },
        ))
    }

    fn copy_output(&self, source: impl Source, sink: Sink) {
        let copied = self.copied.clone();
        lock(&self.output).spawn(async move { copy(source, sink.ready().await, copied).await });
    }

    /// Starts copying the output of the terminal that has been made for the process.
    pub fn attach(&self, console: Console) {
        let slave = console.open_slave();
        let slave = slave.inspect_err(|error| log::warn!("keeping a terminal open: {error}"));
        let attached = Terminal::Attached {
            console: console.downgrade(),
            slave: slave.ok(),
        };
        let Terminal::Wanted { stdin, stdout } =
            std::mem::replace(&mut *lock(&self.terminal), attached)
        else {
            return;
        };
        if let Some(path) = stdin {
            *lock(&self.stdin) = Stdin::Waiting {
                path,
                sink: Box::new(console.clone()),
                closed: false,
            };
        }
        self.copy_output(console, stdout);
    }

    /// Sets the size of the process's terminal, in characters. Without a terminal nothing is done,
    /// as in the runc shim.
    ///
    /// # Errors
    /// ioctl(2)'s.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match &*lock(&self.terminal) {
            Terminal::Attached { console, .. } => console.resize(rows, columns),
            Terminal::None | Terminal::Wanted { .. } => Ok(()),
        }
    }

    /// Starts copying the process's stdin, if it has one and it has not been closed. With a terminal
    /// that is to be attached first.
    ///
    /// # Errors
    /// When its FIFO cannot be opened any more.
    pub fn open_stdin(&self) -> Result<(), StdioError> {
        let mut stdin = lock(&self.stdin);
        let (path, sink, closed) = match std::mem::replace(&mut *stdin, Stdin::Closed) {
            Stdin::Waiting { path, sink, closed } => (path, sink, closed),
            other => {
                *stdin = other;
                return Ok(());
            }
        };
        let open = |source| StdioError::Open {
            stream: "stdin",
            path: path.display().to_string(),
            source,
        };
        let options = pipe::OpenOptions::new();
        let source = options.open_receiver(&path).map_err(open)?;
        // A pipe that has had no writer since it was opened does not tell that it has ended (poll(2) on Linux).
        let _kept = options.open_sender(&path).map_err(open)?;
        if !closed {
            *stdin = Stdin::Open { _kept };
        }
        lock(&self.stdin_copy).spawn(copy(source, sink, Arc::default()));
        Ok(())
    }

    /// Lets the process's stdin end as soon as containerd's client has closed its side; a terminal
    /// hangs up then.
    pub fn close_stdin(&self) {
        match &mut *lock(&self.stdin) {
            // What its client has written by now is still to be read.
            Stdin::Waiting { closed, .. } => *closed = true,
            stdin => *stdin = Stdin::Closed,
        }
    }

    /// Waits until what the process wrote has been handed over, which is at once where somebody reads it and nobody else has its
    /// streams; else for a moment, and it goes on. To be called when the process has ended.
    pub async fn settle(&self) {
        // Nothing else keeps the terminal from its end.
        if let Terminal::Attached { slave, .. } = &mut *lock(&self.terminal) {
            *slave = None;
        }
        let _ = tokio::time::timeout(MOMENT, self.handed_over()).await;
    }

    /// Waits until everything that the process wrote has been handed over, or until nobody has
    /// taken any of it for ten seconds; with `most`, no longer than that. To be called after [`Stdio::settle`].
    pub async fn drain(&self, most: Option<Duration>) {
        let begin = Instant::now();
        let mut copied = self.copied.load(Ordering::Relaxed);
        loop {
            let left = most.map(|most| most.saturating_sub(begin.elapsed()));
            let time = left.map_or(DRAIN_PATIENCE, |left| left.min(DRAIN_PATIENCE));
            if tokio::time::timeout(time, self.handed_over()).await.is_ok() {
                return;
            }
            let now = self.copied.load(Ordering::Relaxed);
            if now == copied || most.is_some_and(|most| begin.elapsed() >= most) {
                log::warn!("output of a process that has ended is not being read; it is dropped");
                lock(&self.output).abort_all();
                return;
            }
            copied = now;
        }
    }

    /// Waits for the end of all output. It goes on where this is given up.
    async fn handed_over(&self) {
        while poll_fn(|context| lock(&self.output).poll_join_next(context))
            .await
            .is_some()
        {}
    }

    /// Waits for the end of the process's logger, if it has one: it is given ten seconds to take what
    /// is left, and then ended. To be called when nobody has its streams any more.
    pub async fn close(&self) {
        // Not at the process's end: a client that is only about to open its FIFO would wait forever.
        *lock(&self.stdin) = Stdin::Closed;
        let mut stdin = std::mem::take(&mut *lock(&self.stdin_copy));
        stdin.shutdown().await;
        // A terminal that never was, or whose copying failed, has the logger's pipe still.
        *lock(&self.terminal) = Terminal::None;
        lock(&self.output).abort_all();
        let logger = lock(&self.logger).take();
        if let Some(logger) = logger {
            logger.end().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pipe_error(stream: &'static str) -> impl FnOnce(io::Error) -> StdioError {
    move |source| StdioError::Pipe { stream, source }
}

/// The FIFO that a stdin is read from, if any.
fn input_path(uri: &str) -> Result<Option<PathBuf>, StdioError> {
    let checked = match Target::parse("stdin", uri)? {
        Target::Null => return Ok(None),
        Target::Fifo(path) | Target::File(path) => check_fifo(&path).map(|()| path),
        Target::Logger(_) => Err(io::Error::other("a logger only takes output")),
    };
    checked.map(Some).map_err(open_error("stdin", uri))
}

/// Opens where an output stream goes, if anywhere; `uri` says so.
fn open(stream: &'static str, uri: &str, target: Target) -> Result<Option<Sink>, StdioError> {
    target.open().map_err(open_error(stream, uri))
}

fn open_error(stream: &'static str, path: &str) -> impl FnOnce(io::Error) -> StdioError {
    move |source| StdioError::Open {
        stream,
        path: path.to_owned(),
        source,
    }
}

fn null(stream: &'static str) -> Result<OwnedFd, StdioError> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(open_error(stream, "/dev/null"))
}

fn owned(stream: &'static str, fd: OwnedFd, (uid, gid): (Uid, Gid)) -> Result<OwnedFd, StdioError> {
    match fchown(&fd, Some(uid), Some(gid)) {
        Ok(()) => Ok(fd),
        Err(error) => Err(pipe_error(stream)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    fn root() -> (Uid, Gid) {
        (Uid::from_raw(0), Gid::from_raw(0))
    }

    async fn try_connect(
        paths: &StdioPaths,
        owner: (Uid, Gid),
    ) -> Result<(Stdio, ProcessStdio), StdioError> {
        let logging = Logging {
            id: "c",
            namespace: "n",
            reaper: &crate::Reaper::idle(),
        };
        Stdio::connect(paths, owner, logging).await
    }

    /// Without a terminal.
    async fn connect(paths: &StdioPaths, owner: (Uid, Gid)) -> (Stdio, [File; 3]) {
        match try_connect(paths, owner).await.unwrap() {
            (
                stdio,
                ProcessStdio::Streams {
                    stdin,
                    stdout,
                    stderr,
                },
            ) => (stdio, [stdin, stdout, stderr].map(File::from)),
            (_, ProcessStdio::Terminal) => panic!("no terminal was asked for"),
        }
    }

    struct Fifos(tempfile::TempDir);

    impl Fifos {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["in", "out", "err"] {
                nix::unistd::mkfifo(&folder.path().join(name), Mode::S_IRWXU).unwrap();
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_owned()
        }

        /// Reads a FIFO to its end.
        fn read(&self, name: &str) -> tokio::task::JoinHandle<String> {
            let path = self.path(name);
            tokio::task::spawn_blocking(move || std::fs::read_to_string(path).unwrap())
        }

        fn paths(&self) -> StdioPaths {
            StdioPaths {
                stdin: self.path("in"),
                stdout: self.path("out"),
                stderr: self.path("err"),
                terminal: false,
            }
        }
    }

    #[tokio::test]
    async fn streams_are_copied_and_drained() {
        let fifos = Fifos::new();
        let (stdio, [mut stdin, mut stdout, stderr]) = connect(&fifos.paths(), root()).await;
        stdio.open_stdin().unwrap();
        let [out, err] = ["out", "err"].map(|name| fifos.read(name));
        std::fs::OpenOptions::new()
            .write(true)
            .open(fifos.path("in"))
            .unwrap()
            .write_all(b"typed")
            .unwrap();
        stdio.close_stdin();
        let typed = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            stdin.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(typed.await.unwrap(), "typed");
        stdout.write_all(b"said").unwrap();
        drop((stdout, stderr));
        stdio.drain(None).await;
        drop(stdio);
        assert_eq!(out.await.unwrap(), "said");
        assert_eq!(err.await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_reader_may_come_late() {
        let fifos = Fifos::new();
        let (stdio, [stdin, mut stdout, stderr]) = connect(&fifos.paths(), root()).await;
        stdio.open_stdin().unwrap();
        stdout.write_all(b"said").unwrap();
        drop((stdin, stdout, stderr));
        let stdio = Arc::new(stdio);
        let mut drained = tokio::spawn({
            let stdio = stdio.clone();
            async move { stdio.drain(None).await }
        });
        let early = tokio::time::timeout(Duration::from_millis(50), &mut drained).await;
        assert!(early.is_err(), "nobody has taken it");
        let [out, err] = ["out", "err"].map(|name| fifos.read(name));
        drained.await.unwrap();
        // One who writes finds the process's side open until all is over.
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        drop(options.open(fifos.path("in")).unwrap());
        stdio.close().await;
        let closed = async {
            // What another test forks has this one's files open until it executes its program.
            while options.open(fifos.path("in")).is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let closed = tokio::time::timeout(DRAIN_PATIENCE, closed).await;
        assert!(closed.is_ok(), "somebody still reads what nobody wants");
        assert_eq!(out.await.unwrap(), "said");
        assert_eq!(err.await.unwrap(), "");
    }

    #[tokio::test]
    async fn files_are_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("logs/out");
        let paths = StdioPaths {
            stdout: format!("file://{}", log.display()),
            ..StdioPaths::default()
        };
        for text in ["one ", "two"] {
            let (stdio, [_, mut stdout, _]) = connect(&paths, root()).await;
            stdout.write_all(text.as_bytes()).unwrap();
            drop(stdout);
            stdio.drain(None).await;
        }
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one two");
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named() {
        let paths = StdioPaths {
            stdout: "/no/such/fifo".into(),
            ..StdioPaths::default()
        };
        let error = try_connect(&paths, root()).await.err().unwrap().to_string();
        assert!(error.contains("stdout /no/such/fifo"), "{error}");
        let paths = StdioPaths {
            stderr: "binary:///bin/logger".into(),
            ..StdioPaths::default()
        };
        let error = try_connect(&paths, root()).await.err().unwrap().to_string();
        assert!(error.contains("named as the stdout"), "{error}");
    }

    #[tokio::test]
    async fn the_containers_ends_belong_to_its_user() {
        use std::os::unix::fs::MetadataExt;
        let fifos = Fifos::new();
        let owner = (Uid::from_raw(1000), Gid::from_raw(1001));
        let (_stdio, [_, stdout, _]) = connect(&fifos.paths(), owner).await;
        let metadata = stdout.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
    }

    #[tokio::test]
    async fn a_terminal_is_copied_both_ways_and_ends_with_its_last_process() {
        let fifos = Fifos::new();
        let paths = StdioPaths {
            terminal: true,
            ..fifos.paths()
        };
        let (stdio, ProcessStdio::Terminal) = try_connect(&paths, root()).await.unwrap() else {
            panic!("a terminal was asked for");
        };
        stdio.resize(1, 1).unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        stdio.attach(Console::new(pty.master).unwrap());
        stdio.open_stdin().unwrap();
        stdio.resize(43, 132).unwrap();
        let size = std::process::Command::new("stty")
            .arg("size")
            .stdin(pty.slave.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(size.stdout, b"43 132\n");

        let out = fifos.read("out");
        let name = nix::unistd::ttyname(&pty.slave).unwrap();
        let reopen = || File::options().write(true).open(&name).unwrap();
        let mut slave = File::from(pty.slave);
        std::fs::OpenOptions::new()
            .write(true)
            .open(fifos.path("in"))
            .unwrap()
            .write_all(b"typed\n")
            .unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut line = [0; 64];
            let length = slave.read(&mut line).unwrap();
            slave.write_all(b"said\n").unwrap();
            line[..length].to_vec()
        });
        assert_eq!(read.await.unwrap(), b"typed\n");
        // For a while nobody has it.
        let again = reopen();
        (&again).write_all(b"more\n").unwrap();
        drop(again);
        stdio.settle().await;
        drop(stdio);
        // What was typed is echoed, and a terminal's lines end with two characters.
        assert_eq!(out.await.unwrap(), "typed\r\nsaid\r\nmore\r\n");
    }
}
