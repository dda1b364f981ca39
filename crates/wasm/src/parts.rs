//! Several wasm files in one, for the compile worker: a program, and what it may be composed with.
//!
//! | bytes | |
//! |---|---|
//! | 16 | [`MAGIC`] |
//! | 8 | size of the first file, the program, in bytes (little-endian) |
//! | size | the file |
//! | ... | the others likewise |

use std::fs::File;
use std::io::{self, Write};

use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};

/// Begins a file of parts. No wasm file begins so.
const MAGIC: &[u8; 16] = b"\0lighter parts 1";

const SIZE_LEN: usize = 8;

/// A file of parts under construction, in memory and without a name.
#[derive(Debug)]
pub struct Parts(File);

impl Parts {
    /// A file without parts.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Self> {
        let mut file = File::from(memfd_create(c"parts", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(MAGIC)?;
        Ok(Self(file))
    }

    /// What native code is kept under that is made of parts with these SHA-256, in their order: one
    /// alone stands for itself.
    pub fn key(digests: &[[u8; 32]]) -> [u8; 32] {
        match digests {
            [module] => *module,
            _ => {
                // The number is another one when they are composed in another way.
                let mut hash = Sha256::new_with_prefix(b"composed 2");
                digests.iter().for_each(|digest| hash.update(digest));
                hash.finalize().into()
            }
        }
    }

    /// Begins the next part, the program first. Exactly `size` bytes must be written to what is
    /// returned.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn begin(&mut self, size: u64) -> io::Result<&mut File> {
        self.0.write_all(&size.to_le_bytes())?;
        Ok(&mut self.0)
    }

    /// The file, whole.
    pub fn into_file(self) -> File {
        self.0
    }
}

/// The parts of `bytes`; `None` where these are no parts but one wasm file.
///
/// # Errors
/// When the last part is cut off.
pub(crate) fn split(bytes: &[u8]) -> Result<Option<Vec<&[u8]>>, String> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let cut = || "its last layer is cut off".to_owned();
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (size, after) = rest.split_first_chunk::<SIZE_LEN>().ok_or_else(cut)?;
        let size = usize::try_from(u64::from_le_bytes(*size)).map_err(|_| cut())?;
        let (part, after) = after.split_at_checked(size).ok_or_else(cut)?;
        parts.push(part);
        rest = after;
    }
    Ok(Some(parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn what_is_written_is_split() {
        let mut parts = Parts::new().unwrap();
        for part in [&b"one"[..], b"", b"three"] {
            let file = parts.begin(part.len() as u64).unwrap();
            file.write_all(part).unwrap();
        }
        let (mut file, mut bytes) = (parts.into_file(), Vec::new());
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let found = split(&bytes).unwrap().unwrap();
        assert_eq!(found, [&b"one"[..], b"", b"three"]);
        assert!(split(&bytes[..bytes.len() - 1]).is_err());
        assert!(split(b"\0asm\x01\0\0\0").unwrap().is_none());
    }
}
