//! Digests of files that are not small, remembered from one container to the next.
//!
//! Hashing takes 0.8 milliseconds a megabyte; a Python component has a hundred, and a start takes
//! a dozen milliseconds in all. So the digest of a file that is not small is kept together with the file's identity: device, inode, size, and the times of
//! its last modification and last change, to the nanosecond. The kernel alone sets the change
//! time, at every write, so a file of the same identity has the same content, with these
//! exceptions, whose digests are not kept:
//!
//! * File systems that hold no change time (EROFS, SquashFS) show the modification time in its
//!   place, which the image's author chose. The file system that this memory is written to is not
//!   one of those.
//! * A file that changed within the last seconds could change once more in the same tick of the
//!   kernel's clock.
//!
//! What still gets past, a write through a memory mapping that the kernel has not noted yet, only
//! gives whoever wrote it the content that was there before. Damage below the file system, which
//! no identity can show, is found when a file is next hashed.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::digest::{self, Digest};

/// Files under this size, in bytes, are hashed each time.
const WORTHWHILE: u64 = 64 << 10;

/// How long a file must have been left alone. Far more than a tick of any kernel's clock.
const SETTLED: Duration = Duration::from_secs(2);

/// How many digests are kept. A new one takes the place of another.
const SLOTS: u64 = 4096;

/// The key, the digest, and the SHA-256 of both, by which a torn or empty slot is told.
const SLOT_LEN: usize = 96;

/// A file of digests.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
}

impl Memory {
    /// The memory in the file `path`, which is made when there is something to keep.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The SHA-256 of the first `length` bytes of `file`.
    ///
    /// # Errors
    /// As [`digest::of_file`]. A memory that cannot be read or written is none, and no error.
    pub(crate) fn digest(&self, file: &File, length: u64) -> io::Result<Digest> {
        if length < WORTHWHILE {
            return digest::of_file(file, length);
        }
        let key = key(&file.metadata()?, length);
        let slots = self.slots();
        if let Some(digest) = slots.as_ref().and_then(|slots| recall(slots, &key)) {
            return Ok(digest);
        }
        let digest = digest::of_file(file, length)?;
        let metadata = file.metadata()?;
        if let Some(slots) = slots
            && self::key(&metadata, length) == key
            && tells_changes(&metadata, &slots)
        {
            let check = check(&key, &digest);
            // A memory that is full or read-only keeps nothing.
            let _ = slots.write_all_at(&[key, digest, check].concat(), offset(&key));
        }
        Ok(digest)
    }

    fn slots(&self) -> Option<File> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        let writable = options
            .clone()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path);
        writable.or_else(|_| options.open(&self.path)).ok()
    }
}

/// A digest of a file's identity, and of how much of it is meant.
fn key(metadata: &Metadata, length: u64) -> Digest {
    let mut hash = Sha256::new();
    for number in [metadata.dev(), metadata.ino(), metadata.size(), length] {
        hash.update(number.to_be_bytes());
    }
    for time in [
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ] {
        hash.update(time.to_be_bytes());
    }
    hash.finalize().into()
}

/// Whether a later change of the file would show in its identity.
fn tells_changes(metadata: &Metadata, slots: &File) -> bool {
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let has_change_time = (changed > modified && changed.1 != 0)
        || slots
            .metadata()
            .is_ok_and(|own| own.dev() == metadata.dev());
    let settled = u64::try_from(changed.0).is_ok_and(|seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + SETTLED < SystemTime::now()
    });
    has_change_time && settled
}

fn recall(slots: &File, key: &Digest) -> Option<Digest> {
    let mut slot = [0; SLOT_LEN];
    slots.read_exact_at(&mut slot, offset(key)).ok()?;
    let (its_key, rest) = slot.split_first_chunk::<32>()?;
    let (digest, its_check) = rest.split_first_chunk::<32>()?;
    (its_key == key && its_check == check(key, digest)).then_some(*digest)
}

fn check(key: &Digest, digest: &Digest) -> Digest {
    Sha256::new_with_prefix(key)
        .chain_update(digest)
        .finalize()
        .into()
}

fn offset(key: &Digest) -> u64 {
    let (first, _) = key.split_first_chunk().expect("a digest has 32 bytes");
    u64::from_be_bytes(*first) % SLOTS * SLOT_LEN as u64
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Instant;

    use super::*;

    /// A memory, and a file that it has been asked about until it remembered.
    fn remembered() -> (tempfile::TempDir, Memory, File) {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = Memory::new(folder.path().join("digests"));
        let file = tempfile::tempfile_in(&folder).expect("a file");
        file.set_len(WORTHWHILE).expect("room");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            memory.digest(&file, WORTHWHILE).expect("a digest");
            let key = key(&file.metadata().expect("it is open"), WORTHWHILE);
            if recall(&memory.slots().expect("a memory"), &key).is_some() {
                return (folder, memory, file);
            }
            assert!(Instant::now() < deadline, "it never remembers");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_settled_file_is_not_hashed_again() {
        let (_folder, memory, file) = remembered();
        // Only a memory can give a digest that is not the file's.
        let key = key(&file.metadata().expect("it is open"), WORTHWHILE);
        let other = [7; 32];
        let slot = [key, other, check(&key, &other)].concat();
        let slots = memory.slots().expect("a memory");
        slots.write_all_at(&slot, offset(&key)).expect("room");
        assert_eq!(memory.digest(&file, WORTHWHILE).expect("a digest"), other);

        let torn = [key, other, [0; 32]].concat();
        slots.write_all_at(&torn, offset(&key)).expect("room");
        let digest = memory.digest(&file, WORTHWHILE).expect("a digest");
        assert_eq!(
            digest,
            digest::of_file(&file, WORTHWHILE).expect("a digest")
        );
    }

    #[test]
    fn a_changed_file_is_hashed() {
        let (_folder, memory, file) = remembered();
        let before = memory.digest(&file, WORTHWHILE).expect("a digest");
        file.write_all_at(b"x", WORTHWHILE / 2).expect("room");
        let after = memory.digest(&file, WORTHWHILE).expect("a digest");
        assert_ne!(before, after);
        assert_eq!(after, digest::of_file(&file, WORTHWHILE).expect("a digest"));
    }

    #[test]
    fn a_memory_that_cannot_be_kept_is_no_error() {
        let memory = Memory::new("/nowhere/digests".into());
        let file = tempfile::tempfile().expect("a file");
        file.set_len(WORTHWHILE).expect("room");
        memory.digest(&file, WORTHWHILE).expect("a digest");
    }
}
