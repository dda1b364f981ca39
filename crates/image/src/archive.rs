use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use oci_spec::image::{
    ANNOTATION_REF_NAME, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, RootFsBuilder,
};
use serde::Serialize;

use crate::{
    Error, Image, Name,
    blob::{self, Blob},
};

/// The annotation in which containerd keeps an image's full name.
const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";
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
    /// `sha256:...` of its manifest: the image's id under containerd.
    pub manifest: String,
    /// `sha256:...` of its configuration: the image's id in Docker's classic store.
    pub config: String,
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
        let mut layers = Vec::new();
        let mut paths = Vec::new();
        for layer in &image.layers {
            let layer = layer.blob()?;
            layers.push(layer.descriptor(MediaType::ImageLayer)?);
            paths.push(layer.path());
            self.write_blob(layer)?;
        }

        // Layers are not compressed: the digest of each is its diff id too.
        let diff_ids: Vec<String> = layers.iter().map(|l| l.digest().to_string()).collect();
        let config = blob::json(&configuration(image, diff_ids)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor(MediaType::ImageConfig)?)
            .layers(layers)
            .build()?;
        let manifest = blob::json(&manifest)?;

        let mut descriptor = manifest.descriptor(MediaType::ImageManifest)?;
        descriptor.set_platform(Some((&image.platform).into()));
        descriptor.set_annotations(Some(HashMap::from([
            (ANNOTATION_CONTAINERD_NAME.into(), name.to_string()),
            (ANNOTATION_REF_NAME.into(), name.tag().into()),
        ])));
        self.manifests.push(descriptor);
        self.docker.push(DockerManifest {
            config: config.path(),
            repo_tags: vec![name.to_string()],
            layers: paths,
        });

        let saved = Saved {
            name: name.clone(),
            manifest: manifest.digest(),
            config: config.digest(),
        };
        self.write_blob(config.into_reader())?;
        self.write_blob(manifest.into_reader())?;
        Ok(saved)
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
    fn into_reader(self) -> Blob<io::Cursor<Vec<u8>>> {
        Blob {
            content: io::Cursor::new(self.content),
            size: self.size,
            sha256: self.sha256,
        }
    }
}

impl Image {
    /// Writes an archive of this one image to a file, which is there whole or
    /// as it was before.
    pub fn save(&self, name: &Name, path: impl AsRef<Path>) -> Result<Saved, Error> {
        let path = path.as_ref();
        let failed = |source| Error::Save {
            path: path.into(),
            source,
        };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(failed)?;
        let mut archive = Archive::new(io::BufWriter::new(file))?;
        let saved = archive.add(name, self)?;
        archive
            .finish()?
            .into_inner()
            .map_err(|error| failed(error.into_error()))?
            .persist(path)
            .map_err(|error| failed(error.error))?;
        Ok(saved)
    }
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
    use std::collections::BTreeMap;

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
        assert_eq!(
            annotations[ANNOTATION_CONTAINERD_NAME],
            "docker.io/library/hello:1"
        );
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
            ("z/host", 0o755, root, "from the host"),
        ];
        let expected = expected
            .map(|(path, mode, owner, text)| (path.to_owned(), mode, owner, text.to_owned()));
        assert_eq!(found, expected);
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
