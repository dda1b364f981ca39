//! What a stream's path or URI means.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::unix::pipe;

use super::StdioError;
use super::copy::Sink;

/// Where a stream comes from or goes to.
pub(super) enum Target {
    /// A FIFO; or a plain file where one was meant.
    Fifo(PathBuf),
    /// `file://`: a file, made with its folders where it is missing.
    File(PathBuf),
}

impl Target {
    /// Understands `uri`, which is given for the stream named `stream`.
    ///
    /// # Errors
    /// When its scheme is not served.
    pub(super) fn parse(stream: &'static str, uri: &str) -> Result<Self, StdioError> {
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

    /// Its path.
    pub(super) fn into_path(self) -> PathBuf {
        match self {
            Self::Fifo(path) | Self::File(path) => path,
        }
    }

    /// Opens it for output. A FIFO is opened for reading too: then there is always a reader, and
    /// output waits in it while its client is away.
    ///
    /// # Errors
    /// open(2)'s.
    pub(super) fn open(self) -> io::Result<Sink> {
        Ok(match self {
            Self::Fifo(path) if is_fifo(&path)? => Box::new(
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(path)?,
            ),
            // A plain file where a FIFO was meant is appended to, as the runc shim does.
            Self::Fifo(path) => Box::new(append(&path, false)?),
            Self::File(path) => Box::new(append(&path, true)?),
        })
    }
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
