//! Runs a command beside a containerd 2.1 of its own, with this workspace's shim: for suites that
//! are not in this repository. `CONTAINERD_ADDRESS` and `CONTAINERD_NAMESPACE` tell the command where
//! it is, and `ctr` is on its PATH.
//!
//! What the command leaves there, such as containers of a test that it gave up, goes with the daemon.
//!
//! usage: beside-containerd COMMAND [ARG...]

use std::{
    env,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use lighter_test::{Containerd, Version};

fn main() -> Result<ExitCode> {
    let mut words = env::args_os().skip(1);
    let program = words
        .next()
        .context("usage: beside-containerd COMMAND [ARG...]")?;
    lighter_test::ensure_root()?;
    let engine = Containerd::start(Version::V2_1)?;
    let mut path = engine.version().programs()?.into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let status = Command::new(&program)
        .args(words)
        .env("PATH", path)
        .env("CONTAINERD_ADDRESS", engine.socket())
        .env("CONTAINERD_NAMESPACE", engine.namespace())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
