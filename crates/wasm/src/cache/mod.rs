//! Native code on disk, found by the content of the module that it was made from.
//!
//! ```text
//! DIRECTORY/                  0700, root's
//!   lock                      who compiles what at the moment, as locked bytes
//!   digests                   those of files of 64 kB and more (recall.rs)
//!   VERSION[-SETTINGS]/       engine::compatibility with the default settings, and with others than
//!                             those: code of another version is never looked at
//!     SHA-256 of the module   an artifact (artifact.rs)
//!     SHA-256.used            when it was last used (inventory.rs)
//! ```
//!
//! An artifact gets its name only when it is whole. Before that it is a file without a name, which
//! the kernel frees when the process that makes it ends, whatever ends it (draft.rs).
//!
//! When an artifact has been added, those that were not used for longest are removed until the
//! folder is as small as it has to be. Where the file system is full before that, as many are removed
//! as have the bytes that are lacking, and the module is compiled once more.
//!
//! The directory is what protects the files in it: they can be read by everyone who holds one
//! open, since a container's init has to map its own under the container's user id.

mod draft;
mod error;
mod inventory;
mod lock;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Uid;

use crate::artifact::{self, Kind};
use crate::digest::{self, Digest, hex};
use crate::package::{Initialization, PACKAGE};
use crate::recall::Memory;
use crate::sandbox;
use crate::settings::{Flags, Size};
use crate::worker::{MAX_MODULE_BYTES, Report, WORKER_ACTION};
use draft::Draft;

pub use error::CacheError;
pub use inventory::{Entry, Inventory, Source};

/// Where the cache is unless someone says otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/lib/lighter/cache";

/// How large the cache may become unless someone says otherwise.
pub const DEFAULT_CACHE_SIZE: Size = Size(10 << 30);

/// A folder of native code, and the program that makes what is missing.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    entries: PathBuf,
    inventory: Inventory,
    limit: Size,
    memory: Memory,
    program: PathBuf,
    flags: Flags,
}

/// What the worker is given. It is told which, as both may begin with bytes of a stranger's choice.
enum Input {
    /// A module, or parts of one.
    Module(File),
    /// One with its initialisation: what [`Initialization::pack`] has made.
    Package(File),
}

impl Cache {
    /// Opens the cache in `directory`, and makes it and its parents where they are missing.
    /// `program` is what compiles, as `flags` say: it must call [`worker_main`](crate::worker_main)
    /// when its first argument is [`WORKER_ACTION`].
    ///
    /// # Errors
    /// [`CacheError::Directory`], [`CacheError::Exposed`] and [`CacheError::Engine`].
    pub fn open(
        directory: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
        flags: Flags,
    ) -> Result<Self, CacheError> {
        let directory = directory.into();
        let inventory = Inventory::of(&directory, &flags)?;
        let entries = inventory.entries_directory().to_owned();
        make_private(&directory)?;
        make_private(&entries)?;
        Ok(Self {
            memory: Memory::new(directory.join("digests")),
            directory,
            entries,
            inventory,
            limit: DEFAULT_CACHE_SIZE,
            program: program.into(),
            flags,
        })
    }

    /// The same with another size, to which the folder is brought down whenever native code has
    /// been added. That code stays, even if it alone is larger.
    pub fn with_limit(self, limit: Size) -> Self {
        Self { limit, ..self }
    }

    /// The native code that is kept under `key`, open for reading, if it is here. Blocks.
    pub fn known(&self, key: &[u8; 32]) -> Option<File> {
        self.find(key)
    }

    /// As [`Cache::artifact`], of a module that the caller knows to be what `key` stands for, and
    /// that nobody else can change. A key is a module's SHA-256, or that of [`Parts`](crate::Parts),
    /// made in another way.
    ///
    /// # Errors
    /// As [`Cache::artifact`].
    pub fn artifact_of(
        &self,
        key: &[u8; 32],
        module: File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        self.found_or_made(Input::Module(module), key, name, run)
    }

    /// The native code of `module`, open for reading; compiled now if it never was. Blocks.
    ///
    /// `name` stands for the module in errors. `run` starts the command it is given, waits for it
    /// to end, and returns how it ended; it must start it from a thread that lives as long, since
    /// the worker dies with that thread. `module`'s offset is left alone.
    ///
    /// However many callers ask for the same module, in this process and others, one of them
    /// compiles and the rest wait for it.
    ///
    /// # Errors
    /// Every [`CacheError`] but those of [`Cache::open`]. Nothing is left behind.
    pub fn artifact(
        &self,
        module: &File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let read = |source| CacheError::Read {
            name: name.into(),
            source,
        };
        let size = size(module, name)?;
        let digest = self.memory.digest(module, size).map_err(read)?;
        if let Some(artifact) = self.find(&digest) {
            return Ok(artifact);
        }
        // The worker gets a copy, which is hashed as it is made: a container that changes its
        // module meanwhile must not have its code filed under the digest of another's.
        let copy = anonymous_file(c"module").map_err(read)?;
        let digest = digest::of_copy(module, &copy, size).map_err(read)?;
        self.found_or_made(Input::Module(copy), &digest, name, run)
    }

    /// As [`Cache::artifact`], of the module that `initialization` leaves when it has been run.
    ///
    /// # Errors
    /// As [`Cache::artifact`].
    pub fn initialized(
        &self,
        initialization: &Initialization,
        module: &File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let size = size(module, name)?;
        let digest = self.memory.digest(module, size);
        let digest = digest.map_err(|source| CacheError::Read {
            name: name.into(),
            source,
        })?;
        match self.known_initialized(initialization, &digest, name)? {
            Some(artifact) => Ok(artifact),
            None => self.initialize(initialization, module, None, name, run),
        }
    }

    /// As [`Cache::known`], of the module that `initialization` leaves of the one with this key.
    ///
    /// # Errors
    /// [`CacheError::Given`].
    pub fn known_initialized(
        &self,
        initialization: &Initialization,
        key: &[u8; 32],
        name: &str,
    ) -> Result<Option<File>, CacheError> {
        let key = initialization.key(key, &self.memory);
        Ok(self.find(&key.map_err(given(name))?))
    }

    /// As [`Cache::artifact_of`], of the module that `initialization` leaves.
    ///
    /// # Errors
    /// As [`Cache::artifact`].
    pub fn initialized_of(
        &self,
        initialization: &Initialization,
        key: &[u8; 32],
        module: &File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        self.initialize(initialization, module, Some(key), name, run)
    }

    /// Has a copy of the module and all that it is given initialised.
    fn initialize(
        &self,
        initialization: &Initialization,
        module: &File,
        key: Option<&Digest>,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let size = size(module, name)?;
        let packed = initialization.pack(module, size, key);
        let (package, key) = packed.map_err(given(name))?;
        let name = format!("{name}, initialised by {}", initialization.function);
        self.found_or_made(Input::Package(package), &key, &name, run)
    }

    /// The native code that is kept under `key`; where there is none, it is made of `input`, by one caller.
    fn found_or_made(
        &self,
        input: Input,
        key: &Digest,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        // The folders may have been removed since the cache was opened: the inner one by whoever has
        // the lock of all modules.
        make_private(&self.directory)?;
        let _lock =
            lock::of_module(&self.directory, key).map_err(|error| self.write(name, error))?;
        make_private(&self.entries)?;
        match self.find(key) {
            Some(artifact) => Ok(artifact),
            None => self.make(&input, key, name, run),
        }
    }

    /// The intact artifact of the module with this digest. A damaged or foreign file in its place
    /// is as good as none: [`Cache::make`] replaces it.
    fn find(&self, module: &Digest) -> Option<File> {
        let path = self.entries.join(hex(module));
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        let own = metadata.is_file() && metadata.uid() == Uid::effective().as_raw();
        let good = own && artifact::is_intact(&file, module, &self.memory).ok()?;
        good.then(|| {
            inventory::note_use(&path, &metadata);
            file
        })
    }

    /// Compiles `input`, and once more with room made for it where there was none. The caller holds its lock.
    fn make(
        &self,
        input: &Input,
        digest: &Digest,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let made = self.try_to_make(input, digest, name, run);
        let Err(CacheError::Write {
            lacking: Some(bytes),
            ..
        }) = made
        else {
            return made;
        };
        match self.inventory.make_room(bytes) {
            Ok(true) => self.try_to_make(input, digest, name, run),
            Ok(false) => made,
            Err(error) => {
                log::warn!(
                    "making room in the cache {}: {error}",
                    self.directory.display()
                );
                made
            }
        }
    }

    fn try_to_make(
        &self,
        input: &Input,
        digest: &Digest,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let write = |error| self.write(name, error);
        let path = self.entries.join(hex(digest));
        let draft = Draft::new(&path).map_err(write)?;
        let kind = self.compile(input, &draft.file, name, run)?;
        artifact::seal(&draft.file, kind, digest, name).map_err(write)?;
        // Opened anew, so that nobody is given a way to write it; and before others can remove it.
        let own = format!("/proc/self/fd/{}", draft.file.as_raw_fd());
        let artifact = File::open(own).map_err(write)?;
        draft.publish().map_err(write)?;
        if let Err(error) = self.inventory.shrink(self.limit.0, Some(&hex(digest))) {
            log::warn!(
                "bringing the cache {} down to {}: {error}",
                self.directory.display(),
                self.limit
            );
        }
        Ok(artifact)
    }

    /// Runs the worker on `input`, with its native code going to `code`.
    fn compile(
        &self,
        input: &Input,
        code: &File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<Kind, CacheError> {
        let spawn = |source| CacheError::Spawn {
            name: name.into(),
            program: self.program.clone(),
            source,
        };
        let (given, is_package) = match input {
            Input::Module(module) => (module, false),
            Input::Package(package) => (package, true),
        };
        let mut given = given.try_clone().map_err(spawn)?;
        given.rewind().map_err(spawn)?;
        let mut words = anonymous_file(c"report").map_err(spawn)?;
        let mut command = Command::new(&self.program);
        command
            .arg(WORKER_ACTION)
            .env_clear()
            .current_dir("/")
            .stdin(given)
            .stdout(Stdio::from(code.try_clone().map_err(spawn)?))
            .stderr(Stdio::from(words.try_clone().map_err(spawn)?));
        if is_package {
            command.arg(PACKAGE);
        }
        if self.flags != Flags::default() {
            command.arg(serde_json::to_string(&self.flags).expect("flags are plain data"));
        }
        let status = run(command).map_err(spawn)?;
        let mut text = String::new();
        words
            .rewind()
            .and_then(|()| words.read_to_string(&mut text))
            .map_err(spawn)?;
        let report = text
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok());
        match report {
            Some(Report::Compiled(kind)) if status.success() => Ok(kind),
            Some(Report::Refused(reason)) => Err(CacheError::Refused {
                name: name.into(),
                reason,
            }),
            Some(Report::Exposed(reason)) => Err(CacheError::Isolation {
                name: name.into(),
                reason,
            }),
            Some(Report::Failed(reason)) => Err(self.unkept(name, reason, None)),
            Some(Report::Full { bytes, reason }) => {
                let written = code.metadata().map_or(0, |metadata| metadata.len());
                let lacking = bytes.saturating_sub(written);
                Err(self.unkept(name, reason, Some(lacking)))
            }
            Some(Report::Compiled(_)) | None => Err(CacheError::Worker {
                name: name.into(),
                reason: obituary(status, text.trim()),
            }),
        }
    }

    fn write(&self, name: &str, error: io::Error) -> CacheError {
        self.unkept(name, error.to_string(), is_full(&error).then_some(0))
    }

    fn unkept(&self, name: &str, reason: String, lacking: Option<u64>) -> CacheError {
        CacheError::Write {
            name: name.into(),
            directory: self.entries.clone(),
            reason,
            lacking,
        }
    }
}

/// The size of a module's file.
fn size(module: &File, name: &str) -> Result<u64, CacheError> {
    let read = |source| CacheError::Read {
        name: name.into(),
        source,
    };
    let metadata = module.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(read(io::Error::other("it is not a regular file")));
    }
    match metadata.len() {
        size @ 0..=MAX_MODULE_BYTES => Ok(size),
        size => Err(CacheError::TooLarge {
            name: name.into(),
            size,
        }),
    }
}

/// An error with what the initialisation of `name` is given.
fn given(name: &str) -> impl Fn(io::Error) -> CacheError + '_ {
    move |source| CacheError::Given {
        name: name.into(),
        source,
    }
}

/// Whether that is for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Makes sure that `path` is a folder that only this user can change.
fn make_private(path: &Path) -> Result<(), CacheError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| CacheError::Directory {
            path: path.into(),
            source,
        })?;
    check_private(path)
}

/// Makes sure that only this user can change the folder `path`, if there is one.
fn check_private(path: &Path) -> Result<(), CacheError> {
    // Who may not look into it is told just that.
    let metadata = match fs::read_dir(path).and_then(|_| fs::metadata(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|source| CacheError::Directory {
            path: path.into(),
            source,
        })?,
    };
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if uid != Uid::effective().as_raw() || mode & 0o077 != 0 {
        return Err(CacheError::Exposed {
            path: path.into(),
            uid,
            mode,
        });
    }
    Ok(())
}

/// A file in memory, with no name.
fn anonymous_file(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

/// How a worker without a report ended.
fn obituary(status: ExitStatus, words: &str) -> String {
    let cause = match status.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => format!(
            "the compiler was ended by {status}; it may use {} seconds of processor time, and take {}, \
             and is the first to go when the machine runs out of memory",
            sandbox::MAX_CPU_SECONDS,
            sandbox::MAX_SECONDS
        ),
        Some(libc::SIGABRT) => format!(
            "the compiler was ended by {status}; it may use {} MiB of memory",
            sandbox::MAX_MEMORY >> 20
        ),
        _ => format!("the compiler ended with {status}"),
    };
    match words {
        "" => cause,
        words => format!("{cause}: {words}"),
    }
}
