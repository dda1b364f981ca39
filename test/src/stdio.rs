//! A task's standard streams as a client of containerd makes them: FIFOs that
//! the client opens at one end and the shim at the other.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result};
use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

/// What a task reads on its standard input.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Input {
    /// Nothing: the stream is not connected.
    #[default]
    None,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// What the test feeds with [`crate::Container::feed`], until it ends it.
    Fed,
}

/// The client's ends of a task's streams.
pub struct Stdio {
    folder: tempfile::TempDir,
    stdin: Option<Feeder>,
    stdout: Reader,
    /// `None` with a terminal, which has one output.
    stderr: Option<Reader>,
}

impl Stdio {
    /// Makes the FIFOs in a new folder inside `parent` and begins to serve them; with a
    /// `terminal` there is none for the standard error, whose path is given all the same,
    /// as containerd's clients do.
    ///
    /// # Errors
    /// A FIFO that cannot be made.
    pub fn new(parent: &Path, input: Input, terminal: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("stdio-")
            .tempdir_in(parent)?;
        let fifo = |name: &str| -> Result<PathBuf> {
            let path = folder.path().join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o600))
                .with_context(|| format!("make the FIFO {}", path.display()))?;
            Ok(path)
        };
        let stdin = match input {
            Input::None => None,
            Input::Bytes(bytes) => {
                let feeder = Feeder::start(fifo("stdin")?);
                feeder.send(bytes);
                feeder.send(Vec::new());
                Some(feeder)
            }
            Input::Fed => Some(Feeder::start(fifo("stdin")?)),
        };
        Ok(Self {
            stdin,
            stdout: Reader::start(fifo("stdout")?),
            stderr: match terminal {
                true => None,
                false => Some(Reader::start(fifo("stderr")?)),
            },
            folder,
        })
    }

    /// The path of the standard input; empty when there is none.
    pub fn stdin_path(&self) -> String {
        match self.stdin {
            Some(_) => self.path("stdin"),
            None => String::new(),
        }
    }

    /// The path of one of the streams.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Gives bytes to the task; none at all ends the stream.
    pub fn feed(&self, bytes: &[u8]) {
        if let Some(feeder) = &self.stdin {
            feeder.send(bytes.to_vec());
        }
    }

    /// What came on the standard output until now.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.bytes()
    }

    /// When the first byte came on the standard output, if one has.
    pub fn first_output(&self) -> Option<Instant> {
        *self.stdout.first.lock().expect("no reader panics")
    }

    /// What came on the standard error until now.
    pub fn stderr(&self) -> Vec<u8> {
        self.stderr.as_ref().map(Reader::bytes).unwrap_or_default()
    }

    /// Waits until the task's side has closed both output streams.
    pub fn drain(&mut self) {
        self.stdout.join();
        if let Some(stderr) = &mut self.stderr {
            stderr.join();
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        // A thread still waits in open() when the shim never came to open its
        // end, and in read() when one is left open: each wakes when the other
        // end is opened and closed here.
        for reader in [Some(&self.stdout), self.stderr.as_ref()]
            .into_iter()
            .flatten()
        {
            let _ = OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&reader.path);
        }
        if let Some(stdin) = &mut self.stdin {
            stdin.bytes = None;
            let _ = OpenOptions::new()
                .read(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&stdin.path);
        }
    }
}

/// Collects what is written to a FIFO, in a thread.
struct Reader {
    path: PathBuf,
    bytes: Arc<Mutex<Vec<u8>>>,
    first: Arc<Mutex<Option<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(path: PathBuf) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let first = Arc::new(Mutex::new(None));
        let (from, to, began) = (path.clone(), bytes.clone(), first.clone());
        let thread = thread::spawn(move || {
            let Ok(mut file) = std::fs::File::open(from) else {
                return;
            };
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = file.read(&mut buffer) {
                began
                    .lock()
                    .expect("no reader panics")
                    .get_or_insert_with(Instant::now);
                to.lock()
                    .expect("no reader panics")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            path,
            bytes,
            first,
            thread: Some(thread),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no reader panics").clone()
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes to a FIFO what a test feeds, in a thread, so that the test need not
/// wait for the task to read.
struct Feeder {
    path: PathBuf,
    bytes: Option<mpsc::Sender<Vec<u8>>>,
}

impl Feeder {
    fn start(path: PathBuf) -> Self {
        let (bytes, fed) = mpsc::channel::<Vec<u8>>();
        let to = path.clone();
        thread::spawn(move || {
            let Ok(mut file) = OpenOptions::new().write(true).open(to) else {
                return;
            };
            for bytes in fed {
                if bytes.is_empty() || file.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        Self {
            path,
            bytes: Some(bytes),
        }
    }

    fn send(&self, bytes: Vec<u8>) {
        if let Some(channel) = &self.bytes {
            // The thread is gone when the task closed its end: as in a shell,
            // what nobody reads is lost.
            let _ = channel.send(bytes);
        }
    }
}
