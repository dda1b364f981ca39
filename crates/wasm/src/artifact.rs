//! The file that holds a guest's native code.
//!
//! It is what wasmtime serialises (an ELF file, mapped from offset 0), followed by a footer that
//! wasmtime never looks at:
//!
//! | bytes | |
//! |---|---|
//! | 1 | kind: 0 a core module, 1 a component, 2 a component that serves HTTP |
//! | 32 | SHA-256 of the wasm that the code was made from |
//! | 32 | SHA-256 of all that stands before this field |
//! | 8 | [`FORMAT`] |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::digest::{self, Digest};
use crate::recall::Memory;

/// Ends every artifact, and names the version of this layout and of how each kind is compiled.
pub(crate) const FORMAT: &[u8; 8] = b"lighter2";

/// What was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Module,
    Component,
    /// A component that is compiled by [`crate::engine::server_engine`].
    Server,
}

const KIND_LEN: u64 = 1;
const DIGEST_LEN: u64 = 32;
const FOOTER_LEN: u64 = KIND_LEN + 2 * DIGEST_LEN + FORMAT.len() as u64;

/// Appends the footer to `file`, which so far holds what wasmtime serialised from `module`.
pub(crate) fn seal(file: &File, kind: Kind, module: &Digest) -> io::Result<()> {
    let code = file.metadata()?.len();
    let kind = match kind {
        Kind::Module => 0,
        Kind::Component => 1,
        Kind::Server => 2,
    };
    file.write_all_at(&[kind], code)?;
    file.write_all_at(module, code + KIND_LEN)?;
    let covered = code + KIND_LEN + DIGEST_LEN;
    let digest = digest::of_file(file, covered)?;
    file.write_all_at(&digest, covered)?;
    file.write_all_at(FORMAT, covered + DIGEST_LEN)
}

/// Whether `file` is an undamaged artifact made from `module`.
pub(crate) fn is_intact(file: &File, module: &Digest, memory: &Memory) -> io::Result<bool> {
    let Some(footer) = Footer::read(file)? else {
        return Ok(false);
    };
    if footer.kind().is_none() || footer.module() != module {
        return Ok(false);
    }
    let covered = footer.offset + KIND_LEN + DIGEST_LEN;
    Ok(memory.digest(file, covered)? == *footer.digest())
}

/// What `file` holds; `None` where it is no artifact.
pub(crate) fn kind(file: &File) -> io::Result<Option<Kind>> {
    Ok(Footer::read(file)?.and_then(|footer| footer.kind()))
}

struct Footer {
    offset: u64,
    bytes: [u8; FOOTER_LEN as usize],
}

impl Footer {
    fn read(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let Some(offset) = metadata.len().checked_sub(FOOTER_LEN) else {
            return Ok(None);
        };
        let mut bytes = [0; FOOTER_LEN as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.ends_with(FORMAT).then_some(Self { offset, bytes }))
    }

    fn kind(&self) -> Option<Kind> {
        match self.bytes[0] {
            0 => Some(Kind::Module),
            1 => Some(Kind::Component),
            2 => Some(Kind::Server),
            _ => None,
        }
    }

    fn module(&self) -> &[u8] {
        &self.bytes[1..33]
    }

    fn digest(&self) -> &[u8] {
        &self.bytes[33..65]
    }
}
