//! The file that holds a guest's native code.
//!
//! It is what wasmtime serialises (an ELF file, mapped from offset 0), followed by a footer that
//! wasmtime never looks at:
//!
//! | bytes | |
//! |---|---|
//! | n | what the module was called when it was compiled, for people |
//! | 1 | n, at most 255 |
//! | 1 | kind: 0 a core module, 1 a component, 2 and 3 a component that serves HTTP |
//! | 32 | SHA-256 of the wasm that the code was made from |
//! | 32 | SHA-256 of all that stands before this field |
//! | 8 | [`FORMAT`] |

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::digest::{self, Digest};
use crate::recall::Memory;

/// Ends every artifact, and names the version of this layout and of how each kind is compiled.
pub(crate) const FORMAT: &[u8; 8] = b"lighter4";

/// What was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A core module.
    Module,
    /// A component.
    Component,
    /// A component that serves HTTP, one request at a time in an instance; its code differs
    /// (`engine::server_engine`).
    Server,
    /// A component that serves HTTP, several requests at a time in an instance.
    #[serde(rename = "concurrent-server")]
    ConcurrentServer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Module => "module",
            Self::Component => "component",
            Self::Server | Self::ConcurrentServer => "http",
        })
    }
}

const DIGEST_LEN: u64 = 32;
/// The footer without the name.
const FOOTER_LEN: u64 = 2 + 2 * DIGEST_LEN + FORMAT.len() as u64;

/// Appends the footer to `file`, which so far holds what wasmtime serialised from `module`.
pub(crate) fn seal(file: &File, kind: Kind, module: &Digest, name: &str) -> io::Result<()> {
    let code = file.metadata()?.len();
    let name = &name[..name.floor_char_boundary(u8::MAX.into())];
    let kind = match kind {
        Kind::Module => 0,
        Kind::Component => 1,
        Kind::Server => 2,
        Kind::ConcurrentServer => 3,
    };
    let mut footer = name.as_bytes().to_vec();
    footer.extend([name.len() as u8, kind]);
    footer.extend(module);
    file.write_all_at(&footer, code)?;
    let covered = code + footer.len() as u64;
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
    let covered = footer.offset + 2 + DIGEST_LEN;
    Ok(memory.digest(file, covered)? == *footer.digest())
}

/// What `file` holds; `None` where it is no artifact.
pub(crate) fn kind(file: &File) -> io::Result<Option<Kind>> {
    Ok(Footer::read(file)?.and_then(|footer| footer.kind()))
}

/// What the module was called; `None` where `file` is no artifact.
pub(crate) fn name(file: &File) -> io::Result<Option<String>> {
    let Some(footer) = Footer::read(file)? else {
        return Ok(None);
    };
    let length = footer.bytes[0];
    let mut name = vec![0; length.into()];
    let Some(offset) = footer.offset.checked_sub(length.into()) else {
        return Ok(None);
    };
    file.read_exact_at(&mut name, offset)?;
    Ok(String::from_utf8(name).ok())
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
        match self.bytes[1] {
            0 => Some(Kind::Module),
            1 => Some(Kind::Component),
            2 => Some(Kind::Server),
            3 => Some(Kind::ConcurrentServer),
            _ => None,
        }
    }

    fn module(&self) -> &[u8] {
        &self.bytes[2..34]
    }

    fn digest(&self) -> &[u8] {
        &self.bytes[34..66]
    }
}
