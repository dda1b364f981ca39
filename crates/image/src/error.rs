use std::{io, path::PathBuf};

use crate::Platform;

/// Why an image could not be described or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that Docker's reference grammar does not allow.
    #[error("`{name}` is not an image name: {reason}")]
    Name { name: String, reason: &'static str },
    /// A platform that is not `os/architecture` or `os/architecture/variant`.
    #[error(
        "`{0}` is not a platform: write it as os/architecture, for example wasi/wasm or linux/amd64"
    )]
    Platform(String),
    /// Two images of an index are for the same platform.
    #[error("the platform {0} is given twice")]
    PlatformTwice(Platform),
    /// An index of no images.
    #[error("an image for no platform can be used nowhere: give at least one")]
    NoImage,
    /// A wasm file that was to be a layer could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Program { path: PathBuf, source: io::Error },
    /// A path in the image that cannot be one.
    #[error("`{path}` cannot be a path in an image: {reason}")]
    Path { path: String, reason: &'static str },
    /// Two entries of one layer want the same path.
    #[error("the layer holds `{0}` already")]
    Duplicate(String),
    /// An entry lies below another that is no directory.
    #[error("`{path}` cannot be added: `{parent}` in the same layer is not a directory")]
    Parent { path: String, parent: String },
    /// An environment variable that no process could be given.
    #[error("`{0}` cannot be the name of an environment variable: it is empty or contains `=`")]
    Env(String),
    /// A file that was to be put into the image could not be read.
    #[error("cannot read {} for `{path}` in the image: {source}", host.display())]
    Read {
        host: PathBuf,
        path: String,
        source: io::Error,
    },
    /// A thing on the host that has no place in an image, a socket for example.
    #[error("cannot put {} into an image: it is not a file, a directory or a symbolic link", .0.display())]
    Kind(PathBuf),
    /// A file grew or shrank while it was read.
    #[error("{} changed while it was read; try again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    /// What goes into the image could not be kept in the folder for temporary files.
    #[error(
        "cannot write into {}: {source}; make room there, or name another folder in TMPDIR",
        std::env::temp_dir().display()
    )]
    Spool { source: io::Error },
    /// The archive could not be written.
    #[error("cannot write the archive: {0}")]
    Write(#[source] io::Error),
    /// The archive's file could not be made.
    #[error("cannot write {}: {source}", path.display())]
    Save { path: PathBuf, source: io::Error },
    /// A document of the image could not be written as JSON.
    #[error("cannot describe the image in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A document of the image breaks the OCI image specification.
    #[error("cannot describe the image: {0}")]
    Spec(#[from] oci_spec::OciSpecError),
}
