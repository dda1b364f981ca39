//! Wasm that is a layer of a container's image, and no file of its root file system: the CNCF's Wasm
//! OCI artifacts, and the images that runwasi had before there was that layout.
//!
//! A shim is not told of what image a container is. So containerd is asked, and only if a process
//! names a program that the root file system does not have: no other container pays for this.
//! Such a layer's digest is the module's, so that containerd is asked for the module itself only if
//! it has never been compiled. Where there are several layers, the compile worker takes what the
//! program imports from those that export it.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use image::{Blob, Store, StoreError};
use nix::sys::memfd::{MFdFlags, memfd_create};
use wasm::Parts;

/// What is wrong with an image whose layer a process may mean.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// containerd no longer has the image.
    #[error(
        "exec: {name:?}: no such file or directory, and containerd does not have the image {image} any more, of which it may be a layer"
    )]
    Gone {
        /// What the process names.
        name: String,
        /// The image.
        image: String,
    },
    /// The process names none of several layers.
    #[error(
        "exec: {name:?} is no file and none of the wasm layers of the image {image}, which are {layers}; the entrypoint must name one"
    )]
    Ambiguous {
        /// What the process names.
        name: String,
        /// The image.
        image: String,
        /// How they can be named.
        layers: String,
    },
    /// containerd does not give a part of it, or the image breaks the layout's rules.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The images of the containers of one containerd and namespace.
pub struct Images {
    address: PathBuf,
    namespace: String,
}

/// A wasm layer of an image, and the others.
pub struct Layer {
    store: Store,
    /// This layer, and then the others.
    blobs: Vec<Blob>,
    key: [u8; 32],
}

impl Images {
    /// Those of the containerd whose API is at `address`.
    pub fn new(address: impl Into<PathBuf>, namespace: &str) -> Self {
        Self {
            address: address.into(),
            namespace: namespace.to_owned(),
        }
    }

    /// The wasm layer that `name` means in the image of `container`: the one with this title or
    /// digest. An image's only wasm layer is also meant by `entrypoint`, the first argument of the
    /// container's own process, whatever that is, unless the image has files and no wasm for
    /// another platform, of which the container may be. `None` where there is no such layer.
    ///
    /// # Errors
    /// When there are wasm layers but they cannot be used.
    pub async fn layer(
        &self,
        container: &str,
        name: &str,
        entrypoint: &str,
    ) -> Result<Option<Layer>, ImageError> {
        let Some((store, image)) = self.image_of(container).await else {
            return Ok(None);
        };
        let is_entrypoint = image::without_function(entrypoint) == name;
        let Some(target) = store.target(&image).await? else {
            let name = name.to_owned();
            return match is_entrypoint {
                true => Err(ImageError::Gone { name, image }),
                // What is added to a container is mostly a file, whose name may be wrong.
                false => Ok(None),
            };
        };
        let malformed = |reason| StoreError::Malformed {
            image: image.clone(),
            reason,
        };
        let manifests = store.manifests(&image, &target, |platform| {
            // What BuildKit says of how it has built an image is for unknown/unknown, and no image.
            platform.is_none_or(|platform| platform.os != "unknown")
        });
        let Some((manifest, by_any_name)) = image::meant(manifests.await?, name) else {
            return Ok(None);
        };
        let by_any_name = by_any_name && is_entrypoint;
        let layers = manifest.wasm_layers();
        let program = image::named(&layers, name, by_any_name);
        if program.is_none() && !by_any_name {
            return Ok(None);
        }
        let config = manifest.config.blob(&image, "the configuration");
        let config = store.document(&config).await?;
        manifest.check(&config).map_err(malformed)?;
        let program = program.ok_or_else(|| ImageError::Ambiguous {
            name: name.to_owned(),
            image: image.clone(),
            layers: image::listed(&layers),
        })?;
        image::check_size(&layers, wasm::MAX_MODULE_BYTES).map_err(malformed)?;
        let mut digests = Vec::new();
        let mut blobs = Vec::new();
        for layer in image::composed(&layers, program) {
            digests.push(layer.sha256().map_err(malformed)?);
            blobs.push(layer.blob(&image, format!("the layer {}", layer.label())));
        }
        Ok(Some(Layer {
            key: Parts::key(&digests),
            store,
            blobs,
        }))
    }

    /// The name of the image of `container`, and the containerd that has it. What containerd does
    /// not tell is for the log: the process's own words are the error then.
    async fn image_of(&self, container: &str) -> Option<(Store, String)> {
        let asked = async {
            let store = Store::connect(&self.address, &self.namespace).await?;
            let image = store.image_of(container).await?;
            Ok::<_, StoreError>(image.map(|image| (store, image)))
        };
        asked
            .await
            .inspect_err(|error| log::warn!("{container}: looking for its image: {error}"))
            .ok()?
    }
}

impl Layer {
    /// What its native code is kept under.
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// What stands for it in messages.
    pub fn name(&self) -> String {
        let program = &self.blobs[0];
        format!("{} of the image {}", program.what, program.image)
    }

    /// The module, or what it is to be composed of, in a file without a name.
    ///
    /// # Errors
    /// When containerd does not have it, or has something else.
    pub async fn read(&self) -> Result<File, ImageError> {
        match &self.blobs[..] {
            [module] => self.copy(module).await,
            _ => self.copy_all().await,
        }
    }

    async fn copy(&self, module: &Blob) -> Result<File, ImageError> {
        let file = memfd_create(c"layer", MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(file.map_err(|error| module.unkept(error.into()))?);
        self.store.open(module).await?.copy(&mut file).await?;
        Ok(file)
    }

    async fn copy_all(&self) -> Result<File, ImageError> {
        let unkept = |error: io::Error| self.blobs[0].unkept(error);
        let mut parts = Parts::new().map_err(unkept)?;
        for blob in &self.blobs {
            let room = parts.begin(blob.size).map_err(unkept)?;
            self.store.open(blob).await?.copy(room).await?;
        }
        Ok(parts.into_file())
    }
}
