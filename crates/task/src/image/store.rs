//! containerd's API, as far as an image's wasm layers need it.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    GetContainerRequest, GetImageRequest, ReadContentRequest, ReadContentResponse,
};
use containerd_client::tonic::{Code, Request, Status, Streaming};
use containerd_client::{Client, connect};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};

use super::ImageError;
use super::manifest::Descriptor;

/// How long containerd may take for an answer, or the next part of one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that a manifest, index or configuration may have, in bytes: what registries take
/// (OCI distribution specification, "Pushing Manifests").
const MAX_DOCUMENT: u64 = 4 << 20;

/// A connection to containerd.
pub struct Store {
    client: Client,
    namespace: String,
}

/// A part of an image.
#[derive(Clone)]
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
    /// The same, of this image.
    pub fn of(mut self, image: &str) -> Self {
        image.clone_into(&mut self.image);
        self
    }

    fn damaged(&self, reason: String) -> ImageError {
        ImageError::Damaged {
            image: self.image.clone(),
            what: self.what.clone(),
            reason,
        }
    }
}

impl Store {
    /// Connects to the containerd at `address`. Without one there are no images.
    pub async fn connect(address: &Path, namespace: &str) -> Option<Self> {
        match patiently(async { connect(address).await.map_err(text) }).await {
            Ok(channel) => Some(Self {
                client: Client::from(channel),
                namespace: namespace.to_owned(),
            }),
            Err(error) => {
                log::warn!("connecting to containerd at {}: {error}", address.display());
                None
            }
        }
    }

    /// The name of the image of `container`, if containerd knows any.
    pub async fn image_of(&self, container: &str) -> Option<String> {
        let request = GetContainerRequest {
            id: container.to_owned(),
        };
        let mut containers = self.client.containers();
        let got = patiently(async {
            let request = self.request(request)?;
            containers.get(request).await.map_err(said)
        });
        match got.await {
            Ok(answer) => {
                let container = answer.into_inner().container;
                container.map(|it| it.image).filter(|it| !it.is_empty())
            }
            Err(error) => {
                log::warn!("asking containerd for the image of {container}: {error}");
                None
            }
        }
    }

    /// What the name of an image stands for; `None` where containerd has no such image.
    pub async fn target(&self, image: &str) -> Result<Option<Descriptor>, ImageError> {
        let request = GetImageRequest {
            name: image.to_owned(),
        };
        let mut images = self.client.images();
        let got = patiently(async {
            let request = self.request(request)?;
            match images.get(request).await {
                Err(status) if status.code() == Code::NotFound => Ok(None),
                answer => answer.map(Some).map_err(said),
            }
        });
        let answer = got.await.map_err(|reason| ImageError::Call {
            what: format!("the image {image}"),
            reason,
        })?;
        let target = answer.and_then(|answer| answer.into_inner().image?.target);
        Ok(target.map(Descriptor::from))
    }

    /// A document of `image`, whole.
    ///
    /// # Errors
    /// When it is too large, is not there, or is something else.
    pub async fn read(&self, image: &str, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        let blob = blob.clone().of(image);
        if blob.size > MAX_DOCUMENT {
            return Err(ImageError::Malformed {
                image: blob.image,
                reason: format!(
                    "{} has {} bytes; there may be {MAX_DOCUMENT}",
                    blob.what, blob.size
                ),
            });
        }
        let mut bytes = Vec::new();
        self.pour(&blob, &mut bytes).await?;
        Ok(bytes)
    }

    /// A blob in a file in memory, which has no name.
    ///
    /// # Errors
    /// When it is not there, is something else, or there is no memory.
    pub async fn copy(&self, blob: &Blob) -> Result<File, ImageError> {
        let file = memfd_create(c"layer", MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(file.map_err(|error| self.failed(blob, text(error)))?);
        self.pour(blob, &mut file).await?;
        Ok(file)
    }

    /// Blobs in one file in memory, which has no name: [`wasm::Parts`].
    ///
    /// # Errors
    /// As [`Store::copy`].
    pub async fn copy_all(&self, blobs: &[Blob]) -> Result<File, ImageError> {
        let failed = |error| self.failed(&blobs[0], text(error));
        let mut parts = wasm::Parts::new().map_err(failed)?;
        for blob in blobs {
            let room = parts.begin(blob.size).map_err(failed)?;
            self.pour(blob, room).await?;
        }
        Ok(parts.into_file())
    }

    /// Writes a blob to `sink`. What does not have the blob's digest and size is an error, after
    /// some of it may have been written.
    async fn pour(&self, blob: &Blob, sink: &mut impl Write) -> Result<(), ImageError> {
        let request = ReadContentRequest {
            digest: blob.digest.clone(),
            ..ReadContentRequest::default()
        };
        let mut content = self.client.content();
        let begun = patiently(async {
            let request = self.request(request)?;
            match content.read(request).await {
                Err(status) if status.code() == Code::NotFound => Ok(None),
                answer => answer.map(Some).map_err(said),
            }
        });
        let missing = || ImageError::Missing {
            image: blob.image.clone(),
            what: format!("{} ({})", blob.what, blob.digest),
        };
        let begun = begun.await.map_err(|reason| self.failed(blob, reason))?;
        let mut parts = begun.ok_or_else(missing)?.into_inner();
        let (mut hash, mut size) = (Sha256::new(), 0);
        loop {
            let part = match next(&mut parts).await {
                Ok(Some(part)) => part,
                Ok(None) => break,
                // containerd finds out only now.
                Err(Trouble::NotFound) => return Err(missing()),
                Err(Trouble::Other(reason)) => return Err(self.failed(blob, reason)),
            };
            size += part.data.len() as u64;
            if size > blob.size {
                return Err(blob.damaged(format!("has more than its {} bytes", blob.size)));
            }
            hash.update(&part.data);
            let written = sink.write_all(&part.data);
            written.map_err(|error| self.failed(blob, text(error)))?;
        }
        if size < blob.size {
            return Err(blob.damaged(format!("has {size} bytes and not {}", blob.size)));
        }
        let digest = format!("sha256:{:x}", hash.finalize());
        if digest != blob.digest {
            return Err(blob.damaged(format!("has the digest {digest} and not {}", blob.digest)));
        }
        Ok(())
    }

    fn failed(&self, blob: &Blob, reason: String) -> ImageError {
        ImageError::Call {
            what: format!("{} of the image {}", blob.what, blob.image),
            reason,
        }
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse();
        let namespace = namespace.map_err(|_| format!("{:?} is no namespace", self.namespace))?;
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        Ok(request)
    }
}

/// Why there is no next part.
enum Trouble {
    NotFound,
    Other(String),
}

async fn next(
    parts: &mut Streaming<ReadContentResponse>,
) -> Result<Option<ReadContentResponse>, Trouble> {
    match tokio::time::timeout(PATIENCE, parts.message()).await {
        Ok(Ok(part)) => Ok(part),
        Ok(Err(status)) if status.code() == Code::NotFound => Err(Trouble::NotFound),
        Ok(Err(status)) => Err(Trouble::Other(said(status))),
        Err(_) => Err(Trouble::Other(silence())),
    }
}

async fn patiently<T>(call: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.unwrap_or_else(|_| Err(silence()))
}

fn silence() -> String {
    format!("no answer within {PATIENCE:?}")
}

fn said(status: Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}
