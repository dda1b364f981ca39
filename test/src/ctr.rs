//! The real `ctr` of a daemon's version.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::Containerd;

impl Containerd {
    /// `ctr` with this daemon's address and namespace, ready for arguments.
    ///
    /// # Errors
    /// The engine was not fetched.
    pub fn ctr(&self) -> Result<Command> {
        let mut command = Command::new(self.version().programs()?.join("ctr"));
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", self.namespace()])
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `ctr ARGS...` to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_ctr<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.ctr()?
            .args(args.into_iter().map(|a| a.as_ref().to_owned()))
            .output()
            .context("start ctr")
    }

    /// Runs `ctr ARGS...` with bytes on its standard input.
    ///
    /// # Errors
    /// It cannot be started or fed.
    pub fn feed_ctr(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .ctr()?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ctr")?;
        let mut stdin = child.stdin.take().context("ctr has a standard input")?;
        let bytes = input.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = child.wait_with_output()?;
        feeder.join().expect("the feeder does not panic")?;
        Ok(output)
    }

    /// Imports an image archive with `ctr images import`, all of its platforms, and leaves its
    /// layers packed.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import_packed(&self, archive: &Path) -> Result<()> {
        let path = archive.display().to_string();
        let args = ["images", "import", "--all-platforms", "--no-unpack", &path];
        let output = self.run_ctr(args)?;
        ensure!(
            output.status.success(),
            "ctr images import {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Imports an image archive with `ctr images import`, all of its platforms.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let path = archive.display().to_string();
        let output = self.run_ctr(["images", "import", "--all-platforms", &path])?;
        ensure!(
            output.status.success(),
            "ctr images import {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
