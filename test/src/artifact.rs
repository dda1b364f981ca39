//! Images made blob by blob, also such as no tool would make.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The media types of the CNCF's Wasm OCI artifact.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Likewise.
pub const WASM_LAYER: &str = "application/wasm";
/// The media type of runwasi's older wasm layers.
pub const COMPONENT_LAYER: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";

const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `sha256:...` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A module or component that nobody has compiled before: with a custom section that no other has.
pub fn unique(wasm: &[u8]) -> Vec<u8> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("it is later than 1970").as_nanos();
    let name = format!("{}-{number}-{now}", std::process::id());
    let length = |length: usize| u8::try_from(length).expect("a short name");
    let mut bytes = wasm.to_vec();
    bytes.extend([0, length(name.len() + 1), length(name.len())]);
    bytes.extend(name.as_bytes());
    bytes
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    media_type: String,
    content: Vec<u8>,
    title: Option<String>,
    size: Option<u64>,
}

impl Layer {
    /// A layer of this media type and content.
    pub fn new(media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            content: content.into(),
            title: None,
            size: None,
        }
    }

    /// Gives it a file name.
    pub fn title(mut self, title: &str) -> Self {
        self.title = Some(title.to_owned());
        self
    }

    /// Has the manifest say another size than it has, in bytes.
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(&self.media_type, &self.content);
        if let Some(title) = &self.title {
            descriptor["annotations"] = json!({"org.opencontainers.image.title": title});
        }
        if let Some(size) = self.size {
            descriptor["size"] = json!(size);
        }
        descriptor
    }
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct Raw {
    config_type: &'static str,
    config: Vec<u8>,
    layers: Vec<Layer>,
    platform: Value,
}

impl Raw {
    /// The CNCF's artifact of these layers.
    pub fn artifact(layers: &[Layer]) -> Self {
        let digests: Vec<String> = layers.iter().map(|layer| digest(&layer.content)).collect();
        let config = json!({
            "created": null, "author": null, "architecture": "wasm", "os": "wasip1",
            "layerDigests": digests, "component": null,
        });
        Self {
            config_type: WASM_CONFIG,
            config: config.to_string().into_bytes(),
            layers: layers.to_vec(),
            platform: json!({"os": "wasip1", "architecture": "wasm"}),
        }
    }

    /// An image as runwasi's oci-tar-builder makes it of these wasm layers: the configuration is
    /// an ordinary one, and knows nothing of them.
    pub fn component(entrypoint: &str, layers: &[Layer]) -> Self {
        let config = json!({
            "architecture": "wasm", "os": "wasip1",
            "config": {"Entrypoint": [entrypoint]},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        Self {
            config_type: IMAGE_CONFIG,
            config: config.to_string().into_bytes(),
            ..Self::artifact(layers)
        }
    }

    /// The same for another operating system, as an index tells it.
    pub fn os(mut self, os: &str) -> Self {
        self.platform["os"] = json!(os);
        self
    }

    /// The same for another processor, as an index tells it.
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.platform["architecture"] = json!(architecture);
        self
    }

    /// The same with another configuration.
    pub fn config(mut self, config: impl Into<Vec<u8>>) -> Self {
        self.config = config.into();
        self
    }

    fn manifest(&self) -> Vec<u8> {
        let layers: Vec<Value> = self.layers.iter().map(Layer::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(self.config_type, &self.config),
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }

    fn blobs(&self) -> Vec<Vec<u8>> {
        let mut blobs = vec![self.config.clone(), self.manifest()];
        blobs.extend(self.layers.iter().map(|layer| layer.content.clone()));
        blobs
    }

    /// Writes an archive of this image under a name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, name: &str, path: &Path) -> Result<()> {
        let target = descriptor(MANIFEST, &self.manifest());
        write(name, target, self.blobs(), path)
    }

    /// Writes an archive of one image for several platforms under a name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_index(images: &[Self], name: &str, path: &Path) -> Result<()> {
        let manifests = images.iter().map(|image| {
            let mut manifest = descriptor(MANIFEST, &image.manifest());
            manifest["platform"] = image.platform.clone();
            manifest
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": manifests.collect::<Vec<_>>(),
        });
        let index = index.to_string().into_bytes();
        let mut blobs: Vec<Vec<u8>> = images.iter().flat_map(Self::blobs).collect();
        let target = descriptor(INDEX, &index);
        blobs.push(index);
        write(name, target, blobs, path)
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn write(name: &str, mut target: Value, blobs: Vec<Vec<u8>>, path: &Path) -> Result<()> {
    target["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next(),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]});
    let mut files = BTreeMap::from([
        ("index.json".to_owned(), index.to_string().into_bytes()),
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
    ]);
    for blob in blobs {
        let digest = digest(&blob).replace(':', "/");
        files.insert(format!("blobs/{digest}"), blob);
    }
    let mut tar = tar::Builder::new(File::create(path)?);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    tar.finish()?;
    Ok(())
}
