use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Read, Write},
};

use oci_spec::image::{
    ANNOTATION_REF_NAME, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifest, ImageManifestBuilder, MediaType, OciLayoutBuilder, RootFsBuilder,
};
use serde::Serialize;

use crate::{
    Artifact, Error, Image, Name, Platform,
    blob::{self, Blob},
    media::{FULL_NAME, TITLE, WASM_CONFIG, WASM_LAYER},
};

/// An image is as old as its files: not at all.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A file of images under construction: a tar of an OCI image layout
/// (`image-layout.md` of the OCI image specification), with the `manifest.json`
/// of `docker save` beside it for tools that know nothing else.
pub struct Archive<W: Write> {
    tar: tar::Builder<W>,
    /// Paths that the tar holds already: images share blobs.
    written: BTreeSet<String>,
    manifests: Vec<Descriptor>,
    docker: Vec<DockerManifest>,
}

/// By what names an image in an archive is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Saved {
    /// The name that importers give it.
    pub name: Name,
    /// `sha256:...` of its manifest, or of its index if it is for several platforms: the
    /// image's id under containerd.
    pub manifest: String,
    /// `sha256:...` of its configuration, the first platform's: the image's id in Docker's
    /// classic store.
    pub config: String,
}

/// A manifest that the archive holds, and what it is made of.
struct Written {
    descriptor: Descriptor,
    config: Blob<()>,
    /// Where the layers of its file system are in the archive.
    layers: Vec<String>,
}

/// One element of `docker save`'s manifest.json.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl<W: Write> Archive<W> {
    /// An archive without images, written to `writer` as they are added.
    pub fn new(writer: W) -> Result<Self, Error> {
        let mut archive = Self {
            tar: tar::Builder::new(writer),
            written: BTreeSet::new(),
            manifests: Vec::new(),
            docker: Vec::new(),
        };
        let layout = OciLayoutBuilder::default()
            .image_layout_version("1.0.0")
            .build()?;
        archive.write("oci-layout", blob::json(&layout)?)?;
        Ok(archive)
    }

    /// Adds an image under a name. Files of the host that it is made of are read
    /// here. After an error the archive is incomplete: throw it away.
    pub fn add(&mut self, name: &Name, image: &Image) -> Result<Saved, Error> {
        let written = self.write_image(image)?;
        self.list_for_docker(name, &written);
        Ok(self.list(name, written.descriptor, &written.config))
    }

    /// Adds one image for several platforms under a name: an index
    /// (`image-index.md` of the OCI image specification) of those given, in their order. Docker's
    /// classic store, which knows no index, is given the first for Linux, or else the first.
    ///
    /// # Errors
    /// As [`Archive::add`], and where there are no images or two for one platform.
    pub fn add_index(&mut self, name: &Name, images: &[Image]) -> Result<Saved, Error> {
        let mut platforms = BTreeSet::new();
        let mut manifests = Vec::new();
        let mut classic: Option<Written> = None;
        let mut classic_is_linux = false;
        for image in images {
            if !platforms.insert(image.platform.to_string()) {
                return Err(Error::PlatformTwice(image.platform.clone()));
            }
            let written = self.write_image(image)?;
            manifests.push(written.descriptor.clone());
            let is_linux = image.platform.os == "linux";
            if classic.is_none() || (is_linux && !classic_is_linux) {
                (classic, classic_is_linux) = (Some(written), is_linux);
            }
        }
        let classic = classic.ok_or(Error::NoImage)?;
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()?;
        let index = blob::json(&index)?;
        let descriptor = index.descriptor(MediaType::ImageIndex)?;
        self.write_blob(index.into_reader())?;
        self.list_for_docker(name, &classic);
        Ok(self.list(name, descriptor, &classic.config))
    }

    /// Adds a wasm artifact under a name. Docker's classic store cannot hold one.
    ///
    /// One that has files beside the wasm gets an image's configuration: engines unpack layers only
    /// for configurations that they know.
    ///
    /// # Errors
    /// As [`Archive::add`].
    pub fn add_artifact(&mut self, name: &Name, artifact: &Artifact) -> Result<Saved, Error> {
        let image = Image {
            platform: artifact.wasm.platform(),
            ..artifact.image.clone()
        };
        let program = blob::of_file(&artifact.program)?;
        let digest = program.digest();
        let mut layer = program.descriptor(MediaType::Other(WASM_LAYER.into()))?;
        let title = (TITLE.to_owned(), artifact.title.clone());
        layer.set_annotations(Some(HashMap::from([title])));
        self.write_blob(program)?;

        let mut layers = vec![layer];
        let (others, diff_ids) = self.write_layers(&image)?;
        layers.extend(others);
        let config = artifact
            .wasm
            .describe(configuration(&image, diff_ids)?, &digest)?;
        let config = blob::json(&config)?;
        let media_type = match image.layers.is_empty() {
            true => MediaType::Other(WASM_CONFIG.into()),
            false => MediaType::ImageConfig,
        };
        let annotations = &artifact.image.labels;
        let described = config.descriptor(media_type)?;
        let manifest = manifest(described, layers, annotations)?;
        let written = self.write_manifest(manifest, config, &image.platform)?;
        Ok(self.list(name, written.descriptor, &written.config))
    }

    /// Writes an image's blobs.
    fn write_image(&mut self, image: &Image) -> Result<Written, Error> {
        let (layers, diff_ids) = self.write_layers(image)?;
        let config = blob::json(&configuration(image, diff_ids)?)?;
        let described = config.descriptor(MediaType::ImageConfig)?;
        let manifest = manifest(described, layers, &BTreeMap::new())?;
        self.write_manifest(manifest, config, &image.platform)
    }

    /// Writes the layers of an image's file system: their descriptors and diff ids.
    fn write_layers(&mut self, image: &Image) -> Result<(Vec<Descriptor>, Vec<String>), Error> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let layer = layer.blob()?;
            layers.push(layer.descriptor(MediaType::ImageLayer)?);
            self.write_blob(layer)?;
        }
        // Layers are not compressed: the digest of each is its diff id too.
        let diff_ids = layers.iter().map(|l| l.digest().to_string()).collect();
        Ok((layers, diff_ids))
    }

    fn write_manifest(
        &mut self,
        manifest: ImageManifest,
        config: Blob<Vec<u8>>,
        platform: &Platform,
    ) -> Result<Written, Error> {
        let layers = manifest.layers().iter().map(path_of).collect();
        let manifest = blob::json(&manifest)?;
        let mut descriptor = manifest.descriptor(MediaType::ImageManifest)?;
        descriptor.set_platform(Some(platform.into()));
        let written = Written {
            descriptor,
            config: config.without_content(),
            layers,
        };
        self.write_blob(config.into_reader())?;
        self.write_blob(manifest.into_reader())?;
        Ok(written)
    }

    /// Lists what a name stands for in the table of contents.
    fn list<C>(&mut self, name: &Name, mut descriptor: Descriptor, config: &Blob<C>) -> Saved {
        let saved = Saved {
            name: name.clone(),
            manifest: descriptor.digest().to_string(),
            config: config.digest(),
        };
        descriptor.set_annotations(Some(HashMap::from([
            (FULL_NAME.into(), name.to_string()),
            (ANNOTATION_REF_NAME.into(), name.tag().into()),
        ])));
        self.manifests.push(descriptor);
        saved
    }

    fn list_for_docker(&mut self, name: &Name, image: &Written) {
        self.docker.push(DockerManifest {
            config: image.config.path(),
            repo_tags: vec![name.to_string()],
            layers: image.layers.clone(),
        });
    }

    /// Writes the table of contents and gives the writer back.
    pub fn finish(mut self) -> Result<W, Error> {
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(std::mem::take(&mut self.manifests))
            .build()?;
        self.write("index.json", blob::json(&index)?)?;
        let docker = std::mem::take(&mut self.docker);
        self.write("manifest.json", blob::json(&docker)?)?;
        self.tar.into_inner().map_err(Error::Write)
    }

    fn write_blob<R: Read>(&mut self, blob: Blob<R>) -> Result<(), Error> {
        let path = blob.path();
        self.write_once(&path, blob)
    }

    fn write(&mut self, path: &str, blob: Blob<Vec<u8>>) -> Result<(), Error> {
        self.write_once(path, blob.into_reader())
    }

    fn write_once<R: Read>(&mut self, path: &str, blob: Blob<R>) -> Result<(), Error> {
        if !self.written.insert(path.to_owned()) {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(blob.size);
        self.tar
            .append_data(&mut header, path, blob.content)
            .map_err(Error::Write)
    }
}

impl Blob<Vec<u8>> {
    /// What it is known by.
    fn without_content(&self) -> Blob<()> {
        Blob {
            content: (),
            size: self.size,
            sha256: self.sha256.clone(),
        }
    }

    fn into_reader(self) -> Blob<io::Cursor<Vec<u8>>> {
        Blob {
            content: io::Cursor::new(self.content),
            size: self.size,
            sha256: self.sha256,
        }
    }
}

/// A manifest (`manifest.md` of the OCI image specification).
fn manifest(
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: &BTreeMap<String, String>,
) -> Result<ImageManifest, Error> {
    let mut manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()?;
    if !annotations.is_empty() {
        manifest.set_annotations(Some(annotations.clone().into_iter().collect()));
    }
    Ok(manifest)
}

/// Where the archive has the blob of a descriptor.
fn path_of(descriptor: &Descriptor) -> String {
    let digest = descriptor.digest();
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// The image's `application/vnd.oci.image.config.v1+json`.
fn configuration(image: &Image, diff_ids: Vec<String>) -> Result<impl Serialize, Error> {
    let mut env = Vec::new();
    for (key, value) in &image.env {
        if key.is_empty() || key.contains('=') {
            return Err(Error::Env(key.clone()));
        }
        env.push(format!("{key}={value}"));
    }
    let mut config = ConfigBuilder::default();
    if !image.entrypoint.is_empty() {
        config = config.entrypoint(image.entrypoint.clone());
    }
    if !image.cmd.is_empty() {
        config = config.cmd(image.cmd.clone());
    }
    if !env.is_empty() {
        config = config.env(env);
    }
    if let Some(folder) = &image.working_dir {
        config = config.working_dir(folder.clone());
    }
    if let Some(user) = &image.user {
        config = config.user(user.clone());
    }
    if let Some(signal) = &image.stop_signal {
        config = config.stop_signal(signal.clone());
    }
    if !image.labels.is_empty() {
        config = config.labels(image.labels.clone().into_iter().collect::<HashMap<_, _>>());
    }
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(diff_ids)
        .build()?;
    let mut configuration = ImageConfigurationBuilder::default()
        .created(CREATED)
        .os(image.platform.os.as_str())
        .architecture(image.platform.architecture.as_str())
        .config(config.build()?)
        .rootfs(rootfs)
        .build()?;
    configuration.set_variant(image.platform.variant.clone());
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

    use oci_spec::image::{Arch, ImageConfiguration, ImageIndex, ImageManifest, Os};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{Entry, Layer};

    fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        tar::Archive::new(tar)
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().to_str().unwrap().to_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                (path, bytes)
            })
            .collect()
    }

    fn blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Descriptor) -> Vec<u8> {
        let sha256 = descriptor.as_digest_sha256().unwrap();
        let bytes = files[&format!("blobs/sha256/{sha256}")].clone();
        assert_eq!(bytes.len() as u64, descriptor.size());
        assert_eq!(format!("{:x}", Sha256::digest(&bytes)), sha256);
        bytes
    }

    /// An image with every kind of entry; `host` is a file.
    fn sample(host: &Path) -> Image {
        let mut layer = Layer::default();
        layer.add("z/host", Entry::file(host)).unwrap();
        layer
            .add(
                "/a/text",
                Entry::bytes("hello").mode(0o640).owner(1000, 3_000_000),
            )
            .unwrap();
        layer
            .add("/a", Entry::directory().mode(0o700).owner(1000, 1000))
            .unwrap();
        layer.add("/a/link", Entry::symlink("../z/host")).unwrap();
        let deep = format!("/deep/{}/file", "long".repeat(40));
        layer.add(&deep, Entry::bytes("")).unwrap();
        Image {
            entrypoint: vec!["/z/host".into()],
            env: BTreeMap::from([("B".into(), "2".into()), ("A".into(), "1".into())]),
            labels: (0..20)
                .map(|n| (format!("label{n}"), n.to_string()))
                .collect(),
            layers: vec![layer],
            ..Image::default()
        }
    }

    fn archive(images: &[(&str, &Image)]) -> (Vec<u8>, Vec<Saved>) {
        let mut archive = Archive::new(Vec::new()).unwrap();
        let saved = images
            .iter()
            .map(|(name, image)| archive.add(&name.parse().unwrap(), image).unwrap())
            .collect();
        (archive.finish().unwrap(), saved)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("host");
        fs::write(&host, "from the host").unwrap();
        fs::set_permissions(&host, fs::Permissions::from_mode(0o711)).unwrap();
        let (bytes, saved) = archive(&[("hello:1", &sample(&host))]);

        let files = files(&bytes);
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = ImageIndex::from_reader(&files["index.json"][..]).unwrap();
        let [descriptor] = &index.manifests()[..] else {
            panic!("{index:?}")
        };
        assert_eq!(descriptor.digest().to_string(), saved[0].manifest);
        let annotations = descriptor.annotations().as_ref().unwrap();
        assert_eq!(annotations[FULL_NAME], "docker.io/library/hello:1");
        assert_eq!(annotations[ANNOTATION_REF_NAME], "1");
        let platform = descriptor.platform().as_ref().unwrap();
        assert_eq!(platform.os(), &Os::Other("wasi".into()));
        assert_eq!(platform.architecture(), &Arch::Wasm);

        let manifest = ImageManifest::from_reader(&blob(&files, descriptor)[..]).unwrap();
        assert_eq!(manifest.config().digest().to_string(), saved[0].config);
        let config = blob(&files, manifest.config());
        let config = ImageConfiguration::from_reader(&config[..]).unwrap();
        assert_eq!(config.os(), platform.os());
        assert_eq!(config.architecture(), platform.architecture());
        let [layer] = &manifest.layers()[..] else {
            panic!("{manifest:?}")
        };
        assert_eq!(config.rootfs().diff_ids(), &[layer.digest().to_string()]);
        let run = config.config().as_ref().unwrap();
        assert_eq!(run.entrypoint().as_deref().unwrap(), ["/z/host"]);
        assert_eq!(run.env().as_deref().unwrap(), ["A=1", "B=2"]);
        assert_eq!(run.cmd(), &None);

        let docker: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let path = |descriptor: &Descriptor| {
            format!("blobs/sha256/{}", descriptor.as_digest_sha256().unwrap())
        };
        assert_eq!(
            docker,
            serde_json::json!([{
                "Config": path(manifest.config()),
                "Layers": [path(layer)],
                "RepoTags": ["docker.io/library/hello:1"],
            }])
        );

        let layer = blob(&files, layer);
        let mut found = Vec::new();
        for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                text = target.to_str().unwrap().into();
            }
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            let path = entry.path().unwrap().to_str().unwrap().replace("long", "");
            let owner = (header.uid().unwrap(), header.gid().unwrap());
            found.push((path, header.mode().unwrap(), owner, text));
        }
        let root = (0, 0);
        let expected = [
            ("a/", 0o700, (1000, 1000), ""),
            ("a/link", 0o777, root, "../z/host"),
            ("a/text", 0o640, (1000, 3_000_000), "hello"),
            ("deep/", 0o755, root, ""),
            ("deep//", 0o755, root, ""),
            ("deep//file", 0o644, root, ""),
            ("z/", 0o755, root, ""),
            ("z/host", 0o711, root, "from the host"),
        ];
        let expected = expected
            .map(|(path, mode, owner, text)| (path.to_owned(), mode, owner, text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn an_index_names_one_image_for_each_platform() {
        let images = ["wasi/wasm", "linux/amd64", "linux/arm64"].map(|platform| Image {
            platform: platform.parse().unwrap(),
            ..Image::default()
        });
        let mut archive = Archive::new(Vec::new()).unwrap();
        let name = "hello:1".parse().unwrap();
        let saved = archive.add_index(&name, &images).unwrap();
        let files = files(&archive.finish().unwrap());
        let top = ImageIndex::from_reader(&files["index.json"][..]).unwrap();
        let [descriptor] = &top.manifests()[..] else {
            panic!("{top:?}")
        };
        assert_eq!(descriptor.media_type(), &MediaType::ImageIndex);
        assert_eq!(descriptor.digest().to_string(), saved.manifest);
        let index = ImageIndex::from_reader(&blob(&files, descriptor)[..]).unwrap();
        let found: Vec<String> = index
            .manifests()
            .iter()
            .map(|manifest| {
                let bytes = blob(&files, manifest);
                let image = ImageManifest::from_reader(&bytes[..]).unwrap();
                let config = blob(&files, image.config());
                let config = ImageConfiguration::from_reader(&config[..]).unwrap();
                let platform = manifest.platform().as_ref().unwrap();
                assert_eq!(platform.os(), config.os());
                assert_eq!(platform.architecture(), config.architecture());
                format!("{}/{}", platform.os(), platform.architecture())
            })
            .collect();
        assert_eq!(found, ["wasi/wasm", "linux/amd64", "linux/arm64"]);
        // Docker's classic store is given the first that it can run.
        let docker: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let config = &files[docker[0]["Config"].as_str().unwrap()];
        let config = ImageConfiguration::from_reader(&config[..]).unwrap();
        assert_eq!(config.architecture(), &Arch::Amd64);

        let mut archive = Archive::new(Vec::new()).unwrap();
        let twice = [images[0].clone(), images[0].clone()];
        let error = archive.add_index(&name, &twice).unwrap_err().to_string();
        assert!(error.contains("wasi/wasm is given twice"), "{error}");
        assert!(archive.add_index(&name, &[]).is_err());
    }

    #[test]
    fn an_artifact_is_the_file_as_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("app.wasm");
        fs::write(&program, b"\0asm\x0d\0\x01\0").unwrap();
        let artifact = Artifact {
            program,
            wasm: crate::Wasm::Component {
                imports: vec!["wasi:cli/environment@0.2.0".into()],
                exports: vec!["wasi:cli/run@0.2.0".into()],
            },
            title: "app.wasm".into(),
            image: Image {
                entrypoint: vec!["/app.wasm".into()],
                labels: BTreeMap::from([("k".into(), "v".into())]),
                ..Image::default()
            },
        };
        let write = || {
            let mut archive = Archive::new(Vec::new()).unwrap();
            archive
                .add_artifact(&"hello:1".parse().unwrap(), &artifact)
                .unwrap();
            archive.finish().unwrap()
        };
        let bytes = write();
        assert_eq!(bytes, write(), "the same input gives the same bytes");
        let files = files(&bytes);
        let index = ImageIndex::from_reader(&files["index.json"][..]).unwrap();
        let descriptor = &index.manifests()[0];
        assert_eq!(
            descriptor.platform().as_ref().unwrap().os(),
            &Os::Other("wasip2".into())
        );
        let manifest = ImageManifest::from_reader(&blob(&files, descriptor)[..]).unwrap();
        assert_eq!(manifest.config().media_type().to_string(), WASM_CONFIG);
        assert_eq!(manifest.annotations().as_ref().unwrap()["k"], "v");
        let [layer] = &manifest.layers()[..] else {
            panic!("{manifest:?}")
        };
        assert_eq!(layer.media_type().to_string(), WASM_LAYER);
        assert_eq!(layer.annotations().as_ref().unwrap()[TITLE], "app.wasm");
        assert_eq!(blob(&files, layer), b"\0asm\x0d\0\x01\0");
        let config: serde_json::Value =
            serde_json::from_slice(&blob(&files, manifest.config())).unwrap();
        assert_eq!(
            config,
            serde_json::json!({
                "created": CREATED,
                "architecture": "wasm",
                "os": "wasip2",
                "layerDigests": [layer.digest().to_string()],
                "component": {
                    "imports": ["wasi:cli/environment@0.2.0"],
                    "exports": ["wasi:cli/run@0.2.0"],
                    "target": null,
                },
                "config": {"Entrypoint": ["/app.wasm"], "Labels": {"k": "v"}},
                "rootfs": {"type": "layers", "diff_ids": []},
            })
        );
        // There is nothing in it for Docker's classic store.
        assert_eq!(files["manifest.json"], b"[]");
    }

    #[test]
    fn an_artifact_with_files_has_an_images_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("app.wasm");
        fs::write(&program, b"\0asm\x01\0\0\0").unwrap();
        let mut beside = Layer::default();
        beside.add("/etc/data", Entry::bytes("text")).unwrap();
        let artifact = Artifact {
            program,
            wasm: crate::Wasm::Module,
            title: "app.wasm".into(),
            image: Image {
                layers: vec![beside],
                ..Image::default()
            },
        };
        let mut archive = Archive::new(Vec::new()).unwrap();
        let name = "hello:1".parse().unwrap();
        let saved = archive.add_artifact(&name, &artifact).unwrap();
        let files = files(&archive.finish().unwrap());
        let manifest = &files[&format!("blobs/{}", saved.manifest.replace(':', "/"))];
        let written = ImageManifest::from_reader(&manifest[..]).unwrap();
        let config = blob(&files, written.config());
        let read = ImageConfiguration::from_reader(&config[..]).unwrap();
        assert_eq!(written.config().media_type(), &MediaType::ImageConfig);
        assert_eq!(read.os(), &Os::Other("wasip1".into()));
        let [wasm, tar] = &written.layers()[..] else {
            panic!("{written:?}")
        };
        // A layer that is no tar is not unpacked, and has none.
        assert_eq!(read.rootfs().diff_ids(), &[tar.digest().to_string()]);
        // The shim takes it for what it is.
        let manifest: crate::Manifest = serde_json::from_slice(manifest).unwrap();
        assert!(manifest.is_wasm());
        manifest.check(&config).unwrap();
        let [layer] = manifest.wasm_layers()[..] else {
            panic!("{manifest:?}")
        };
        assert_eq!(layer.digest, wasm.digest().to_string());
        assert_eq!(layer.title(), Some("app.wasm"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, "the same").unwrap();
            path
        });
        let first = archive(&[("hello", &sample(&one))]);
        assert_eq!(archive(&[("hello", &sample(&two))]), first);
        fs::write(&two, "not the same").unwrap();
        assert_ne!(archive(&[("hello", &sample(&two))]), first);
    }

    #[test]
    fn images_share_blobs_in_one_archive() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("host");
        fs::write(&host, "once").unwrap();
        let wasi = sample(&host);
        let linux = Image {
            platform: "linux/arm64/v8".parse().unwrap(),
            ..wasi.clone()
        };
        let (bytes, saved) = archive(&[("hello:wasi", &wasi), ("hello:linux", &linux)]);
        assert_ne!(saved[0].manifest, saved[1].manifest);
        let paths: Vec<String> = tar::Archive::new(&bytes[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        // Two manifests, two configurations, one layer.
        let blobs = paths.iter().filter(|path| path.starts_with("blobs/"));
        assert_eq!(blobs.count(), 5, "{paths:?}");
        let index = ImageIndex::from_reader(&files(&bytes)["index.json"][..]).unwrap();
        assert_eq!(index.manifests().len(), 2);
        let platform = index.manifests()[1].platform().clone().unwrap();
        assert_eq!(platform.variant().as_deref(), Some("v8"));
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.tar");
        fs::write(&path, "before").unwrap();
        let error = sample(Path::new("/nowhere/file"))
            .save(&"hello".parse().unwrap(), &path)
            .unwrap_err();
        assert!(error.to_string().contains("/nowhere/file"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let missing = folder.path().join("gone/hello.tar");
        let error = Image::default()
            .save(&"hello".parse().unwrap(), &missing)
            .unwrap_err();
        assert!(error.to_string().contains("gone/hello.tar"), "{error}");
    }

    #[test]
    fn a_variable_without_a_name_is_refused() {
        for key in ["", "A=B"] {
            let image = Image {
                env: BTreeMap::from([(key.into(), "x".into())]),
                ..Image::default()
            };
            let mut archive = Archive::new(Vec::new()).unwrap();
            let error = archive.add(&"hello".parse().unwrap(), &image).unwrap_err();
            assert!(matches!(error, Error::Env(found) if found == key));
        }
    }
}
