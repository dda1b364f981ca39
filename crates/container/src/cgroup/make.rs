//! Making the folders of a cgroup, as libcgroups does when it moves a process there.

use std::fs;
use std::io;
use std::path::Path;

use super::members::write_existing;
use super::{Cgroup, Error, Result, Tree};

/// What a v1 cpuset must have before a process may enter it, cpuset(7); a new one has neither.
const NEEDED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

impl Cgroup {
    /// Makes those folders of the cgroup that are not there. A new cpuset of v1 may use what the one above it may; a
    /// new cgroup of v2 gets all controllers that there are.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub(crate) fn make(&self) -> Result<()> {
        match &self.tree {
            Tree::V1(_) => {
                for folder in self.folders() {
                    fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
                }
                if let Some(folder) = self.v1_folder("cpuset") {
                    for file in NEEDED {
                        fill(folder, file)?;
                    }
                }
                Ok(())
            }
            Tree::V2(folder) => make_with_controllers(folder),
        }
    }
}

/// Makes a folder of v2 with those above it, each of which hands its controllers down.
fn make_with_controllers(folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_with_controllers(above)?;
        hand_down(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("make", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Has those below a folder of v2 get all its controllers. Where the kernel refuses one, as in a cgroup that has processes, a
/// limit that needs it will be refused, which tells more.
fn hand_down(folder: &Path) -> Result<()> {
    let list = |name| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let (there, handed) = (list("cgroup.controllers")?, list("cgroup.subtree_control")?);
    let handed: Vec<&str> = handed.split_whitespace().collect();
    let control = folder.join("cgroup.subtree_control");
    for controller in there.split_whitespace() {
        if handed.contains(&controller) {
            continue;
        }
        if let Err(error) = write_existing(&control, &format!("+{controller}")) {
            log::debug!("{}: +{controller}: {error}", control.display());
        }
    }
    Ok(())
}

/// Has `file` say what it says in the folder above, where it is empty. Returns what it says. It is never empty in the root.
fn fill(folder: &Path, file: &str) -> Result<String> {
    let path = folder.join(file);
    let own = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    match folder.parent() {
        Some(above) if own.trim().is_empty() => {
            let value = fill(above, file)?;
            write_existing(&path, &value).map_err(Error::io("write", &path))?;
            Ok(value)
        }
        _ => Ok(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cpuset_gets_what_the_one_above_has() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        for (folder, text) in [("", "0-3\n"), ("a", "\n"), ("a/b", "")] {
            fs::write(root.path().join(folder).join("cpuset.cpus"), text).unwrap();
        }
        fill(&below, "cpuset.cpus").unwrap();
        for folder in ["a", "a/b"] {
            let file = root.path().join(folder).join("cpuset.cpus");
            assert!(fs::read_to_string(file).unwrap().starts_with("0-3\n"));
        }
    }

    #[test]
    fn a_cpuset_keeps_what_it_has() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("a");
        fs::create_dir(&below).unwrap();
        fs::write(root.path().join("cpuset.mems"), "0-1\n").unwrap();
        fs::write(below.join("cpuset.mems"), "1\n").unwrap();
        fill(&below, "cpuset.mems").unwrap();
        assert_eq!(
            fs::read_to_string(below.join("cpuset.mems")).unwrap(),
            "1\n"
        );
    }
}
