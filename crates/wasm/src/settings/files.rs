//! What a guest sees of the container's files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a guest sees of the container's files. What it may do with them is also up to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Whether it sees the container's root folder, as `/`.
    pub root: bool,
    /// Whether it may only read what is below the root folder.
    pub read_only: bool,
    /// More folders of the container, each with a right of its own.
    pub preopens: Vec<Preopen>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            root: true,
            read_only: false,
            preopens: Vec::new(),
        }
    }
}

/// A folder that a guest is given: `FOLDER[:NAME][:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Preopen {
    /// The folder in the container, an absolute path.
    pub folder: String,
    /// What the guest knows it by, an absolute path too.
    pub name: String,
    /// Whether it may change what is there.
    pub writable: bool,
}

impl FromStr for Preopen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a folder of the container such as \"/data\", \"/data:ro\" or \
                 \"/data:/name:rw\", with absolute paths"
            )
        };
        let mut parts: Vec<&str> = text.split(':').collect();
        let writable = match parts.last() {
            Some(&"ro") => false,
            Some(&"rw") => true,
            _ => {
                parts.push("rw");
                true
            }
        };
        let (folder, name) = match parts[..] {
            [folder, _] => (folder, folder),
            [folder, name, _] => (folder, name),
            _ => return Err(wrong()),
        };
        if !folder.starts_with('/') || !name.starts_with('/') {
            return Err(wrong());
        }
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            writable,
        })
    }
}

impl TryFrom<String> for Preopen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Preopen> for String {
    fn from(preopen: Preopen) -> Self {
        preopen.to_string()
    }
}

impl fmt::Display for Preopen {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let right = if self.writable { "rw" } else { "ro" };
        write!(formatter, "{}:{}:{right}", self.folder, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_names_and_rights() {
        for (text, whole) in [
            ("/data", "/data:/data:rw"),
            ("/data:ro", "/data:/data:ro"),
            ("/data:/name", "/data:/name:rw"),
            ("/data:/name:ro", "/data:/name:ro"),
        ] {
            assert_eq!(text.parse::<Preopen>().unwrap().to_string(), whole);
        }
        for wrong in ["", "data", "/data:name", "/data:/name:x", "/a:/b:/c:ro"] {
            let reason = wrong.parse::<Preopen>().unwrap_err();
            assert!(reason.contains(&format!("{wrong:?}")), "{reason}");
        }
    }
}
