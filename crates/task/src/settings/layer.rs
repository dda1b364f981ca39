//! Settings from one place: read, checked one by one, and laid over others.

use serde::Deserialize;
use toml::{Table, Value};

use super::error::OptionsError;
use super::names::{self, Kind};
use super::options::Options;

/// Settings from one place.
pub struct Layer {
    /// The place, for messages.
    pub from: String,
    /// What is set, by the names of this shim.
    pub table: Table,
}

impl Layer {
    /// Reads TOML.
    ///
    /// # Errors
    /// Where it is none, and when a setting is there by two names.
    pub fn parse(from: String, text: &str) -> Result<Self, OptionsError> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..at]
                .iter()
                .filter(|b| **b == b'\n')
                .count();
            OptionsError::Toml {
                from: from.clone(),
                // Not what stands there, which may be a secret.
                line: line + 1,
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
    pub fn check(&self) -> Result<(), OptionsError> {
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
                    let value = match names::has_secret(&name) {
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

/// There is no setting `name`, which stands at `from`.
pub fn unknown(from: String, name: &str) -> OptionsError {
    OptionsError::Unknown {
        from,
        name: name.to_owned(),
        closest: names::closest(name),
    }
}

/// Makes sure that the setting `name` can have a value.
///
/// # Errors
/// What it should be.
pub fn check_value(name: &str, value: &Value) -> Result<(), String> {
    match Options::deserialize(alone(name, value.clone())) {
        Ok(options) => options.check_each(),
        // The message would tell the value.
        Err(_) if names::is_secret(name) => Err("it is a text".into()),
        Err(_) if names::has_secret(name) => Err("it is a table".into()),
        Err(error) => Err(one_line(error.message())),
    }
}

/// A table with the setting `name` alone.
pub fn alone(name: &str, value: Value) -> Table {
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
pub fn merge(table: &mut Table, later: Table) {
    for (key, value) in later {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(table)), Value::Table(later)) => merge(table, later),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Unsets the setting `name`.
pub fn remove(all: &mut Table, name: &str) {
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

/// A message without the line ends that toml's have.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
