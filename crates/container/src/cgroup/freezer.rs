//! Stopping all processes of a cgroup where they are, and letting them go on: the kernel's
//! admin-guide/cgroup-v1/freezer-subsystem.rst, and `cgroup.freeze` of admin-guide/cgroup-v2.rst.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::members::{gone, write_existing};
use super::{Cgroup, Error, Result, Tree};

/// How long processes may take to stop. One in an uninterruptible wait (a dead network file
/// system) stops only after it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two looks at whether all have stopped.
const PAUSE: Duration = Duration::from_millis(10);
/// How often v1 is told again before it is let go for a moment: a process that was forked while
/// others were being stopped may keep it undecided for good.
const ROUNDS: usize = 50;

impl Cgroup {
    /// Stops every process of the cgroup and of the cgroups below it, those forked from now on as
    /// well, and waits until they have stopped.
    ///
    /// Blocks the thread, at most ten seconds.
    ///
    /// # Errors
    /// [`Error::NoFreezer`] when the cgroup has none; [`Error::NotFrozen`] when a process does not
    /// stop, and [`Error::Io`] when the kernel refuses: the cgroup goes on then.
    pub fn freeze(&self) -> Result<()> {
        let frozen = match &self.tree {
            Tree::V1(_) => self
                .v1_folder("freezer")
                .ok_or_else(|| self.no_freezer())
                .and_then(freeze_v1),
            Tree::V2(folder) => freeze_v2(folder),
        };
        if frozen.is_err()
            && let Err(error) = self.thaw()
        {
            log::warn!("a cgroup that could not be frozen: {error}");
        }
        frozen
    }

    /// Lets the cgroup's processes go on. That the cgroup is gone, or never had a freezer, is no
    /// error.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        match &self.tree {
            Tree::V1(_) => self.thaw_v1(),
            Tree::V2(folder) => tell(folder, "cgroup.freeze", "0"),
        }
    }

    /// [`Cgroup::thaw`] on v1 alone: there a frozen process dies of SIGKILL only after it was
    /// thawed, on v2 it does at once.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub fn thaw_v1(&self) -> Result<()> {
        match self.v1_folder("freezer") {
            Some(folder) => tell(folder, "freezer.state", "THAWED"),
            None => Ok(()),
        }
    }

    /// The folder by which whoever comes into the cgroup is stopped, if so: its own, or, where it does not exist yet, the nearest above.
    ///
    /// # Errors
    /// [`Error::Io`] when the state cannot be read.
    pub(super) fn frozen(&self) -> Result<Option<PathBuf>> {
        let (file, frozen): (_, &[&str]) = match &self.tree {
            Tree::V1(_) => ("freezer.state", &["FROZEN", "FREEZING"]),
            Tree::V2(_) => ("cgroup.events", &["frozen 1"]),
        };
        for folder in self.freezer().into_iter().flat_map(Path::ancestors) {
            let path = folder.join(file);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let is_frozen = text.lines().any(|line| frozen.contains(&line));
                    return Ok(is_frozen.then(|| folder.to_owned()));
                }
                // The root, which cannot be frozen.
                Err(error) if gone(&error) && folder.exists() => return Ok(None),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(Error::io("read", &path)(error)),
            }
        }
        Ok(None)
    }

    /// The folder whose files freeze the cgroup, if it has one.
    pub(crate) fn freezer(&self) -> Option<&Path> {
        match &self.tree {
            Tree::V1(_) => self.v1_folder("freezer"),
            Tree::V2(folder) => Some(folder),
        }
    }

    fn no_freezer(&self) -> Error {
        let folders = self.folders();
        Error::NoFreezer {
            path: folders.first().copied().unwrap_or(Path::new("")).to_owned(),
        }
    }
}

/// Writes a file of a cgroup, unless that is gone.
fn tell(folder: &Path, file: &str, text: &str) -> Result<()> {
    let path = folder.join(file);
    match write_existing(&path, text) {
        Err(error) if !gone(&error) => Err(Error::io("write", &path)(error)),
        _ => Ok(()),
    }
}

/// Writes FROZEN until the state is no longer FREEZING.
fn freeze_v1(folder: &Path) -> Result<()> {
    let path = folder.join("freezer.state");
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound if folder.exists() => Error::NoFreezer {
            path: folder.to_owned(),
        },
        _ => Error::io("write", &path)(error),
    };
    let mut rounds = 0;
    patiently(folder, || {
        rounds += 1;
        if rounds % ROUNDS == 0 {
            write_existing(&path, "THAWED").map_err(refused)?;
        }
        write_existing(&path, "FROZEN").map_err(refused)?;
        let state = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        Ok(state.trim_end() == "FROZEN")
    })
}

/// Writes `cgroup.freeze` and waits for `frozen 1` in `cgroup.events`.
fn freeze_v2(folder: &Path) -> Result<()> {
    let path = folder.join("cgroup.freeze");
    write_existing(&path, "1").map_err(|error| match error.kind() {
        // Not before Linux 5.2, and not in the root.
        io::ErrorKind::NotFound if folder.exists() => Error::NoFreezer {
            path: folder.to_owned(),
        },
        _ => Error::io("write", &path)(error),
    })?;
    let events = folder.join("cgroup.events");
    patiently(folder, || {
        let text = fs::read_to_string(&events).map_err(Error::io("read", &events))?;
        Ok(text.lines().any(|line| line == "frozen 1"))
    })
}

/// Asks until `frozen` says yes.
fn patiently(folder: &Path, mut frozen: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    while !frozen()? {
        if Instant::now() > end {
            return Err(Error::NotFrozen {
                path: folder.to_owned(),
                seconds: PATIENCE.as_secs(),
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
    Ok(())
}
