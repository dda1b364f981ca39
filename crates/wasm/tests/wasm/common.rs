//! What the tests share: a private cache, and guests written as wasm text.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wasm::settings::Flags;
use wasm::{Cache, CacheError};

/// The program that plays compile worker and container's init.
pub const PROCESS: &str = env!("CARGO_BIN_EXE_wasm-process");

/// A cache of its own, removed with the value.
pub struct Workshop {
    pub directory: TempDir,
    pub cache: Cache,
}

impl Workshop {
    pub fn new() -> Self {
        assert!(
            nix::unistd::Uid::effective().is_root(),
            "these tests isolate compile workers, which takes root: run them as root"
        );
        let directory = TempDir::new().expect("a folder");
        let cache = Cache::open(directory.path().join("cache"), PROCESS, Flags::default())
            .expect("a cache");
        Self { directory, cache }
    }

    /// Where artifacts are.
    pub fn entries(&self) -> PathBuf {
        let mut folders = fs::read_dir(self.directory.path().join("cache"))
            .expect("the cache")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_dir());
        let entries = folders.next().expect("a folder for this engine");
        assert_eq!(folders.next(), None, "there is one engine");
        entries
    }

    /// Compiles `wasm`; fails where the cache does.
    pub fn compile(&self, wasm: &[u8]) -> Result<File, CacheError> {
        self.cache
            .artifact(&file(wasm), "guest.wasm", &|mut command| command.status())
    }

    /// Compiles wasm text, and gives the path of its artifact. For one guest a workshop.
    pub fn artifact(&self, text: &str) -> PathBuf {
        self.compile(&wasm(text)).expect("native code");
        only_file(&self.entries())
    }

    /// Compiles and runs a guest.
    pub fn run(text: &str) -> Output {
        Self::run_with(text, &[], &["guest"])
    }

    /// Compiles and runs a guest with these options of the test program and these arguments.
    pub fn run_with(text: &str, options: &[&str], arguments: &[&str]) -> Output {
        let workshop = Self::new();
        let artifact = workshop.artifact(text);
        process(&artifact, options, arguments)
            .output()
            .expect("output")
    }
}

/// A command that runs the guest in `artifact`, with an empty environment and no input.
pub fn process(artifact: &Path, options: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new(PROCESS);
    command
        .arg("run")
        .args(options)
        .arg(artifact)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null());
    command
}

/// The binary form of wasm text.
pub fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("wasm text")
}

/// An open file that holds `bytes`.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("room");
    file.rewind().expect("a regular file");
    file
}

/// The one file in `folder`.
pub fn only_file(folder: &Path) -> PathBuf {
    let files = names(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    folder.join(&files[0])
}

/// What is in `folder`.
pub fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("UTF-8")
        })
        .collect()
}

/// A program's standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program's standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` holds; fails when it does not come to that.
#[track_caller]
pub fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it never came that far");
        std::thread::sleep(Duration::from_millis(1));
    }
}
