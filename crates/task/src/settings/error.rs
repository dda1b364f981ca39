//! Why settings were refused.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::protos::protobuf;

use super::annotations::ANNOTATION_PREFIX;

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message cannot be decoded.
    #[error("the runtime options ({kind}) cannot be decoded: {source}")]
    Decode {
        /// The message's type.
        kind: String,
        /// Where decoding failed.
        source: protobuf::Error,
    },
    /// The message is of a type that is not known here.
    #[error(
        "the runtime options have the type {0}; containerd.runc.v1.Options and runtimeoptions.v1.Options are taken"
    )]
    Kind(String),
    /// A file cannot be read.
    #[error("the settings in {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no TOML.
    #[error("{from}, line {line}: {reason}")]
    Toml {
        /// Where the text is from.
        from: String,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// There is no such setting.
    #[error("{from}: there is no setting {name:?}; the closest is {closest:?}")]
    Unknown {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
        /// The valid name that was most likely meant.
        closest: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{from}: {name} cannot be {value}: {reason}")]
    Value {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
        /// The value.
        value: String,
        /// What it should be.
        reason: String,
    },
    /// A setting is there by two names.
    #[error("{from}: {name} is there twice")]
    Twice {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
    },
    /// An annotation has the name of a table.
    #[error(
        "{from}: {name:?} is a table; an annotation sets one of its settings, {ANNOTATION_PREFIX}{name}.NAME"
    )]
    Table {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
    },
    /// What can be set is not for annotations.
    #[error(
        "{from}: {name:?} is not for annotations; they can be allowed settings of guests, such as \"limits.memory\", and tables of them, such as \"limits\""
    )]
    Host {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
    },
    /// An annotation sets what no file allows it to.
    #[error(
        "the annotation {ANNOTATION_PREFIX}{name} is not allowed here; to allow it, add {name:?} to the list \"annotations\" in {file}, or in the runtime options"
    )]
    NotAllowed {
        /// The setting's name.
        name: String,
        /// The host's file.
        file: PathBuf,
    },
    /// Settings that are right alone contradict each other.
    #[error("the settings contradict each other: {0}")]
    Together(String),
}

impl OptionsError {
    /// The file `path` cannot be read.
    pub fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}
