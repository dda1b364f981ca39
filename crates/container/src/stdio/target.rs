//! What a stream's path or URI means.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::unix::pipe;
use url::{ParseError, Url};

use super::StdioError;
use super::copy::Sink;
use super::logger::Program;

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

    /// Opens it for output; nothing if it is nowhere. A FIFO is opened for reading too: then there
    /// is always a reader, and output waits in it while its client is away.
    ///
    /// # Errors
    /// open(2)'s; and a logger is nothing to open.
    pub(super) fn open(self) -> io::Result<Option<Sink>> {
        Ok(Some(match self {
            Self::Null => return Ok(None),
            Self::Fifo(path) if is_fifo(&path)? => Box::new(
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(path)?,
            ),
            // A plain file where a FIFO was meant is appended to, as the runc shim does.
            Self::Fifo(path) => Box::new(append(&path, false)?),
            Self::File(path) => Box::new(append(&path, true)?),
            Self::Logger(_) => {
                return Err(io::Error::other(
                    "a logger takes stdout and stderr, and is named as the stdout",
                ));
            }
        }))
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
