//! The documents of an image: which of its layers are wasm, and what they are called.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::store::Blob;

/// The media types of a layer that is a wasm file as it stands: that of the CNCF's Wasm OCI artifact,
/// and that of runwasi's images before.
const WASM_LAYERS: [&str; 2] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// The media type of a Wasm OCI artifact's configuration.
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// The media types of lists of manifests.
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The annotation that has a layer's file name (OCI image specification, `annotations.md`).
const TITLE: &str = "org.opencontainers.image.title";

/// What refers to a part of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
}

/// An image for one platform.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An image for several platforms.
#[derive(Debug, Deserialize)]
pub struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// What of a configuration matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// A Wasm OCI artifact's layers.
    layer_digests: Option<BTreeSet<String>>,
}

impl From<containerd_client::types::Descriptor> for Descriptor {
    fn from(descriptor: containerd_client::types::Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size.try_into().unwrap_or(0),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

impl Descriptor {
    /// The part that it refers to, which `what` stands for in messages.
    pub fn blob(&self, what: &str) -> Blob {
        Blob {
            image: String::new(),
            what: what.to_owned(),
            digest: self.digest.clone(),
            size: self.size,
        }
    }

    /// Whether it refers to an [`Index`].
    pub fn is_index(&self) -> bool {
        INDEXES.contains(&self.media_type.as_str())
    }

    fn is_wasm(&self) -> bool {
        WASM_LAYERS.contains(&self.media_type.as_str())
    }

    fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    /// What it is called: its title, or else its digest.
    pub fn label(&self) -> &str {
        self.title().unwrap_or(&self.digest)
    }

    /// Its digest, in bytes.
    ///
    /// # Errors
    /// It is of another kind, or malformed.
    pub fn sha256(&self) -> Result<[u8; 32], String> {
        let refuse = || {
            format!(
                "the layer {} has the digest {:?}, which is not sha256 and 64 digits",
                self.label(),
                self.digest
            )
        };
        let hex = self.digest.strip_prefix("sha256:").ok_or_else(refuse)?;
        if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| refuse())?;
        }
        Ok(bytes)
    }
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("its index is no index: {error}"))
    }

    /// The manifests that may have wasm layers.
    pub fn for_wasm(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|manifest| {
            let platform = manifest.platform.as_ref();
            platform.is_none_or(|platform| platform.architecture == "wasm")
        })
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("its manifest is no manifest: {error}"))
    }

    /// Whether the image is a Wasm OCI artifact or has wasm layers.
    pub fn is_wasm(&self) -> bool {
        self.is_artifact() || self.layers.iter().any(Descriptor::is_wasm)
    }

    fn is_artifact(&self) -> bool {
        self.config.media_type == WASM_CONFIG
    }

    /// The layers that are wasm files.
    pub fn wasm_layers(&self) -> Vec<&Descriptor> {
        self.layers.iter().filter(|layer| layer.is_wasm()).collect()
    }

    /// Checks the layers against each other and against `config`, the configuration.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, config: &[u8]) -> Result<(), String> {
        let layers = self.wasm_layers();
        if layers.is_empty() {
            return Err(format!(
                "it is a Wasm OCI artifact without a layer of the media type {}",
                WASM_LAYERS[0]
            ));
        }
        let (mut digests, mut titles) = (BTreeSet::new(), BTreeSet::new());
        for layer in &layers {
            if !digests.insert(layer.digest.as_str()) {
                return Err(format!("it has the layer {} twice", layer.label()));
            }
            if let Some(title) = layer.title()
                && !titles.insert(plain(title))
            {
                return Err(format!("it has two layers with the title {title}"));
            }
        }
        // A list would be taken for the fields in their order.
        if config.trim_ascii_start().starts_with(b"[") {
            return Err("its configuration is not a JSON object".to_owned());
        }
        let config: Config = serde_json::from_slice(config).map_err(|error| {
            let what = match error.is_data() {
                true => "malformed",
                false => "not JSON",
            };
            format!("its configuration is {what}: {error}")
        })?;
        // Some tools leave them out.
        let listed = config.layer_digests.unwrap_or_default();
        if !self.is_artifact() || listed.is_empty() {
            return Ok(());
        }
        match layers.iter().find(|it| !listed.contains(&it.digest)) {
            Some(layer) => Err(format!(
                "its configuration's layerDigests lack its layer {} ({})",
                layer.label(),
                layer.digest
            )),
            None => Ok(()),
        }
    }
}

/// The layer that `name` means. `sole`: whether a single one is meant by any name.
pub fn named<'a>(layers: &[&'a Descriptor], name: &str, sole: bool) -> Option<&'a Descriptor> {
    let found = layers.iter().find(|layer| {
        layer.digest == name || layer.title().is_some_and(|it| plain(it) == plain(name))
    });
    match (found, layers) {
        (Some(layer), _) => Some(layer),
        (None, [layer]) if sole => Some(layer),
        _ => None,
    }
}

/// How each of the layers can be named.
pub fn listed(layers: &[&Descriptor]) -> String {
    let labels: Vec<&str> = layers.iter().map(|layer| layer.label()).collect();
    labels.join(", ")
}

/// Refuses layers that are together too large to be compiled.
///
/// # Errors
/// They are.
pub fn check_size(layers: &[&Descriptor]) -> Result<(), String> {
    let size = layers.iter().map(|layer| layer.size);
    let size = size.fold(0, u64::saturating_add);
    if size > wasm::MAX_MODULE_BYTES {
        return Err(format!(
            "its wasm layers {} have {size} bytes; there may be at most {}",
            listed(layers),
            wasm::MAX_MODULE_BYTES
        ));
    }
    Ok(())
}

/// An entrypoint without the function that it names.
pub fn without_function(entrypoint: &str) -> &str {
    entrypoint
        .rsplit_once('#')
        .map_or(entrypoint, |(name, _)| name)
}

/// A name without what makes a path of it: `/app.wasm` and `./app.wasm` mean the title `app.wasm`.
fn plain(name: &str) -> &str {
    name.trim_start_matches("./").trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn layer(digit: char, title: Option<&str>) -> Value {
        let digest = format!("sha256:{}", String::from(digit).repeat(64));
        let mut layer = json!({"mediaType": WASM_LAYERS[0], "digest": digest, "size": 1});
        if let Some(title) = title {
            layer["annotations"] = json!({TITLE: title});
        }
        layer
    }

    fn manifest(layers: &[Value]) -> Manifest {
        let config = json!({"mediaType": WASM_CONFIG, "digest": "sha256:0", "size": 2});
        let manifest = json!({"config": config, "layers": layers});
        Manifest::parse(manifest.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_layer_is_meant_by_its_title_or_digest() {
        let manifest = manifest(&[layer('1', Some("a.wasm")), layer('2', Some("lib/b.wasm"))]);
        let layers = manifest.wasm_layers();
        let meant = |name| named(&layers, name, true).map(Descriptor::label);
        for name in ["a.wasm", "/a.wasm", "./a.wasm", &layers[0].digest] {
            assert_eq!(meant(name), Some("a.wasm"), "{name}");
        }
        assert_eq!(meant("/lib/b.wasm"), Some("lib/b.wasm"));
        assert_eq!(meant("b.wasm"), None);
        assert_eq!(listed(&layers), "a.wasm, lib/b.wasm");
    }

    #[test]
    fn a_single_layer_is_meant_by_the_entrypoint_only() {
        let manifest = manifest(&[layer('1', None)]);
        let layers = manifest.wasm_layers();
        assert!(named(&layers, "/any", true).is_some());
        assert!(named(&layers, "/any", false).is_none());
        assert_eq!(without_function("/any#start"), "/any");
    }

    #[test]
    fn what_breaks_the_layout_is_told() {
        let good = [layer('1', Some("a")), layer('2', Some("b"))];
        let refused =
            |layers: &[Value], config: &str| manifest(layers).check(config.as_bytes()).unwrap_err();
        manifest(&good).check(b"{}").unwrap();
        assert!(refused(&[], "{}").contains("without a layer"));
        assert!(refused(&[good[0].clone(), good[0].clone()], "{}").contains("twice"));
        assert!(
            refused(&[layer('1', Some("a")), layer('2', Some("/a"))], "{}").contains("two layers")
        );
        assert!(refused(&good, "no").contains("not JSON"));
        assert!(refused(&good, "[]").contains("not a JSON object"));
        assert!(refused(&good, r#"{"layerDigests": 1}"#).contains("malformed"));
        let one = json!({"layerDigests": [good[0]["digest"]]}).to_string();
        assert!(refused(&good, &one).contains("lack its layer b"));
        let both = json!({"layerDigests": [good[0]["digest"], good[1]["digest"]]}).to_string();
        manifest(&good).check(both.as_bytes()).unwrap();
    }

    #[test]
    fn digests_are_sha256() {
        let sound = manifest(&[layer('a', None)]);
        assert_eq!(sound.wasm_layers()[0].sha256().unwrap(), [0xaa; 32]);
        for digest in ["sha512:00", "sha256:", "sha256:+1", "plain"] {
            let mut layer = layer('1', None);
            layer["digest"] = json!(digest);
            let error = manifest(&[layer]).wasm_layers()[0].sha256().unwrap_err();
            assert!(error.contains(digest), "{error}");
        }
    }

    #[test]
    fn layers_over_the_limit_are_refused() {
        let mut large = layer('1', None);
        large["size"] = json!(wasm::MAX_MODULE_BYTES + 1);
        let small = layer('2', None);
        assert!(check_size(&manifest(&[large.clone()]).wasm_layers()).is_err());
        assert!(check_size(&manifest(&[small.clone(), large]).wasm_layers()).is_err());
        assert!(check_size(&manifest(&[small]).wasm_layers()).is_ok());
    }

    #[test]
    fn an_index_is_looked_through_for_wasm() {
        let entry = |platform| json!({"digest": "sha256:1", "size": 1, "platform": platform});
        let index = json!({"manifests": [
            entry(json!({"os": "linux", "architecture": "amd64"})),
            entry(json!({"os": "wasip1", "architecture": "wasm"})),
            entry(Value::Null),
        ]});
        let index = Index::parse(index.to_string().as_bytes()).unwrap();
        assert_eq!(index.for_wasm().count(), 2);
        assert!(Index::parse(b"no").is_err());
    }
}
