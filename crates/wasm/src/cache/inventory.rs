//! What a cache holds: to be listed, and removed when it is not used.
//!
//! When native code was last used is the time of its file, or of the empty file `DIGEST.used`
//! beside it, whichever is later. The code's own file is left as it is, since a change of its times
//! would have its digest computed anew (recall.rs). The other file is touched by a use once an
//! hour, so that most uses cost no more than a look at it.
//!
//! Removing code harms no container: one that runs has its file mapped, one that is being created
//! has it open.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::artifact::{self, FORMAT, Kind};
use crate::cache::draft::NEW;
use crate::cache::{check_private, lock};
use crate::settings::Flags;
use crate::{CacheError, engine};

/// How exactly the time of the last use is known.
const PRECISION: Duration = Duration::from_secs(60 * 60);

/// What is written beside native code: an artifact's last bytes, and what the file system has of its own.
const MARGIN: u64 = 64 << 10;

/// The native code of one module, for one version of wasmtime and its settings.
#[derive(Clone, Debug)]
pub struct Entry {
    /// SHA-256 of the module, in hexadecimal.
    pub digest: String,
    /// Whether this program's version made it, with whatever settings, and can use it.
    pub current: bool,
    /// The file's size in bytes.
    pub size: u64,
    /// When it was last used, or made; to the hour.
    pub used: SystemTime,
    path: PathBuf,
}

/// What is written in native code about where it comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// What was compiled.
    pub kind: Kind,
    /// What the module was called when it was compiled.
    pub name: String,
}

impl Entry {
    /// Where the code comes from; `None` where the file is damaged, or another version's that
    /// cannot be read here.
    pub fn source(&self) -> Option<Source> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
            .ok()?;
        Some(Source {
            kind: artifact::kind(&file).ok()??,
            name: artifact::name(&file).ok()??,
        })
    }
}

/// A cache's folder, seen by who keeps it small.
#[derive(Clone, Debug)]
pub struct Inventory {
    directory: PathBuf,
    /// What stands for this program's version, and the processor's features.
    version: String,
    /// The folder of the code that is compiled with the settings at hand.
    entries: PathBuf,
}

/// The extension of the file whose time is that of the last use.
const USED: &str = "used";

/// Between a version and settings in the name of a folder.
const SETTINGS: char = '-';

impl Inventory {
    /// The inventory of the cache in `directory`, which need not exist.
    ///
    /// # Errors
    /// [`CacheError::Directory`], [`CacheError::Exposed`] and [`CacheError::Engine`].
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let inventory = Self::of(directory, &Flags::default())?;
        check_private(&inventory.directory)?;
        Ok(inventory)
    }

    /// The same, for who compiles as `flags` say, and has looked at the folder.
    pub(super) fn of(directory: impl Into<PathBuf>, flags: &Flags) -> Result<Self, CacheError> {
        let compatibility = |flags: &Flags| match engine::engine(flags) {
            Ok(engine) => Ok(engine::compatibility(&engine, FORMAT)),
            Err(error) => Err(CacheError::Engine(format!("{error:#}"))),
        };
        let directory = directory.into();
        let version = compatibility(&Flags::default())?;
        let entries = match flags.are_common() {
            true => version.clone(),
            false => match compatibility(flags)? {
                // Not every setting shows in the code.
                same if same == version => version.clone(),
                settings => format!("{version}{SETTINGS}{settings}"),
            },
        };
        Ok(Self {
            entries: directory.join(entries),
            directory,
            version,
        })
    }

    /// The folder of the code that is compiled with the settings at hand.
    pub(super) fn entries_directory(&self) -> &Path {
        &self.entries
    }

    /// All native code, what was used last first.
    ///
    /// # Errors
    /// The system's, where a folder cannot be read. What vanishes meanwhile is no error.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for engine in self.engines()? {
            let name = engine.file_name();
            let current = name.to_str().is_some_and(|name| self.is_current(name));
            for file in list(&engine.path())? {
                entries.extend(entry(&file, current));
            }
        }
        entries.sort_by(|a, b| (b.used, &b.digest).cmp(&(a.used, &a.digest)));
        Ok(entries)
    }

    /// Removes native code.
    ///
    /// # Errors
    /// The system's. What is gone already is no error.
    pub fn remove(&self, entry: &Entry) -> io::Result<()> {
        gone_is_fine(fs::remove_file(stamp(&entry.path)))?;
        gone_is_fine(fs::remove_file(&entry.path))
    }

    /// Removes what was not used for longest, `bytes` of it and a little more, and says whether it has. Where there are not so
    /// many, nothing is removed.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let total: u64 = self.entries()?.iter().map(|entry| entry.size).sum();
        if total < bytes {
            return Ok(false);
        }
        let removed = self.shrink(total.saturating_sub(bytes + MARGIN), None)?;
        Ok(!removed.is_empty())
    }

    /// Removes what was not used for longest, until no more than `limit` bytes are left, and gives
    /// what it has removed. The code of the module `keep`, compiled with the settings at hand, stays
    /// in any case.
    ///
    /// # Errors
    /// The system's.
    pub fn shrink(&self, limit: u64, keep: Option<&str>) -> io::Result<Vec<Entry>> {
        let keep = keep.map(|digest| self.entries.join(digest));
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        let mut removed = Vec::new();
        while total > limit
            && let Some(entry) = entries.pop()
        {
            if keep.as_ref() == Some(&entry.path) {
                continue;
            }
            self.remove(&entry)?;
            total -= entry.size;
            removed.push(entry);
        }
        Ok(removed)
    }

    /// Removes what other versions have made, and gives it.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_other_versions(&self) -> io::Result<Vec<Entry>> {
        let mut removed = self.entries()?;
        removed.retain(|entry| !entry.current);
        for entry in &removed {
            self.remove(entry)?;
        }
        Ok(removed)
    }

    /// Removes what belongs to no native code: what processes have left that were killed, and the
    /// folders of versions that have no code. Nothing is done while anything is compiled.
    ///
    /// # Errors
    /// The system's.
    pub fn sweep(&self) -> io::Result<()> {
        let engines = self.engines()?;
        if engines.is_empty() {
            return Ok(());
        }
        let Some(_lock) = lock::of_all(&self.directory)? else {
            return Ok(());
        };
        for engine in engines {
            let files = list(&engine.path())?;
            let names: BTreeSet<_> = files.iter().map(DirEntry::file_name).collect();
            let mut left = 0;
            for file in &files {
                let name = file.file_name();
                let parts = name.to_str().and_then(|name| name.split_once('.'));
                let is_stray = match parts {
                    Some((code, USED)) => is_digest(code) && !names.contains(OsStr::new(code)),
                    Some((code, NEW)) => is_digest(code),
                    // Not the cache's.
                    _ => false,
                };
                match is_stray && file.file_type()?.is_file() {
                    true => gone_is_fine(fs::remove_file(file.path()))?,
                    false => left += 1,
                }
            }
            if left == 0 {
                gone_is_fine(fs::remove_dir(engine.path()))?;
            }
        }
        Ok(())
    }

    /// The folders of native code.
    fn engines(&self) -> io::Result<Vec<DirEntry>> {
        let mut engines = list(&self.directory)?;
        engines.retain(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir())
                && entry.file_name().to_str().is_some_and(is_engine)
        });
        Ok(engines)
    }

    /// Whether the folder `name` has this version's code.
    fn is_current(&self, name: &str) -> bool {
        let settings = name.strip_prefix(&self.version);
        settings.is_some_and(|rest| rest.is_empty() || rest.starts_with(SETTINGS))
    }
}

/// Notes that the artifact `path` is used. A cache that cannot be written does not know its uses.
pub(super) fn note_use(path: &Path, metadata: &Metadata) {
    let now = SystemTime::now();
    let is_recent = |metadata: &Metadata| {
        let time = metadata.modified().ok();
        time.and_then(|time| now.duration_since(time).ok())
            .is_some_and(|age| age < PRECISION)
    };
    let stamp = stamp(path);
    if is_recent(metadata) || fs::metadata(&stamp).is_ok_and(|metadata| is_recent(&metadata)) {
        return;
    }
    let _ = touch(&stamp, now);
}

fn touch(stamp: &Path, now: SystemTime) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file: File = options.open(stamp)?;
    file.set_modified(now)
}

fn stamp(path: &Path) -> PathBuf {
    path.with_extension(USED)
}

fn entry(file: &DirEntry, current: bool) -> Option<Entry> {
    let digest = file.file_name().into_string().ok()?;
    if !is_digest(&digest) {
        return None;
    }
    let metadata = file.metadata().ok().filter(Metadata::is_file)?;
    let path = file.path();
    let made = metadata.modified().ok()?;
    let used = fs::metadata(stamp(&path)).and_then(|metadata| metadata.modified());
    Some(Entry {
        digest,
        current,
        size: metadata.len(),
        used: used.map_or(made, |used| used.max(made)),
        path,
    })
}

/// What is in a folder; nothing where there is none.
fn list(folder: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found?.collect(),
    }
}

/// Whether a folder of this name has native code, of whatever version.
fn is_engine(name: &str) -> bool {
    let (version, settings) = match name.split_once(SETTINGS) {
        Some((version, settings)) => (version, Some(settings)),
        None => (name, None),
    };
    is_hex(version, 32) && settings.is_none_or(|settings| is_hex(settings, 32))
}

fn is_digest(name: &str) -> bool {
    is_hex(name, 64)
}

fn is_hex(name: &str, length: usize) -> bool {
    name.len() == length && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
