use std::{fmt, str::FromStr};

use serde::Deserialize;

use crate::Error;
use crate::manifest::or_default;

/// What an image is built to run on, in the OCI image specification's words
/// (`image-index.md`, "platform").
#[derive(Clone, Debug, Eq, PartialEq, Deserialize)]
pub struct Platform {
    /// Operating system, as Go's `GOOS`: `wasi`, `linux`.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// Processor, as Go's `GOARCH`: `wasm`, `amd64`.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// Variant of the processor, `v8` of `arm64` for example.
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            os: "wasi".into(),
            architecture: "wasm".into(),
            variant: None,
        }
    }
}

impl Platform {
    /// That of Linux on the processor that this program is for.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            same => same,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `os/architecture` or `os/architecture/variant`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let word = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
                })
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(Error::Platform(text.into())),
        };
        if !parts.iter().all(|part| word(part)) {
            return Err(Error::Platform(text.into()));
        }
        Ok(Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<&Platform> for oci_spec::image::Platform {
    fn from(platform: &Platform) -> Self {
        let mut described = Self::default();
        described.set_os(platform.os.as_str().into());
        described.set_architecture(platform.architecture.as_str().into());
        described.set_variant(platform.variant.clone());
        described
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for text in ["wasi/wasm", "linux/amd64", "linux/arm64/v8"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        assert_eq!(Platform::default().to_string(), "wasi/wasm");
    }

    #[test]
    fn refuses_what_is_no_platform() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm64/v8/x",
            "Linux/amd64",
            "a b/c",
        ] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
