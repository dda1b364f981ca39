//! libcontainer's errors in words for whoever asked for the container.

use std::error::Error;

/// What libcontainer says before its reasons whatever they are.
const WRAPPINGS: [&str; 3] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
];

/// An error with all its causes, and the first that was only logged where it says more.
pub(crate) fn explain(error: &dyn Error, logged: Option<String>) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    for wrapping in WRAPPINGS {
        if let Some(reason) = text.strip_prefix(wrapping) {
            text = reason.to_owned();
        }
    }
    match logged {
        Some(logged) if !logged.contains(&text) => format!("{text} ({logged})"),
        _ => text,
    }
}
