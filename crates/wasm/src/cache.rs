//! Native code on disk, found by the content of the module that it was made from.
//!
//! ```text
//! DIRECTORY/                  0700, root's
//!   lock                      who compiles what at the moment, as locked bytes
//!   digests                   those of large files (recall.rs)
//!   ENGINE/                   engine::compatibility: code of another version is never looked at
//!     SHA-256 of the module   an artifact (artifact.rs)
//! ```
//!
//! An artifact gets its name only when it is whole. Before that it is a file without a name, which
//! the kernel frees when the process that makes it ends, whatever ends it.
//!
//! The directory is what protects the files in it: they can be read by everyone who holds one
//! open, since a container's init has to map its own under the container's user id.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Uid, linkat};

use crate::artifact::{self, Kind};
use crate::digest::{self, Digest, hex};
use crate::recall::Memory;
use crate::settings::Flags;
use crate::worker::{MAX_MODULE_BYTES, Report, WORKER_ACTION};
use crate::{engine, sandbox};

/// Where the cache is unless someone says otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/lib/lighter/cache";

/// Why there is no native code for a module.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be made or looked into.
    #[error("cannot use {} as the cache of compiled modules: {source}; make it a writable folder of root's, or configure another", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Someone other than this user could put code into the folder.
    #[error("the cache of compiled modules {} has owner {uid} and mode {mode:o}: others could place native code in it; make it root's with mode 0700", path.display())]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The engine refuses its own configuration on this machine.
    #[error("cannot set up wasmtime with these settings on this machine: {0}")]
    Engine(String),
    /// The module cannot be read.
    #[error("cannot read {name}: {source}")]
    Read {
        /// The module.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The module is larger than [`MAX_MODULE_BYTES`].
    #[error("{name} has {size} bytes; a wasm module may have at most {MAX_MODULE_BYTES}")]
    TooLarge {
        /// The module.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The compiled code cannot be kept.
    #[error("cannot keep the native code of {name} in {}: {reason}; free space there, make it writable, or configure another cache folder", directory.display())]
    Write {
        /// The module.
        name: String,
        /// The folder.
        directory: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The compile worker cannot be started.
    #[error("cannot start the compile worker {} for {name}: {source}", program.display())]
    Spawn {
        /// The module.
        name: String,
        /// The worker's program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The worker has not compiled, since it could not give up its privileges.
    #[error(
        "cannot isolate the compile worker for {name}: {reason}; modules are never compiled without isolation"
    )]
    Isolation {
        /// The module.
        name: String,
        /// What failed.
        reason: String,
    },
    /// The module is not wasm that can run here.
    #[error("{name} cannot run: {reason}")]
    Refused {
        /// The module.
        name: String,
        /// Why, as the compiler or the linker says it.
        reason: String,
    },
    /// The worker ended without a report.
    #[error("compiling {name} failed: {reason}")]
    Worker {
        /// The module.
        name: String,
        /// How it ended, and its last words.
        reason: String,
    },
}

/// A folder of native code, and the program that makes what is missing.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    entries: PathBuf,
    memory: Memory,
    program: PathBuf,
    flags: Flags,
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
        let engine =
            engine::engine(&flags).map_err(|error| CacheError::Engine(format!("{error:#}")))?;
        let entries = directory.join(engine::compatibility(&engine, artifact::FORMAT));
        make_private(&directory)?;
        make_private(&entries)?;
        Ok(Self {
            memory: Memory::new(directory.join("digests")),
            directory,
            entries,
            program: program.into(),
            flags,
        })
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
        let _lock = self.lock(key).map_err(|error| self.write(name, error))?;
        match self.find(key) {
            Some(artifact) => Ok(artifact),
            None => self.make(module, key, name, run),
        }
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
        let metadata = module.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a regular file")));
        }
        let size = metadata.len();
        if size > MAX_MODULE_BYTES {
            return Err(CacheError::TooLarge {
                name: name.into(),
                size,
            });
        }
        let digest = self.memory.digest(module, size).map_err(read)?;
        if let Some(artifact) = self.find(&digest) {
            return Ok(artifact);
        }
        // The worker gets a copy, which is hashed as it is made: a container that changes its
        // module meanwhile must not have its code filed under the digest of another's.
        let copy = anonymous_file(c"module").map_err(read)?;
        let digest = digest::of_copy(module, &copy, size).map_err(read)?;
        let _lock = self
            .lock(&digest)
            .map_err(|error| self.write(name, error))?;
        match self.find(&digest) {
            Some(artifact) => Ok(artifact),
            None => self.make(copy, &digest, name, run),
        }
    }

    /// The intact artifact of the module with this digest. A damaged or foreign file in its place
    /// is as good as none: [`Cache::make`] replaces it.
    fn find(&self, module: &Digest) -> Option<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.entries.join(hex(module)))
            .ok()?;
        let metadata = file.metadata().ok()?;
        let own = metadata.is_file() && metadata.uid() == Uid::effective().as_raw();
        (own && artifact::is_intact(&file, module, &self.memory).ok()?).then_some(file)
    }

    /// Compiles `module`. The caller holds its lock.
    fn make(
        &self,
        module: File,
        digest: &Digest,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<File, CacheError> {
        let write = |error| self.write(name, error);
        let path = self.entries.join(hex(digest));
        let draft = Draft::new(&path).map_err(write)?;
        let kind = self.compile(module, &draft.file, name, run)?;
        artifact::seal(&draft.file, kind, digest).map_err(write)?;
        draft.publish().map_err(write)?;
        // Opened anew, so that nobody is given a way to write it.
        File::open(&path).map_err(write)
    }

    /// Runs the worker on `module`, with its native code going to `code`.
    fn compile(
        &self,
        mut module: File,
        code: &File,
        name: &str,
        run: &dyn Fn(Command) -> io::Result<ExitStatus>,
    ) -> Result<Kind, CacheError> {
        let spawn = |source| CacheError::Spawn {
            name: name.into(),
            program: self.program.clone(),
            source,
        };
        module.rewind().map_err(spawn)?;
        let mut words = anonymous_file(c"report").map_err(spawn)?;
        let mut command = Command::new(&self.program);
        command
            .arg(WORKER_ACTION)
            .env_clear()
            .current_dir("/")
            .stdin(module)
            .stdout(Stdio::from(code.try_clone().map_err(spawn)?))
            .stderr(Stdio::from(words.try_clone().map_err(spawn)?));
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
            Some(Report::Failed(reason)) => Err(CacheError::Write {
                name: name.into(),
                directory: self.entries.clone(),
                reason,
            }),
            Some(Report::Compiled(_)) | None => Err(CacheError::Worker {
                name: name.into(),
                reason: obituary(status, text.trim()),
            }),
        }
    }

    /// Waits until nobody else compiles the module with this digest, here or in another process,
    /// and keeps others from it until the file that is returned is closed.
    ///
    /// Each module locks a byte of its own in one file, so no lock outlives its process and no
    /// lock file needs to be removed.
    fn lock(&self, module: &Digest) -> io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.directory.join("lock"))?;
        let (first, _) = module.split_first_chunk().expect("a digest has 32 bytes");
        let byte = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            // Offsets have 63 bits and the byte must have an end.
            l_start: i64::from_be_bytes(*first) & (i64::MAX >> 1),
            l_len: 1,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte)) {
                Ok(_) => return Ok(file),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(&self, name: &str, error: io::Error) -> CacheError {
        CacheError::Write {
            name: name.into(),
            directory: self.entries.clone(),
            reason: error.to_string(),
        }
    }
}

/// An artifact in the making.
struct Draft<'a> {
    file: File,
    /// The name it is to get.
    path: &'a Path,
    /// The name it has meanwhile, on file systems that have no files without one.
    interim: Option<PathBuf>,
}

impl<'a> Draft<'a> {
    fn new(path: &'a Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o444);
        let unnamed = options
            .clone()
            .custom_flags(libc::O_TMPFILE)
            .open(directory);
        let (file, interim) = match unnamed {
            // What open(2) says where O_TMPFILE is unknown to the file system or the kernel.
            Err(error)
                if [libc::EOPNOTSUPP, libc::EISDIR]
                    .contains(&error.raw_os_error().unwrap_or(0)) =>
            {
                // The caller's lock makes the name ours; a file there is from one who was killed.
                let interim = path.with_extension("new");
                match fs::remove_file(&interim) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                (options.create_new(true).open(&interim)?, Some(interim))
            }
            result => (result?, None),
        };
        let draft = Self {
            file,
            path,
            interim,
        };
        // Whatever the umask is.
        draft.file.set_permissions(Permissions::from_mode(0o444))?;
        Ok(draft)
    }

    /// Gives the file its name, in place of whatever has it.
    fn publish(mut self) -> io::Result<()> {
        if let Some(interim) = &self.interim {
            fs::rename(interim, self.path)?;
            self.interim = None;
            return Ok(());
        }
        let link = || {
            linkat(
                AT_FDCWD,
                format!("/proc/self/fd/{}", self.file.as_raw_fd()).as_str(),
                AT_FDCWD,
                self.path,
                AtFlags::AT_SYMLINK_FOLLOW,
            )
        };
        match link() {
            Err(nix::Error::EEXIST) => {
                discard(self.path)?;
                Ok(link()?)
            }
            result => Ok(result?),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(interim) = &self.interim {
            // Nothing better can be done about a failure; the next draft tries again.
            let _ = fs::remove_file(interim);
        }
    }
}

/// Removes what stands where an artifact belongs, whatever it is.
fn discard(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Makes sure that `path` is a folder that only this user can change.
fn make_private(path: &Path) -> Result<(), CacheError> {
    let directory = |source| CacheError::Directory {
        path: path.into(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(directory)?;
    let metadata = fs::metadata(path).map_err(directory)?;
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
            "the compiler was ended by {status}; it may use {} seconds of processor time",
            sandbox::MAX_CPU_SECONDS
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
