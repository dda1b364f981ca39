//! The wasm in images that a containerd has.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    rc::Rc,
};

use anyhow::{Context, Error, Result, bail, ensure};
use image::{Descriptor, Files, Incoming, Manifest, Name, Store, decompressed, extract};
use oci_spec::image::Config;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use wasm::Parts;

/// PATH where an image sets none, as engines give it to containers.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file that may be wasm, and what it is called in messages.
pub struct Module {
    pub name: String,
    pub file: File,
    /// What its native code is kept under, where that is known without reading it.
    pub key: Option<[u8; 32]>,
}

/// A connection to containerd.
pub struct Containerd {
    runtime: Rc<Runtime>,
    store: Store,
    namespace: String,
}

impl Containerd {
    pub fn connect(address: &Path, namespace: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let store = runtime.block_on(Store::connect(address, namespace))?;
        Ok(Self {
            runtime: Rc::new(runtime),
            store,
            namespace: namespace.to_owned(),
        })
    }

    /// What the entrypoints of an image's platforms name, if it is wasm. Where wasm layers have no
    /// entrypoint, each of them, since a container's command will name one.
    pub fn modules(&self, image: &str) -> Result<Vec<Module>> {
        let (name, target) = self.target(image)?;
        let mut modules = Vec::new();
        let mut notes = Vec::new();
        let manifests = self.store.manifests(&name, &target, |_| true);
        for (_, manifest) in self.runtime.block_on(manifests)? {
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

    /// The image's full name, and its index or manifest.
    fn target(&self, image: &str) -> Result<(String, Descriptor)> {
        let mut names = vec![image.to_owned()];
        names.extend(image.parse::<Name>().ok().map(|name| name.to_string()));
        names.dedup();
        for name in &names {
            if let Some(target) = self.runtime.block_on(self.store.target(name))? {
                return Ok((name.clone(), target));
            }
        }
        bail!(
            "containerd has no image {} in its namespace {}, and there is no such file; pull it \
             first, or name the namespace with --namespace",
            names.join(" or "),
            self.namespace,
        )
    }

    fn modules_of(&self, image: &str, manifest: &Manifest) -> Result<Vec<Module>> {
        let layers = manifest.wasm_layers();
        if layers.is_empty() {
            return Ok(vec![self.entrypoint(image, manifest)?]);
        }
        let document = self.configuration(image, manifest)?;
        manifest.check(&document).map_err(Error::msg)?;
        image::check_size(&layers, wasm::MAX_MODULE_BYTES).map_err(Error::msg)?;
        let arguments = arguments(&run_configuration(&document)?);
        let named = arguments.first().and_then(|name| meant(&layers, name));
        let programs = named.map_or_else(|| layers.clone(), |program| vec![program]);
        let composed = programs
            .into_iter()
            .map(|program| self.composed(image, program, &image::composed(&layers, program)));
        composed.collect()
    }

    /// What a container of `program` runs, which is the first of these layers.
    fn composed(
        &self,
        image: &str,
        program: &Descriptor,
        layers: &[&Descriptor],
    ) -> Result<Module> {
        let digests: Result<Vec<_>, String> = layers.iter().map(|layer| layer.sha256()).collect();
        let key = Parts::key(&digests.map_err(Error::msg)?);
        let name = format!("{image} {}", program.label());
        let file = match layers {
            [module] => {
                let mut file = tempfile::tempfile()?;
                io::copy(&mut self.blob(image, module)?, &mut file)?;
                file
            }
            _ => {
                let mut parts = Parts::new()?;
                for layer in layers {
                    io::copy(&mut self.blob(image, layer)?, parts.begin(layer.size)?)?;
                }
                parts.into_file()
            }
        };
        let key = Some(key);
        Ok(Module { name, file, key })
    }

    fn configuration(&self, image: &str, manifest: &Manifest) -> Result<Vec<u8>> {
        let config = manifest.config.blob(image, "the configuration");
        Ok(self.runtime.block_on(self.store.document(&config))?)
    }

    /// The file that the image's configuration has containers run.
    fn entrypoint(&self, image: &str, manifest: &Manifest) -> Result<Module> {
        let document = self.configuration(image, manifest)?;
        let config = run_configuration(&document)
            .with_context(|| format!("the configuration {}", manifest.config.digest))?;
        let arguments = arguments(&config);
        let program = arguments.first().context("it has no entrypoint")?;
        let cwd = config.working_dir().clone().unwrap_or_default();
        let env = config.env().clone().unwrap_or_default();
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));

        let mut files = Files::default();
        for layer in &manifest.layers {
            let read = || files.add_layer(self.tar(image, layer)?);
            read_layer(layer, read)?;
        }
        let content = places(program, &cwd, path.unwrap_or(DEFAULT_PATH))
            .iter()
            .find_map(|place| files.find(place, "/"))
            .with_context(|| format!("it has no file {program}, its entrypoint"))?;
        let layer = &manifest.layers[content.layer];
        let mut file = tempfile::tempfile()?;
        read_layer(layer, || {
            extract(self.tar(image, layer)?, content, &mut file)
        })?;
        let mut head = [0; 4];
        let length = file.read_at(&mut head, 0)?;
        ensure!(
            wasm::is_wasm(&head[..length]),
            "its entrypoint {program} is no wasm"
        );
        Ok(Module {
            name: format!("{image} {program}"),
            file,
            key: None,
        })
    }

    /// A layer's tar.
    fn tar(&self, image: &str, layer: &Descriptor) -> io::Result<Box<dyn Read>> {
        decompressed(self.blob(image, layer)?)
    }

    fn blob(&self, image: &str, layer: &Descriptor) -> io::Result<Reader> {
        let blob = layer.blob(image, format!("the layer {}", layer.label()));
        let blob = self.runtime.block_on(self.store.open(&blob));
        Ok(Reader {
            runtime: self.runtime.clone(),
            blob: blob.map_err(io::Error::other)?,
            chunk: io::Cursor::default(),
        })
    }
}

/// How an image's containers run, of its configuration; that of an artifact need not have more.
fn run_configuration(document: &[u8]) -> Result<Config> {
    let mut document: Value = serde_json::from_slice(document)?;
    let config = document.get_mut("config").map(Value::take);
    let config: Option<Config> = serde_json::from_value(config.unwrap_or_default())?;
    Ok(config.unwrap_or_default())
}

/// What a container runs, unless it is told otherwise.
fn arguments(config: &Config) -> Vec<String> {
    let mut arguments = config.entrypoint().clone().unwrap_or_default();
    arguments.extend(config.cmd().clone().unwrap_or_default());
    arguments
}

/// The layer that an entrypoint means, with the function that it may name.
fn meant<'a>(layers: &[&'a Descriptor], entrypoint: &str) -> Option<&'a Descriptor> {
    image::named(layers, entrypoint, false)
        .or_else(|| image::named(layers, image::without_function(entrypoint), true))
}

/// Names the layer that an error comes from.
fn read_layer<T>(layer: &Descriptor, read: impl FnOnce() -> io::Result<T>) -> Result<T> {
    read().with_context(|| format!("reading the layer {}", layer.digest))
}

/// Where the shim looks for `program`, in order; see `entrypoint.rs` of the crate `container`.
fn places(program: &str, cwd: &str, path: &str) -> Vec<String> {
    let mut names = vec![program, image::without_function(program)];
    names.dedup();
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

/// A blob on its way from containerd.
struct Reader {
    runtime: Rc<Runtime>,
    blob: Incoming,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.chunk.read(buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            let next = self.runtime.block_on(self.blob.next());
            match next.map_err(io::Error::other)? {
                Some(part) => self.chunk = io::Cursor::new(part),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_by_its_whole_name_and_then_without_a_function() {
        for (program, expected) in [
            ("/app", &["/app"][..]),
            ("/app#run", &["/app#run", "/app"]),
            (
                "/a#wasi:cli/run@0.2.6#run",
                &["/a#wasi:cli/run@0.2.6#run", "/a"],
            ),
            (
                "app#run",
                &["/bin/app#run", "/d/app#run", "/bin/app", "/d/app"],
            ),
        ] {
            assert_eq!(places(program, "/d", "/bin"), expected, "{program}");
        }
    }

    #[test]
    fn a_layer_is_meant_by_its_whole_title_and_then_without_a_function() {
        let layer = |digit: char, title: &str| -> Descriptor {
            let layer = serde_json::json!({
                "mediaType": "application/wasm",
                "digest": format!("sha256:{}", String::from(digit).repeat(64)),
                "size": 1,
                "annotations": {"org.opencontainers.image.title": title},
            });
            serde_json::from_value(layer).unwrap()
        };
        let layers = [layer('1', "c#.wasm"), layer('2', "c")];
        let layers = layers.each_ref();
        for (entrypoint, title) in [
            ("/c#.wasm", Some("c#.wasm")),
            ("c#.wasm#run", Some("c#.wasm")),
            ("/c#run", Some("c")),
            ("/c#wasi:cli/run@0.2.6#run", Some("c")),
            ("/d", None),
        ] {
            let found = meant(&layers, entrypoint).map(Descriptor::label);
            assert_eq!(found, title, "{entrypoint}");
        }
        assert!(meant(&layers[..1], "/any#run").is_some());
    }
}
