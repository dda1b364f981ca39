//! SHA-256 of files, without disturbing their offset.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
pub(crate) type Digest = [u8; 32];

/// Hashes `length` bytes from the start of `file`.
///
/// # Errors
/// `UnexpectedEof` where the file is shorter, and what pread(2) says.
pub(crate) fn of_file(file: &File, length: u64) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    each_chunk(file, length, |chunk| {
        hash.update(chunk);
        Ok(())
    })?;
    Ok(hash.finalize().into())
}

/// Copies `length` bytes from the start of `from` to where `to` is, and hashes what it copied.
///
/// # Errors
/// As [`of_file`], and what write(2) says.
pub(crate) fn of_copy(from: &File, mut to: &File, length: u64) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    each_chunk(from, length, |chunk| {
        hash.update(chunk);
        to.write_all(chunk)
    })?;
    Ok(hash.finalize().into())
}

fn each_chunk(
    file: &File,
    length: u64,
    mut visit: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; length.min(256 * 1024) as usize];
    let mut offset = 0;
    while offset < length {
        let chunk = &mut buffer[..(length - offset).min(256 * 1024) as usize];
        file.read_exact_at(chunk, offset)?;
        visit(chunk)?;
        offset += chunk.len() as u64;
    }
    Ok(())
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
