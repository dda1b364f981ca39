//! wrk(1): as many requests as the connections carry, one after another on each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lighter_test::run;
use serde::{Deserialize, Serialize};

/// What a program for wrk is called that prints a [`Load`].
const SCRIPT: &str = include_str!("../wrk.lua");

/// What one run of wrk has measured.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Load {
    requests: u64,
    seconds: f64,
    failed: u64,
    /// Half of the requests took at most so many milliseconds.
    pub p50: f64,
    /// 99 of 100 requests took at most so many milliseconds.
    pub p99: f64,
}

impl Load {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// wrk with its script.
pub struct Wrk {
    script: PathBuf,
}

impl Wrk {
    /// Writes the script into `folder`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let script = folder.join("wrk.lua");
        fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
        Ok(Self { script })
    }

    /// Asks the server on `port` of this machine for as long as `seconds`, over so many
    /// `connections`, from one thread.
    ///
    /// # Errors
    /// wrk is missing, or a request failed.
    pub fn load(&self, port: u16, connections: u32, seconds: u32) -> Result<Load> {
        let printed = run(
            "wrk",
            &[
                "--threads=1",
                &format!("--connections={connections}"),
                &format!("--duration={seconds}s"),
                &format!("--script={}", self.script.display()),
                &format!("http://127.0.0.1:{port}/"),
            ],
        )?;
        let line = printed.lines().last().unwrap_or_default();
        let load: Load =
            serde_json::from_str(line).with_context(|| format!("what wrk printed: {printed}"))?;
        ensure!(
            load.failed == 0,
            "{} requests failed: {printed}",
            load.failed
        );
        ensure!(load.requests > 0, "no request was answered: {printed}");
        Ok(load)
    }
}
