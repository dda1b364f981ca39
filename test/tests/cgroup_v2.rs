//! The tests of containers run again on a machine whose cgroups are v2 and whose
//! init is systemd: a user-mode Linux, see test/uml/run.
//!
//! Each test here boots one such machine, runs one of this package's test
//! programs in it and shows what that prints.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use lighter_test::repository;

/// How long a machine may take from its boot to its halt, in seconds.
const LIMIT: &str = "900";

/// The program that cargo builds of `test/tests/NAME.rs`.
///
/// # Errors
/// It does not build.
fn test_program(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args([
            "test",
            "--release",
            "--package",
            "lighter-test",
            "--test",
            name,
        ])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(
        output.status.success(),
        "cargo cannot build the test program {name}"
    );
    for line in output.stdout.split(|&byte| byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        if message["reason"] == "compiler-artifact"
            && message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo does not say where it put the test program {name}")
}

/// Runs a test program in a machine of its own; what it prints goes to standard
/// output line by line, also when the tests' own output is captured, because it
/// is the only sign of life for minutes.
///
/// # Errors
/// The machine does not come up or takes too long; a test in it fails; no test
/// in it ran.
fn run_on_cgroup_v2(title: &str, program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<()> {
    let mut machine = Command::new("setpriv")
        // The machine must not outlive this program, even if that is killed.
        .args(["--pdeathsig", "KILL"])
        .arg(repository().join("test/uml/run"))
        .arg(LIMIT)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start setpriv, of the package util-linux")?;
    let output = machine.stdout.take().context("its output is piped")?;
    let mut passed = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(io::stdout(), "cgroup v2, {title}: {line}")?;
        if let Some(result) = line.strip_prefix("test result: ok. ") {
            passed = result
                .split(' ')
                .next()
                .and_then(|count| count.parse().ok());
        }
    }
    let status = machine.wait()?;
    ensure!(
        status.success(),
        "{title} failed on cgroup v2: {status}; see its output above"
    );
    let passed: usize = passed.context("the machine ran no test program")?;
    ensure!(passed > 0, "no test of {title} ran on cgroup v2");
    Ok(())
}
