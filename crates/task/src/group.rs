//! Which containers share a daemon.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The annotations that put containers into one daemon, the first that is there: the runc shim's
/// own, and the pod's, which CRI sets.
const ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// The group of a namespace: no container's id, which has letters, digits, and `.-_` only.
const NAMESPACE: &str = "*";

/// What puts containers without a group annotation into one daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// Nothing: each has its own.
    #[default]
    Container,
    /// containerd's namespace.
    Namespace,
}

/// The containers that share a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How they are found together.
    pub kind: Kind,
    /// What their daemon's socket is named after, within the namespace.
    pub name: String,
}

/// How containers are found together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not at all: it is one, or a sandbox.
    Container = 1,
    /// By a group annotation.
    Annotation = 2,
    /// By containerd's namespace.
    Namespace = 3,
}

impl Kind {
    /// The kind that is written as `byte`.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Container, Self::Annotation, Self::Namespace]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What of config.json matters here.
#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Group {
    /// The group of the container with this `id` and `bundle`. A sandbox without a container has no
    /// config.json, and is a group of its own; its id is what its containers' annotations say.
    ///
    /// # Errors
    /// When config.json cannot be used.
    pub fn of(id: &str, bundle: &Path, group_by: GroupBy) -> io::Result<Self> {
        let error = |reason: String| {
            io::Error::other(format!("the bundle's config.json cannot be used: {reason}"))
        };
        let config = match fs::read(bundle.join("config.json")) {
            Ok(config) => config,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::alone(id));
            }
            Err(reason) => return Err(error(reason.to_string())),
        };
        let mut config: Annotated =
            serde_json::from_slice(&config).map_err(|reason| error(reason.to_string()))?;
        let annotated = ANNOTATIONS
            .iter()
            .find_map(|name| config.annotations.remove(*name));
        Ok(match (annotated, group_by) {
            (Some(name), _) => Self {
                kind: Kind::Annotation,
                name,
            },
            (None, GroupBy::Namespace) => Self::namespace(),
            (None, GroupBy::Container) => Self::alone(id),
        })
    }

    fn alone(id: &str) -> Self {
        Self {
            kind: Kind::Container,
            name: id.to_owned(),
        }
    }

    /// All containers of a namespace that have no group annotation.
    pub fn namespace() -> Self {
        Self {
            kind: Kind::Namespace,
            name: NAMESPACE.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(config: Option<&str>, group_by: GroupBy) -> Group {
        let bundle = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs::write(bundle.path().join("config.json"), config).unwrap();
        }
        Group::of("id", bundle.path(), group_by).unwrap()
    }

    #[test]
    fn a_setting_groups_what_no_annotation_does() {
        let pod = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#;
        let other = r#"{"annotations": {"other": "x"}}"#;
        for (config, group_by, kind, name) in [
            (Some(pod), GroupBy::Container, Kind::Annotation, "pod"),
            (Some(pod), GroupBy::Namespace, Kind::Annotation, "pod"),
            (Some(other), GroupBy::Container, Kind::Container, "id"),
            (Some("{}"), GroupBy::Namespace, Kind::Namespace, NAMESPACE),
            (None, GroupBy::Namespace, Kind::Container, "id"),
        ] {
            let group = group(config, group_by);
            assert_eq!((group.kind, group.name.as_str()), (kind, name));
            assert_eq!(Kind::from_byte(group.kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_byte(0), None);
    }
}
