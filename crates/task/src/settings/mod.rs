//! What can be set, and where it is set: by the host's file, then the runtime options that containerd
//! hands over, then the container's annotations. What comes later wins, setting by setting.
//!
//! Reading order: `options` (everything that can be set), `names` (what that is called), `layer`
//! (settings from one place), and the places: `host_file`, `runtime_options`, `annotations`.

mod annotations;
mod error;
mod host_file;
mod layer;
mod names;
mod options;
mod runtime_options;

use std::collections::HashMap;

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use serde::Deserialize;
use toml::Table;

pub use error::OptionsError;
pub use options::Options;

use annotations::annotated;
use host_file::host_file;
use layer::{Layer, merge, one_line, remove};
use runtime_options::runtime_options;

impl Options {
    /// What is set of a container: by the host's file, by `any`, which containerd has sent, and by
    /// its `annotations`.
    ///
    /// # Errors
    /// Every [`OptionsError`].
    pub fn of(
        any: Option<&Any>,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<Self, OptionsError> {
        let file = host_file()?;
        let sent = match any.filter(|any| !any.type_url.is_empty()) {
            Some(any) => runtime_options(any)?,
            None => None,
        };
        Self::layered(file.into_iter().chain(sent), annotations)
    }

    fn layered(
        layers: impl Iterator<Item = Layer>,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<Self, OptionsError> {
        let mut all = Table::new();
        for layer in layers {
            layer.check()?;
            merge(&mut all, layer.table);
        }
        let options = Self::deserialize_table(&all)?;
        let annotated = annotated(annotations, &options.annotations)?;
        let options = match annotated.is_empty() {
            true => options,
            false => {
                for (name, layer) in annotated {
                    // What a file keeps secret is for whom the file names.
                    names::secrets_of(name).for_each(|secret| remove(&mut all, secret));
                    merge(&mut all, layer);
                }
                Self::deserialize_table(&all)?
            }
        };
        options
            .guest
            .check_together()
            .map_err(OptionsError::Together)?;
        Ok(options)
    }

    /// What was checked layer by layer, as a whole.
    fn deserialize_table(table: &Table) -> Result<Self, OptionsError> {
        if table.is_empty() {
            return Ok(Self::default());
        }
        Self::deserialize(table.clone())
            .map_err(|error| OptionsError::Together(one_line(error.message())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm::settings::Size;

    fn layers(files: &[&str], annotations: &[(&str, &str)]) -> Result<Options, String> {
        let layers: Result<Vec<_>, _> = files
            .iter()
            .enumerate()
            .map(|(number, text)| Layer::parse(format!("file{number}"), text))
            .collect();
        let annotations = annotations
            .iter()
            .map(|(key, value)| (format!("lighter/{key}"), (*value).to_owned()))
            .collect();
        let layers = layers.map_err(|error| error.to_string())?;
        Options::layered(layers.into_iter(), Some(&annotations)).map_err(|error| error.to_string())
    }

    fn wrong(file: &str) -> String {
        layers(&[file], &[]).unwrap_err()
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(layers(&[], &[]).unwrap(), Options::default());
    }

    #[test]
    fn what_comes_later_wins() {
        let options = layers(
            &[
                "annotations = ['http', 'limits.memory']\nio_uid = 1\n[limits]\nmemory = '1MiB'\n\
                 tables = 3\n[http]\nport = 81",
                "IoUid = 2\n[limits]\nmemory = '2MiB'",
            ],
            &[("limits.memory", "3MiB"), ("http.max_body", "7")],
        )
        .unwrap();
        assert_eq!(options.io_uid, 2);
        assert_eq!(options.guest.limits.memory, Some(Size(3 << 20)));
        assert_eq!(options.guest.limits.tables.unwrap().0, 3);
        assert_eq!(options.guest.http.port.0, 81);
        assert_eq!(options.guest.http.max_body, Some(Size(7)));
    }

    #[test]
    fn a_wrong_name_is_told_with_its_file_and_the_closest() {
        let error = wrong("[limits]\nmemry = 1");
        for part in ["file0", "limits.memry", "\"limits.memory\""] {
            assert!(error.contains(part), "{error}");
        }
        assert!(wrong("cash_dir = '/c'").contains("\"cache_dir\""));
        assert!(wrong("\"http.port\" = 1").contains("no setting"));
        assert!(wrong("root = '/a'\nRoot = '/b'").contains("twice"));
    }

    #[test]
    fn a_wrong_value_is_told_with_its_file_and_name() {
        let error = wrong("[limits]\nmemory = 'lots'");
        for part in ["file0", "limits.memory", "lots", "64MiB"] {
            assert!(error.contains(part), "{error}");
        }
        for (file, part) in [
            ("[http]\nport = 70000", "http.port"),
            ("[network]\nallow = ['10.0.0.0/99']", "10.0.0.0/99"),
            ("[network]\nenabled = 'no'", "network.enabled"),
            ("network = 'off'", "network cannot be"),
            ("[files]\npreopens = ['data']", "files.preopens"),
            ("[engine.proposals]\nsimd = 1", "engine.proposals.simd"),
            ("cache_dir = 7", "cache_dir"),
        ] {
            let error = wrong(file);
            assert!(error.contains(part) && error.contains("file0"), "{error}");
        }
        let error = wrong("root = '/'\ncache_dir = ");
        assert!(error.contains("file0, line 2: "), "{error}");
    }

    #[test]
    fn a_value_out_of_bounds_is_told_with_its_place_and_name() {
        for (name, value, reason) in [
            ("engine.stack_size", "2GiB", "1GiB at most"),
            ("http.max_headers", "1KiB", "8KiB at least"),
            ("keyvalue.redis.host", "", "a name or an address"),
            ("keyvalue.redis.password_file", "x", "an absolute path"),
            ("preinit.function", "", "it must be a name"),
            ("preinit.function", "''", "it must be a name"),
            ("preinit.files", "['nope']", "\"nope\" is no absolute path"),
        ] {
            let text = match value.starts_with(['[', '\'']) {
                true => value.to_owned(),
                false => format!("'{value}'"),
            };
            let error = wrong(&format!("{name} = {text}"));
            let of_file = format!("file0: {name} cannot be ");
            assert!(error.starts_with(&of_file), "{error}");
            assert!(error.contains(reason), "{error}");

            let table = name.split('.').next().unwrap();
            let file = format!("annotations = ['{table}']");
            let error = layers(&[&file], &[(name, value)]).unwrap_err();
            let of_annotation = format!("the annotation lighter/{name}: {name} cannot be ");
            assert!(error.starts_with(&of_annotation), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn paths_of_the_host_are_absolute() {
        for name in ["cache_dir", "root", "criu_work_path", "criu_image_path"] {
            for path in ["rel", "./rel", "../rel"] {
                let error = wrong(&format!("{name} = '{path}'"));
                let told = format!("file0: {name} cannot be \"{path}\": ");
                assert!(error.starts_with(&told), "{error}");
                assert!(error.contains("absolute"), "{error}");
            }
            layers(&[&format!("{name} = '/abs'")], &[]).unwrap();
        }
        assert!(wrong("cache_dir = ''").contains("absolute"));
        // As runc's clients leave these out.
        layers(&["root = ''\ncriu_work_path = ''"], &[]).unwrap();
    }

    #[test]
    fn an_annotation_that_is_wrong_is_so_as_in_a_file() {
        for (name, value, reason) in [
            ("http.port", "0", "0 is not a number from 1 to 65535"),
            (
                "pool.instances",
                "4000",
                "4000 is not a number from 1 to 2048",
            ),
            ("network.allow", "['10.0.0.300']", "10.0.0.300"),
        ] {
            let of_file = wrong(&format!("{name} = {value}"));
            let file = "annotations = ['http', 'pool', 'network']";
            let of_annotation = layers(&[file], &[(name, value)]).unwrap_err();
            assert!(of_file.contains(reason), "{of_file}");
            assert!(of_annotation.contains(reason), "{of_annotation}");
        }
    }

    #[test]
    fn an_annotation_sets_no_table() {
        for table in ["config", "limits", "keyvalue.redis"] {
            let error = layers(&[], &[(table, "x")]).unwrap_err();
            assert!(error.contains(&format!("{table:?} is a table")), "{error}");
            assert!(error.contains(&format!("lighter/{table}.NAME")), "{error}");
        }
    }

    #[test]
    fn annotations_are_allowed_by_a_file_alone() {
        let memory = [("limits.memory", "1MiB")];
        let error = layers(&["[limits]\ntables = 1"], &memory).unwrap_err();
        for part in [
            "lighter/limits.memory",
            "add \"limits.memory\"",
            "config.toml",
        ] {
            assert!(error.contains(part), "{error}");
        }
        for allowed in ["limits", "limits.memory"] {
            layers(&[&format!("annotations = ['{allowed}']")], &memory).unwrap();
        }
        for other in ["limits.memories", "http"] {
            layers(&[&format!("annotations = ['{other}']")], &memory).unwrap_err();
        }
        // A name of the user's own that begins with another.
        let longer = [("config.a.b", "x")];
        layers(&["annotations = ['config.a']"], &longer).unwrap_err();
        for allowed in ["config", "config.a.b"] {
            layers(&[&format!("annotations = ['{allowed}']")], &longer).unwrap();
        }
    }

    #[test]
    fn annotations_have_values_as_files_do() {
        let set = |key, value| layers(&["annotations = ['network', 'limits']"], &[(key, value)]);
        assert!(
            !set("network.enabled", "false")
                .unwrap()
                .guest
                .network
                .enabled
        );
        let allowed = set("network.allow", "['10.0.0.0/8']").unwrap();
        assert_eq!(allowed.guest.network.allow.unwrap().len(), 1);
        for text in ["1024", "1KiB", "'1KiB'"] {
            let memory = set("limits.memory", text).unwrap().guest.limits.memory;
            assert_eq!(memory, Some(Size(1024)));
        }
        let error = set("limits.memory", "lots").unwrap_err();
        for part in ["lighter/limits.memory", "lots", "64MiB"] {
            assert!(error.contains(part), "{error}");
        }
        let error = set("limits.memry", "1").unwrap_err();
        assert!(error.contains("\"limits.memory\""), "{error}");
    }

    #[test]
    fn what_guests_are_told_has_any_names() {
        let options = layers(
            &["annotations = ['config']\n[config]\na = '1'\n\"b.c\" = '2'"],
            &[("config.b.c", "3"), ("config.d", "four")],
        );
        let config = options.unwrap().guest.config;
        let all: Vec<_> = config.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(all, ["a=1", "b.c=3", "d=four"]);
        assert!(wrong("[config]\na = 1").contains("config.a"));
    }

    #[test]
    fn what_is_the_hosts_is_not_for_annotations() {
        let error = layers(&[], &[("cache_dir", "/x")]).unwrap_err();
        assert!(error.contains("not for annotations"), "{error}");
        let error = wrong("annotations = ['root']");
        assert!(error.contains("not for annotations"), "{error}");
        let error = wrong("annotations = ['limit']");
        let told = "no setting \"limit\"; the closest is \"limits\"";
        assert!(error.contains(told), "{error}");
    }

    #[test]
    fn what_contradicts_is_told() {
        let error = wrong("[http]\nmax_requests = 300");
        assert!(error.contains("pool.instances"), "{error}");
    }

    #[test]
    fn a_secret_is_told_nobody_but_whom_its_file_names() {
        let file = "annotations = ['keyvalue']\n[keyvalue.redis]\nhost = 'a'\npassword = 'sesame'";
        let password = |annotations: &[(&str, &str)]| {
            let options = layers(&[file], annotations).unwrap();
            options.guest.keyvalue.redis.password.map(|secret| secret.0)
        };
        assert_eq!(password(&[]).as_deref(), Some("sesame"));
        let database = ("keyvalue.redis.database", "3");
        assert_eq!(password(&[database]).as_deref(), Some("sesame"));
        assert_eq!(password(&[("keyvalue.redis.host", "b")]), None);
        assert_eq!(password(&[database, ("keyvalue.redis.port", "1")]), None);
        let refused = layers(&[file], &[("keyvalue.redis.password", "open")]).unwrap_err();
        assert!(refused.contains("not for annotations"), "{refused}");
        let refused = wrong("annotations = ['keyvalue.redis.password']");
        assert!(refused.contains("not for annotations"), "{refused}");
    }

    #[test]
    fn messages_do_not_tell_secrets() {
        for file in [
            "keyvalue.redis.password = 12345",
            "keyvalue.redis.password = '12345",
            "[keyvalue]\nredis = { password = 12345 }",
            "[keyvalue.redis]\npassword = ['12345']",
            "[[keyvalue.redis]]\nhost = 'a'\npassword = '12345'",
            "[[keyvalue]]\nredis = { password = '12345' }",
            "keyvalue.redis = 'redis://u:12345@h'",
            "keyvalue = 'redis://u:12345@h'",
            "redis = 'redis://u:12345@h'",
            "[keyvalue.redis]\npasword = '12345'",
            "[keyvalue.redis]\npasword = x12345",
            "[keyvalue.redis]\n\"pass\\u0077ord\" = x12345",
            "[keyvalue.redis]\npassword = '12345'\npassword = '12345'",
            "[keyvalue.redis]\npassword = \"\\12345\"",
            "[keyvalue.redis]\npassword = 12345x",
            "[keyvalue.redis]\npassword = [12345",
            "[keyvalue.redis]\npassword 12345",
        ] {
            let refused = wrong(file);
            assert!(!refused.contains("12345"), "{refused}");
            assert!(refused.contains("file0"), "{refused}");
        }
    }
}
