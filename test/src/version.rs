//! The engines' versions, and where the set-up scripts put their programs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A series of containerd that the shim must work under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// containerd 1.6, of Debian bookworm.
    V1_6,
    /// containerd 1.7, of Debian trixie.
    V1_7,
    /// containerd 2.1 or the 2.x that Debian sid has.
    V2_1,
}

impl Version {
    /// Every series, oldest first.
    pub const ALL: [Version; 3] = [Version::V1_6, Version::V1_7, Version::V2_1];

    /// The series as people write it: `1.6`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V1_6 => "1.6",
            Version::V1_7 => "1.7",
            Version::V2_1 => "2.1",
        }
    }

    /// The folder with this version's `containerd`, `ctr` and
    /// `containerd-shim-runc-v2`.
    ///
    /// # Errors
    /// The engine was not fetched; the message says which command does it.
    pub fn programs(self) -> Result<PathBuf> {
        let folder = tools().join(format!("containerd-{}/usr/bin", self.name()));
        ensure!(
            folder.join("containerd").exists(),
            "containerd {} is missing in {}: run `make test`, or `test/setup/engines`",
            self.name(),
            folder.display()
        );
        Ok(folder)
    }
}

/// Cargo's target folder: `$CARGO_TARGET_DIR`, else `target` in the repository.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => repository().join(folder),
        None => repository().join("target"),
    }
}

/// The folder of the tools that the set-up scripts fetch.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The repository's top folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the test package lies in the repository")
}

/// The folder that cargo built this workspace's programs into: the one the
/// running test was built into, without `deps`.
///
/// # Errors
/// The shim is not there; the message says which command builds it.
pub fn built_programs() -> Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let shim = folder.join("containerd-shim-wasmtime-v1");
    ensure!(
        shim.exists(),
        "{} is missing: run `make test`, or `cargo build --release`",
        shim.display()
    );
    Ok(folder)
}

/// A guest that `test/setup/guests` built, by its file name in `target/guests`.
///
/// # Errors
/// It was not built; the message says which command does it.
pub fn guest(name: &str) -> Result<PathBuf> {
    let path = target().join("guests").join(name);
    ensure!(
        path.exists(),
        "{} is missing: run `make test`, or `test/setup/guests`",
        path.display()
    );
    Ok(path)
}
