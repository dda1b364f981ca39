//! A module, with what its initialisation needs, in one file for the compile worker.
//!
//! | bytes | |
//! |---|---|
//! | 8 | n (little-endian) |
//! | n | a [`Job`] as JSON |
//! | ... | the content of each file that it names, one after the other |
//! | rest | the module |
//!
//! Nothing in it says what it is. The worker reads it while it still has all privileges, so it goes by the word of
//! whoever started it ([`PACKAGE`]), not by bytes that may be a stranger's.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::{self, Digest};
use crate::recall::Memory;
use crate::settings::Time;

/// The worker's argument that says that its standard input is a package.
pub(crate) const PACKAGE: &str = "package";

/// The most that an initialisation may be given, in bytes and in files.
const MAX_BYTES: u64 = 256 << 20;
const MAX_FILES: usize = 256;

/// An initialisation that is to be run once, when a module is compiled.
#[derive(Debug)]
pub struct Initialization {
    /// The module's exported function.
    pub function: String,
    /// How much processor time it may take.
    pub time: Time,
    /// The files that it sees, by their absolute paths. They may change at any time: what counts
    /// is a copy.
    pub files: Vec<(String, File)>,
}

/// What the worker is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The module's exported function.
    pub(crate) function: String,
    /// How much processor time it may take.
    pub(crate) time: Time,
    files: Vec<Content>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    path: String,
    size: u64,
}

impl Initialization {
    /// Those files, each path once and in the order of paths, as far as they can be given.
    fn files(&self) -> io::Result<Vec<(&str, &File, u64)>> {
        let mut files = Vec::new();
        let mut total = 0;
        for (path, file) in &self.files {
            let metadata = file.metadata()?;
            if !metadata.is_file() || !is_plain(path) {
                return Err(refused(format!("{path:?} is no regular file")));
            }
            total += metadata.len();
            files.push((path.as_str(), file, metadata.len()));
        }
        files.sort_by_key(|(path, ..)| *path);
        files.dedup_by_key(|(path, ..)| *path);
        if files.len() > MAX_FILES || total > MAX_BYTES {
            return Err(refused(format!(
                "they are {} files of {total} bytes; {MAX_FILES} files and {MAX_BYTES} bytes are the \
                 most: pack many small ones into an archive",
                files.len()
            )));
        }
        Ok(files)
    }

    /// What the native code is kept under of a module that is kept under `module` itself.
    ///
    /// # Errors
    /// When a file cannot be read, or there are too many.
    pub(crate) fn key(&self, module: &Digest, memory: &Memory) -> io::Result<Digest> {
        let mut digests = Vec::new();
        for (path, file, size) in self.files()? {
            digests.push((path, memory.digest(file, size)?));
        }
        Ok(self.key_of(module, &digests))
    }

    fn key_of(&self, module: &Digest, files: &[(&str, Digest)]) -> Digest {
        let mut hash = Sha256::new_with_prefix(b"initialized");
        hash.update((files.len() as u64).to_le_bytes());
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        text(&self.function);
        files.iter().for_each(|(path, _)| text(path));
        hash.update(module);
        files.iter().for_each(|(_, digest)| hash.update(digest));
        hash.finalize().into()
    }

    /// The package of the module that is the first `size` bytes of a file, and what its native code
    /// is kept under: by what has been copied. The module itself is kept under `key`, or else its
    /// SHA-256.
    ///
    /// # Errors
    /// As [`Initialization::key`], and when there is no memory.
    pub(crate) fn pack(
        &self,
        module: &File,
        size: u64,
        key: Option<&Digest>,
    ) -> io::Result<(File, Digest)> {
        let files = self.files()?;
        let job = Job {
            function: self.function.clone(),
            time: self.time,
            files: files
                .iter()
                .map(|&(path, _, size)| Content {
                    path: path.to_owned(),
                    size,
                })
                .collect(),
        };
        let job = serde_json::to_vec(&job)?;
        let mut package = File::from(memfd_create(c"package", MFdFlags::MFD_CLOEXEC)?);
        package.write_all(&(job.len() as u64).to_le_bytes())?;
        package.write_all(&job)?;
        let mut digests = Vec::new();
        for (path, file, size) in files {
            digests.push((path, digest::of_copy(file, &package, size)?));
        }
        let module = digest::of_copy(module, &package, size)?;
        let key = self.key_of(key.unwrap_or(&module), &digests);
        Ok((package, key))
    }
}

/// Whether `path` is absolute and leads from the root downwards. It comes from a container.
fn is_plain(path: &str) -> bool {
    let rest = path.strip_prefix('/');
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('\0') && is_below(Path::new(rest)))
}

fn is_below(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
}

fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

impl Job {
    /// The job of the package that standard input is, which then stands before the files.
    ///
    /// # Errors
    /// When it is cut off, or not what [`Initialization::pack`] makes.
    pub(crate) fn read() -> io::Result<Self> {
        let mut input = standard_input()?;
        let mut length = [0; 8];
        input.read_exact(&mut length)?;
        let mut job = Vec::new();
        let length = u64::from_le_bytes(length);
        (&input).take(length).read_to_end(&mut job)?;
        Ok(serde_json::from_slice(&job)?)
    }

    /// How large a file system its files need, in bytes, with a page for every name.
    pub(crate) fn room(&self) -> u64 {
        const PAGE: u64 = 4096;
        let files = self.files.iter();
        let names: usize = self
            .files
            .iter()
            .map(|file| file.path.split('/').count())
            .sum();
        files
            .map(|file| file.size.next_multiple_of(PAGE))
            .sum::<u64>()
            + PAGE * (1 + names as u64)
    }

    /// Unpacks the files from standard input into `folder`, which is empty and nobody else's; the module
    /// is left to be read. All times are the epoch, so that the same files are the same to whoever looks.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` of a path that leads elsewhere.
    pub(crate) fn unpack(&self, folder: &Path) -> io::Result<()> {
        let input = standard_input()?;
        let mut folders = vec![folder.to_owned()];
        for file in &self.files {
            let path = Path::new(file.path.trim_start_matches('/'));
            if !is_below(path) {
                return Err(refused(format!("{:?} leads elsewhere", file.path)));
            }
            let mut parents: Vec<_> = path.ancestors().skip(1).collect();
            parents.reverse();
            for parent in parents.into_iter().map(|parent| folder.join(parent)) {
                if !parent.exists() {
                    DirBuilder::new().mode(0o555).create(&parent)?;
                    folders.push(parent);
                }
            }
            let mut options = OpenOptions::new();
            let mut copy = options
                .write(true)
                .create_new(true)
                .mode(0o444)
                .open(folder.join(path))?;
            let copied = io::copy(&mut (&input).take(file.size), &mut copy)?;
            if copied != file.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            settle(&copy)?;
        }
        folders
            .iter()
            .try_for_each(|folder: &PathBuf| settle(&fs::File::open(folder)?))
    }
}

/// Standard input without a buffer, so that what is not read is there for others.
fn standard_input() -> io::Result<File> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

fn settle(file: &File) -> io::Result<()> {
    let epoch = SystemTime::UNIX_EPOCH;
    file.set_times(FileTimes::new().set_accessed(epoch).set_modified(epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn initialization(function: &str, files: &[(&str, &[u8])]) -> Initialization {
        Initialization {
            function: function.to_owned(),
            time: Time::seconds(1),
            files: files
                .iter()
                .map(|(path, content)| ((*path).to_owned(), file(content)))
                .collect(),
        }
    }

    fn key(function: &str, files: &[(&str, &[u8])], module: &[u8]) -> Digest {
        let initialization = initialization(function, files);
        let memory = Memory::new("/nowhere/digests".into());
        let digest = Sha256::digest(module).into();
        let key = initialization.key(&digest, &memory).unwrap();
        let size = module.len() as u64;
        let (_, packed) = initialization.pack(&file(module), size, None).unwrap();
        assert_eq!(packed, key, "what is looked for is what is made");
        let (_, named) = initialization
            .pack(&file(b"parts"), 5, Some(&digest))
            .unwrap();
        assert_eq!(named, key);
        key
    }

    #[test]
    fn a_key_stands_for_all_that_counts_and_no_more() {
        let one = key("f", &[("/a", b"x"), ("/b", b"y")], b"module");
        assert_eq!(one, key("f", &[("/b", b"y"), ("/a", b"x")], b"module"));
        for other in [
            key("g", &[("/a", b"x"), ("/b", b"y")], b"module"),
            key("f", &[("/a", b"x"), ("/c", b"y")], b"module"),
            key("f", &[("/a", b"x"), ("/b", b"z")], b"module"),
            key("f", &[("/a", b"y"), ("/b", b"x")], b"module"),
            key("f", &[("/a", b"x")], b"module"),
            key("f", &[("/a", b"x"), ("/b", b"y")], b"other"),
            key("f/a", &[("/b", b"y")], b"module"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_cannot_be_given_is_told() {
        let memory = Memory::new("/nowhere/digests".into());
        let refusal = |initialization: &Initialization| {
            let refused = initialization.key(&[0; 32], &memory).unwrap_err();
            refused.to_string()
        };
        let names: Vec<_> = (0..=MAX_FILES).map(|number| format!("/{number}")).collect();
        let many: Vec<_> = names.iter().map(|name| (&name[..], &b""[..])).collect();
        assert!(refusal(&initialization("f", &many)).contains("257 files"));
        let large = initialization("f", &[("/large", b"")]);
        large.files[0].1.set_len(MAX_BYTES + 1).unwrap();
        assert!(refusal(&large).contains("268435457 bytes"));
        for path in ["/../x", "x", "/", "/a/../../b", ""] {
            assert!(refusal(&initialization("f", &[(path, b"")])).contains("no regular file"));
        }
    }
}
