//! The names of all settings, which are those of the types, and what is meant by a wrong one.

use std::iter::successors;
use std::sync::LazyLock;

use serde_json::Value;
use wasm::settings::SECRETS;

use super::options::Options;

/// A setting, or a table of settings.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// One that has a value.
    Setting,
    /// A table.
    Table,
}

/// Every setting with the value that it has when nothing is set. Tables are objects; what has no
/// value then is null.
static DEFAULTS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::to_value(Options::default()).expect("what can be set is plain data")
});

/// The settings of guests: those that annotations may be allowed to change.
static OF_GUESTS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::to_value(wasm::Settings::default()).expect("what can be set is plain data")
});

/// What the name is of, in dots: `limits.memory`.
pub fn find(name: &str) -> Option<Kind> {
    look(&DEFAULTS, name)
}

/// As [`find`], of what annotations may be allowed to set of guests. Everybody may see those, so
/// that it is no secrets.
pub fn find_of_guest(name: &str) -> Option<Kind> {
    look(&OF_GUESTS, name).filter(|_| !is_secret(name))
}

/// Whether the setting's value must not be shown.
pub fn is_secret(name: &str) -> bool {
    SECRETS.iter().any(|(secret, _)| *secret == name)
}

/// Whether that is so of a setting in the table `name`, or of the setting itself.
pub fn has_secret(name: &str) -> bool {
    let mut secrets = SECRETS.iter().map(|(secret, _)| *secret);
    secrets.any(|secret| tables_of(secret).any(|table| table == name))
}

/// `name`, and the names of the tables that it is in, the innermost first.
fn tables_of(name: &str) -> impl Iterator<Item = &str> {
    successors(Some(name), |name| Some(name.rsplit_once('.')?.0))
}

/// The secrets that are told to another when the setting `name` changes.
pub fn secrets_of(name: &str) -> impl Iterator<Item = &'static str> {
    SECRETS
        .iter()
        .filter(move |(_, whose)| whose.contains(&name))
        .map(|(secret, _)| *secret)
}

fn look(tree: &Value, name: &str) -> Option<Kind> {
    let found =
        path(name)
            .into_iter()
            .try_fold(Some(tree), |table, key| match table?.as_object()? {
                any if any.is_empty() => Some(None),
                table => table.get(key).map(Some),
            })?;
    Some(match found {
        Some(Value::Object(_)) => Kind::Table,
        Some(_) | None => Kind::Setting,
    })
}

/// The keys that lead to the setting `name`. A table without settings of its own takes any, whose
/// dots are theirs.
pub fn path(name: &str) -> Vec<&str> {
    let (mut path, mut rest, mut tree) = (Vec::new(), name, &*DEFAULTS);
    while let Some((key, after)) = rest.split_once('.') {
        if tree.as_object().is_some_and(|table| table.is_empty()) {
            break;
        }
        path.push(key);
        rest = after;
        tree = &tree[key];
    }
    path.push(rest);
    path
}

/// All settings with their defaults.
pub fn all() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    gather("", &DEFAULTS, &mut all);
    all
}

fn gather(above: &str, value: &Value, all: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (key, value) in table {
                gather(&within(above, key), value, all);
            }
        }
        value => all.push((above.to_owned(), value.clone())),
    }
}

/// The name of `key` in the table of the name `table`.
pub fn within(table: &str, key: &str) -> String {
    match table {
        "" => key.to_owned(),
        table => format!("{table}.{key}"),
    }
}

/// The name of a setting as it is written here: the runc shim's names are its in words that begin
/// with capitals (`SystemdCgroup` is `systemd_cgroup`). Guests' settings have none.
pub fn canonical(key: &str) -> String {
    if !key.starts_with(|first: char| first.is_ascii_uppercase()) {
        return key.to_owned();
    }
    let mut name = String::new();
    for letter in key.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    match (find(&name), look(&OF_GUESTS, &name)) {
        (Some(_), None) => name,
        _ => key.to_owned(),
    }
}

/// The valid name, of a setting or a table, that is closest to a wrong one: as it stands, or in
/// another table.
pub fn closest(wrong: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    // Of two that are as close, the one whose whole name is closer.
    let distance = |name: &&str| {
        let whole = strsim::osa_distance(wrong, name);
        let within = strsim::osa_distance(&last(wrong), &last(name)) + 1;
        (whole.min(within), whole)
    };
    let settings = all();
    let names = settings.iter().flat_map(|(name, _)| tables_of(name));
    names.min_by_key(distance).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_from_tables() {
        assert_eq!(find("limits.memory"), Some(Kind::Setting));
        assert_eq!(find("limits"), Some(Kind::Table));
        assert_eq!(find("engine.proposals"), Some(Kind::Table));
        assert_eq!(find("limits.memory.x"), None);
        assert_eq!(find("cache_dir"), Some(Kind::Setting));
        assert_eq!(find("config"), Some(Kind::Table));
        assert_eq!(find("config.any.thing"), Some(Kind::Setting));
        assert_eq!(path("config.any.thing"), ["config", "any.thing"]);
        assert_eq!(path("engine.proposals.gc"), ["engine", "proposals", "gc"]);
        assert_eq!(find_of_guest("cache_dir"), None);
        assert_eq!(find_of_guest("http.port"), Some(Kind::Setting));
        assert_eq!(find("keyvalue.redis.password"), Some(Kind::Setting));
        assert_eq!(find_of_guest("keyvalue.redis.password"), None);
        assert_eq!(find_of_guest("keyvalue.redis"), Some(Kind::Table));
    }

    #[test]
    fn the_closest_name_is_found() {
        for (wrong, meant) in [
            ("cash_dir", "cache_dir"),
            ("limits.memry", "limits.memory"),
            ("limit.memory", "limits.memory"),
            ("port", "http.port"),
            ("network.enable", "network.enabled"),
            ("engine.proposals.simt", "engine.proposals.simd"),
            ("limit", "limits"),
            ("limts", "limits"),
            ("pools", "pool"),
            ("htttp", "http"),
            ("redis", "keyvalue.redis"),
            ("keyvalue.reddis", "keyvalue.redis"),
        ] {
            assert_eq!(closest(wrong), meant);
        }
    }

    #[test]
    fn runcs_names_are_known() {
        assert_eq!(canonical("SystemdCgroup"), "systemd_cgroup");
        assert_eq!(canonical("IoUid"), "io_uid");
        assert_eq!(canonical("Nonsense"), "Nonsense");
        assert_eq!(canonical("root"), "root");
        assert_eq!(canonical("Limits"), "Limits", "it is none of runc's");
    }

    /// The tables of docs/configuration.md list every setting with its default, and no other.
    #[test]
    fn the_document_has_every_setting() {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let document = std::fs::read_to_string(document).unwrap();
        let settings = document.split("\n## Settings\n").nth(1).unwrap();
        let settings = settings.split("\n## ").next().unwrap();
        let mut listed: Vec<(String, String)> = settings
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                let name = cells.next()?.trim_end_matches('`').to_owned();
                let default = cells.last()?.trim_matches(['|', ' ']).to_owned();
                Some((name, default))
            })
            .collect();
        listed.sort();
        let mut all = all();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let names = |list: Vec<&String>| list.into_iter().cloned().collect::<Vec<_>>();
        assert_eq!(
            names(listed.iter().map(|(name, _)| name).collect()),
            names(all.iter().map(|(name, _)| name).collect())
        );
        for ((name, listed), (_, default)) in listed.iter().zip(&all) {
            let is_nothing = default.is_null() || default.as_str() == Some("");
            // What stands where nothing is set is told in words.
            assert!(
                is_nothing || listed.starts_with(&format!("`{default}`")),
                "{name}: {default}, {listed}"
            );
        }
    }
}
