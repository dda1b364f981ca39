//! The control groups of a container: where they are, what they count, who is in them, and how
//! they end.
//!
//! It makes cgroups, limits, reads, freezes and removes them; only where systemd makes one, libcgroups does so and sets its
//! first limits. It knows the three set-ups of Linux machines: v1 (one hierarchy a controller, or several
//! controllers mounted together), hybrid (v1 beside an empty v2 tree; treated as v1, as libcgroups
//! does) and v2 (one tree for all).
//!
//! - `place`: from a process or a cgroups path to folders
//! - `make`: the folders of a new one
//! - `members`: processes, signals, removal
//! - `moves`: the lock that moves between cgroups take
//! - `freezer`: pausing and resuming
//! - `limits`: the first limits of a container, and new ones while it runs
//! - [`stats`]: the figures, by the files that containerd's cgroups library reads
//! - [`oom`]: kills by the out-of-memory killer, as they happen

mod freezer;
mod limits;
mod make;
mod members;
mod moves;
pub mod oom;
mod place;
pub mod stats;

use std::io;
use std::path::{Path, PathBuf};

use libcontainer::utils::get_cgroup_path;
use oci_spec::runtime::{Linux, Spec};

pub(crate) use members::Entry;
pub use moves::expect_move;
pub use oom::OomWatch;
pub use place::look_for_mounts;
pub(crate) use place::{is_v1, plain, v1_mount_points};
pub use stats::Stats;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the cgroup file systems or of /proc refused an operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The verb: "read", "write", "remove", ...
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of the kernel does not have the form its documentation gives.
    #[error("cannot understand {line:?} in {path}: expected {expected}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line at fault.
        line: String,
        /// The form that was expected.
        expected: &'static str,
    },
    /// None of the process's cgroups lies in a hierarchy mounted in this mount namespace.
    #[error(
        "process {pid} is in no cgroup that is mounted here: compare /proc/{pid}/cgroup with \
         /proc/self/mountinfo"
    )]
    NotMounted {
        /// The process.
        pid: u32,
    },
    /// The machine has no cgroup file system to look in.
    #[error("no cgroup controller is mounted here: mount the cgroup file systems of this machine")]
    NoHierarchy,
    /// A cgroups path that names no cgroup.
    #[error("cgroups path {path:?} names no cgroup: {reason}")]
    BadPath {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An operation that would end this very process.
    #[error("cgroup {path} also holds this process ({pid}): refusing to kill or remove it")]
    HoldsCaller {
        /// The folder of the cgroup.
        path: PathBuf,
        /// This process.
        pid: u32,
    },
    /// Others are in a cgroup that a container was to have, who would end with it, or had.
    #[error(
        "cgroup {path} is not empty (processes {pids:?}; 0 is one of another pid namespace): give the container \
         another cgroupsPath, or end them"
    )]
    Taken {
        /// The folder of the cgroup.
        path: PathBuf,
        /// The processes in it.
        pids: Vec<u32>,
    },
    /// A container was to have a cgroup in which its first process would stand still.
    #[error(
        "cgroup {path} is frozen: thaw it, remove it, or give the container another cgroupsPath"
    )]
    Frozen {
        /// The folder of the cgroup, or of one above it.
        path: PathBuf,
    },
    /// The processes of a cgroup outlived SIGKILL for longer than removal waits.
    #[error(
        "cgroup {path} is still busy {seconds} s after SIGKILL (processes {pids:?}): see \
         /proc/PID/stack for what they wait for, and remove it again when they are gone"
    )]
    Busy {
        /// The folder of the cgroup.
        path: PathBuf,
        /// The processes left.
        pids: Vec<u32>,
        /// How long removal waited.
        seconds: u64,
    },
    /// The cgroup cannot be frozen: v1 without the freezer controller, or v2 before Linux 5.2.
    #[error(
        "cgroup {path} has no freezer: mount v1's freezer controller, or use Linux 5.2 or newer \
         with v2"
    )]
    NoFreezer {
        /// A folder of the cgroup.
        path: PathBuf,
    },
    /// A request for limits that makes no sense here.
    #[error("the limit {field} cannot be set: {reason}")]
    BadLimit {
        /// The field of `resources` in the OCI runtime spec.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of a v1 controller that is not mounted.
    #[error("the container has no cgroup of the controller {controller}: mount it to set limits")]
    NoController {
        /// The controller.
        controller: &'static str,
    },
    /// A limit that this kernel, or this cgroup, does not have.
    #[error(
        "{path} does not exist: this kernel lacks the limit, or its controller is not enabled here"
    )]
    NoFile {
        /// The file of the limit.
        path: PathBuf,
    },
    /// The kernel refuses a limit.
    #[error("cannot set {path} to {value:?}: {source}")]
    Set {
        /// The file of the limit.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// More memory is in use than is to be allowed, and cannot be freed.
    #[error("cannot set {path} to {limit:?}: {usage} bytes are in use")]
    InUse {
        /// The file of the limit.
        path: PathBuf,
        /// The limit, in bytes.
        limit: String,
        /// What is in use, in bytes.
        usage: String,
    },
    /// systemd, which manages the cgroup, does not take limits.
    #[error("systemd does not take the limits of {unit}: {reason}")]
    Systemd {
        /// The unit that is the cgroup.
        unit: String,
        /// What systemctl says.
        reason: String,
    },
    /// A process did not stop for longer than freezing waits.
    #[error(
        "cgroup {path} is not frozen after {seconds} s, and was thawed again: see \
         /proc/PID/stack of its processes for what they wait for"
    )]
    NotFrozen {
        /// The folder of the cgroup.
        path: PathBuf,
        /// How long freezing waited.
        seconds: u64,
    },
    /// Out-of-memory kills cannot be watched without the memory controller.
    #[error("cgroup {path} has no memory controller: enable it to be told of out-of-memory kills")]
    NoMemoryController {
        /// The folder, or the cgroup's path when no folder has the controller.
        path: PathBuf,
    },
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

/// The result of this module's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// The cgroup of one container: on v1 one folder for each controller, on v2 one folder.
///
/// It is a name, not a handle: it stays valid, and holds nothing open, when the cgroup is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    tree: Tree,
}

/// Where the folders of a cgroup are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    /// Controllers and the folder of each; controllers that are mounted together share a folder. One is no controller: the
    /// hierarchy of systemd, by the name `name=systemd`.
    V1(Vec<(String, PathBuf)>),
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup of a running process.
    ///
    /// On v1 it consists of the controllers in which the process has the same path as in
    /// `devices` (or the first of the other controllers where that is missing): a container's
    /// cgroups all have one path, and hierarchies that its runtime left alone show the path of
    /// whoever started it, which is not the container's to count or to kill.
    ///
    /// # Errors
    /// [`Error::Io`] when the process does not exist; [`Error::NotMounted`] when its cgroup cannot
    /// be reached from this mount namespace.
    pub fn of(pid: u32) -> Result<Cgroup> {
        place::of(pid).map(|tree| Cgroup { tree })
    }

    /// The cgroup that libcgroups makes for a cgroups path, whether it exists or not; used to
    /// clean up after a container whose init is dead.
    ///
    /// `cgroups_path` is what libcontainer hands to libcgroups: `linux.cgroupsPath` of the
    /// container's spec, or libcontainer's own default in its absence. `systemd` tells whether the
    /// container was made with the systemd driver; then a relative path has the form
    /// `slice:prefix:name`. On v1 it is only about where the folders are: systemd does not make them.
    ///
    /// # Errors
    /// [`Error::BadPath`] when the path names the root of the hierarchies, leaves them (`..`), or
    /// is not of systemd's form; [`Error::NoHierarchy`] when no controller is mounted.
    pub fn at(cgroups_path: &Path, systemd: bool) -> Result<Cgroup> {
        place::at(cgroups_path, systemd).map(|tree| Cgroup { tree })
    }

    /// The cgroup of the container `id` that `spec` is of; `systemd` is as for [`Cgroup::at`].
    ///
    /// # Errors
    /// As [`Cgroup::at`].
    pub fn of_spec(spec: &Spec, id: &str, systemd: bool) -> Result<Cgroup> {
        let linux = spec.linux().as_ref();
        let given = linux.map_or(&None, Linux::cgroups_path);
        Self::at(&get_cgroup_path(given, id), systemd)
    }

    /// One that is on v1, with these controllers and folders.
    #[cfg(test)]
    pub(crate) fn v1(folders: &[(&str, &str)]) -> Cgroup {
        let folder = |&(name, folder): &(&str, &str)| (name.to_owned(), PathBuf::from(folder));
        let tree = Tree::V1(folders.iter().map(folder).collect());
        Cgroup { tree }
    }

    /// The folder of a v1 controller.
    fn v1_folder(&self, controller: &str) -> Option<&Path> {
        match &self.tree {
            Tree::V1(controllers) => place::folder(controllers, controller),
            Tree::V2(_) => None,
        }
    }

    /// The v1 controllers that the cgroup has; none on v2.
    pub(crate) fn controllers(&self) -> Vec<&str> {
        match &self.tree {
            Tree::V1(controllers) => controllers.iter().map(|(name, _)| name.as_str()).collect(),
            Tree::V2(_) => Vec::new(),
        }
    }

    /// The one folder of a cgroup of v2.
    pub fn unified(&self) -> Option<&Path> {
        match &self.tree {
            Tree::V1(_) => None,
            Tree::V2(folder) => Some(folder),
        }
    }

    /// The cgroup's folders, each once, in order of name: one on v2, one for each hierarchy on v1.
    /// They need not exist.
    pub fn folders(&self) -> Vec<&Path> {
        match &self.tree {
            Tree::V1(controllers) => {
                let mut folders: Vec<&Path> = controllers
                    .iter()
                    .map(|(_, folder)| folder.as_path())
                    .collect();
                folders.sort_unstable();
                folders.dedup();
                folders
            }
            Tree::V2(folder) => vec![folder],
        }
    }
}
