//! The host's file of settings.

use std::path::PathBuf;
use std::{env, fs, io};

use super::error::OptionsError;
use super::layer::Layer;

/// The host's file, which need not be there.
const CONFIG_FILE: &str = "/etc/lighter/config.toml";

/// Names another file in its place, which must be there: a variable of containerd's environment.
const CONFIG_VARIABLE: &str = "LIGHTER_CONFIG";

/// The host's file, if there is one.
///
/// # Errors
/// When it cannot be read, or is malformed.
pub fn host_file() -> Result<Option<Layer>, OptionsError> {
    let path = path();
    match fs::read_to_string(&path) {
        Ok(text) => Layer::parse(path.display().to_string(), &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named().is_none() => Ok(None),
        Err(source) => Err(OptionsError::unreadable(&path, source)),
    }
}

/// Where the host's file is looked for.
pub fn path() -> PathBuf {
    named().unwrap_or_else(|| CONFIG_FILE.into())
}

/// The file that [`CONFIG_VARIABLE`] names.
fn named() -> Option<PathBuf> {
    let path = env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}
