//! Where settings come from: the host's file, then the runtime options that containerd hands over,
//! then the container's annotations. What comes later wins, setting by setting.
//!
//! Runtime options are a message in an `Any`, of one of two kinds: `containerd.runc.v1.Options`,
//! which Docker and CRI's runc handler send; and `runtimeoptions.v1.Options`, which carries TOML,
//! or the path of a TOML file, for runtimes that containerd does not know.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::api::Options as RuncOptions;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, CodedInputStream, Message};
use serde::Deserialize;
use toml::{Table, Value};

use crate::names::{self, Kind};
use crate::options::Options;

/// The host's file, which need not be there.
pub const CONFIG_FILE: &str = "/etc/lighter/config.toml";

/// Names another file in its place, which must be there: a variable of containerd's environment.
pub const CONFIG_VARIABLE: &str = "LIGHTER_CONFIG";

/// What annotations that are settings begin with.
pub const ANNOTATION_PREFIX: &str = "lighter/";

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message cannot be decoded.
    #[error("the runtime options ({kind}) cannot be decoded: {source}")]
    Decode {
        /// The message's type.
        kind: String,
        /// Where decoding failed.
        source: protobuf::Error,
    },
    /// The message is of a type that is not known here.
    #[error(
        "the runtime options have the type {0}; containerd.runc.v1.Options and runtimeoptions.v1.Options are taken"
    )]
    Kind(String),
    /// A file cannot be read.
    #[error("the settings in {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no TOML.
    #[error("{from}, line {line} ({text:?}): {reason}")]
    Toml {
        /// Where the text is from.
        from: String,
        /// The line, from 1 on.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong there.
        reason: String,
    },
    /// There is no such setting.
    #[error("{from}: there is no setting {name:?}; the closest is {closest:?}")]
    Unknown {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
        /// The valid name that was most likely meant.
        closest: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{from}: {name} cannot be {value}: {reason}")]
    Value {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
        /// The value.
        value: String,
        /// What it should be.
        reason: String,
    },
    /// A setting is there by two names.
    #[error("{from}: {name} is there twice")]
    Twice {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
    },
    /// What can be set is not for annotations.
    #[error(
        "{from}: {name:?} is not for annotations; they can be allowed settings of guests, such as \"limits.memory\", and tables of them, such as \"limits\""
    )]
    Host {
        /// Where it is set.
        from: String,
        /// Its name.
        name: String,
    },
    /// An annotation sets what no file allows it to.
    #[error(
        "the annotation {ANNOTATION_PREFIX}{0} is not allowed here; to allow it, add {0:?} to the list \"annotations\" in {CONFIG_FILE}, or in the runtime options"
    )]
    NotAllowed(String),
    /// Settings that are right alone contradict each other.
    #[error("the settings contradict each other: {0}")]
    Together(String),
}

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
        options.guest.check().map_err(OptionsError::Together)?;
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

/// Settings from one place.
struct Layer {
    /// The place, for messages.
    from: String,
    table: Table,
}

impl Layer {
    /// Reads TOML.
    fn parse(from: String, text: &str) -> Result<Self, OptionsError> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..at]
                .iter()
                .filter(|b| **b == b'\n')
                .count();
            OptionsError::Toml {
                from: from.clone(),
                line: line + 1,
                text: match text.lines().nth(line).unwrap_or_default() {
                    line if names::may_tell_secret(line) => "...".to_owned(),
                    line => line.to_owned(),
                },
                reason: one_line(error.message()),
            }
        })?;
        let table = canonical(&from, table)?;
        Ok(Self { from, table })
    }

    /// Makes sure that each setting is one, and has a value that it can have.
    ///
    /// # Errors
    /// What is wrong, by its name and place.
    fn check(&self) -> Result<(), OptionsError> {
        self.check_table("", &self.table)?;
        let allowed = self.table.get("annotations").and_then(Value::as_array);
        for name in allowed.into_iter().flatten().filter_map(Value::as_str) {
            let from = || format!("{}, in the list \"annotations\"", self.from);
            if names::find(name).is_none() {
                return Err(unknown(from(), name));
            }
            if names::find_of_guest(name).is_none() {
                let (from, name) = (from(), name.to_owned());
                return Err(OptionsError::Host { from, name });
            }
        }
        Ok(())
    }

    fn check_table(&self, above: &str, table: &Table) -> Result<(), OptionsError> {
        for (key, value) in table {
            let name = names::within(above, key);
            // A dot in a key's own name is none between names.
            let is_key = names::path(&name).last() == Some(&key.as_str());
            let kind = is_key.then(|| names::find(&name)).flatten();
            match (kind, value) {
                (None, _) => return Err(unknown(self.from.clone(), &name)),
                (Some(Kind::Table), Value::Table(table)) => self.check_table(&name, table)?,
                (Some(_), value) => check_value(&name, value).map_err(|reason| {
                    let value = match names::is_secret(&name) {
                        true => "what it is".to_owned(),
                        false => value.to_string(),
                    };
                    let from = self.from.clone();
                    OptionsError::Value {
                        from,
                        name,
                        value,
                        reason,
                    }
                })?,
            }
        }
        Ok(())
    }
}

fn unknown(from: String, name: &str) -> OptionsError {
    OptionsError::Unknown {
        from,
        name: name.to_owned(),
        closest: names::closest(name),
    }
}

/// Makes sure that the setting `name` can have a value.
fn check_value(name: &str, value: &Value) -> Result<(), String> {
    match Options::deserialize(alone(name, value.clone())) {
        Ok(_) => Ok(()),
        // The message would tell the value.
        Err(_) if names::is_secret(name) => Err("it is a text".into()),
        Err(error) => Err(one_line(error.message())),
    }
}

/// A table with the setting `name` alone.
fn alone(name: &str, value: Value) -> Table {
    let nested = names::path(name)
        .into_iter()
        .rev()
        .fold(value, |value, key| {
            Value::Table(Table::from_iter([(key.to_owned(), value)]))
        });
    match nested {
        Value::Table(table) => table,
        // There is one key at least.
        _ => Table::new(),
    }
}

/// Sets all of `later` in `table`.
fn merge(table: &mut Table, later: Table) {
    for (key, value) in later {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(table)), Value::Table(later)) => merge(table, later),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Unsets the setting `name`.
fn remove(all: &mut Table, name: &str) {
    let path = names::path(name);
    let Some((key, tables)) = path.split_last() else {
        return;
    };
    let table = tables.iter().try_fold(all, |table, key| {
        table.get_mut(*key).and_then(Value::as_table_mut)
    });
    if let Some(table) = table {
        table.remove(*key);
    }
}

/// The table with the runc shim's names in this one's words.
fn canonical(from: &str, table: Table) -> Result<Table, OptionsError> {
    let mut named = Table::new();
    for (key, value) in table {
        let name = names::canonical(&key);
        if named.insert(name.clone(), value).is_some() {
            let from = from.to_owned();
            return Err(OptionsError::Twice { from, name });
        }
    }
    Ok(named)
}

/// The host's file, if there is one.
fn host_file() -> Result<Option<Layer>, OptionsError> {
    let named = env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
    let path = named.as_ref().map_or(Path::new(CONFIG_FILE), Path::new);
    match fs::read_to_string(path) {
        Ok(text) => Layer::parse(path.display().to_string(), &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn unreadable(path: &Path, source: io::Error) -> OptionsError {
    OptionsError::Read {
        path: path.to_owned(),
        source,
    }
}

/// What containerd has sent.
fn runtime_options(any: &Any) -> Result<Option<Layer>, OptionsError> {
    let decode = |source| OptionsError::Decode {
        kind: any.type_url.clone(),
        source,
    };
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "containerd.runc.v1.Options" => {
            let options = RuncOptions::parse_from_bytes(&any.value).map_err(decode)?;
            Ok(Some(of_runc(options)))
        }
        "runtimeoptions.v1.Options" => {
            let (path, body) = generic(&any.value).map_err(decode)?;
            if !body.is_empty() {
                let text = String::from_utf8_lossy(&body);
                Layer::parse("the runtime options".to_owned(), &text).map(Some)
            } else if !path.is_empty() {
                let text = fs::read_to_string(&path)
                    .map_err(|source| unreadable(path.as_ref(), source))?;
                Layer::parse(path, &text).map(Some)
            } else {
                Ok(None)
            }
        }
        other => Err(OptionsError::Kind(other.to_owned())),
    }
}

/// What is set in runc's options. In such a message what is not set is zero.
fn of_runc(options: RuncOptions) -> Layer {
    let switch = |set: bool| set.then_some(Value::Boolean(true));
    let number = |number: u32| (number != 0).then_some(Value::Integer(number.into()));
    let text = |text: String| (!text.is_empty()).then_some(Value::String(text));
    let settings = [
        ("systemd_cgroup", switch(options.systemd_cgroup)),
        ("shim_cgroup", text(options.shim_cgroup)),
        ("io_uid", number(options.io_uid)),
        ("io_gid", number(options.io_gid)),
        ("no_pivot_root", switch(options.no_pivot_root)),
        ("root", text(options.root)),
        ("binary_name", text(options.binary_name)),
        ("no_new_keyring", switch(options.no_new_keyring)),
        ("criu_image_path", text(options.criu_image_path)),
        ("criu_work_path", text(options.criu_work_path)),
    ];
    Layer {
        from: "the runtime options".to_owned(),
        table: settings
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect(),
    }
}

/// `config_path` (field 2) and `config_body` (field 3) of `runtimeoptions.v1.Options`, after
/// containerd's api/types/runtimeoptions/v1/api.proto.
fn generic(message: &[u8]) -> protobuf::Result<(String, Vec<u8>)> {
    let mut input = CodedInputStream::from_bytes(message);
    let (mut path, mut body) = (String::new(), Vec::new());
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            18 => path = input.read_string()?,
            26 => body = input.read_bytes()?,
            tag => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok((path, body))
}

/// The settings among `annotations`, which must all be `allowed`: each one's name, and a table of it
/// alone.
fn annotated<'a>(
    annotations: Option<&'a HashMap<String, String>>,
    allowed: &[String],
) -> Result<Vec<(&'a str, Table)>, OptionsError> {
    let mut settings: Vec<(&str, &str)> = annotations
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.strip_prefix(ANNOTATION_PREFIX)?, value.as_str())))
        .collect();
    // So that of several that are wrong the same is always told.
    settings.sort_unstable();
    let settings = settings.into_iter();
    settings
        .map(|(name, text)| Ok((name, annotation(name, text, allowed)?)))
        .collect()
}

fn annotation(name: &str, text: &str, allowed: &[String]) -> Result<Table, OptionsError> {
    let from = format!("the annotation {ANNOTATION_PREFIX}{name}");
    match names::find(name) {
        Some(Kind::Setting) => {}
        Some(Kind::Table) | None => return Err(unknown(from, name)),
    }
    if names::find_of_guest(name).is_none() {
        let name = name.to_owned();
        return Err(OptionsError::Host { from, name });
    }
    let is_of = |allowed: &String| {
        name.strip_prefix(allowed.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if !allowed.iter().any(is_of) {
        return Err(OptionsError::NotAllowed(name.to_owned()));
    }
    // A value as in a file; the quotes of a text may be left out.
    let plain = Value::String(text.to_owned());
    let values = [text.parse().ok(), Some(plain)];
    let mut reason = String::new();
    for value in values.into_iter().flatten() {
        match check_value(name, &value) {
            Ok(()) => return Ok(alone(name, value)),
            Err(wrong) => reason = wrong,
        }
    }
    Err(OptionsError::Value {
        from,
        name: name.to_owned(),
        value: format!("{text:?}"),
        reason,
    })
}

/// A message without the line ends that toml's have.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm::settings::Size;

    fn any(kind: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: kind.into(),
            value,
            ..Any::default()
        }
    }

    /// `runtimeoptions.v1.Options` as containerd encodes it: type URL, path, body.
    fn toml_options(path: &str, body: &str) -> Any {
        let mut value = Vec::new();
        for (tag, text) in [(10, "x"), (18, path), (26, body)] {
            if !text.is_empty() {
                value.extend([tag, text.len() as u8]);
                value.extend(text.as_bytes());
            }
        }
        any("runtimeoptions.v1.Options", value)
    }

    fn options(sent: &Any) -> Result<Options, OptionsError> {
        Options::layered(runtime_options(sent)?.into_iter(), None)
    }

    fn refused(sent: &Any) -> String {
        options(sent).unwrap_err().to_string()
    }

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
        let empty = toml_options("", "");
        assert_eq!(options(&empty).unwrap(), Options::default());
    }

    #[test]
    fn runc_options_are_taken_over() {
        let sent = RuncOptions {
            systemd_cgroup: true,
            io_uid: 7,
            binary_name: "crun".into(),
            ..RuncOptions::default()
        };
        let sent = any("containerd.runc.v1.Options", sent.write_to_bytes().unwrap());
        let options = options(&sent).unwrap();
        assert!(options.systemd_cgroup);
        assert_eq!(options.io_uid, 7);
        assert_eq!(options.ignored(), ["BinaryName"]);
    }

    #[test]
    fn toml_comes_in_the_request_or_from_a_file() {
        let body = toml_options("", "cache_dir = '/c'\nSystemdCgroup = true");
        let sent = options(&body).unwrap();
        assert_eq!(sent.cache_dir, Some("/c".into()));
        assert!(sent.systemd_cgroup);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("o.toml");
        fs::write(&file, "root = '/r'").unwrap();
        let path = toml_options(file.to_str().unwrap(), "");
        assert_eq!(options(&path).unwrap().root, "/r");
    }

    #[test]
    fn messages_that_are_wrong_are_named() {
        assert!(refused(&toml_options("/no/such.toml", "")).contains("/no/such.toml"));
        assert!(refused(&any("x.Options", vec![])).contains("x.Options"));
        let broken = any("containerd.runc.v1.Options", vec![0xff]);
        assert!(refused(&broken).contains("cannot be decoded"));
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
        assert!(
            error.contains("file0, line 2 (\"cache_dir = \")"),
            "{error}"
        );
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
        assert!(error.contains("no setting \"limit\""), "{error}");
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
        ] {
            let refused = wrong(file);
            assert!(!refused.contains("12345"), "{refused}");
            assert!(refused.contains("file0"), "{refused}");
        }
    }
}
