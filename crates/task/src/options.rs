//! Settings that come with a container as containerd's runtime options.
//!
//! They are a message in an `Any`, of one of two kinds: `containerd.runc.v1.Options`, which Docker
//! and CRI's runc handler send; and `runtimeoptions.v1.Options`, which carries TOML, or the path of
//! a TOML file, for runtimes that containerd does not know.

use std::fs;
use std::path::PathBuf;

use containerd_shim::api::Options as RuncOptions;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, CodedInputStream, Message};
use serde::{Deserialize, Serialize};

/// What can be set. The names in TOML are these, or the ones that the runc shim's users know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The folder of compiled guests, instead of the built-in one.
    pub cache_dir: Option<PathBuf>,
    /// How large that folder may become.
    pub cache_size: Option<wasm::Size>,
    /// Whether systemd makes the containers' cgroups.
    #[serde(alias = "SystemdCgroup")]
    pub systemd_cgroup: bool,
    /// The cgroup that the shim itself is put into; empty for the one of whoever starts it.
    #[serde(alias = "ShimCgroup")]
    pub shim_cgroup: String,
    /// The owner of the container's streams; 0 for the container's user.
    #[serde(alias = "IoUid")]
    pub io_uid: u32,
    /// The group of the container's streams; 0 for the container's group.
    #[serde(alias = "IoGid")]
    pub io_gid: u32,
    /// Whether to do without pivot_root(2), as on a ramdisk.
    #[serde(alias = "NoPivotRoot")]
    pub no_pivot_root: bool,
    /// The folder for the state of containers; empty for the bundle.
    #[serde(alias = "Root")]
    pub root: String,
    /// The folder for criu's log and other things that a restore needs for the time; empty for one
    /// in the bundle.
    #[serde(alias = "CriuWorkPath")]
    pub criu_work_path: String,
    // Accepted because containerd's own tools send them; they have no meaning here.
    /// An OCI runtime's program; there is none here.
    #[serde(alias = "BinaryName")]
    pub binary_name: String,
    /// Whether to keep the session keyring, which is always kept.
    #[serde(alias = "NoNewKeyring")]
    pub no_new_keyring: bool,
    /// A checkpoint to restore from, which containerd hands over in another place.
    #[serde(alias = "CriuImagePath")]
    pub criu_image_path: String,
}

/// Why options were refused.
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
    /// The file cannot be read.
    #[error("the runtime options' config_path {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The TOML is wrong.
    #[error("the runtime options in {from} are wrong: {source}")]
    Toml {
        /// The file, or the request.
        from: String,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
}

impl Options {
    /// Reads what containerd sent; nothing at all is the default.
    ///
    /// # Errors
    /// An unknown type, an unreadable file, an unknown key or a bad value.
    pub fn from_any(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let decode = |source| OptionsError::Decode {
            kind: any.type_url.clone(),
            source,
        };
        match kind(any) {
            "containerd.runc.v1.Options" => {
                let options = RuncOptions::parse_from_bytes(&any.value).map_err(decode)?;
                Ok(Self::from_runc(options))
            }
            "runtimeoptions.v1.Options" => {
                let (path, body) = generic(&any.value).map_err(decode)?;
                Self::from_generic(path, &body)
            }
            other => Err(OptionsError::Kind(other.to_owned())),
        }
    }

    fn from_runc(options: RuncOptions) -> Self {
        Self {
            cache_dir: None,
            cache_size: None,
            systemd_cgroup: options.systemd_cgroup,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            no_pivot_root: options.no_pivot_root,
            root: options.root,
            binary_name: options.binary_name,
            no_new_keyring: options.no_new_keyring,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
        }
    }

    fn from_generic(path: String, body: &[u8]) -> Result<Self, OptionsError> {
        let (from, text) = if !body.is_empty() {
            (
                "the request".to_owned(),
                String::from_utf8_lossy(body).into_owned(),
            )
        } else if !path.is_empty() {
            let text = fs::read_to_string(&path).map_err(|source| OptionsError::Read {
                path: PathBuf::from(&path),
                source,
            })?;
            (path, text)
        } else {
            return Ok(Self::default());
        };
        toml::from_str(&text).map_err(|source| OptionsError::Toml {
            from,
            source: Box::new(source),
        })
    }

    /// The names of options that are set and have no meaning here, for the log.
    pub fn ignored(&self) -> Vec<&'static str> {
        let set = [
            ("BinaryName", !self.binary_name.is_empty()),
            ("NoNewKeyring", self.no_new_keyring),
        ];
        set.into_iter()
            .filter_map(|(name, set)| set.then_some(name))
            .collect()
    }
}

fn kind(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

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

    fn refused(any: &Any) -> String {
        Options::from_any(Some(any)).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        let empty = toml_options("", "");
        assert_eq!(Options::from_any(Some(&empty)).unwrap(), Options::default());
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
        let options = Options::from_any(Some(&sent)).unwrap();
        assert!(options.systemd_cgroup);
        assert_eq!(options.io_uid, 7);
        assert_eq!(options.ignored(), ["BinaryName"]);
    }

    #[test]
    fn toml_comes_in_the_request_or_from_a_file() {
        let body = toml_options(
            "",
            "cache_dir = '/c'\ncache_size = '2GiB'\nSystemdCgroup = true",
        );
        let options = Options::from_any(Some(&body)).unwrap();
        assert_eq!(options.cache_dir, Some("/c".into()));
        assert_eq!(options.cache_size, Some(wasm::Size(2 << 30)));
        assert!(options.systemd_cgroup);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("o.toml");
        fs::write(&file, "root = '/r'").unwrap();
        let path = toml_options(file.to_str().unwrap(), "");
        assert_eq!(Options::from_any(Some(&path)).unwrap().root, "/r");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused(&toml_options("", "cash_dir = '/c'")).contains("cash_dir"));
        assert!(refused(&toml_options("", "cache_size = '10X'")).contains("10X"));
        assert!(refused(&toml_options("/no/such.toml", "")).contains("/no/such.toml"));
        assert!(refused(&any("x.Options", vec![])).contains("x.Options"));
        let broken = any("containerd.runc.v1.Options", vec![0xff]);
        assert!(refused(&broken).contains("cannot be decoded"));
    }
}
