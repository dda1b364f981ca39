//! An artifact gets its name only when it is whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

/// The extension of an artifact in the making that has to have a name.
pub(super) const NEW: &str = "new";

/// An artifact in the making. Its file can be written and read.
pub(super) struct Draft<'a> {
    pub(super) file: File,
    /// The name it is to get.
    path: &'a Path,
    /// The name it has meanwhile, on file systems that have no files without one.
    interim: Option<PathBuf>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(path: &'a Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o444);
        let unnamed = options
            .clone()
            .custom_flags(libc::O_TMPFILE)
            .open(directory);
        let (file, interim) = match unnamed {
            // What open(2) says where O_TMPFILE is unknown to the file system or the kernel.
            Err(error)
                if [libc::EOPNOTSUPP, libc::EISDIR]
                    .contains(&error.raw_os_error().unwrap_or(0)) =>
            {
                // The caller's lock makes the name ours; a file there is from one who was killed.
                let interim = path.with_extension(NEW);
                match fs::remove_file(&interim) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                (options.create_new(true).open(&interim)?, Some(interim))
            }
            result => (result?, None),
        };
        let draft = Self {
            file,
            path,
            interim,
        };
        // Whatever the umask is.
        draft.file.set_permissions(Permissions::from_mode(0o444))?;
        Ok(draft)
    }

    /// Gives the file its name, in place of whatever has it.
    pub(super) fn publish(mut self) -> io::Result<()> {
        if let Some(interim) = &self.interim {
            fs::rename(interim, self.path)?;
            self.interim = None;
            return Ok(());
        }
        let link = || {
            linkat(
                AT_FDCWD,
                format!("/proc/self/fd/{}", self.file.as_raw_fd()).as_str(),
                AT_FDCWD,
                self.path,
                AtFlags::AT_SYMLINK_FOLLOW,
            )
        };
        match link() {
            Err(nix::Error::EEXIST) => {
                discard(self.path)?;
                Ok(link()?)
            }
            result => Ok(result?),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(interim) = &self.interim {
            // Nothing better can be done about a failure; the next draft tries again.
            let _ = fs::remove_file(interim);
        }
    }
}

/// Removes what stands where an artifact belongs, whatever it is.
fn discard(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}
