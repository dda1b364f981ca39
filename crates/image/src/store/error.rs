//! What goes wrong between here and containerd.

use std::io;
use std::path::PathBuf;

/// Why containerd did not give a part of an image.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no containerd.
    #[error("cannot reach containerd at {}: {reason}", address.display())]
    Connect {
        /// Its socket.
        address: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The name cannot be a namespace.
    #[error("{0:?} is no namespace of containerd")]
    Namespace(String),
    /// A call to containerd that should work did not.
    #[error("asking containerd for {what} failed: {reason}")]
    Call {
        /// What was asked for.
        what: String,
        /// What containerd or the connection said.
        reason: String,
    },
    /// A part of the image is not in containerd's content store.
    #[error(
        "the image {image} is not whole: containerd's content store lacks {what}; pull or import it again"
    )]
    Missing {
        /// The image.
        image: String,
        /// The part.
        what: String,
    },
    /// A part of the image is not what its digest or size says.
    #[error(
        "the image {image} is damaged: {what} {reason}; remove the image and pull or import it again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// The part.
        what: String,
        /// In which way.
        reason: String,
    },
    /// The image breaks the layout's rules.
    #[error("the image {image} cannot be run: {reason}")]
    Malformed {
        /// The image.
        image: String,
        /// Which, and how.
        reason: String,
    },
    /// What containerd gave cannot be kept.
    #[error("cannot keep {what} of the image {image}: {source}")]
    Keep {
        /// The image.
        image: String,
        /// The part.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
}
