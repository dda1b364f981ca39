//! Checkpoint and restore of Linux containers with the program criu (criu.org), as runc does it.
//!
//! - here: what is asked for, and what is noted beside criu's images
//! - `criu`: calling the program
//! - `dump`: a running container to images
//! - `restore`: images to a container that is created, and stands still until it is started
//!
//! All of it runs in a helper of the zygote.

mod criu;
mod dump;
mod restore;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use serde::{Deserialize, Serialize};

pub(crate) use dump::dump;
pub(crate) use restore::restore;

/// A checkpoint to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The container's bundle.
    pub bundle: PathBuf,
    /// The folder for the images, made where it is missing.
    pub images: PathBuf,
    /// The folder for criu's log and other things that it needs for the time; without one it is in
    /// the bundle, and goes.
    pub work: Option<PathBuf>,
    /// Whether the container goes on after it.
    pub leave_running: bool,
    /// Whether established TCP connections are taken along.
    pub open_tcp: bool,
    /// Whether unix sockets with a peer outside are taken along.
    pub external_unix_sockets: bool,
    /// Whether file locks are taken along.
    pub file_locks: bool,
    /// Namespaces that are taken along empty; criu knows `network` only.
    pub empty_namespaces: Vec<String>,
}

/// A checkpoint to restore from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restore {
    /// The folder with the images.
    pub images: PathBuf,
    /// As [`Checkpoint::work`].
    pub work: Option<PathBuf>,
}

/// What a restore has to know of the container and criu's images do not tell; a file beside them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    /// What the init's stdin, stdout and stderr are, as /proc tells it.
    streams: Vec<String>,
    /// Mounts that come from outside of the container.
    mounts: Vec<External>,
}

/// A mount that comes from outside.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct External {
    /// Where it is in the container.
    point: PathBuf,
    /// On v1, the options of the cgroup hierarchy that it is a part of.
    hierarchy: Option<String>,
}

impl Notes {
    /// The notes' file among the images.
    const FILE: &'static str = "lighter.json";

    fn write(&self, images: &Path) -> io::Result<()> {
        fs::write(images.join(Self::FILE), serde_json::to_vec(self)?)
    }

    fn read(images: &Path) -> Result<Self, String> {
        let file = images.join(Self::FILE);
        let read = || -> io::Result<Self> { Ok(serde_json::from_slice(&fs::read(&file)?)?) };
        read().map_err(|error| {
            format!(
                "{} cannot be read, so this is no checkpoint of this shim: {error}",
                file.display()
            )
        })
    }
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct MountLine<'a> {
    /// The part of the file system that is mounted.
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
    /// The options of the file system.
    options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut system = system.split(' ');
        Some(Self {
            root: mount.next()?,
            point: PathBuf::from(unescape(mount.next()?)),
            kind: system.next()?,
            options: system.nth(1)?,
        })
    }
}

/// Characters that would break a line are written in octal.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// The cgroups of `process`, a pid or `self`: the controllers of each hierarchy (none on v2) and the
/// path in it (cgroups(7), /proc/pid/cgroup).
fn cgroups_of(process: &str) -> Result<Vec<(Vec<String>, PathBuf)>, String> {
    let file = Path::new("/proc").join(process).join("cgroup");
    let text = fs::read_to_string(&file)
        .map_err(|error| format!("reading {}: {error}", file.display()))?;
    let cgroups = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?.split(',').filter(|name| !name.is_empty());
        Some((
            controllers.map(str::to_owned).collect(),
            PathBuf::from(parts.next()?),
        ))
    });
    Ok(cgroups.collect())
}

/// The mount of `spec` that has made what is mounted on `point`: the innermost one around it.
fn owner<'a>(spec: &'a Spec, point: &Path) -> Option<&'a Mount> {
    let mounts = spec.mounts().iter().flatten();
    mounts
        .filter(|mount| point.starts_with(mount.destination()))
        // Of two as deep, the later lies on the other.
        .max_by_key(|mount| mount.destination().components().count())
}

/// The namespaces that the container of `spec` shares with others, of those that criu can leave to
/// them: each with criu's name for its kind and for the one that is shared.
fn shared_namespaces(spec: &Spec) -> Vec<(&'static str, &'static str, PathBuf)> {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let named = |kind| match kind {
        LinuxNamespaceType::Network => Some(("net", "extRootNetNS")),
        LinuxNamespaceType::Pid => Some(("pid", "extRootPidNS")),
        _ => None,
    };
    let shared = namespaces.into_iter().flatten().filter_map(|namespace| {
        let (kind, name) = named(namespace.typ())?;
        Some((kind, name, namespace.path().clone()?))
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let line = "66 99 0:58 /a /with\\040space ro,relatime shared:1 - cgroup cgroup rw,cpu";
        let expected = MountLine {
            root: "/a",
            point: "/with space".into(),
            kind: "cgroup",
            options: "rw,cpu",
        };
        assert_eq!(MountLine::parse(line), Some(expected));
    }

    #[test]
    fn a_mount_belongs_to_the_innermost_of_the_spec() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "mounts": [
                {"destination": "/a", "type": "bind", "source": "/host"},
                {"destination": "/a/b", "type": "tmpfs"},
            ],
            "linux": {"namespaces": [
                {"type": "network", "path": "/run/netns/x"}, {"type": "pid"},
            ]},
        }))
        .unwrap();
        let of = |point: &str| owner(&spec, Path::new(point)).map(crate::mounts::is_bind);
        assert_eq!(of("/a/sub"), Some(true));
        assert_eq!(of("/a/b/c"), Some(false));
        assert_eq!(of("/ab"), None);
        let shared = shared_namespaces(&spec);
        assert_eq!(shared, [("net", "extRootNetNS", "/run/netns/x".into())]);
    }
}
