//! Blobs: bytes with the digest by which an image knows them.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Error;

/// Bytes, their number and their SHA-256 as 64 hexadecimal digits.
pub struct Blob<R> {
    pub content: R,
    pub size: u64,
    pub sha256: String,
}

impl<R> Blob<R> {
    /// The digest as OCI documents write it.
    pub fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    /// The blob's place in an OCI image layout.
    pub fn path(&self) -> String {
        format!("blobs/sha256/{}", self.sha256)
    }

    /// The descriptor by which another document refers to this one.
    pub fn descriptor(
        &self,
        media_type: oci_spec::image::MediaType,
    ) -> Result<oci_spec::image::Descriptor, Error> {
        let digest: oci_spec::image::Digest = self.digest().parse()?;
        Ok(oci_spec::image::Descriptor::new(
            media_type, self.size, digest,
        ))
    }
}

/// A document as a blob. Keys are sorted: maps come in any order, digests must not.
pub fn json(document: &impl Serialize) -> Result<Blob<Vec<u8>>, Error> {
    let mut value = serde_json::to_value(document)?;
    value.sort_all_objects();
    let content = serde_json::to_vec(&value)?;
    Ok(Blob {
        size: content.len() as u64,
        sha256: format!("{:x}", Sha256::digest(&content)),
        content,
    })
}

/// A copy of a file of the host as a blob.
///
/// # Errors
/// When it cannot be read or is no file.
pub fn of_file(path: &Path) -> Result<Blob<impl Read + use<>>, Error> {
    let failed = |source| Error::Program {
        path: path.into(),
        source,
    };
    // Opening a pipe would wait for a writer, so look first.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::Kind(path.into()));
    }
    let mut file = fs::File::open(path).map_err(failed)?;
    let spool = |source| Error::Spool { source };
    let mut copy = Spool::new().map_err(spool)?;
    let mut source = Source::new(&mut file);
    match io::copy(&mut source, &mut copy) {
        Ok(_) => copy.finish().map_err(spool),
        Err(error) if source.has_failed => Err(failed(error)),
        Err(error) => Err(spool(error)),
    }
}

/// What is read to be written elsewhere, and which of both has failed.
pub struct Source<R> {
    inner: R,
    /// Whether reading has.
    pub has_failed: bool,
}

impl<R> Source<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            has_failed: false,
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer);
        // It is tried again after an interruption.
        self.has_failed = read
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        read
    }
}

/// Takes bytes on their way to a file and turns them into a blob.
pub struct Spool {
    file: io::BufWriter<std::fs::File>,
    size: u64,
    sha256: Sha256,
}

impl Spool {
    /// A spool in a file without a name, gone with the last handle to it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            file: io::BufWriter::new(tempfile::tempfile()?),
            size: 0,
            sha256: Sha256::new(),
        })
    }

    /// What was written, ready to be read from its beginning.
    pub fn finish(self) -> io::Result<Blob<impl Read>> {
        let mut file = self.file.into_inner().map_err(|error| error.into_error())?;
        file.rewind()?;
        Ok(Blob {
            content: file,
            size: self.size,
            sha256: format!("{:x}", self.sha256.finalize()),
        })
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
