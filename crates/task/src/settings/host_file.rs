//! The host's file of settings.

use std::path::Path;
use std::{env, fs, io};

use super::error::OptionsError;
use super::layer::Layer;

/// The host's file, which need not be there.
pub const CONFIG_FILE: &str = "/etc/lighter/config.toml";

/// Names another file in its place, which must be there: a variable of containerd's environment.
pub const CONFIG_VARIABLE: &str = "LIGHTER_CONFIG";

/// The host's file, if there is one.
///
/// # Errors
/// When it cannot be read, or is malformed.
pub fn host_file() -> Result<Option<Layer>, OptionsError> {
    let named = env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
    let path = named.as_ref().map_or(Path::new(CONFIG_FILE), Path::new);
    match fs::read_to_string(path) {
        Ok(text) => Layer::parse(path.display().to_string(), &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(OptionsError::unreadable(path, source)),
    }
}
