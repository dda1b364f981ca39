//! Container images, written and read.
//!
//! Writing: an [`Image`] says what is in one and how it runs, an
//! [`Artifact`] is a wasm file without a file system around it, an [`Archive`] puts
//! them into one file that `ctr images import`, `docker load` and other OCI tools take.
//!
//! An image is made of nothing but what it is told to hold. Its bytes do not
//! depend on the machine, the user or the hour: the same input gives the same
//! digests.
//!
//! ```no_run
//! use image::{Entry, Image, Layer};
//!
//! # fn main() -> Result<(), image::Error> {
//! let mut layer = Layer::default();
//! layer.add("/hello.wasm", Entry::file("target/hello.wasm").mode(0o755))?;
//! let image = Image {
//!     entrypoint: vec!["/hello.wasm".into()],
//!     layers: vec![layer],
//!     ..Image::default()
//! };
//! let saved = image.save(&"hello:1".parse()?, "hello.tar")?;
//! assert_eq!(saved.name.to_string(), "docker.io/library/hello:1");
//! # Ok(())
//! # }
//! ```
//!
//! Reading: a [`Store`] gives the parts of the images that a containerd has, each held against its
//! digest; a [`Document`] says what an image is made of, and [`Manifest::wasm_layers`] what of it is wasm;
//! [`Files`] finds a file in the layers of an image, and [`extract`] takes it out.
#![forbid(unsafe_code)]

mod archive;
mod artifact;
mod blob;
mod compression;
mod error;
mod files;
mod layer;
mod manifest;
mod media;
mod name;
mod platform;
mod save;
mod store;
mod wasm_layers;

use std::collections::BTreeMap;

pub use archive::{Archive, Saved};
pub use artifact::{Artifact, Wasm};
pub use compression::decompressed;
pub use error::Error;
pub use files::{Content, Files, extract};
pub use layer::{Entry, Layer};
pub use manifest::{Descriptor, Document, Index, Manifest};
pub use name::Name;
pub use platform::Platform;
pub use save::{ArchiveFile, draft, save};
pub use store::{Blob, Incoming, Store, StoreError};
pub use wasm_layers::{check_size, composed, listed, meant, named, without_function};

/// What an image holds and how a container made from it runs: the OCI image
/// specification's `config.md`, without what Lighter has no use for.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// What the image is built to run on; `wasi/wasm` by default.
    pub platform: Platform,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after those of the entrypoint, unless a user gives others.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The folder in which the program starts; `/` if `None`.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root if `None`.
    pub user: Option<String>,
    /// The signal that asks the program to end, as `SIGINT`; SIGTERM if `None`.
    pub stop_signal: Option<String>,
    /// Labels, of any meaning.
    pub labels: BTreeMap<String, String>,
    /// The file system, lowest layer first.
    pub layers: Vec<Layer>,
}
