//! The OCI bundle: config.json beside the root file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process, Spec};

use crate::capabilities;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// config.json cannot be opened.
    #[error("the bundle's {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// open(2)'s or read(2)'s reason.
        source: io::Error,
    },
    /// config.json is not an OCI runtime configuration.
    #[error("the bundle's {path} is not an OCI runtime configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why parsing failed.
        source: serde_json::Error,
    },
    /// A part that the runtime spec requires of a Linux container is not there.
    #[error("the bundle's {path} has no {missing}, which a container needs")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The property, as the spec names it.
        missing: &'static str,
    },
    /// The root file system is not there.
    #[error("the container's root file system {path} cannot be used: {source}")]
    Rootfs {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bundle whose configuration has been read and has all that a container needs.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The bundle's folder.
    pub path: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// Names of capabilities in it that nobody knows, and that `spec` is without.
    pub unknown_capabilities: Vec<String>,
    /// The absolute path of the root file system on the host, which need not be in the bundle.
    pub rootfs: PathBuf,
    /// Where mounts of the root file system that come with a create go: `rootfs` in the bundle,
    /// as containerd's shims have it.
    pub mount_point: PathBuf,
}

impl Bundle {
    /// Reads the configuration of the bundle at `path`.
    ///
    /// # Errors
    /// When config.json is missing, is not a runtime configuration, or lacks `process`,
    /// `process.args`, `root` or `linux` (OCI runtime spec, config.md and config-linux.md).
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let config = path.join("config.json");
        let text = fs::read(&config).map_err(|source| BundleError::Read {
            path: config.clone(),
            source,
        })?;
        let parsed = capabilities::parse(&text, "/process/capabilities");
        let (spec, unknown_capabilities): (Spec, _) =
            parsed.map_err(|source| BundleError::Parse {
                path: config.clone(),
                source,
            })?;
        let missing = |missing| BundleError::Missing {
            path: config.clone(),
            missing,
        };
        let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(missing("process.args"));
        }
        if spec.linux().is_none() {
            return Err(missing("linux"));
        }
        let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
        if root.path().as_os_str().is_empty() {
            return Err(missing("root.path"));
        }
        let rootfs = path.join(root.path());
        Ok(Self {
            path: path.to_owned(),
            mount_point: mount_point(path),
            rootfs,
            spec,
            unknown_capabilities,
        })
    }

    /// The process that the container runs.
    pub fn process(&self) -> Option<&Process> {
        self.spec.process().as_ref()
    }

    /// The cgroup path that the configuration asks for, if any.
    pub fn cgroups_path(&self) -> Option<&Path> {
        self.spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.cgroups_path().as_deref())
    }

    /// Whether the container's processes end with its init: they do in a pid namespace of its
    /// own, and do not in one that it shares with the host or with other containers.
    pub fn owns_pid_namespace(&self) -> bool {
        self.spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref())
            .is_some_and(|namespaces| {
                namespaces.iter().any(|namespace| {
                    namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none()
                })
            })
    }

    /// The host's user and group that stand for the container's user.
    pub fn owner(&self) -> (Uid, Gid) {
        self.process()
            .map_or((Uid::from_raw(0), Gid::from_raw(0)), |process| {
                self.owner_of(process)
            })
    }

    /// The host's user and group that stand for the user of `process`, through the mappings of
    /// the container's user namespace if it has one.
    pub fn owner_of(&self, process: &Process) -> (Uid, Gid) {
        self.on_host(process.user().uid(), process.user().gid())
    }

    /// The host's user and group that stand for the container's root.
    pub(crate) fn root(&self) -> (Uid, Gid) {
        self.on_host(0, 0)
    }

    fn on_host(&self, uid: u32, gid: u32) -> (Uid, Gid) {
        let linux = self.spec.linux().as_ref();
        let mapped = |id, mappings: Option<&Vec<LinuxIdMapping>>| {
            mappings.map_or(id, |mappings| host_id(id, mappings).unwrap_or(id))
        };
        (
            Uid::from_raw(mapped(uid, linux.and_then(|l| l.uid_mappings().as_ref()))),
            Gid::from_raw(mapped(gid, linux.and_then(|l| l.gid_mappings().as_ref()))),
        )
    }

    /// The limit on the container's memory in bytes, if it has one.
    pub fn memory_limit(&self) -> Option<i64> {
        let linux = self.spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        // -1 is none (OCI runtime spec, "Memory").
        memory
            .and_then(|memory| memory.limit())
            .filter(|limit| *limit > 0)
    }

    /// Makes sure that the root file system is a folder, now that it should be mounted.
    ///
    /// # Errors
    /// When it is missing or no folder.
    pub fn check_rootfs(&self) -> Result<(), BundleError> {
        let error = |source| BundleError::Rootfs {
            path: self.rootfs.clone(),
            source,
        };
        if fs::metadata(&self.rootfs).map_err(error)?.is_dir() {
            Ok(())
        } else {
            Err(error(io::Error::from(io::ErrorKind::NotADirectory)))
        }
    }
}

/// Where the mounts of the bundle at `path` go.
pub fn mount_point(path: &Path) -> PathBuf {
    path.join("rootfs")
}

fn host_id(id: u32, mappings: &[LinuxIdMapping]) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id())?;
        (offset < mapping.size()).then(|| mapping.host_id() + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn load(config: &str) -> Result<Bundle, BundleError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        Bundle::load(folder.path())
    }

    fn config() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["/app.wasm"], "cwd": "/", "user": {"uid": 1000, "gid": 5}},
            "linux": {
                "namespaces": [{"type": "pid"}],
                "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]
            }
        })
    }

    fn without(pointer: &str, key: &str) -> String {
        let mut config = config();
        config
            .pointer_mut(pointer)
            .and_then(Value::as_object_mut)
            .unwrap()
            .remove(key)
            .unwrap();
        load(&config.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_bundle_loads() {
        let bundle = load(&config().to_string()).unwrap();
        assert!(bundle.rootfs.ends_with("rootfs"));
        assert!(bundle.owns_pid_namespace());
        assert_eq!(bundle.owner().0.as_raw(), 101_000);
        assert_eq!(bundle.owner().1.as_raw(), 5);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(without("", "process").contains("no process,"));
        assert!(without("/process", "args").contains("process.args"));
        assert!(without("", "root").contains("no root,"));
        assert!(without("", "linux").contains("no linux,"));
    }

    #[test]
    fn no_json_and_no_file_are_told_apart() {
        assert!(matches!(load("{"), Err(BundleError::Parse { .. })));
        let folder = tempfile::tempdir().unwrap();
        let error = Bundle::load(folder.path()).unwrap_err();
        assert!(matches!(error, BundleError::Read { .. }));
        assert!(error.to_string().contains("config.json"));
    }

    #[test]
    fn a_joined_pid_namespace_is_not_owned() {
        let mut config = config();
        config["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid");
        assert!(!load(&config.to_string()).unwrap().owns_pid_namespace());
    }

    #[test]
    fn a_missing_rootfs_is_named() {
        let bundle = load(&config().to_string()).unwrap();
        let error = bundle.check_rootfs().unwrap_err().to_string();
        assert!(error.contains("rootfs"), "{error}");
    }
}
