//! Puts the images of an archive into a Docker.

use std::fs::File;
use std::io::Seek;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Loads `archive` with the `docker` command, which knows the user's contexts, hosts
/// and certificates.
///
/// # Errors
/// There is no such command, what it says, or that it has loaded nothing.
pub fn load(mut archive: &File) -> Result<()> {
    archive.rewind()?;
    let output = Command::new("docker")
        .arg("load")
        .stdin(archive.try_clone()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .context("cannot run `docker load`; without a docker command use -o and load the archive where there is one")?;
    ensure!(
        output.status.success(),
        "`docker load` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    // The classic store passes over what it does not know.
    ensure!(
        String::from_utf8_lossy(&output.stdout).contains("Loaded image"),
        "`docker load` has loaded nothing: Docker's classic image store takes no artifact; set \
         \"features\": {{\"containerd-snapshotter\": true}} in its daemon.json and restart it, or leave out \
         --artifact and build with --platform linux/amd64"
    );
    Ok(())
}
