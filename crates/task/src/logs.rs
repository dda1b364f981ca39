//! What all processes of a daemon log, on its way to containerd.
//!
//! containerd reads a shim's log from a FIFO in the bundle of each container, for as long as it has
//! that. The containers of a group come and go, and with them the readers; so everybody here writes
//! into one pipe, and the daemon hands on what comes, line by line, to whichever of its containers'
//! FIFOs has a reader. Nobody ever waits for one: what cannot be handed on is dropped, as while
//! containerd is away or does not read.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;
use rustix::io::ioctl_fionbio;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The FIFO's name in a bundle.
const FIFO: &str = "log";

/// How many FIFOs are tried for a line, when the last one has lost its reader.
const ATTEMPTS: usize = 8;

/// The longest line that is handed on in one piece, in bytes.
const LINE: usize = 64 << 10;

/// A pipe for what is logged. Neither end ever waits for the other.
///
/// # Errors
/// pipe(2)'s.
pub fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    ioctl_fionbio(&reader, true)?;
    ioctl_fionbio(&writer, true)?;
    Ok((reader, writer))
}

/// Hands on what is logged.
#[derive(Clone)]
pub struct Logs(Arc<(PipeReader, Mutex<Readers>)>);

/// Where it goes.
#[derive(Default)]
struct Readers {
    /// Bundles whose FIFOs may have readers.
    bundles: BTreeSet<PathBuf>,
    /// The one that had one last.
    open: Option<File>,
    /// A line that is not whole yet.
    rest: Vec<u8>,
}

impl Logs {
    /// Hands on what comes through `from`; at first to the FIFO in `bundle`.
    pub fn new(from: PipeReader, bundle: PathBuf) -> Self {
        let readers = Readers {
            bundles: [bundle].into(),
            ..Readers::default()
        };
        Self(Arc::new((from, Mutex::new(readers))))
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there may be a reader in `bundle`.
    pub fn add(&self, bundle: &Path) {
        self.readers().bundles.insert(bundle.to_owned());
    }

    /// There will be none in `bundle` any more.
    pub fn remove(&self, bundle: &Path) {
        self.readers().bundles.remove(bundle);
    }

    /// Hands on whatever comes, in the running tokio runtime.
    ///
    /// # Errors
    /// When the pipe cannot be watched.
    pub fn relay(&self) -> io::Result<()> {
        let mut from = pipe::Receiver::from_owned_fd(self.0.0.try_clone()?.into())?;
        let logs = self.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                logs.readers().take(&buffer[..length]);
            }
        });
        Ok(())
    }

    /// Hands on what has come until now.
    pub fn flush(&self) {
        let mut buffer = [0; 4096];
        let mut readers = self.readers();
        while let Ok(length @ 1..) = (&self.0.0).read(&mut buffer) {
            readers.take(&buffer[..length]);
        }
    }
}

impl Readers {
    /// Hands on the lines that end in `bytes`.
    fn take(&mut self, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.rest);
        lines.extend_from_slice(bytes);
        let whole = match lines.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if lines.len() > LINE => lines.len(),
            None => 0,
        };
        for line in lines[..whole].split_inclusive(|byte| *byte == b'\n') {
            self.hand_on(line);
        }
        lines.drain(..whole);
        self.rest = lines;
    }

    fn hand_on(&mut self, line: &[u8]) {
        if self.open.as_ref().is_some_and(|open| write(open, line)) {
            return;
        }
        let found = self.bundles.iter().take(ATTEMPTS).find_map(|bundle| {
            let open = OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(bundle.join(FIFO));
            open.ok().filter(|open| write(open, line))
        });
        self.open = found;
    }
}

/// Writes `line` to a FIFO; whether that has a reader, who may be too slow for it.
fn write(mut fifo: &File, line: &[u8]) -> bool {
    match fifo.write_all(line) {
        Err(error) => error.kind() == ErrorKind::WouldBlock,
        Ok(()) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    /// A bundle whose FIFO has a reader.
    fn bundle(folder: &Path, name: &str) -> (PathBuf, File) {
        let bundle = folder.join(name);
        std::fs::create_dir(&bundle).unwrap();
        mkfifo(&bundle.join(FIFO), Mode::S_IRWXU).unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(bundle.join(FIFO))
            .unwrap();
        (bundle, reader)
    }

    fn read(mut fifo: &File) -> String {
        let mut text = Vec::new();
        // Ends with WouldBlock.
        let _ = fifo.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_go_to_whoever_reads() {
        let folder = tempfile::tempdir().unwrap();
        let (first, reader) = bundle(folder.path(), "1");
        let (second, next) = bundle(folder.path(), "2");
        let (from, mut log) = pipe().unwrap();
        let logs = Logs::new(from, first.clone());
        logs.add(&second);
        log.write_all(b"one\ntw").unwrap();
        logs.flush();
        assert_eq!(read(&reader), "one\n");
        drop(reader);
        std::fs::remove_dir_all(&first).unwrap();
        logs.remove(&first);
        log.write_all(b"o\nthree\n").unwrap();
        logs.flush();
        assert_eq!(read(&next), "two\nthree\n");
        // Nobody is there for a while.
        drop(next);
        log.write_all(b"four\n").unwrap();
        logs.flush();
        let (third, last) = bundle(folder.path(), "3");
        logs.add(&third);
        log.write_all(b"five\n").unwrap();
        logs.flush();
        assert_eq!(read(&last), "five\n");
    }

    #[test]
    fn a_reader_who_does_not_read_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let (first, reader) = bundle(folder.path(), "1");
        let (from, mut log) = pipe().unwrap();
        let logs = Logs::new(from, first);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..1024 {
            log.write_all(&line).unwrap();
            logs.flush();
        }
        let text = read(&reader);
        assert!(text.len() < 1024 * line.len());
        assert!(text.lines().all(|text| text.len() == line.len() - 1));
    }
}
