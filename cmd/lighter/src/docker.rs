//! Puts the images of an archive into a Docker.

use std::fs::File;
use std::io::Seek;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Loads `archive` with the `docker` command, which knows the user's contexts, hosts
/// and certificates.
///
/// # Errors
/// There is no such command, or what it says.
pub fn load(mut archive: &File) -> Result<()> {
    archive.rewind()?;
    let output = Command::new("docker")
        .arg("load")
        .stdin(archive.try_clone()?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("cannot run `docker load`; without a docker command use -o and load the archive where there is one")?;
    ensure!(
        output.status.success(),
        "`docker load` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
