//! wasmtime's own command line, which guests are compared under.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lighter_test::{guest, repository, run, tools};

/// The command line, in the version of wasmtime that the shim has, and guests compiled by it.
pub struct Wasmtime {
    program: PathBuf,
    folder: PathBuf,
}

impl Wasmtime {
    /// Finds it; what it compiles will lie in `folder`.
    ///
    /// # Errors
    /// It was not built; the message says which command does it.
    pub fn new(folder: &Path) -> Result<Self> {
        let lock = std::fs::read_to_string(repository().join("Cargo.lock"))?;
        let version = version(&lock).context("Cargo.lock names no version of wasmtime")?;
        let program = tools().join(format!("wasmtime-{version}/bin/wasmtime"));
        ensure!(
            program.exists(),
            "{} is missing: run `make bench`, or `test/setup/peers`",
            program.display()
        );
        Ok(Self {
            program,
            folder: folder.to_owned(),
        })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Compiles a guest, by its name in `target/guests`, and returns the file of its native code.
    ///
    /// # Errors
    /// The guest was not built, or wasmtime does not compile it.
    pub fn compile(&self, name: &str) -> Result<PathBuf> {
        let (from, to) = (guest(name)?, self.folder.join(name).with_extension("cwasm"));
        let path = |path: &Path| path.display().to_string();
        run(
            &path(&self.program),
            &["compile", &path(&from), "-o", &path(&to)],
        )?;
        Ok(to)
    }
}

/// The version of wasmtime in the text of a Cargo.lock.
fn version(lock: &str) -> Option<&str> {
    let after = lock.split("name = \"wasmtime\"\nversion = \"").nth(1)?;
    after.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_is_that_of_the_library() {
        let lock = "name = \"wasmtime-wasi\"\nversion = \"1.0.0\"\n\n[[package]]\n\
                    name = \"wasmtime\"\nversion = \"48.0.8\"\n";
        assert_eq!(version(lock), Some("48.0.8"));
        assert_eq!(version(""), None);
    }
}
