//! Settings in a container's annotations.

use std::collections::HashMap;

use toml::{Table, Value};

use super::error::OptionsError;
use super::host_file;
use super::layer::{alone, check_value, unknown};
use super::names::{self, Kind};

/// What annotations that are settings begin with.
pub const ANNOTATION_PREFIX: &str = "lighter/";

/// The settings among `annotations`, which must all be `allowed`: each one's name, and a table of it
/// alone.
///
/// # Errors
/// Which is not allowed or wrong, the first in the order of their names.
pub fn annotated<'a>(
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
        Some(Kind::Table) => {
            let name = name.to_owned();
            return Err(OptionsError::Table { from, name });
        }
        None => return Err(unknown(from, name)),
    }
    if names::find_of_guest(name).is_none() {
        let name = name.to_owned();
        return Err(OptionsError::Host { from, name });
    }
    // Names in a table of the user's own may have dots in them: what begins with a setting's is another's.
    let is_of = |allowed: &String| {
        let is_table = names::find(allowed) == Some(Kind::Table);
        name.strip_prefix(allowed.as_str())
            .is_some_and(|rest| rest.is_empty() || (is_table && rest.starts_with('.')))
    };
    if !allowed.iter().any(is_of) {
        let (name, file) = (name.to_owned(), host_file::path());
        return Err(OptionsError::NotAllowed { name, file });
    }
    // A value as in a file; the quotes of a text may be left out.
    let written: Option<Value> = text.parse().ok();
    let has_quotes = written.as_ref().is_some_and(Value::is_str);
    let plain = (!has_quotes).then(|| Value::String(text.to_owned()));
    let mut reason = None;
    for value in written.into_iter().chain(plain) {
        match check_value(name, &value) {
            Ok(()) => return Ok(alone(name, value)),
            // What a file's value would be refused for comes first.
            Err(wrong) => drop(reason.get_or_insert(wrong)),
        }
    }
    Err(OptionsError::Value {
        from,
        name: name.to_owned(),
        value: format!("{text:?}"),
        reason: reason.unwrap_or_default(),
    })
}
