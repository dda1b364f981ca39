//! Settings that containerd sends with a create.
//!
//! They are a message in an `Any`, of one of two kinds: `containerd.runc.v1.Options`, which Docker
//! and CRI's runc handler send; and `runtimeoptions.v1.Options`, which carries TOML, or the path of a
//! TOML file, for runtimes that containerd does not know.

use std::fs;

use containerd_shim::api::Options as RuncOptions;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, CodedInputStream, Message};
use toml::Value;

use super::error::OptionsError;
use super::layer::Layer;

/// What containerd has sent; `None` where that is nothing.
///
/// # Errors
/// When the message is of another kind, or it or its file cannot be read.
pub fn runtime_options(any: &Any) -> Result<Option<Layer>, OptionsError> {
    let decode = |source| OptionsError::Decode {
        kind: any.type_url.clone(),
        source,
    };
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        "containerd.runc.v1.Options" => {
            let options = RuncOptions::parse_from_bytes(&any.value).map_err(decode)?;
            Ok(Some(of_runc(options)))
        }
        "runtimeoptions.v1.Options" => {
            let (path, body) = generic(&any.value).map_err(decode)?;
            if !body.is_empty() {
                let text = String::from_utf8_lossy(&body);
                Layer::parse("the runtime options".to_owned(), &text).map(Some)
            } else if !path.is_empty() {
                let text = fs::read_to_string(&path)
                    .map_err(|source| OptionsError::unreadable(path.as_ref(), source))?;
                Layer::parse(path, &text).map(Some)
            } else {
                Ok(None)
            }
        }
        other => Err(OptionsError::Kind(other.to_owned())),
    }
}

/// What is set in runc's options. In such a message what is not set is zero.
fn of_runc(options: RuncOptions) -> Layer {
    let switch = |set: bool| set.then_some(Value::Boolean(true));
    let number = |number: u32| (number != 0).then_some(Value::Integer(number.into()));
    let text = |text: String| (!text.is_empty()).then_some(Value::String(text));
    let settings = [
        ("systemd_cgroup", switch(options.systemd_cgroup)),
        ("shim_cgroup", text(options.shim_cgroup)),
        ("io_uid", number(options.io_uid)),
        ("io_gid", number(options.io_gid)),
        ("no_pivot_root", switch(options.no_pivot_root)),
        ("root", text(options.root)),
        ("binary_name", text(options.binary_name)),
        ("no_new_keyring", switch(options.no_new_keyring)),
        ("criu_image_path", text(options.criu_image_path)),
        ("criu_work_path", text(options.criu_work_path)),
    ];
    Layer {
        from: "the runtime options".to_owned(),
        table: settings
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect(),
    }
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
    use super::super::options::Options;
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

    fn options(sent: &Any) -> Result<Options, OptionsError> {
        Options::layered(runtime_options(sent)?.into_iter(), None)
    }

    fn refused(sent: &Any) -> String {
        options(sent).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_the_default() {
        let empty = toml_options("", "");
        assert_eq!(options(&empty).unwrap(), Options::default());
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
        let options = options(&sent).unwrap();
        assert!(options.systemd_cgroup);
        assert_eq!(options.io_uid, 7);
        assert_eq!(options.ignored(), ["BinaryName"]);
    }

    #[test]
    fn toml_comes_in_the_request_or_from_a_file() {
        let body = toml_options("", "cache_dir = '/c'\nSystemdCgroup = true");
        let sent = options(&body).unwrap();
        assert_eq!(sent.cache_dir, Some("/c".into()));
        assert!(sent.systemd_cgroup);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("o.toml");
        fs::write(&file, "root = '/r'").unwrap();
        let path = toml_options(file.to_str().unwrap(), "");
        assert_eq!(options(&path).unwrap().root, "/r");
    }

    #[test]
    fn messages_that_are_wrong_are_named() {
        assert!(refused(&toml_options("/no/such.toml", "")).contains("/no/such.toml"));
        assert!(refused(&any("x.Options", vec![])).contains("x.Options"));
        let broken = any("containerd.runc.v1.Options", vec![0xff]);
        assert!(refused(&broken).contains("cannot be decoded"));
    }
}
