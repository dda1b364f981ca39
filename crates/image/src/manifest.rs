//! The documents that an image is made of, as far as they matter here. What others have written is
//! taken as it comes: what it lacks, and nobody asks for, is no error.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::media::{FULL_NAME, TITLE};
use crate::{Blob, Platform};

/// What refers to a part of an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// `sha256:...`.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// More about it.
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// What it is for, in an index.
    pub platform: Option<Platform>,
}

/// An image for one platform.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// An image for several platforms, or the images of an archive.
#[derive(Clone, Debug, Deserialize)]
pub struct Index {
    /// One for each.
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

/// What the name of an image may stand for.
#[derive(Clone, Debug)]
pub enum Document {
    /// An image for one platform.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// A value that may be `null`, as programs in Go write and read what is empty.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Descriptor {
    /// The part of `image` that it refers to, which `what` stands for in messages.
    pub fn blob(&self, image: &str, what: impl Into<String>) -> Blob {
        Blob {
            image: image.to_owned(),
            what: what.into(),
            digest: self.digest.clone(),
            size: self.size,
        }
    }

    /// What it is called: its title, or else its digest.
    pub fn label(&self) -> &str {
        self.title().unwrap_or(&self.digest)
    }

    /// The file name of a layer, if it has one.
    pub(crate) fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    /// The full name that an archive gives the image, if it gives any.
    pub fn full_name(&self) -> Option<&str> {
        self.annotations.get(FULL_NAME).map(String::as_str)
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

impl Document {
    /// Reads a manifest or an index. An index has manifests and a manifest has not; their media
    /// types may be left out.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(bytes)
            .map_err(|error| format!("is no manifest and no index: {error}"))?;
        let has = |name| fields.get(name).is_some_and(|value| !value.is_null());
        let is_manifest = has("layers") || has("config");
        if is_manifest && has("manifests") {
            // As containerd: engines must not read the same bytes in two ways.
            return Err("is a manifest and an index at once".to_owned());
        }
        match !is_manifest && fields.contains_key("manifests") {
            true => serde_json::from_slice(bytes)
                .map(Self::Index)
                .map_err(|error| format!("is no index: {error}")),
            false => serde_json::from_slice(bytes)
                .map(Self::Manifest)
                .map_err(|error| format!("is no manifest: {error}")),
        }
    }

    /// All that it refers to, each by what it is here: `config`, `l.0` for the lowest layer, `m.0`
    /// for the first manifest.
    pub fn children<'a>(&'a self) -> Vec<(String, &'a Descriptor)> {
        let numbered = |kind, list: &'a [Descriptor]| {
            let list = list.iter().enumerate();
            list.map(move |(number, it)| (format!("{kind}.{number}"), it))
        };
        match self {
            Self::Manifest(manifest) => {
                let config = ("config".to_owned(), &manifest.config);
                let layers = numbered("l", &manifest.layers);
                [config].into_iter().chain(layers).collect()
            }
            Self::Index(index) => numbered("m", &index.manifests).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(digest: &str) -> serde_json::Value {
        json!({"digest": digest, "size": 1})
    }

    fn parse(document: serde_json::Value) -> Result<Document, String> {
        Document::parse(document.to_string().as_bytes())
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let manifest =
            parse(json!({"config": descriptor("c"), "layers": [descriptor("a"), descriptor("b")]}));
        let index = parse(json!({"manifests": [descriptor("m")]}));
        for (document, expected) in [
            (manifest.unwrap(), &["config c", "l.0 a", "l.1 b"][..]),
            (index.unwrap(), &["m.0 m"]),
        ] {
            let children = document.children().into_iter();
            let children: Vec<_> = children
                .map(|(name, child)| format!("{name} {}", child.digest))
                .collect();
            assert_eq!(children, expected);
        }
        for (document, says) in [
            (json!({}), "is no manifest: missing field `config`"),
            (json!({"manifests": 1}), "is no index"),
            (json!({"manifests": [], "layers": []}), "at once"),
            (json!([1]), "is no manifest and no index"),
        ] {
            let error = parse(document).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    /// What Go writes of empty maps and lists, and takes for such.
    #[test]
    fn null_is_what_is_empty() {
        let entry = json!({
            "digest": "m", "size": 1, "mediaType": null, "annotations": null,
            "platform": {"os": null, "architecture": null},
        });
        let Document::Index(index) =
            parse(json!({"manifests": [entry], "layers": null, "config": null})).unwrap()
        else {
            panic!("it has manifests");
        };
        assert_eq!(index.manifests[0].title(), None);
        assert_eq!(index.manifests[0].platform.as_ref().unwrap().os, "");
        let layer = json!({"digest": "l", "size": 1, "annotations": null});
        for (layers, count) in [(json!([layer]), 1), (json!(null), 0)] {
            let manifest = json!({"config": descriptor("c"), "layers": layers, "manifests": null});
            let Document::Manifest(manifest) = parse(manifest).unwrap() else {
                panic!("it has a configuration");
            };
            assert_eq!(manifest.layers.len(), count);
        }
        assert!(matches!(
            parse(json!({"manifests": null})),
            Ok(Document::Index(_))
        ));
    }

    #[test]
    fn digests_are_sha256() {
        let of =
            |digest: &str| -> Descriptor { serde_json::from_value(descriptor(digest)).unwrap() };
        let sound = of(&format!("sha256:{}", "a".repeat(64)));
        assert_eq!(sound.sha256().unwrap(), [0xaa; 32]);
        for digest in ["sha512:00", "sha256:", "sha256:+1", "plain"] {
            let error = of(digest).sha256().unwrap_err();
            assert!(error.contains(digest), "{error}");
        }
    }
}
