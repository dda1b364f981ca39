//! Puts the images of an archive into a containerd, as `ctr images import` does, by its API.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteRequest, Image, Info, UpdateImageRequest,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Request, Status, Streaming};
use containerd_client::types::Descriptor as Target;
use image::{Descriptor, Store};
use prost_types::{FieldMask, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::layout::Layout;

/// The most of a blob that is sent at once, in bytes; containerd takes up to 16 MiB.
const CHUNK: u64 = 1 << 20;

/// Which containerd, and where in it.
#[derive(Args)]
pub struct Containerd {
    /// The containerd of --containerd
    #[arg(
        long,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,

    /// The namespace of --containerd: `k8s.io` is what Kubernetes looks into
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
}

impl Containerd {
    /// Imports all images of `archive`, for all platforms. An image that has the name
    /// already is replaced.
    ///
    /// # Errors
    /// What containerd has against it.
    pub fn import(&self, archive: &File) -> Result<()> {
        let layout = Layout::of(archive)?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let store = Store::connect(&self.address, &self.namespace).await?;
                let import = Import::begin(store, &layout).await?;
                let imported = import.images().await;
                let ended = import.end().await;
                imported.and(ended)
            })
            .with_context(|| {
                let address = self.address.display();
                format!("containerd at {address}, namespace {}", self.namespace)
            })
    }
}

/// An import under way. What it has written is kept from containerd's garbage collection by a
/// lease until the images refer to it.
struct Import<'a> {
    store: Store,
    layout: &'a Layout<'a>,
    lease: String,
}

impl<'a> Import<'a> {
    async fn begin(store: Store, layout: &'a Layout<'a>) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let import = Self {
            store,
            layout,
            lease: format!("lighter-{}-{}", std::process::id(), now.as_nanos()),
        };
        // Should this program be killed, containerd is to remove what it has brought, after a day.
        let expires = Timestamp {
            seconds: now.as_secs() as i64 + 24 * 60 * 60,
            nanos: 0,
        };
        let create = CreateRequest {
            id: import.lease.clone(),
            labels: [("containerd.io/gc.expire".to_owned(), expires.to_string())].into(),
        };
        let mut leases = import.store.client().leases();
        leases.create(import.request(create)?).await.map_err(said)?;
        Ok(import)
    }

    async fn end(&self) -> Result<()> {
        let delete = DeleteRequest {
            id: self.lease.clone(),
            ..DeleteRequest::default()
        };
        let mut leases = self.store.client().leases();
        leases.delete(self.request(delete)?).await.map_err(said)?;
        Ok(())
    }

    async fn images(&self) -> Result<()> {
        for image in self.layout.index()?.manifests {
            let name = image.full_name();
            let name = name.context("the archive has an image without a name")?;
            self.push(&image).await?;
            self.name(name, &image).await?;
        }
        Ok(())
    }

    /// Writes the blob of `descriptor`, after all that it refers to.
    async fn push(&self, descriptor: &Descriptor) -> Result<()> {
        let mut labels = HashMap::new();
        if let Some(document) = self.layout.document(descriptor)? {
            // containerd keeps what is referred to by labels of this form (its docs/garbage-collection.md).
            for (kind, child) in document.children() {
                Box::pin(self.push(child)).await?;
                let label = format!("containerd.io/gc.ref.content.{kind}");
                labels.insert(label, child.digest.clone());
            }
        }
        match self.write(descriptor, &labels).await {
            Err(Rejection::Status(status)) if status.code() == Code::AlreadyExists => {
                self.label(descriptor, labels).await
            }
            Err(Rejection::Status(status)) => Err(said(status))
                .with_context(|| format!("writing {} into its store", descriptor.digest)),
            Err(Rejection::Other(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    async fn write(
        &self,
        descriptor: &Descriptor,
        labels: &HashMap<String, String>,
    ) -> Result<(), Rejection> {
        let place = self.layout.place(&descriptor.digest)?;
        let (requests, receiver) = mpsc::channel(1);
        let begin = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("{}-{}", self.lease, descriptor.digest),
            total: place.size as i64,
            expected: descriptor.digest.clone(),
            ..WriteContentRequest::default()
        };
        requests.send(begin).await.map_err(gone)?;
        let stream = self.request(ReceiverStream::new(receiver))?;
        let mut answers = self
            .store
            .client()
            .content()
            .write(stream)
            .await?
            .into_inner();
        // Above zero where another namespace has it already.
        let mut offset = answer(&mut answers).await?.offset as u64;
        while offset < place.size {
            let data = self.layout.chunk(place, offset, CHUNK)?;
            let write = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: offset as i64,
                data,
                ..WriteContentRequest::default()
            };
            requests.send(write).await.map_err(gone)?;
            offset = answer(&mut answers).await?.offset as u64;
        }
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: place.size as i64,
            offset: offset as i64,
            expected: descriptor.digest.clone(),
            labels: labels.clone(),
            ..WriteContentRequest::default()
        };
        requests.send(commit).await.map_err(gone)?;
        answer(&mut answers).await?;
        Ok(())
    }

    /// Sets the labels of a blob that is there already.
    async fn label(&self, descriptor: &Descriptor, labels: HashMap<String, String>) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|label| format!("labels.{label}"));
        let update = UpdateRequest {
            update_mask: Some(FieldMask {
                paths: paths.collect(),
            }),
            info: Some(Info {
                digest: descriptor.digest.clone(),
                labels,
                ..Info::default()
            }),
        };
        let mut content = self.store.client().content();
        content.update(self.request(update)?).await.map_err(said)?;
        Ok(())
    }

    /// Gives the image its name, or the name to this image.
    async fn name(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        let image = Image {
            name: name.to_owned(),
            target: Some(Target {
                media_type: descriptor.media_type.clone(),
                digest: descriptor.digest.clone(),
                size: descriptor.size as i64,
                ..Target::default()
            }),
            ..Image::default()
        };
        let mut images = self.store.client().images();
        let create = CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        };
        match images.create(self.request(create)?).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = UpdateImageRequest {
                    image: Some(image),
                    update_mask: Some(FieldMask {
                        paths: vec!["target".to_owned()],
                    }),
                    ..UpdateImageRequest::default()
                };
                images.update(self.request(update)?).await.map_err(said)?;
            }
            Err(status) => bail!("naming the image {name}: {}", status.message()),
            Ok(_) => {}
        }
        Ok(())
    }

    /// A request in the namespace, under the lease.
    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.store.request(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-lease", self.lease.parse()?);
        Ok(request)
    }
}

/// Why a blob was not written.
enum Rejection {
    Status(Status),
    Other(anyhow::Error),
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<anyhow::Error> for Rejection {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

fn gone<T>(_: mpsc::error::SendError<T>) -> Rejection {
    Rejection::Other(anyhow::anyhow!("containerd ended the connection"))
}

async fn answer(
    answers: &mut Streaming<WriteContentResponse>,
) -> Result<WriteContentResponse, Rejection> {
    let answer = answers.message().await?;
    answer.ok_or_else(|| Rejection::Other(anyhow::anyhow!("containerd ended the connection")))
}

/// What containerd answered, without the words around it.
fn said(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({:?})", status.message(), status.code())
}
