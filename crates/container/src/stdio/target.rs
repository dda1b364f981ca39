//! What a stream's path or URI means.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::time::sleep;
use url::{ParseError, Url};

use super::StdioError;
use super::copy::Writer;
use super::logger::Program;
use crate::blocking::blocking;

/// Where a stream comes from or goes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere.
    Null,
    /// A FIFO; or a plain file where one was meant.
    Fifo(PathBuf),
    /// `file://`: a file, made with its folders where it is missing.
    File(PathBuf),
    /// `binary://`: a program that takes stdout and stderr.
    Logger(Program),
}

impl Target {
    /// Understands `uri`, which is given for the stream named `stream`: a path, or a URI whose path
    /// and query may be percent-encoded (RFC 3986, section 2.1).
    ///
    /// # Errors
    /// When its scheme is not served, or its path is not an absolute one of this host.
    pub(super) fn parse(stream: &'static str, uri: &str) -> Result<Self, StdioError> {
        if uri.is_empty() {
            return Ok(Self::Null);
        }
        let wrong = |reason: String| StdioError::Uri {
            stream,
            uri: uri.to_owned(),
            reason,
        };
        // A path is taken as it is, whatever characters it has.
        if uri.starts_with('/') {
            return Ok(Self::Fifo(uri.into()));
        }
        let parsed = match Url::parse(uri) {
            Err(ParseError::RelativeUrlWithoutBase) => return Ok(Self::Fifo(uri.into())),
            parsed => parsed.map_err(|error| wrong(error.to_string()))?,
        };
        let path = || {
            let path = parsed.to_file_path();
            path.map_err(|()| wrong("three slashes begin an absolute path".to_owned()))
        };
        match parsed.scheme() {
            "fifo" => path().map(Self::Fifo),
            "file" => path().map(Self::File),
            "binary" => Ok(Self::Logger(Program {
                path: path()?,
                args: arguments(&parsed),
            })),
            scheme => Err(StdioError::Scheme {
                stream,
                uri: uri.to_owned(),
                scheme: scheme.to_owned(),
            }),
        }
    }

    /// Opens it for output; nothing if it is nowhere.
    ///
    /// # Errors
    /// open(2)'s; and a logger is nothing to open.
    pub(super) fn open(self) -> io::Result<Option<Sink>> {
        Ok(Some(match self {
            Self::Null => return Ok(None),
            Self::Fifo(path) if is_fifo(&path)? => match fifo_with_reader(&path)? {
                Some(fifo) => Sink::Open(fifo),
                None => Sink::Awaited(path),
            },
            // A plain file where a FIFO was meant is appended to, as the runc shim does.
            Self::Fifo(path) => Sink::Open(Box::new(append(&path, false)?)),
            Self::File(path) => Sink::Open(Box::new(append(&path, true)?)),
            Self::Logger(_) => {
                return Err(io::Error::other(
                    "a logger takes stdout and stderr, and is named as the stdout",
                ));
            }
        }))
    }
}

/// Where output goes.
pub(super) enum Sink {
    /// There.
    Open(Writer),
    /// Into a FIFO that nobody has opened for reading yet. Its client may be about to: one who comes
    /// when its writer has gone again waits for another forever. (containerd opens its FIFOs in
    /// threads of their own, and calls meanwhile.)
    Awaited(PathBuf),
}

impl Sink {
    /// Waits until there is somebody who reads.
    pub(super) async fn ready(self) -> Writer {
        let path = match self {
            Self::Open(writer) => return writer,
            Self::Awaited(path) => path,
        };
        let mut pause = SHORTEST_PAUSE;
        loop {
            match fifo_with_reader(&path) {
                Ok(Some(writer)) => return writer,
                Ok(None) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    log::warn!(
                        "nobody has read a container's output from {}: {error}",
                        path.display()
                    );
                    // What nobody wants must be read all the same.
                    return Box::new(tokio::io::sink());
                }
            }
        }
    }
}

/// Between two looks whether a FIFO has a reader: most come at once, if they come.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Opens a FIFO for output if somebody has it open for reading, or is about to and waits for a
/// writer. It is opened for reading too: from now on output waits in it while its client is away.
fn fifo_with_reader(path: &Path) -> io::Result<Option<Writer>> {
    let mut options = pipe::OpenOptions::new();
    match options.open_sender(path) {
        Ok(_found) => Ok(Some(Box::new(options.read_write(true).open_sender(path)?))),
        // Nobody (fifo(7)).
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `uri` gives a logger as arguments: each key and its first value, as the runc shim does,
/// but in their order.
fn arguments(uri: &Url) -> Vec<String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (key, value) in uri.query_pairs() {
        if pairs.iter().all(|(known, _)| *known != key) {
            pairs.push((key.into_owned(), value.into_owned()));
        }
    }
    pairs
        .into_iter()
        .flat_map(|(key, value)| [key, value])
        .collect()
}

/// Makes sure that `path` is a FIFO.
///
/// # Errors
/// When it is not, or cannot be looked at.
pub(super) fn check_fifo(path: &Path) -> io::Result<()> {
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

/// Opens `path` for appending.
fn append(path: &Path, create: bool) -> io::Result<LogFile> {
    if create && let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(create)
        .open(path)?;
    Ok(LogFile {
        file: Arc::new(file),
        path: path.to_owned(),
        is_failing: false,
        writing: None,
    })
}

/// A file that takes a container's output. What it cannot take, as on a full disk, is lost, and no reason for the container's
/// writes to fail.
struct LogFile {
    file: Arc<std::fs::File>,
    path: PathBuf,
    is_failing: bool,
    /// What is being written of the bytes that come next.
    writing: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

/// Writes `bytes` on a thread of its own, as the disk may be slow; without one, in place.
async fn append_to(file: Arc<std::fs::File>, bytes: Vec<u8>) -> io::Result<()> {
    let bytes: Arc<[u8]> = bytes.into();
    let (its_file, its_bytes) = (file.clone(), bytes.clone());
    match blocking(move || (&*its_file).write_all(&its_bytes)).await {
        Ok(written) => written,
        Err(_) => (&*file).write_all(&bytes),
    }
}

impl AsyncWrite for LogFile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let file = self.file.clone();
        let writing = self
            .writing
            .get_or_insert_with(|| Box::pin(append_to(file, bytes.to_vec())));
        let written = ready!(writing.as_mut().poll(context));
        self.writing = None;
        if let Err(error) = &written
            && !self.is_failing
        {
            let path = self.path.display();
            log::warn!("a container's output is lost, as {path} does not take it: {error}");
        }
        self.is_failing = written.is_err();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_uris_are_told_apart() {
        let parse = |uri| Target::parse("stdout", uri).map_err(|error| error.to_string());
        assert_eq!(parse(""), Ok(Target::Null));
        assert_eq!(parse("/a%20b?c"), Ok(Target::Fifo("/a%20b?c".into())));
        assert_eq!(
            parse("fifo:///run/out"),
            Ok(Target::Fifo("/run/out".into()))
        );
        assert_eq!(parse("file:///a%20b"), Ok(Target::File("/a b".into())));
        let uri = "binary:///bin/log%20it?to=%2Fvar&only&level=a+b&to=twice";
        let args = ["to", "/var", "only", "", "level", "a b"];
        assert_eq!(
            parse(uri),
            Ok(Target::Logger(Program {
                path: "/bin/log it".into(),
                args: args.map(str::to_owned).to_vec(),
            }))
        );
        for uri in ["binary://logger?to=here", "file://host/out"] {
            let error = parse(uri).unwrap_err();
            assert!(error.contains(uri), "{error}");
        }
        let error = parse("syslog:///").unwrap_err();
        assert!(error.contains("syslog://"), "{error}");
    }
}
