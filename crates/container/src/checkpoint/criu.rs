//! The program criu.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many of its last complaints are told.
const COMPLAINTS: usize = 3;

/// A call of criu.
pub(super) struct Criu {
    command: Command,
    work: PathBuf,
    log: String,
    /// Whether `work` was made for this call alone.
    temporary: bool,
}

impl Criu {
    /// A call of `action` on `images`, which works in `work`, or in a folder in `bundle` of its own.
    ///
    /// # Errors
    /// When criu is not installed, or the folder cannot be made.
    pub(super) fn new(
        action: &str,
        images: &Path,
        work: Option<&Path>,
        bundle: &Path,
    ) -> Result<Self, String> {
        let program = find()?;
        let temporary = work.is_none();
        let work = work.map_or_else(|| bundle.join("criu-work"), Path::to_owned);
        make_folder(&work)?;
        let log = format!("{action}.log");
        let mut command = Command::new(program);
        command
            .arg(action)
            .arg("--images-dir")
            .arg(images)
            .arg("--work-dir")
            .arg(&work)
            .args(["--log-file", &log, "-v4"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self {
            command,
            work,
            log,
            temporary,
        })
    }

    /// One more option.
    pub(super) fn option(&mut self, option: &str) -> &mut Self {
        self.command.arg(option);
        self
    }

    /// One more option with a value.
    pub(super) fn value(&mut self, option: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(option).arg(value);
        self
    }

    /// An external resource: what criu calls it, and what it stands for.
    pub(super) fn external(&mut self, name: &str, value: &Path) -> &mut Self {
        let mut text = OsString::from(format!("{name}:"));
        text.push(value);
        self.value("--external", text)
    }

    /// The call itself.
    pub(super) fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// The folder that it works in.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Why the call failed, after its log, which is kept in `bundle`.
    pub(super) fn failure(&self, bundle: &Path) -> String {
        let log = self.work.join(&self.log);
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let reason = match complaints(&text) {
            reasons if reasons.is_empty() => "it gives no reason".to_owned(),
            reasons => reasons,
        };
        if !self.temporary {
            return format!("{reason}; all that it says is in {}", log.display());
        }
        let kept = bundle.join(format!("criu-{}", self.log));
        match fs::copy(&log, &kept) {
            Ok(_) => format!("{reason}; all that it says is in {}", kept.display()),
            Err(_) => reason,
        }
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.work)
        {
            log::warn!("removing {}: {error}", self.work.display());
        }
    }
}

/// The last complaints of a log of criu's, on one line.
fn complaints(log: &str) -> String {
    // "(00.246042) Error (criu/files-reg.c:1790): Can't lookup mount=27"
    let complaint = |line: &str| -> Option<String> {
        let (_, complaint) = line.split_once(" Error (")?;
        let (_, complaint) = complaint.split_once("): ")?;
        // It says so on every machine that grants it no more files, and goes on.
        (!complaint.contains("RLIMIT_NOFILE")).then(|| complaint.trim_end().to_owned())
    };
    let mut complaints: Vec<String> = log.lines().filter_map(complaint).collect();
    let first = complaints.len().saturating_sub(COMPLAINTS);
    complaints.drain(..first);
    complaints.join("; ")
}

/// Makes a folder that only root may look into: memory of containers goes there.
///
/// # Errors
/// mkdir(2)'s, naming the folder.
pub(super) fn make_folder(path: &Path) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|error: io::Error| format!("making the folder {}: {error}", path.display()))
}

/// Finds criu on the shim's PATH, which is containerd's.
fn find() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable = |file: &PathBuf| {
        fs::metadata(file)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("criu"))
        .find(executable);
    found.ok_or_else(|| {
        format!(
            "checkpoint and restore need the program criu, which is not on containerd's PATH ({}): \
             install the package criu",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaints_are_the_reason() {
        let log = "\
(00.1) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.2) Warn  (criu/mount.c:1): something
(00.2) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1
(00.3) Error (criu/cr-dump.c:2111): Dumping FAILED.
";
        assert_eq!(
            complaints(log),
            "Can't lookup mount=27 for fd=1; Dumping FAILED."
        );
        assert_eq!(complaints("nothing"), "");
    }
}
