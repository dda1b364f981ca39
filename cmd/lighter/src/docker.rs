//! Puts the images of an archive into a Docker.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Loads the archive `path` with the `docker` command, which knows the user's contexts, hosts
/// and certificates.
///
/// # Errors
/// There is no such command, or what it says.
pub fn load(path: &Path) -> Result<()> {
    let archive = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let output = Command::new("docker")
        .arg("load")
        .stdin(archive)
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
