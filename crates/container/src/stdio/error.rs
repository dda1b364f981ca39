//! Why streams could not be connected.

use std::io;

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
        "the container's {stream} {uri} has the scheme {scheme}://, which this shim does not serve; fifo://, file:// and binary:// it does"
    )]
    Scheme {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The URI as given.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// The URI names nothing on this host.
    #[error("the container's {stream} {uri} is wrong: {reason}")]
    Uri {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The URI as given.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// The logger does not run.
    #[error("the container's logger {uri} failed: {reason}")]
    Logger {
        /// The URI as given.
        uri: String,
        /// Why.
        reason: String,
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
