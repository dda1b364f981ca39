//! Parts of images on their way from containerd, held against their digests and sizes.

use std::io::{self, Write};

use containerd_client::services::v1::ReadContentResponse;
use containerd_client::tonic::Streaming;
use sha2::{Digest, Sha256};

use super::{StoreError, found};

/// A part of an image.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The image, for messages.
    pub image: String,
    /// The part, for messages.
    pub what: String,
    /// `sha256:...`.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
}

impl Blob {
    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged {
            image: self.image.clone(),
            what: self.what.clone(),
            reason,
        }
    }

    pub(super) fn missing(&self) -> StoreError {
        StoreError::Missing {
            image: self.image.clone(),
            what: format!("{} ({})", self.what, self.digest),
        }
    }

    pub(super) fn failed(&self, reason: String) -> StoreError {
        StoreError::Call {
            what: format!("{} of the image {}", self.what, self.image),
            reason,
        }
    }

    /// That it cannot be kept where it was to be kept.
    pub fn unkept(&self, source: io::Error) -> StoreError {
        StoreError::Keep {
            image: self.image.clone(),
            what: self.what.clone(),
            source,
        }
    }
}

/// A blob that containerd sends.
pub struct Incoming {
    blob: Blob,
    parts: Streaming<ReadContentResponse>,
    hash: Sha256,
    size: u64,
}

impl Incoming {
    pub(super) fn new(blob: Blob, parts: Streaming<ReadContentResponse>) -> Self {
        Self {
            blob,
            parts,
            hash: Sha256::new(),
            size: 0,
        }
    }

    /// The next bytes; `None` at the end, where all that came is what the digest and size say.
    ///
    /// # Errors
    /// When it is something else, after some of it may have come; is not there; or is not sent.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        // containerd may find out only now that it does not have it.
        let part = found(self.parts.message()).await;
        let part = part.map_err(|reason| self.blob.failed(reason))?;
        let Some(part) = part.ok_or_else(|| self.blob.missing())? else {
            self.check()?;
            return Ok(None);
        };
        self.size += part.data.len() as u64;
        if self.size > self.blob.size {
            let reason = format!("has more than its {} bytes", self.blob.size);
            return Err(self.blob.damaged(reason));
        }
        self.hash.update(&part.data);
        Ok(Some(part.data))
    }

    fn check(&self) -> Result<(), StoreError> {
        let Blob { digest, size, .. } = &self.blob;
        if self.size < *size {
            let reason = format!("has {} bytes and not {size}", self.size);
            return Err(self.blob.damaged(reason));
        }
        let found = format!("sha256:{:x}", self.hash.clone().finalize());
        if found != *digest {
            let reason = format!("has the digest {found} and not {digest}");
            return Err(self.blob.damaged(reason));
        }
        Ok(())
    }

    /// Writes all of it to `sink`.
    ///
    /// # Errors
    /// As [`Incoming::next`], and what writing says.
    pub async fn copy(mut self, sink: &mut impl Write) -> Result<(), StoreError> {
        while let Some(part) = self.next().await? {
            sink.write_all(&part)
                .map_err(|error| self.blob.unkept(error))?;
        }
        Ok(())
    }
}
