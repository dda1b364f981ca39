//! Names of capabilities that nobody here knows: of a newer kernel, of a vendor, mistyped. The runtime spec wants a warning of them and
//! no error (config.md, `capabilities`).

use oci_spec::runtime::{Capability, Process};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The OCI process in `json`, and the names of capabilities that were left out of it.
///
/// # Errors
/// When it is none.
pub fn parse_process(json: &[u8]) -> serde_json::Result<(Process, Vec<String>)> {
    parse(json, "/capabilities")
}

/// What is in `json`, without the names of capabilities below `pointer` (RFC 6901) that are unknown; and those.
///
/// # Errors
/// When it is something else.
pub(crate) fn parse<T: DeserializeOwned>(
    json: &[u8],
    pointer: &str,
) -> serde_json::Result<(T, Vec<String>)> {
    let error = match serde_json::from_slice(json) {
        Ok(parsed) => return Ok((parsed, Vec::new())),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else {
        return Err(error);
    };
    let mut unknown = Vec::new();
    let sets = value.pointer_mut(pointer).and_then(Value::as_object_mut);
    for names in sets
        .into_iter()
        .flatten()
        .filter_map(|(_, set)| set.as_array_mut())
    {
        names.retain(|name| {
            let is_known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if let (false, Some(name)) = (is_known, name.as_str()) {
                unknown.push(name.to_owned());
            }
            is_known || !name.is_string()
        });
    }
    unknown.sort();
    unknown.dedup();
    match serde_json::from_value(value) {
        Ok(parsed) if !unknown.is_empty() => Ok((parsed, unknown)),
        // In the words that tell the line.
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unknown_names_are_left_out() {
        let process = |capabilities: &str| {
            let json = format!(r#"{{"cwd": "/", "user": {{}}, "capabilities": {capabilities}}}"#);
            parse_process(json.as_bytes())
        };
        let (known, unknown) = process(r#"{"bounding": ["CAP_KILL"]}"#).unwrap();
        assert!(unknown.is_empty());
        let (found, unknown) =
            process(r#"{"bounding": ["CAP_KILL", "CAP_NEW", "CAP_FROB"], "ambient": ["CAP_NEW"]}"#)
                .unwrap();
        assert_eq!(unknown, ["CAP_FROB", "CAP_NEW"]);
        let bounding = |process: &Process| {
            let capabilities = process.capabilities().as_ref().unwrap();
            capabilities.bounding().clone()
        };
        assert_eq!(bounding(&found), bounding(&known));
        for wrong in [
            r#"{"bounding": [7, "CAP_NEW"]}"#,
            "7",
            r#"{"bounding": "CAP_NEW"}"#,
        ] {
            process(wrong).unwrap_err();
        }
    }
}
