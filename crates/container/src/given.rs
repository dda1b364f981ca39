//! Files of a container that its guest's native code is made with, opened from inside.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::message::MAX_FDS;

/// The most that are opened.
const MOST: usize = 1000;

/// A regular file.
#[derive(Debug)]
pub struct Given {
    /// Its path in the container.
    pub path: String,
    /// The file, open for reading.
    pub file: File,
}

/// Opens the files of `paths`, and all files below the folders there, and hands them to `send` by as many
/// as one message carries. Symbolic links are followed but to folders within folders.
///
/// # Errors
/// Which cannot be opened and why, and what `send` says.
pub(crate) fn each(
    paths: &[String],
    mut send: impl FnMut(&mut Vec<Given>) -> io::Result<()>,
) -> Result<(), String> {
    let mut found = Found {
        files: Vec::new(),
        count: 0,
        send: &mut send,
    };
    for path in paths {
        found.add(Path::new(path)).map_err(|(path, error)| {
            format!("{path}, which is to be given to its initialisation (preinit.files): {error}")
        })?;
    }
    (found.send)(&mut found.files).map_err(|error| error.to_string())
}

struct Found<'a> {
    files: Vec<Given>,
    count: usize,
    send: &'a mut dyn FnMut(&mut Vec<Given>) -> io::Result<()>,
}

impl Found<'_> {
    fn add(&mut self, path: &Path) -> Result<(), (String, io::Error)> {
        let name = path.display().to_string();
        self.open(path, &name).map_err(|error| (name, error))?;
        Ok(())
    }

    fn open(&mut self, path: &Path, name: &str) -> io::Result<()> {
        // Not to be held up by a pipe.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return self.open_all(path);
        }
        if !kind.is_file() {
            return Err(io::Error::other(
                "it is neither a regular file nor a folder",
            ));
        }
        self.count += 1;
        if self.count > MOST {
            return Err(io::Error::other(format!(
                "there are more than {MOST} files"
            )));
        }
        let path = name.to_owned();
        self.files.push(Given { path, file });
        match self.files.len() {
            MAX_FDS => (self.send)(&mut self.files),
            _ => Ok(()),
        }
    }

    fn open_all(&mut self, folder: &Path) -> io::Result<()> {
        for entry in folder.read_dir()? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_symlink() && path.is_dir() {
                continue;
            }
            let name = path
                .to_str()
                .ok_or_else(|| io::Error::other(format!("the name {path:?} in it is no UTF-8")))?;
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
            self.open(&path, name).map_err(named)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folders_are_all_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("inner")).unwrap();
        for number in 0..20 {
            fs::write(root.join(format!("inner/{number}")), "text").unwrap();
        }
        std::os::unix::fs::symlink("inner/0", root.join("link")).unwrap();
        std::os::unix::fs::symlink("..", root.join("inner/loop")).unwrap();
        let path = |name: &str| root.join(name).display().to_string();
        let mut names = Vec::new();
        let mut gather = |files: &mut Vec<Given>| {
            assert!(files.len() <= MAX_FDS);
            names.extend(files.drain(..).map(|given| given.path));
            Ok(())
        };
        each(&[path("link"), path("inner")], &mut gather).unwrap();
        assert_eq!(names.len(), 21, "{names:?}");
        assert!(names.contains(&path("link")) && names.contains(&path("inner/7")));
        let missing = each(&[path("missing")], |_| Ok(())).unwrap_err();
        assert!(missing.contains("missing"), "{missing}");
        let device = each(&["/dev/null".into()], |_| Ok(())).unwrap_err();
        assert!(device.contains("/dev/null"), "{device}");
    }
}
