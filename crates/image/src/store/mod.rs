//! The images that a containerd has, over its API.

mod blob;
mod error;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    GetContainerRequest, GetImageRequest, InfoRequest, ReadContentRequest,
};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::{Client, connect};

pub use blob::{Blob, Incoming};
pub use error::StoreError;

use crate::{Descriptor, Document, Manifest, Platform};

/// How long containerd may take for an answer, or the next part of one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that a manifest, index or configuration may have, in bytes: what registries take
/// (OCI distribution specification, "Pushing Manifests").
const MAX_DOCUMENT: u64 = 4 << 20;

/// How deep indexes may lie within each other.
const MAX_DEPTH: usize = 3;

/// What is behind an error that only says what has failed.
fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

/// A connection to containerd, for the images of one namespace.
pub struct Store {
    client: Client,
    namespace: MetadataValue<Ascii>,
}

impl Store {
    /// Connects to the containerd whose socket is `address`.
    ///
    /// # Errors
    /// [`StoreError::Connect`] and [`StoreError::Namespace`].
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, StoreError> {
        let parsed = namespace.parse();
        let namespace = parsed.map_err(|_| StoreError::Namespace(namespace.to_owned()))?;
        let channel = patiently(async {
            let channel = connect(address).await;
            channel.map_err(|error| innermost(&error))
        });
        let channel = channel.await.map_err(|reason| StoreError::Connect {
            address: address.to_owned(),
            reason,
        })?;
        Ok(Self {
            client: Client::from(channel),
            namespace,
        })
    }

    /// containerd's services.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A request in the namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// The name of the image of `container`; `None` where that has none.
    ///
    /// # Errors
    /// When containerd does not know the container, or does not answer.
    pub async fn image_of(&self, container: &str) -> Result<Option<String>, StoreError> {
        let request = GetContainerRequest {
            id: container.to_owned(),
        };
        let mut containers = self.client.containers();
        let call = containers.get(self.request(request));
        let answer = patiently(async { call.await.map_err(said) }).await;
        let answer = answer.map_err(|reason| StoreError::Call {
            what: format!("the container {container}"),
            reason,
        })?;
        let container = answer.into_inner().container;
        Ok(container.map(|it| it.image).filter(|it| !it.is_empty()))
    }

    /// What the name of an image stands for; `None` where containerd has no such image.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn target(&self, image: &str) -> Result<Option<Descriptor>, StoreError> {
        let request = GetImageRequest {
            name: image.to_owned(),
        };
        let mut images = self.client.images();
        let call = images.get(self.request(request));
        let answer = found(call).await.map_err(|reason| StoreError::Call {
            what: format!("the image {image}"),
            reason,
        })?;
        let target = answer.and_then(|answer| answer.into_inner().image?.target);
        Ok(target.map(Descriptor::from))
    }

    /// The manifests of `image`, which stands for `target`, in their order: those of the platforms
    /// that are `wanted` (an entry of an index need not name one, and a manifest alone does not)
    /// and in containerd's store. A client that pulls an image for one platform has no others, or,
    /// with containerd 2, no more of them than their manifests: of several only such count that
    /// have their configuration, if any has.
    ///
    /// # Errors
    /// When a document is malformed, cannot be read, or is a manifest that is not there though
    /// no index is.
    pub async fn manifests(
        &self,
        image: &str,
        target: &Descriptor,
        wanted: impl Fn(Option<&Platform>) -> bool,
    ) -> Result<Vec<(Option<Platform>, Manifest)>, StoreError> {
        let malformed = |what: &str, reason| StoreError::Malformed {
            image: image.to_owned(),
            reason: format!("its {what} {reason}"),
        };
        let mut manifests = Vec::new();
        let mut wrong = None;
        // The next one is last.
        let mut left = vec![(target.clone(), 0)];
        while let Some((descriptor, depth)) = left.pop() {
            let what = match depth {
                0 => "manifest".to_owned(),
                _ => format!("manifest {}", descriptor.digest),
            };
            let document = match self.document(&descriptor.blob(image, &what)).await {
                Err(StoreError::Missing { .. }) if depth > 0 => continue,
                document => document?,
            };
            let parsed = match Document::parse(&document) {
                // Another platform's may be anything where there are others.
                Err(reason) if depth > 0 => {
                    wrong.get_or_insert(malformed(&what, reason));
                    continue;
                }
                parsed => parsed.map_err(|reason| malformed(&what, reason))?,
            };
            match parsed {
                Document::Manifest(manifest) => manifests.push((descriptor.platform, manifest)),
                Document::Index(_) if depth == MAX_DEPTH => {
                    return Err(malformed(
                        &what,
                        "lies too deep in other indexes".to_owned(),
                    ));
                }
                Document::Index(index) => {
                    let entries = index.manifests.into_iter().rev();
                    let entries = entries.filter(|it| wanted(it.platform.as_ref()));
                    left.extend(entries.map(|entry| (entry, depth + 1)));
                }
            }
        }
        match (manifests.len(), wrong) {
            (0, Some(wrong)) => return Err(wrong),
            (0 | 1, _) => return Ok(manifests),
            _ => {}
        }
        let mut whole = Vec::new();
        for (platform, manifest) in &manifests {
            if self
                .has(&manifest.config.blob(image, "a configuration"))
                .await?
            {
                whole.push((platform.clone(), manifest.clone()));
            }
        }
        Ok(match whole.is_empty() {
            true => manifests,
            false => whole,
        })
    }

    /// Whether a blob is in containerd's store.
    async fn has(&self, blob: &Blob) -> Result<bool, StoreError> {
        let request = InfoRequest {
            digest: blob.digest.clone(),
        };
        let mut content = self.client.content();
        let info = found(content.info(self.request(request))).await;
        let info = info.map_err(|reason| blob.failed(reason))?;
        Ok(info.is_some())
    }

    /// A manifest, index or configuration, whole.
    ///
    /// # Errors
    /// When it is too large, is not there, or is something else.
    pub async fn document(&self, blob: &Blob) -> Result<Vec<u8>, StoreError> {
        if blob.size > MAX_DOCUMENT {
            return Err(StoreError::Malformed {
                image: blob.image.clone(),
                reason: format!(
                    "{} has {} bytes; there may be {MAX_DOCUMENT}",
                    blob.what, blob.size
                ),
            });
        }
        let mut bytes = Vec::new();
        self.open(blob).await?.copy(&mut bytes).await?;
        Ok(bytes)
    }

    /// Has containerd send a blob.
    ///
    /// # Errors
    /// When it is not there, or containerd does not answer.
    pub async fn open(&self, blob: &Blob) -> Result<Incoming, StoreError> {
        let request = ReadContentRequest {
            digest: blob.digest.clone(),
            ..ReadContentRequest::default()
        };
        let mut content = self.client.content();
        let call = content.read(self.request(request));
        let answer = found(call).await.map_err(|reason| blob.failed(reason))?;
        let parts = answer.ok_or_else(|| blob.missing())?.into_inner();
        Ok(Incoming::new(blob.clone(), parts))
    }
}

impl From<containerd_client::types::Descriptor> for Descriptor {
    fn from(descriptor: containerd_client::types::Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size.try_into().unwrap_or(0),
            annotations: descriptor.annotations.into_iter().collect(),
            platform: None,
        }
    }
}

/// The answer to a call; `None` where containerd has not got what was asked for.
async fn found<T>(call: impl Future<Output = Result<T, Status>>) -> Result<Option<T>, String> {
    let call = async {
        match call.await {
            Err(status) if status.code() == Code::NotFound => Ok(None),
            answer => answer.map(Some).map_err(said),
        }
    };
    patiently(call).await
}

async fn patiently<T>(call: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

/// What containerd answered, without the words around it.
fn said(status: Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}
