//! The processes of a cgroup, and its end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Cgroup, Error, Result, Tree, place};
use crate::sys;

/// How long removal waits for killed processes to leave. A process in an uninterruptible wait
/// (a dead network file system) may take longer; nothing can hurry it.
const REMOVAL: Duration = Duration::from_secs(10);
/// How long a cgroup is waited for in which, once its container has ended, somebody is all the same: a process that was on its
/// way into the container, and ends by itself, or somebody else.
const FAREWELL: Duration = Duration::from_millis(500);
/// The longest pause between two looks at a cgroup that is to be removed.
const PAUSE: Duration = Duration::from_millis(20);
/// What stands on the kernel's lists for each process outside this process's pid namespace (pid_namespaces(7)).
const FOREIGN: u32 = 0;
/// How often a cgroup is looked through for processes that were forked while others got a signal.
const ROUNDS: usize = 16;

/// The lists of a cgroup's members, open for writing. What may be written is decided by the rights
/// of who opened them, since Linux 5.16 and in older ones that have the mend of CVE-2021-4197.
pub(crate) struct Entry(Vec<(PathBuf, File)>);

impl Entry {
    /// Moves this process, which must have one thread, into the cgroup.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub(crate) fn enter(self) -> Result<()> {
        for (path, mut list) in self.0 {
            list.write_all(b"0").map_err(Error::io("join", &path))?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// The processes in the cgroup and in the cgroups below it, as pids of this process's
    /// namespace, in ascending order. None when the cgroup is gone.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Malformed`] when the kernel's list cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let folder = match &self.tree {
            Tree::V1(controllers) => place::telling_folder(controllers),
            Tree::V2(folder) => Some(folder.as_path()),
        };
        let mut pids = BTreeSet::new();
        if let Some(folder) = folder {
            collect(folder, &mut pids)?;
        }
        pids.remove(&FOREIGN);
        Ok(pids.into_iter().collect())
    }

    /// Makes sure that a container may have the cgroup: that nobody is in it or below it, on v1 in any of
    /// its hierarchies, and that whoever comes into it is not frozen.
    ///
    /// # Errors
    /// [`Error::Taken`] and [`Error::Frozen`]; [`Error::Io`] or [`Error::Malformed`] when the kernel's files cannot be read.
    pub fn ensure_free(&self) -> Result<()> {
        for folder in self.folders() {
            ensure_empty(folder)?;
        }
        match self.frozen()? {
            Some(path) => Err(Error::Frozen { path }),
            None => Ok(()),
        }
    }

    /// Opens the way into the cgroup, for a process that will not be able to reach its folders any
    /// more.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub(crate) fn entry(&self) -> Result<Entry> {
        // On v1 the list of threads takes a lock of the machine for a thousandth of the time that
        // the list of processes does.
        let list = match &self.tree {
            Tree::V1(_) => "tasks",
            Tree::V2(_) => "cgroup.procs",
        };
        let open = |folder: &Path| {
            let list = folder.join(list);
            match fs::OpenOptions::new().write(true).open(&list) {
                Ok(file) => Ok((list, file)),
                Err(error) => Err(Error::io("open", &list)(error)),
            }
        };
        self.folders()
            .into_iter()
            .map(open)
            .collect::<Result<_>>()
            .map(Entry)
    }

    /// Sends the signal numbered `signal`, real-time ones included, to every process of the cgroup
    /// and of the cgroups below it. SIGKILL reaches them as well when the cgroup is frozen. That
    /// none is left afterwards is not promised.
    ///
    /// # Errors
    /// [`Error::HoldsCaller`], and nothing is sent, when this very process is in the cgroup;
    /// [`Error::Io`] when the cgroup cannot be read or a process refuses the signal.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        let folder = match &self.tree {
            Tree::V1(controllers) => place::telling_folder(controllers),
            Tree::V2(folder) => Some(folder.as_path()),
        };
        if let Some(folder) = folder {
            signal_folder(folder, signal)?;
        }
        match signal {
            libc::SIGKILL => self.thaw_v1(),
            _ => Ok(()),
        }
    }

    /// Kills every process left in the cgroup and removes it with all cgroups below it.
    ///
    /// Blocks the thread: for microseconds when the cgroup is empty, else until its processes are
    /// gone, at most ten seconds. That the cgroup, or a part of it, is gone already is no error.
    ///
    /// # Errors
    /// [`Error::HoldsCaller`] when this very process is in the cgroup; [`Error::Busy`] when its
    /// processes do not go; [`Error::Io`] when the kernel refuses otherwise.
    pub fn remove(&self) -> Result<()> {
        self.remove_when(|folder, _| {
            signal_folder(folder, libc::SIGKILL)?;
            self.thaw_v1()
        })
    }

    /// [`Cgroup::remove`] for the cgroup of a container of which no process is left: who is in it or below it has come since, and
    /// is not signalled. Blocks the thread for half a second then.
    ///
    /// # Errors
    /// [`Error::Taken`] when somebody is in it: it stays; otherwise as [`Cgroup::remove`].
    pub fn remove_empty(&self) -> Result<()> {
        self.remove_when(|folder, since| match since.elapsed() > FAREWELL {
            true => ensure_empty(folder),
            false => Ok(()),
        })
    }

    /// Removes the cgroup with all below it; where somebody is in a folder, `when_busy` is told of it and of when this began, again and
    /// again.
    fn remove_when(&self, when_busy: impl Fn(&Path, Instant) -> Result<()>) -> Result<()> {
        let since = Instant::now();
        for folder in self.folders() {
            let mut pause = Duration::from_millis(1);
            while !remove_folder(folder)? {
                if since.elapsed() > REMOVAL {
                    let mut pids = BTreeSet::new();
                    collect(folder, &mut pids)?;
                    return Err(Error::Busy {
                        path: folder.to_path_buf(),
                        pids: pids.into_iter().collect(),
                        seconds: REMOVAL.as_secs(),
                    });
                }
                when_busy(folder, since)?;
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE);
            }
        }
        Ok(())
    }
}

/// The errors of a cgroup that was removed while it was looked at: ENOENT from opening its files,
/// ENODEV from those opened before.
pub(super) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Makes sure that nobody is in a folder or in those below it.
fn ensure_empty(folder: &Path) -> Result<()> {
    let mut pids = BTreeSet::new();
    collect(folder, &mut pids)?;
    if pids.is_empty() {
        return Ok(());
    }
    Err(Error::Taken {
        path: folder.to_path_buf(),
        pids: pids.into_iter().collect(),
    })
}

/// Adds the processes of a folder and of those below it, [`FOREIGN`] ones as well.
fn collect(folder: &Path, pids: &mut BTreeSet<u32>) -> Result<()> {
    let path = folder.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => {
            for line in text.lines() {
                let pid: u32 = line.parse().map_err(|_| Error::Malformed {
                    path: path.clone(),
                    line: line.to_owned(),
                    expected: "a process id",
                })?;
                pids.insert(pid);
            }
        }
        Err(error) if gone(&error) => return Ok(()),
        // A threaded cgroup of v2: its processes are on the list of the cgroup above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(Error::io("read", &path)(error)),
    }
    for child in children(folder)? {
        collect(&child, pids)?;
    }
    Ok(())
}

/// The cgroups right below a cgroup.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<_>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    };
    match list() {
        Err(error) if gone(&error) => Ok(Vec::new()),
        answer => answer.map_err(Error::io("read", folder)),
    }
}

/// Sends a signal to each process of a folder and of those below it, also to those forked
/// meanwhile.
fn signal_folder(folder: &Path, signal: i32) -> Result<()> {
    let mut reached = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut pids = BTreeSet::new();
        collect(folder, &mut pids)?;
        // Nobody can be signalled by that.
        pids.remove(&FOREIGN);
        let caller = std::process::id();
        if pids.contains(&caller) {
            return Err(Error::HoldsCaller {
                path: folder.to_path_buf(),
                pid: caller,
            });
        }
        let new: Vec<u32> = pids.difference(&reached).copied().collect();
        if new.is_empty() || (signal == libc::SIGKILL && kill_at_once(folder)?) {
            break;
        }
        for pid in &new {
            match signal_process(*pid, signal) {
                // It ended by itself between the list and the signal.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    let process = format!("/proc/{pid}");
                    return Err(Error::io("signal", Path::new(&process))(errno.into()));
                }
            }
        }
        reached.extend(new);
    }
    Ok(())
}

fn signal_process(pid: u32, signal: i32) -> std::result::Result<(), Errno> {
    let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    sys::send_signal(handle.as_fd(), signal)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// Lets the kernel kill a whole v2 tree in one step, so that no fork escapes; cgroup.kill is there
/// since Linux 5.14. Says whether it did.
fn kill_at_once(folder: &Path) -> Result<bool> {
    let path = folder.join("cgroup.kill");
    match write_existing(&path, "1") {
        Ok(()) => Ok(true),
        // Not on v1, not before 5.14, and EOPNOTSUPP in a threaded cgroup.
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(Error::io("write", &path)(error)),
    }
}

/// Writes to a kernel file, which must exist: creating a file is refused in a cgroup file system
/// with a misleading EPERM.
pub(super) fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Removes a folder and those below it; false when some process is still in one of them.
fn remove_folder(folder: &Path) -> Result<bool> {
    match fs::remove_dir(folder) {
        Ok(()) => return Ok(true),
        Err(error) if gone(&error) => return Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(Error::io("remove", folder)(error)),
    }
    // Busy because of processes, or because of cgroups below, which go first.
    let mut children = children(folder)?;
    if children.is_empty() {
        return Ok(false);
    }
    while let Some(child) = children.pop() {
        if !remove_folder(&child)? {
            return Ok(false);
        }
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(Error::io("remove", folder)(error)),
    }
}
