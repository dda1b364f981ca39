//! Wasm that is a layer of a container's image, and no file of its root file system: the CNCF's Wasm
//! OCI artifacts, and the images that runwasi had before there was that layout.
//!
//! A shim is not told of what image a container is. So containerd is asked, and only if a process
//! names a program that the root file system does not have: no other container pays for this.
//! Such a layer's digest is the module's, so that containerd is asked for the module itself only if
//! it has never been compiled. Where there are several layers, the compile worker takes what the
//! program imports from those that export it.

mod manifest;
mod store;

use std::fs::File;
use std::path::PathBuf;

use manifest::{Descriptor, Index, Manifest};
use sha2::{Digest, Sha256};
use store::{Blob, Store};

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
    /// A call to containerd that should work did not.
    #[error("asking containerd for {what} failed: {reason}")]
    Call {
        /// What was asked for.
        what: String,
        /// What containerd or the connection said.
        reason: String,
    },
    /// A part of the image is not in containerd's content store.
    #[error(
        "the image {image} is not whole: containerd's content store lacks {what}; pull or import it again"
    )]
    Missing {
        /// The image.
        image: String,
        /// The part.
        what: String,
    },
    /// A part of the image is not what its digest or size says.
    #[error(
        "the image {image} is damaged: {what} {reason}; remove the image and pull or import it again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// The part.
        what: String,
        /// In which way.
        reason: String,
    },
    /// The image breaks the layout's rules.
    #[error("the image {image} cannot be run: {reason}")]
    Malformed {
        /// The image.
        image: String,
        /// Which, and how.
        reason: String,
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
    /// container's own process, whatever that is. `None` where there is no such layer.
    ///
    /// # Errors
    /// When there are wasm layers but they cannot be used.
    pub async fn layer(
        &self,
        container: &str,
        name: &str,
        entrypoint: &str,
    ) -> Result<Option<Layer>, ImageError> {
        let Some(store) = Store::connect(&self.address, &self.namespace).await else {
            return Ok(None);
        };
        let Some(image) = store.image_of(container).await else {
            return Ok(None);
        };
        let Some(target) = store.target(&image).await? else {
            let name = name.to_owned();
            return Err(ImageError::Gone { name, image });
        };
        let Some(manifest) = wasm_manifest(&store, &image, target).await? else {
            return Ok(None);
        };
        let malformed = |reason| ImageError::Malformed {
            image: image.clone(),
            reason,
        };
        let config = store
            .read(&image, &manifest.config.blob("the configuration"))
            .await?;
        manifest.check(&config).map_err(malformed)?;
        let is_entrypoint = manifest::without_function(entrypoint) == name;
        let layers = manifest.wasm_layers();
        let Some(program) = manifest::named(&layers, name, is_entrypoint) else {
            return match is_entrypoint {
                true => Err(ImageError::Ambiguous {
                    name: name.to_owned(),
                    image: image.clone(),
                    layers: manifest::listed(&layers),
                }),
                false => Ok(None),
            };
        };
        manifest::check_size(&layers).map_err(malformed)?;
        let others = layers
            .iter()
            .filter(|layer| layer.label() != program.label());
        let ordered = [&program].into_iter().chain(others);
        let mut digests = Vec::new();
        let mut blobs = Vec::new();
        for layer in ordered {
            digests.push(layer.sha256().map_err(malformed)?);
            let what = format!("the layer {}", layer.label());
            blobs.push(layer.blob(&what).of(&image));
        }
        Ok(Some(Layer {
            key: key(&digests),
            store,
            blobs,
        }))
    }
}

/// What native code is kept under that is made of modules with these SHA-256: the first composed
/// with the others.
fn key(digests: &[[u8; 32]]) -> [u8; 32] {
    match digests {
        [module] => *module,
        _ => {
            let mut hash = Sha256::new_with_prefix(b"composed");
            digests.iter().for_each(|digest| hash.update(digest));
            hash.finalize().into()
        }
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
            [module] => self.store.copy(module).await,
            parts => self.store.copy_all(parts).await,
        }
    }
}

/// The manifest of an image that has wasm layers; `None` where there is none.
async fn wasm_manifest(
    store: &Store,
    image: &str,
    target: Descriptor,
) -> Result<Option<Manifest>, ImageError> {
    let malformed = |reason| ImageError::Malformed {
        image: image.to_owned(),
        reason,
    };
    if !target.is_index() {
        let bytes = store.read(image, &target.blob("the manifest")).await?;
        let manifest = Manifest::parse(&bytes).map_err(malformed)?;
        return Ok(manifest.is_wasm().then_some(manifest));
    }
    let bytes = store.read(image, &target.blob("the index")).await?;
    let index = Index::parse(&bytes).map_err(malformed)?;
    let mut found = None;
    for descriptor in index.for_wasm() {
        // Of an index, only what is for the platform that was asked for need be there.
        let bytes = match store.read(image, &descriptor.blob("a manifest")).await {
            Err(ImageError::Missing { .. }) => continue,
            bytes => bytes?,
        };
        let manifest = Manifest::parse(&bytes).map_err(malformed)?;
        if manifest.is_wasm() && found.replace(manifest).is_some() {
            return Err(malformed(
                "its index has several manifests with wasm layers, and containerd does not tell which one is meant; give each a name of its own".to_owned(),
            ));
        }
    }
    Ok(found)
}
