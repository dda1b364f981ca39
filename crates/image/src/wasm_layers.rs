//! Which layers of an image are wasm files, and which of them a name means.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::media::{COMPONENT_LAYER, WASM_CONFIG, WASM_LAYER};
use crate::{Descriptor, Manifest, Platform};

/// What of a configuration matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// A Wasm OCI artifact's layers.
    layer_digests: Option<BTreeSet<String>>,
}

impl Descriptor {
    fn is_wasm(&self) -> bool {
        [WASM_LAYER, COMPONENT_LAYER].contains(&self.media_type.as_str())
    }
}

impl Manifest {
    /// Whether the image is a Wasm OCI artifact or has wasm layers.
    pub fn is_wasm(&self) -> bool {
        self.is_artifact() || self.layers.iter().any(Descriptor::is_wasm)
    }

    fn is_artifact(&self) -> bool {
        self.config.media_type == WASM_CONFIG
    }

    /// The layers that are wasm files as they stand.
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
                WASM_LAYER
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

/// Of the manifests of one image, the one with wasm that is meant by a process whose program is
/// called `name`; and whether a single layer of it may go by any name ([`named`]).
///
/// Which of them an engine has made the container of it does not tell. It takes the platform that
/// it is asked for, and the first in an index's order of those for the same one; and the container
/// has the entrypoint of that one's configuration. So of those in containerd's store it is the first
/// that has a layer of this title or digest, or else the first of all: of those for wasi/wasm, for
/// other wasm or no platform, for this machine, and for others, in the index's order. Where one has
/// no wasm, the container may be of that, and whatever name it has no file of is no layer's.
pub fn meant(
    mut manifests: Vec<(Option<Platform>, Manifest)>,
    name: &str,
) -> Option<(Manifest, bool)> {
    // What is for no platform is no image of files, but says something of one: a signature, or what it was made of.
    let has_files = |(platform, manifest): &(Option<Platform>, Manifest)| {
        platform.is_some() && !manifest.is_wasm()
    };
    let by_any_name = !manifests.iter().any(has_files);
    manifests.retain(|(_, manifest)| manifest.is_wasm());
    manifests.sort_by_key(|(platform, _)| rank(platform.as_ref()));
    let has_it = |manifest: &Manifest| named(&manifest.wasm_layers(), name, false).is_some();
    let found = manifests.iter().position(|(_, manifest)| has_it(manifest));
    let (_, manifest) = manifests.into_iter().nth(found.unwrap_or(0))?;
    Some((manifest, by_any_name))
}

/// How far back the manifest for a platform comes, as [`meant`] has it.
fn rank(platform: Option<&Platform>) -> u8 {
    let machine = Platform::of_this_machine();
    match platform {
        Some(platform) if *platform == Platform::default() => 0,
        None => 1,
        Some(platform) if platform.architecture.starts_with("wasm") => 1,
        Some(Platform {
            os, architecture, ..
        }) if *os == machine.os && *architecture == machine.architecture => 2,
        Some(_) => 3,
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

/// What a program is composed of that is one of these layers: itself, and then the others.
pub fn composed<'a>(layers: &[&'a Descriptor], program: &'a Descriptor) -> Vec<&'a Descriptor> {
    let others = layers.iter().filter(|layer| layer.digest != program.digest);
    [program].into_iter().chain(others.copied()).collect()
}

/// How each of the layers can be named.
pub fn listed(layers: &[&Descriptor]) -> String {
    let labels: Vec<&str> = layers.iter().map(|layer| layer.label()).collect();
    labels.join(", ")
}

/// Refuses layers that have together more than `most` bytes.
///
/// # Errors
/// They do.
pub fn check_size(layers: &[&Descriptor], most: u64) -> Result<(), String> {
    let size = layers.iter().map(|layer| layer.size);
    let size = size.fold(0, u64::saturating_add);
    if size > most {
        return Err(format!(
            "its wasm layers {} have {size} bytes; there may be at most {most}",
            listed(layers)
        ));
    }
    Ok(())
}

/// An entrypoint without the function that it names, or the function of an interface (`NAME#INTERFACE#FUNCTION`; interfaces
/// have a colon in their names).
pub fn without_function(entrypoint: &str) -> &str {
    let Some((name, _)) = entrypoint.rsplit_once('#') else {
        return entrypoint;
    };
    match name.rsplit_once('#') {
        Some((name, interface)) if interface.contains(':') => name,
        _ => name,
    }
}

/// A name without what makes a path of it: `/app.wasm` and `./app.wasm` mean the title `app.wasm`.
fn plain(name: &str) -> &str {
    name.trim_start_matches("./").trim_start_matches('/')
}
#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::media::TITLE;

    fn layer(digit: char, title: Option<&str>) -> Value {
        let digest = format!("sha256:{}", String::from(digit).repeat(64));
        let mut layer = json!({"mediaType": WASM_LAYER, "digest": digest, "size": 1});
        if let Some(title) = title {
            layer["annotations"] = json!({TITLE: title});
        }
        layer
    }

    fn manifest(layers: &[Value]) -> Manifest {
        let config = json!({"mediaType": WASM_CONFIG, "digest": "sha256:0", "size": 2});
        let manifest = json!({"config": config, "layers": layers});
        serde_json::from_value(manifest).unwrap()
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
        assert_eq!(without_function("/a#b#wasi:cli/run@0.2.6#run"), "/a#b");
        assert_eq!(without_function("/a#b#run"), "/a#b");
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
    fn layers_over_the_limit_are_refused() {
        let mut large = layer('1', None);
        large["size"] = json!(11);
        let small = layer('2', None);
        assert!(check_size(&manifest(&[large.clone()]).wasm_layers(), 10).is_err());
        assert!(check_size(&manifest(&[small.clone(), large]).wasm_layers(), 10).is_err());
        assert!(check_size(&manifest(&[small]).wasm_layers(), 10).is_ok());
    }

    #[test]
    fn the_entrypoint_tells_the_manifests_of_an_index_apart() {
        let all = vec![
            entry("wasip1/wasm", '1', Some("one")),
            entry("wasip2/wasm", '2', Some("two")),
            entry("wasi/wasm", '3', None),
            (None, manifest(&[layer('4', Some("two"))])),
        ];
        for (name, digit) in [("/one", '1'), ("two", '2'), ("other", '3')] {
            let (meant, by_any_name) = meant(all.clone(), name).unwrap();
            let digest = &meant.layers[0].digest;
            assert!(digest.ends_with(digit), "{name}: {digest}");
            assert!(by_any_name);
        }
        let (first, _) = meant(all[..2].to_vec(), "other").unwrap();
        assert!(first.layers[0].digest.ends_with('1'));
        assert!(meant(Vec::new(), "other").is_none());
    }

    fn entry(platform: &str, digit: char, title: Option<&str>) -> (Option<Platform>, Manifest) {
        let platform = platform.parse().unwrap();
        (Some(platform), manifest(&[layer(digit, title)]))
    }

    /// An artifact may be for whatever machine, and this one comes before others.
    #[test]
    fn wasm_may_be_for_any_platform() {
        let machine = Platform::of_this_machine().to_string();
        let other = entry("linux/s390x", '1', Some("other"));
        let own = entry(&machine, '2', None);
        let wasm = entry("wasi/wasm32", '3', None);
        let first = |all: &[(Option<Platform>, Manifest)], name| {
            let (meant, _) = meant(all.to_vec(), name).unwrap();
            meant.layers[0].digest.clone()
        };
        assert!(first(&[other.clone(), own.clone()], "any").ends_with('2'));
        assert!(first(&[other.clone(), own.clone()], "other").ends_with('1'));
        assert!(first(&[other, own, wasm], "any").ends_with('3'));
    }

    /// A wrong command in a container of files must not run another platform's wasm.
    #[test]
    fn beside_an_image_of_files_a_layer_goes_by_its_name_only() {
        let config = json!({"digest": "sha256:0", "size": 2});
        let files = json!({"config": config, "layers": []});
        let files: Manifest = serde_json::from_value(files).unwrap();
        let all = [
            (Some("linux/amd64".parse().unwrap()), files.clone()),
            entry("wasip1/wasm", '1', Some("app.wasm")),
        ];
        for name in ["/bin/typo", "/app.wasm"] {
            let (meant, by_any_name) = meant(all.to_vec(), name).unwrap();
            assert!(meant.is_wasm() && !by_any_name);
        }
        assert!(meant(vec![(None, files.clone())], "/bin/typo").is_none());
        let signed = vec![(None, files), entry("wasi/wasm", '1', None)];
        assert!(meant(signed, "/app").is_some_and(|(_, by_any_name)| by_any_name));
    }
}
