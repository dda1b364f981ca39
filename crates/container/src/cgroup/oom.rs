//! Kills by the out-of-memory killer, as they happen.
//!
//! Both versions count the kills in a cgroup: v1 in `memory.oom_control` (since Linux 4.13), v2 in
//! `memory.events`. A watch waits for a sign from the kernel that the count may have changed (v1:
//! an eventfd, kernel's admin-guide/cgroup-v1/memory.rst section 10; v2: inotify) and
//! then compares. The count decides, because the sign alone is not enough: v1 gives it before the
//! kill, and also to every cgroup below one that ran out of memory.
//!
//! systemd removes a scope as soon as its last process is gone, and may do so before the count has been
//! read. Then three things together decide (v2): there was a sign, the process was killed by
//! SIGKILL, and the machine's own count has risen since the cgroup's was last read.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use super::{Cgroup, Error, Result, Tree, stats};
use crate::memory::OomKills;

/// How long after v1's sign the kill is looked for, and how often.
const KILL_FOLLOWS: Duration = Duration::from_secs(1);
const KILL_STEP: Duration = Duration::from_millis(2);

/// A watch over the out-of-memory kills in one cgroup. Dropping it ends it; it holds one file
/// descriptor.
#[derive(Debug)]
pub struct OomWatch {
    /// Becomes readable when the count may have changed or the cgroup was removed.
    sign: AsyncFd<OwnedFd>,
    /// The file that holds the count.
    counter: PathBuf,
    /// The count that was reported last.
    reported: u64,
    /// Whether the sign comes before the count rises (v1).
    early: bool,
    /// Until when a kill is looked for, after an early sign.
    expected_until: Option<Instant>,
    /// Whether the cgroup has ever been short of memory (v2).
    short: bool,
    /// The machine's count when the cgroup's was last read.
    machine: OomKills,
}

impl OomWatch {
    /// Starts to watch an existing cgroup; kills from here on are reported. Make it when the
    /// container is created and before it is started, and no kill is missed. `machine` is the
    /// machine's count at some moment before.
    ///
    /// Must be called within a tokio runtime whose I/O and time drivers are enabled.
    ///
    /// # Errors
    /// [`Error::NoMemoryController`] when the cgroup has none; [`Error::Io`] when it is gone
    /// or the process has no file descriptors left; [`Error::Malformed`] on v1 before Linux 4.13.
    pub fn new(cgroup: &Cgroup, machine: OomKills) -> Result<OomWatch> {
        let (sign, counter, early) = match &cgroup.tree {
            Tree::V1(controllers) => {
                let folder = cgroup.v1_folder("memory").ok_or_else(|| {
                    let any = controllers.first().map(|(_, folder)| folder.clone());
                    Error::NoMemoryController {
                        path: any.unwrap_or_default(),
                    }
                })?;
                (v1_sign(folder)?, folder.join("memory.oom_control"), true)
            }
            Tree::V2(folder) => (v2_sign(folder)?, folder.join("memory.events"), false),
        };
        let reported = kills(&counter)?.ok_or_else(|| {
            let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
            Error::io("read", &counter)(gone)
        })?;
        // SAFETY: the descriptor is owned by the `OwnedFd`, which is neither replaced nor closed
        // while the `AsyncFd` holds it.
        let sign = unsafe { AsyncFd::register_with_interest(sign, Interest::READABLE) }
            .map_err(|error| Error::io("watch", &counter)(error.into()))?;
        Ok(OomWatch {
            sign,
            counter,
            reported,
            early,
            expected_until: None,
            short: false,
            machine,
        })
    }

    /// Waits for the next kill; kills that follow each other faster than they are asked for are
    /// one. None when the cgroup is gone. May be dropped and called again without missing a kill.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let machine = self.short.then(OomKills::now);
            match kills(&self.counter) {
                Ok(Some(count)) => {
                    self.machine = machine.unwrap_or(self.machine);
                    if count > self.reported {
                        self.reported = count;
                        return Some(());
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    log::warn!("no longer watching for out-of-memory kills: {error}");
                    return None;
                }
            }
            match self.expected_until {
                Some(end) if Instant::now() < end => sleep(KILL_STEP).await,
                _ => self.wait_for_sign().await?,
            }
        }
    }

    /// Whether there was a kill that [`OomWatch::next`] has not reported, and counts it as
    /// reported. Ask it when the container's init has been reaped, and say whether that was
    /// `killed` by SIGKILL: the kernel counts a kill before the process dies, so the report can
    /// always go out ahead of the exit's.
    pub fn take(&mut self, killed: bool) -> bool {
        match kills(&self.counter) {
            Ok(Some(count)) if count > self.reported => {
                self.reported = count;
                true
            }
            Ok(None) if killed && !self.early => {
                while let Ok(change) = self.read_sign() {
                    self.short |= change;
                }
                std::mem::take(&mut self.short) && self.machine.have_risen()
            }
            _ => false,
        }
    }

    /// Takes a sign back, if there is one; returns whether it says that v2's counters have changed.
    fn read_sign(&self) -> nix::Result<bool> {
        // Large enough for an eventfd's counter and for many inotify events; what is left keeps
        // the descriptor readable.
        let mut buffer = [0; 4096];
        let length = read(self.sign.get_ref(), &mut buffer)?;
        Ok(!self.early && has_modification(&buffer[..length]))
    }

    /// Waits until the kernel gives a sign and takes it back. None when it never will again.
    async fn wait_for_sign(&mut self) -> Option<()> {
        self.expected_until = None;
        let mut ready = self.sign.readable().await.ok()?;
        match self.read_sign() {
            Ok(_) if self.early => self.expected_until = Some(Instant::now() + KILL_FOLLOWS),
            Ok(change) => self.short |= change,
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(errno) => {
                log::warn!(
                    "no longer watching for out-of-memory kills: cannot read a sign: {errno}"
                );
                return None;
            }
        }
        Some(())
    }
}

/// Whether one of inotify's `events` (inotify(7)) tells of a file that has changed.
fn has_modification(mut events: &[u8]) -> bool {
    // The watch's number, the kind, a cookie, the length of the name that follows.
    while let Some((head, rest)) = events.split_at_checked(16) {
        let number =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if number(4) & AddWatchFlags::IN_MODIFY.bits() != 0 {
            return true;
        }
        events = rest.get(number(12) as usize..).unwrap_or_default();
    }
    false
}

/// The kills so far; none when the cgroup is gone.
fn kills(counter: &Path) -> Result<Option<u64>> {
    let Some(text) = stats::file::read(counter)? else {
        return Ok(None);
    };
    let table = stats::file::table(counter, &text)?;
    match table.get("oom_kill") {
        Some(count) => Ok(Some(*count)),
        None => Err(Error::Malformed {
            path: counter.to_path_buf(),
            line: text.trim_end().to_owned(),
            expected: "an oom_kill count, which Linux has since 4.13",
        }),
    }
}

/// An eventfd that v1 counts up when the cgroup, or one above it, is out of memory, and when it
/// is removed.
fn v1_sign(folder: &Path) -> Result<OwnedFd> {
    let control = folder.join("memory.oom_control");
    let oom_control = File::open(&control).map_err(Error::io("open", &control))?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::io("make an eventfd for", &control)(errno.into()))?;
    let register = folder.join("cgroup.event_control");
    let line = format!("{} {}", event.as_raw_fd(), oom_control.as_raw_fd());
    fs::write(&register, line).map_err(Error::io("write", &register))?;
    Ok(event.into())
}

/// An inotify instance that has events when `memory.events` changes, and when a cgroup beside this
/// one (or this one) is removed: the kernel reports no removal on the cgroup's own files.
fn v2_sign(folder: &Path) -> Result<OwnedFd> {
    let events = folder.join("memory.events");
    let failed = |path: &Path, errno: Errno| Error::io("watch", path)(errno.into());
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(|errno| failed(&events, errno))?;
    match inotify.add_watch(&events, AddWatchFlags::IN_MODIFY) {
        Err(Errno::ENOENT) if folder.exists() => {
            return Err(Error::NoMemoryController {
                path: folder.to_path_buf(),
            });
        }
        answer => answer.map_err(|errno| failed(&events, errno))?,
    };
    let above = folder.parent().unwrap_or(folder);
    inotify
        .add_watch(above, AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR)
        .map_err(|errno| failed(above, errno))?;
    Ok(inotify.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: AddWatchFlags, name: &[u8]) -> Vec<u8> {
        let numbers = [1, kind.bits(), 0, name.len() as u32];
        let mut event: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        event.extend(name);
        event
    }

    #[test]
    fn a_modification_is_found_among_other_events() {
        let other = event(AddWatchFlags::IN_DELETE, b"scope\0\0\0");
        let change = event(AddWatchFlags::IN_MODIFY, b"");
        assert!(!has_modification(&[]));
        assert!(!has_modification(&other));
        assert!(has_modification(&[other.clone(), change.clone()].concat()));
        assert!(has_modification(&[change, other].concat()));
        assert!(!has_modification(&[0, 1, 2]));
    }
}
