//! What `delete` must know of a container when its daemon is gone, noted in the bundle.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::settings::Options;

/// The note's file in the bundle.
const FILE: &str = "lighter.json";

/// Whether there is a note in `bundle`: a create has got as far as that.
pub fn is_in(bundle: &Path) -> bool {
    bundle.join(FILE).exists()
}

/// The note.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memo {
    /// The folder that holds the container's state.
    pub root: PathBuf,
    /// Whether systemd makes the container's cgroup.
    pub systemd_cgroup: bool,
    /// The init's pid; 0 while there is none.
    pub pid: u32,
    /// Whether the daemon has freed all that the container had.
    pub freed: bool,
}

impl Memo {
    /// The note for a container without an init, in containerd's `namespace`. Its state goes into
    /// its bundle, or into a folder for the namespace below the options' `Root`.
    pub fn new(namespace: &str, bundle: &Path, options: &Options) -> Self {
        Self {
            root: if options.root.is_empty() {
                default_root(bundle)
            } else {
                PathBuf::from(&options.root).join(namespace)
            },
            systemd_cgroup: options.systemd_cgroup,
            pid: 0,
            freed: false,
        }
    }

    /// Writes the note into `bundle`.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        fs::write(bundle.join(FILE), serde_json::to_vec(self)?)
    }

    /// Reads the note in `bundle`; without one no container's create has begun. One that cannot be understood tells what is
    /// so without options.
    pub fn read(bundle: &Path) -> Option<Self> {
        let noted = match fs::read(bundle.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            read => read.and_then(|text| Ok(serde_json::from_slice(&text)?)),
        };
        Some(noted.unwrap_or_else(|_| Self::unknown(bundle)))
    }

    /// What is so of a container in `bundle` without options.
    pub fn unknown(bundle: &Path) -> Self {
        Self {
            root: default_root(bundle),
            systemd_cgroup: false,
            pid: 0,
            freed: false,
        }
    }
}

fn default_root(bundle: &Path) -> PathBuf {
    bundle.join("lighter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(Memo::read(bundle.path()).is_none());
        // The machine went down while it was written.
        fs::write(bundle.path().join(FILE), "").unwrap();
        let unknown = Memo::read(bundle.path()).unwrap();
        assert_eq!(unknown.root, bundle.path().join("lighter"));
        assert!(!unknown.freed);
        let options = Options {
            root: "/r".into(),
            systemd_cgroup: true,
            ..Options::default()
        };
        let mut memo = Memo::new("ns", bundle.path(), &options);
        (memo.pid, memo.freed) = (7, true);
        memo.write(bundle.path()).unwrap();
        let memo = Memo::read(bundle.path()).unwrap();
        assert_eq!(memo.root, Path::new("/r/ns"));
        assert_eq!((memo.systemd_cgroup, memo.pid, memo.freed), (true, 7, true));
    }
}
