//! The wasm in images that a containerd has.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    rc::Rc,
};

use anyhow::{Context, Result, bail, ensure};
use containerd_client::{
    services::v1::{
        GetImageRequest, ReadContentRequest, ReadContentResponse, content_client::ContentClient,
        images_client::ImagesClient,
    },
    tonic::{Code, Request, Status, Streaming, metadata::MetadataValue, transport::Channel},
};
use image::{Files, Name, decompressed, extract};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use tokio::runtime::{Builder, Runtime};

/// The largest manifest, index or configuration that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

/// How deep indexes may lie within each other.
const MAX_DEPTH: usize = 3;

/// PATH where an image sets none, as the shim has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A file that may be wasm, and what it is called in messages.
pub struct Module {
    pub name: String,
    pub file: File,
}

/// A connection to containerd.
pub struct Containerd {
    runtime: Rc<Runtime>,
    channel: Channel,
    namespace: MetadataValue<containerd_client::tonic::metadata::Ascii>,
}

impl Containerd {
    pub fn connect(address: &Path, namespace: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let channel = runtime
            .block_on(containerd_client::connect(address))
            .with_context(|| format!("cannot reach containerd at {}", address.display()))?;
        Ok(Self {
            runtime: Rc::new(runtime),
            channel,
            namespace: namespace
                .parse()
                .with_context(|| format!("{namespace:?} is no namespace"))?,
        })
    }

    /// What the entrypoints of an image's platforms name, if it is wasm, and the layers that are
    /// wasm by themselves.
    pub fn modules(&self, image: &str) -> Result<Vec<Module>> {
        let (name, target) = self.target(image)?;
        let mut modules = Vec::new();
        let mut notes = Vec::new();
        for manifest in self.manifests(&target, MAX_DEPTH)? {
            match self.modules_of(&name, &manifest) {
                Ok(found) => modules.extend(found),
                Err(error) => notes.push(format!("{error:#}")),
            }
        }
        ensure!(
            !modules.is_empty(),
            "{name} has no wasm to compile: {}",
            match notes.is_empty() {
                true => "containerd has none of its manifests".into(),
                false => notes.join("; "),
            }
        );
        Ok(modules)
    }

    /// The image's full name, and the digest of its index or manifest.
    fn target(&self, image: &str) -> Result<(String, String)> {
        let mut names = vec![image.to_owned()];
        names.extend(image.parse::<Name>().ok().map(|name| name.to_string()));
        names.dedup();
        for name in &names {
            let mut images = ImagesClient::new(self.channel.clone());
            let request = self.request(GetImageRequest { name: name.clone() });
            match self.runtime.block_on(images.get(request)) {
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status).context(format!("asking containerd for {name}")),
                Ok(answer) => {
                    let image = answer.into_inner().image;
                    let target = image.and_then(|image| image.target);
                    let target = target.with_context(|| format!("{name} has no target"))?;
                    return Ok((name.clone(), target.digest));
                }
            }
        }
        bail!(
            "containerd has no image {} in its namespace {}, and there is no such file; pull it \
             first, or name the namespace with --namespace",
            names.join(" or "),
            self.namespace.to_str().unwrap_or_default(),
        )
    }

    /// The manifests of an image of several platforms that are there.
    fn manifests(&self, digest: &str, depth: usize) -> Result<Vec<ImageManifest>> {
        let Some(document) = self.document(digest)? else {
            return Ok(Vec::new());
        };
        // An index has manifests, a manifest has not; their media types are optional.
        let fields: HashMap<String, serde_json::Value> = serde_json::from_slice(&document)
            .with_context(|| format!("{digest} is no index or manifest"))?;
        if !fields.contains_key("manifests") {
            let manifest = serde_json::from_slice(&document);
            return Ok(vec![
                manifest.with_context(|| format!("the manifest {digest}"))?,
            ]);
        }
        ensure!(depth > 0, "the index {digest} lies too deep in others");
        let index: ImageIndex =
            serde_json::from_slice(&document).with_context(|| format!("the index {digest}"))?;
        let mut manifests = Vec::new();
        for manifest in index.manifests() {
            manifests.extend(self.manifests(manifest.digest().as_ref(), depth - 1)?);
        }
        Ok(manifests)
    }

    fn modules_of(&self, image: &str, manifest: &ImageManifest) -> Result<Vec<Module>> {
        let layers = manifest.layers();
        let wasm: Vec<&Descriptor> = layers.iter().filter(|layer| is_wasm(layer)).collect();
        if !wasm.is_empty() {
            return wasm
                .into_iter()
                .map(|layer| {
                    let digest = layer.digest().to_string();
                    let mut file = tempfile::tempfile()?;
                    io::copy(&mut self.blob(&digest)?, &mut file)
                        .with_context(|| format!("reading the layer {digest}"))?;
                    let name = format!("{image} {digest}");
                    Ok(Module { name, file })
                })
                .collect();
        }
        Ok(vec![self.entrypoint(image, manifest)?])
    }

    /// The file that the image's configuration has containers run.
    fn entrypoint(&self, image: &str, manifest: &ImageManifest) -> Result<Module> {
        let config = manifest.config().digest().to_string();
        let document = self.document(&config)?;
        let document =
            document.with_context(|| format!("containerd lacks the configuration {config}"))?;
        let config: ImageConfiguration = serde_json::from_slice(&document)
            .with_context(|| format!("the configuration {config}"))?;
        let config = config.config().clone().unwrap_or_default();
        let mut arguments = config.entrypoint().clone().unwrap_or_default();
        arguments.extend(config.cmd().clone().unwrap_or_default());
        let program = arguments.first().context("it has no entrypoint")?;
        let cwd = config.working_dir().clone().unwrap_or_default();
        let env = config.env().clone().unwrap_or_default();
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));

        let mut files = Files::default();
        for layer in manifest.layers() {
            let read = || files.add_layer(self.layer(layer)?);
            read_layer(layer, read)?;
        }
        let content = places(program, &cwd, path.unwrap_or(DEFAULT_PATH))
            .iter()
            .find_map(|place| files.find(place, "/"))
            .with_context(|| format!("it has no file {program}, its entrypoint"))?;
        let layer = &manifest.layers()[content.layer];
        let mut file = tempfile::tempfile()?;
        read_layer(layer, || extract(self.layer(layer)?, content, &mut file))?;
        let mut head = [0; 4];
        let length = file.read_at(&mut head, 0)?;
        ensure!(
            wasm::is_wasm(&head[..length]),
            "its entrypoint {program} is no wasm"
        );
        Ok(Module {
            name: format!("{image} {program}"),
            file,
        })
    }

    /// A layer's tar.
    fn layer(&self, layer: &Descriptor) -> io::Result<Box<dyn Read>> {
        let blob = self.blob(layer.digest().as_ref());
        decompressed(blob.map_err(io::Error::other)?)
    }

    /// A small blob; `None` if containerd has not got it, as of other platforms.
    fn document(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        let reading = || format!("reading {digest} from containerd");
        let mut blob = match self.blob(digest) {
            Ok(blob) => blob.take(MAX_DOCUMENT + 1),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status).with_context(reading),
        };
        let mut document = Vec::new();
        match blob.read_to_end(&mut document) {
            Err(error) if is_not_found(&error) => return Ok(None),
            result => result.with_context(reading)?,
        };
        ensure!(
            blob.limit() > 0,
            "{digest} is larger than {MAX_DOCUMENT} bytes"
        );
        Ok(Some(document))
    }

    fn blob(&self, digest: &str) -> Result<Blob, Status> {
        let mut content = ContentClient::new(self.channel.clone());
        let request = self.request(ReadContentRequest {
            digest: digest.to_owned(),
            ..Default::default()
        });
        let answer = self.runtime.block_on(content.read(request))?;
        Ok(Blob {
            runtime: self.runtime.clone(),
            stream: answer.into_inner(),
            chunk: io::Cursor::default(),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.clone();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }
}

/// Names the layer that an error comes from.
fn read_layer<T>(layer: &Descriptor, read: impl FnOnce() -> io::Result<T>) -> Result<T> {
    read().with_context(|| format!("reading the layer {}", layer.digest()))
}

/// Whether a layer is a module itself and not a tar: CNCF's artifact layout and its forerunners.
fn is_wasm(layer: &Descriptor) -> bool {
    let kind = layer.media_type().to_string();
    kind == "application/wasm" || kind.ends_with("+wasm")
}

/// Where the shim looks for `program`, in order; see `entrypoint.rs` of the crate `container`.
fn places(program: &str, cwd: &str, path: &str) -> Vec<String> {
    let mut names = vec![program];
    names.extend(program.rsplit_once('#').map(|(file, _)| file));
    let mut places = Vec::new();
    for name in names {
        if !name.contains('/') {
            let folders = path.split(':').filter(|folder| !folder.is_empty());
            places.extend(folders.map(|folder| format!("{folder}/{name}")));
        }
        places.push(match name.starts_with('/') {
            true => name.to_owned(),
            false => format!("{cwd}/{name}"),
        });
    }
    places
}

fn is_not_found(error: &io::Error) -> bool {
    let status = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Status>());
    status.is_some_and(|status| status.code() == Code::NotFound)
}

/// A blob of containerd's content store.
struct Blob {
    runtime: Rc<Runtime>,
    stream: Streaming<ReadContentResponse>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.chunk.read(buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            let next = self.runtime.block_on(self.stream.message());
            match next.map_err(io::Error::other)? {
                Some(response) => self.chunk = io::Cursor::new(response.data),
                None => return Ok(0),
            }
        }
    }
}
