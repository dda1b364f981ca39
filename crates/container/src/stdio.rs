//! A process's standard streams: pipes to the container, copied from and to what containerd names.
//!
//! The container never holds containerd's FIFOs themselves. A reader that goes away (containerd
//! restarting, say) then breaks nothing: our ends of the FIFOs are open for reading and writing,
//! so output waits in them for the next reader.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{Gid, Uid, fchown};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

/// How long output may make no progress after its process has ended before it is given up: what
/// the runc shim waits.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How much is copied at a time, in bytes: a pipe's default capacity.
const CHUNK: usize = 64 * 1024;

/// Where containerd wants a process's streams; an empty string is /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A FIFO to read from.
    pub stdin: String,
    /// A FIFO or file to write to.
    pub stdout: String,
    /// A FIFO or file to write to.
    pub stderr: String,
}

/// Why streams could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The path cannot be opened.
    #[error("the container's {stream} {path} cannot be opened: {source}")]
    Open {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The path as given.
        path: String,
        /// open(2)'s reason.
        source: io::Error,
    },
    /// The URI has a scheme that is not served.
    #[error(
        "the container's {stream} {uri} has the scheme {scheme}://, which this shim does not serve; fifo:// and file:// it does"
    )]
    Scheme {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The URI as given.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// No pipe could be made for it.
    #[error("making a pipe for the container's {stream}: {source}")]
    Pipe {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// pipe(2)'s or fchown(2)'s reason.
        source: io::Error,
    },
}

/// The container's ends of its streams.
pub struct ContainerStdio {
    /// Its stdin.
    pub stdin: OwnedFd,
    /// Its stdout.
    pub stdout: OwnedFd,
    /// Its stderr.
    pub stderr: OwnedFd,
}

/// The copying of one process's streams; it ends when this is dropped.
pub struct Stdio {
    stdin: Mutex<Stdin>,
    stdin_copy: Mutex<JoinSet<()>>,
    output: tokio::sync::Mutex<JoinSet<()>>,
    copied: Arc<AtomicU64>,
}

/// How far a process's stdin has come.
enum Stdin {
    /// Its FIFO is opened when the process starts, not before: some clients (ctr) cannot close
    /// the stdin of a task that they are still creating, and read their own as soon as the FIFO
    /// is open.
    Waiting {
        path: PathBuf,
        sink: pipe::Sender,
        closed: bool,
    },
    /// It is copied; clients may come and go, as the FIFO is kept open for writing too.
    Open { _kept: pipe::Sender },
    /// It ends when the last client closes it, as CloseIO asked; or there is none.
    Closed,
}

impl Stdio {
    /// Opens what `paths` names and starts copying output, in the running tokio runtime. The
    /// container's ends belong to `owner`, so that its user can open /dev/stdout.
    ///
    /// # Errors
    /// Names the stream and the path.
    pub fn connect(
        paths: &StdioPaths,
        owner: (Uid, Gid),
    ) -> Result<(Self, ContainerStdio), StdioError> {
        let copied = Arc::new(AtomicU64::new(0));
        let mut output = JoinSet::new();
        let mut waiting = Stdin::Closed;

        let stdin = if paths.stdin.is_empty() {
            null("stdin")?
        } else {
            let path = Target::parse("stdin", &paths.stdin)?.into_path();
            fifo(&path).map_err(|source| StdioError::Open {
                stream: "stdin",
                path: paths.stdin.clone(),
                source,
            })?;
            let (theirs, ours) = io::pipe().map_err(pipe_error("stdin"))?;
            let ours = pipe::Sender::from_owned_fd(ours.into()).map_err(pipe_error("stdin"))?;
            waiting = Stdin::Waiting {
                path,
                sink: ours,
                closed: false,
            };
            owned("stdin", theirs.into(), owner)?
        };
        let mut connect = |stream, path: &str| -> Result<OwnedFd, StdioError> {
            if path.is_empty() {
                return null(stream);
            }
            let (ours, theirs) = io::pipe().map_err(pipe_error(stream))?;
            let ours = pipe::Receiver::from_owned_fd(ours.into()).map_err(pipe_error(stream))?;
            let open = |source| StdioError::Open {
                stream,
                path: path.to_owned(),
                source,
            };
            match Target::parse(stream, path)?.open() {
                Ok(Sink::Fifo(sink)) => output.spawn(copy(ours, sink, copied.clone())),
                Ok(Sink::File(sink)) => output.spawn(copy(ours, sink, copied.clone())),
                Err(error) => return Err(open(error)),
            };
            owned(stream, theirs.into(), owner)
        };
        let stdout = connect("stdout", &paths.stdout)?;
        let stderr = connect("stderr", &paths.stderr)?;
        let stdio = Self {
            stdin: Mutex::new(waiting),
            stdin_copy: Mutex::default(),
            output: tokio::sync::Mutex::new(output),
            copied,
        };
        Ok((
            stdio,
            ContainerStdio {
                stdin,
                stdout,
                stderr,
            },
        ))
    }

    /// Starts copying the process's stdin, if it has one and it has not been closed.
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
        if !closed {
            let _kept = options.open_sender(&path).map_err(open)?;
            *stdin = Stdin::Open { _kept };
        }
        lock(&self.stdin_copy).spawn(copy(source, sink, Arc::default()));
        Ok(())
    }

    /// Lets the process's stdin end as soon as containerd's client has closed its side.
    pub fn close_stdin(&self) {
        match &mut *lock(&self.stdin) {
            // What its client has written by now is still to be read.
            Stdin::Waiting { closed, .. } => *closed = true,
            stdin => *stdin = Stdin::Closed,
        }
    }

    /// Waits until everything that the process wrote has been handed over, or until nobody has
    /// taken any of it for ten seconds. To be called when the process has ended.
    pub async fn drain(&self) {
        self.close_stdin();
        lock(&self.stdin_copy).abort_all();
        let mut output = self.output.lock().await;
        let mut copied = self.copied.load(Ordering::Relaxed);
        while !output.is_empty() {
            let all = async { while output.join_next().await.is_some() {} };
            if tokio::time::timeout(DRAIN_PATIENCE, all).await.is_ok() {
                return;
            }
            let now = self.copied.load(Ordering::Relaxed);
            if now == copied {
                log::warn!("output of a container that has ended is not being read; it is dropped");
                output.abort_all();
                return;
            }
            copied = now;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pipe_error(stream: &'static str) -> impl FnOnce(io::Error) -> StdioError {
    move |source| StdioError::Pipe { stream, source }
}

fn null(stream: &'static str) -> Result<OwnedFd, StdioError> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|source| StdioError::Open {
            stream,
            path: "/dev/null".to_owned(),
            source,
        })
}

fn owned(stream: &'static str, fd: OwnedFd, (uid, gid): (Uid, Gid)) -> Result<OwnedFd, StdioError> {
    match fchown(&fd, Some(uid), Some(gid)) {
        Ok(()) => Ok(fd),
        Err(error) => Err(pipe_error(stream)(error.into())),
    }
}

/// What a stream's path or URI means.
enum Target {
    Fifo(PathBuf),
    File(PathBuf),
}

enum Sink {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
}

impl Target {
    fn parse(stream: &'static str, uri: &str) -> Result<Self, StdioError> {
        match uri.split_once("://") {
            None => Ok(Self::Fifo(uri.into())),
            Some(("fifo", path)) => Ok(Self::Fifo(path.into())),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some((scheme, _)) => Err(StdioError::Scheme {
                stream,
                uri: uri.to_owned(),
                scheme: scheme.to_owned(),
            }),
        }
    }

    fn into_path(self) -> PathBuf {
        match self {
            Self::Fifo(path) | Self::File(path) => path,
        }
    }

    fn open(self) -> io::Result<Sink> {
        match self {
            Self::Fifo(path) if is_fifo(&path)? => pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(path)
                .map(Sink::Fifo),
            // A plain file where a FIFO was meant is appended to, as the runc shim does.
            Self::Fifo(path) => append(&path, false).map(Sink::File),
            Self::File(path) => append(&path, true).map(Sink::File),
        }
    }
}

fn fifo(path: &Path) -> io::Result<()> {
    if is_fifo(path)? {
        Ok(())
    } else {
        Err(io::Error::other("it is not a FIFO"))
    }
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(std::fs::metadata(path)?.file_type().is_fifo())
}

fn append(path: &Path, create: bool) -> io::Result<tokio::fs::File> {
    if create && let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(create)
        .open(path)?;
    Ok(tokio::fs::File::from_std(file))
}

/// Copies until the source ends or the sink is closed, counting bytes in `copied`. Holds a buffer
/// only while there is something to copy: most containers are silent most of the time.
async fn copy(
    source: pipe::Receiver,
    sink: impl AsyncWrite + Send + 'static,
    copied: Arc<AtomicU64>,
) {
    let mut sink = pin!(sink);
    while source.readable().await.is_ok() {
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.try_read(&mut buffer) {
                Ok(0) => {
                    // A file's last write may be under way still.
                    let _ = sink.flush().await;
                    return;
                }
                Ok(length) => {
                    if let Err(error) = sink.write_all(&buffer[..length]).await {
                        // A stdin that its process has closed is no news.
                        if error.kind() != io::ErrorKind::BrokenPipe {
                            log::warn!("copying a container's stream: {error}");
                        }
                        return;
                    }
                    copied.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    log::warn!("reading a container's stream: {error}");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::fs::File;
    use std::io::{Read, Write};

    fn root() -> (Uid, Gid) {
        (Uid::from_raw(0), Gid::from_raw(0))
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

        fn paths(&self) -> StdioPaths {
            StdioPaths {
                stdin: self.path("in"),
                stdout: self.path("out"),
                stderr: self.path("err"),
            }
        }
    }

    #[tokio::test]
    async fn streams_are_copied_and_drained() {
        let fifos = Fifos::new();
        let (stdio, container) = Stdio::connect(&fifos.paths(), root()).unwrap();
        stdio.open_stdin().unwrap();
        let out = fifos.path("out");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            File::open(out).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        std::fs::OpenOptions::new()
            .write(true)
            .open(fifos.path("in"))
            .unwrap()
            .write_all(b"typed")
            .unwrap();
        stdio.close_stdin();
        let stdin = container.stdin;
        let typed = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            File::from(stdin).read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(typed.await.unwrap(), "typed");
        File::from(container.stdout).write_all(b"said").unwrap();
        drop(container.stderr);
        stdio.drain().await;
        drop(stdio);
        assert_eq!(reader.join().unwrap(), "said");
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
            let (stdio, container) = Stdio::connect(&paths, root()).unwrap();
            File::from(container.stdout)
                .write_all(text.as_bytes())
                .unwrap();
            stdio.drain().await;
        }
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one two");
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named() {
        let paths = StdioPaths {
            stdout: "/no/such/fifo".into(),
            ..StdioPaths::default()
        };
        let error = Stdio::connect(&paths, root()).err().unwrap().to_string();
        assert!(error.contains("stdout /no/such/fifo"), "{error}");
        let paths = StdioPaths {
            stderr: "binary:///bin/logger".into(),
            ..StdioPaths::default()
        };
        let error = Stdio::connect(&paths, root()).err().unwrap().to_string();
        assert!(error.contains("binary://"), "{error}");
    }

    #[tokio::test]
    async fn the_containers_ends_belong_to_its_user() {
        use std::os::unix::fs::MetadataExt;
        let fifos = Fifos::new();
        let owner = (Uid::from_raw(1000), Gid::from_raw(1001));
        let (_stdio, container) = Stdio::connect(&fifos.paths(), owner).unwrap();
        let metadata = File::from(container.stdout).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
    }
}
