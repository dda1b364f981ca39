//! What the process's first argument names, seen from inside the container.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// An entrypoint, found and told apart by its first bytes.
#[derive(Debug)]
pub enum Entrypoint {
    /// Something the kernel executes: an ELF file, or a script that names its interpreter.
    Linux(PathBuf),
    /// Wasm, opened for reading.
    Wasm {
        /// Where it was found.
        path: PathBuf,
        /// The open file.
        file: File,
        /// The export to call, where the argument was `file#function`.
        function: Option<String>,
    },
}

/// Why an entrypoint cannot be run. The words follow the runc shim's, because Docker tells exit
/// code 127 from 126 by them.
#[derive(Debug, thiserror::Error)]
pub enum EntrypointError {
    /// A bare name that is on no folder of PATH, nor a wasm file in the working directory.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotOnPath(String),
    /// A path that leads nowhere.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    NotFound(String),
    /// A file that the container's user may not read, or not execute.
    #[error("exec: {0:?}: permission denied")]
    Denied(String),
    /// A folder.
    #[error("exec: {0:?}: is a directory, not a program")]
    Directory(String),
    /// A device, socket or pipe.
    #[error("exec: {0:?}: is a {1}, not a program")]
    Special(String, &'static str),
    /// A file of another kind.
    #[error(
        "exec: {0:?}: permission denied: it is {1}; an entrypoint is a wasm module or component, an ELF file, or a script that starts with #!"
    )]
    Format(String, String),
    /// Anything else that opening or reading says.
    #[error("exec: {0:?}: {1}")]
    Io(String, io::Error),
}

/// Finds what `name` stands for: a path, absolute or relative to the working directory; or a bare
/// name on one of the folders of `path_variable` (the container's PATH), or, for wasm, in the
/// working directory. `name#function` names an export of a wasm file.
///
/// `recognize` tells wasm by a file's first bytes, and says what any other file is.
///
/// # Errors
/// When there is no such file, it may not be used, or it is of another kind.
pub fn find(
    name: &str,
    path_variable: &str,
    recognize: fn(&[u8]) -> Result<(), String>,
) -> Result<Entrypoint, EntrypointError> {
    match find_file(name, path_variable, recognize) {
        Err(error @ (EntrypointError::NotFound(_) | EntrypointError::NotOnPath(_))) => {
            let (file, Some(function)) = split(name) else {
                return Err(error);
            };
            match find_file(file, path_variable, recognize)? {
                Entrypoint::Wasm { path, file, .. } => Ok(Entrypoint::Wasm {
                    path,
                    file,
                    function: Some(function.to_owned()),
                }),
                Entrypoint::Linux(_) => Err(error),
            }
        }
        found => found,
    }
}

/// The file or layer that `name` is of, and the function that it names: `NAME#FUNCTION`, or `NAME#INTERFACE#FUNCTION` for one of an
/// interface, which has a colon in its name. `image::without_function` has the same rule, for who looks for layers.
pub(crate) fn split(name: &str) -> (&str, Option<&str>) {
    let Some((file, function)) = name.rsplit_once('#') else {
        return (name, None);
    };
    match file.rsplit_once('#') {
        Some((file, interface)) if interface.contains(':') => (file, Some(&name[file.len() + 1..])),
        _ => (file, Some(function)),
    }
}

fn find_file(
    name: &str,
    path_variable: &str,
    recognize: fn(&[u8]) -> Result<(), String>,
) -> Result<Entrypoint, EntrypointError> {
    if name.is_empty() {
        return Err(EntrypointError::NotFound(String::new()));
    }
    if name.contains('/') {
        return classify(name, Path::new(name), recognize);
    }
    let mut denied = None;
    for folder in std::env::split_paths(OsStr::new(path_variable)) {
        // An empty element is the working directory to a shell; to execvp's callers in
        // container runtimes it is nothing, so that an image cannot be surprised by it.
        if folder.as_os_str().is_empty() {
            continue;
        }
        let path = folder.join(name);
        match classify(name, &path, recognize) {
            Err(EntrypointError::NotFound(_) | EntrypointError::Directory(_)) => {}
            // What cannot be executed is passed over, as execvp(3) does.
            Err(error @ (EntrypointError::Format(..) | EntrypointError::Denied(_)))
                if access(&path, AccessFlags::X_OK).is_err() =>
            {
                denied.get_or_insert(error);
            }
            Err(
                error @ (EntrypointError::Denied(_)
                | EntrypointError::Special(..)
                | EntrypointError::Io(..)),
            ) => {
                denied.get_or_insert(error);
            }
            found => return found,
        }
    }
    match classify(name, &Path::new(".").join(name), recognize) {
        Ok(wasm @ Entrypoint::Wasm { .. }) => Ok(wasm),
        Err(error @ (EntrypointError::Format(..) | EntrypointError::Directory(_))) => Err(error),
        _ => Err(denied.unwrap_or_else(|| EntrypointError::NotOnPath(name.to_owned()))),
    }
}

fn classify(
    name: &str,
    path: &Path,
    recognize: fn(&[u8]) -> Result<(), String>,
) -> Result<Entrypoint, EntrypointError> {
    let name = || name.to_owned();
    let io_error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => EntrypointError::NotFound(name()),
        io::ErrorKind::PermissionDenied => EntrypointError::Denied(name()),
        _ => EntrypointError::Io(name(), error),
    };
    let kind = std::fs::metadata(path).map_err(io_error)?.file_type();
    if kind.is_dir() {
        return Err(EntrypointError::Directory(name()));
    }
    if !kind.is_file() {
        let what = if kind.is_fifo() {
            "pipe"
        } else if kind.is_socket() {
            "socket"
        } else {
            "device"
        };
        return Err(EntrypointError::Special(name(), what));
    }
    let executable = access(path, AccessFlags::X_OK).is_ok();
    // Not to be held up if the file is swapped for a pipe meanwhile.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        // What may be executed need not be readable.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && executable => {
            return Ok(Entrypoint::Linux(path.to_owned()));
        }
        Err(error) => return Err(io_error(error)),
    };
    let mut head = Vec::with_capacity(8);
    file.by_ref()
        .take(8)
        .read_to_end(&mut head)
        .map_err(io_error)?;
    let Err(what) = recognize(&head) else {
        return Ok(Entrypoint::Wasm {
            path: path.to_owned(),
            file,
            function: None,
        });
    };
    if head.starts_with(b"\x7fELF") || head.starts_with(b"#!") {
        return if executable {
            Ok(Entrypoint::Linux(path.to_owned()))
        } else {
            Err(EntrypointError::Denied(name()))
        };
    }
    Err(EntrypointError::Format(name(), what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const WASM: &[u8] = b"\0asm\x01\0\0\0";

    #[test]
    fn what_cannot_be_executed_is_passed_over_on_path() {
        let text = Folder::with("app", b"text", 0o644);
        let round = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("app", round.path().join("app")).unwrap();
        let program = Folder::with("app", b"\x7fELF", 0o755);
        let folders = [text.0.path(), round.path(), program.0.path()];
        let path = std::env::join_paths(folders).unwrap();
        let found = find("app", path.to_str().unwrap(), recognize).unwrap();
        assert!(matches!(found, Entrypoint::Linux(path) if path.starts_with(program.0.path())));
        // Where there is no other, the first tells why.
        let path = std::env::join_paths(&folders[..2]).unwrap();
        let error = find("app", path.to_str().unwrap(), recognize).unwrap_err();
        assert!(matches!(error, EntrypointError::Format(..)), "{error}");
    }

    #[test]
    fn a_function_may_be_of_an_interface() {
        assert_eq!(split("/a.wasm"), ("/a.wasm", None));
        assert_eq!(split("/a#b#run"), ("/a#b", Some("run")));
        let name = "/a#b#wasi:cli/run@0.2.6#run";
        assert_eq!(split(name), ("/a#b", Some("wasi:cli/run@0.2.6#run")));
    }

    fn recognize(head: &[u8]) -> Result<(), String> {
        match head.starts_with(b"\0asm") {
            true => Ok(()),
            false => Err("a file of another kind".to_owned()),
        }
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(name: &str, bytes: &[u8], mode: u32) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Self(folder)
        }

        fn find(&self, name: &str) -> Result<Entrypoint, EntrypointError> {
            find(name, self.0.path().to_str().unwrap(), recognize)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_owned()
        }
    }

    #[test]
    fn wasm_is_told_by_its_bytes_whatever_its_name_and_mode() {
        let folder = Folder::with("anything", WASM, 0o400);
        for name in [folder.path("anything"), "anything".to_owned()] {
            let found = folder.find(&name).unwrap();
            assert!(matches!(found, Entrypoint::Wasm { function: None, .. }));
        }
    }

    #[test]
    fn a_function_is_split_off_only_where_no_file_has_the_whole_name() {
        let folder = Folder::with("app.wasm", WASM, 0o644);
        let found = folder.find(&folder.path("app.wasm#greet")).unwrap();
        assert!(matches!(found, Entrypoint::Wasm { function: Some(f), .. } if f == "greet"));
        fs::write(folder.path("app.wasm#greet"), WASM).unwrap();
        let found = folder.find(&folder.path("app.wasm#greet")).unwrap();
        assert!(matches!(found, Entrypoint::Wasm { function: None, .. }));
    }

    #[test]
    fn elf_and_scripts_are_linux_if_they_may_be_executed() {
        for bytes in [&b"\x7fELF\x02\x01"[..], b"#!/bin/sh\n"] {
            let folder = Folder::with("program", bytes, 0o755);
            assert!(matches!(
                folder.find("program").unwrap(),
                Entrypoint::Linux(_)
            ));
            let folder = Folder::with("program", bytes, 0o644);
            let error = folder.find(&folder.path("program")).unwrap_err();
            assert!(error.to_string().contains("permission denied"), "{error}");
        }
    }

    #[test]
    fn other_files_are_refused_with_what_they_are() {
        for bytes in [&b""[..], b"\0as", b"hello\n"] {
            let folder = Folder::with("file", bytes, 0o755);
            let error = folder.find(&folder.path("file")).unwrap_err().to_string();
            let what = "it is a file of another kind";
            assert!(error.contains(what) && error.contains("/file"), "{error}");
        }
    }

    #[test]
    fn missing_files_and_folders_are_named() {
        let folder = Folder::with("file", b"", 0o644);
        let error = folder.find("/no/such").unwrap_err().to_string();
        assert!(error.contains("/no/such") && error.contains("no such file or directory"));
        let error = folder.find("nothing").unwrap_err().to_string();
        assert!(error.contains("\"nothing\": executable file not found in $PATH"));
        let error = folder.find("/tmp").unwrap_err().to_string();
        assert!(error.contains("/tmp") && error.contains("is a directory"));
        let error = folder.find("/dev/null").unwrap_err().to_string();
        assert!(error.contains("device"), "{error}");
    }
}
