//! An archive that becomes a file.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use tempfile::TempPath;

use crate::{Archive, Error, Image, Name, Saved};

/// How many symbolic links may lead to a file: as many as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

/// An archive that is written to a file.
pub type ArchiveFile = Archive<BufWriter<Draft>>;

/// A file that is being written; what cannot be is told with its path.
pub struct Draft {
    file: File,
    path: PathBuf,
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        written.map_err(|error| with_path(&error, &self.path))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn with_path(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Image {
    /// Writes an archive of this one image to a file, which is there whole or
    /// as it was before.
    pub fn save(&self, name: &Name, path: impl AsRef<Path>) -> Result<Saved, Error> {
        save(path.as_ref(), |archive| archive.add(name, self)).map(|(saved, _)| saved)
    }
}

/// Writes an archive of what `fill` adds to a file, which is there whole or as it was before; a file that was there keeps its owner
/// and mode. A symbolic link is followed. Nothing stays of an archive that is not finished, however this process ends. Gives the file
/// as well.
///
/// # Errors
/// Those of `fill`, and where the file cannot be written, or is a device, a pipe or the like, in whose place a file
/// would come.
pub fn save<T, E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut ArchiveFile) -> Result<T, E>,
) -> Result<(T, File), E> {
    let failed = |source| Error::Save {
        path: path.into(),
        source,
    };
    let target = target(path).map_err(failed)?;
    let before = match fs::metadata(&target) {
        Ok(before) if before.is_file() => Some(before),
        Ok(_) => {
            let reason = "it is there and no regular file; give the name of one";
            return Err(failed(io::Error::other(reason)).into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error).into()),
    };
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (file, name) = aside(folder).map_err(failed)?;
    let (filled, file) = write(file, path, fill)?;
    if let Some(before) = before {
        // Only root may give a file away; whoever else writes has it then.
        let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
        file.set_permissions(before.permissions()).map_err(failed)?;
    }
    publish(&file, name, folder, &target).map_err(failed)?;
    Ok((filled, file))
}

/// Writes an archive of what `fill` adds to a file without a name, in the folder for temporary files, and gives that.
///
/// # Errors
/// Those of `fill`, and where the file cannot be written.
pub fn draft<T, E: From<Error>>(
    fill: impl FnOnce(&mut ArchiveFile) -> Result<T, E>,
) -> Result<(T, File), E> {
    let file = tempfile::tempfile().map_err(|source| Error::Spool { source })?;
    write(file, &std::env::temp_dir(), fill)
}

fn write<T, E: From<Error>>(
    file: File,
    path: &Path,
    fill: impl FnOnce(&mut ArchiveFile) -> Result<T, E>,
) -> Result<(T, File), E> {
    let draft = Draft {
        file,
        path: path.into(),
    };
    let mut archive = Archive::new(BufWriter::new(draft))?;
    let filled = fill(&mut archive)?;
    let file = archive.finish()?.into_inner();
    let mut file = file.map_err(|error| Error::Write(error.into_error()))?.file;
    file.rewind().map_err(Error::Write)?;
    Ok((filled, file))
}

/// Where symbolic links lead, the last of them perhaps to nothing.
fn target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            // No link; what is wrong with it otherwise is found when it is written.
            Err(_) => return Ok(path),
        }
    }
    Err(Errno::LOOP.into())
}

/// A new file in `folder` that has no name, so that nothing is left where this process is killed; or one with a name, on a file
/// system that wants one.
fn aside(folder: &Path) -> io::Result<(File, Option<TempPath>)> {
    let mode = Mode::from_raw_mode(0o666);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, folder, flags, mode) {
        Ok(file) => Ok((file.into(), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let named = tempfile::Builder::new()
                .permissions(Permissions::from_mode(mode.as_raw_mode()))
                .tempfile_in(folder)?;
            let (file, name) = named.into_parts();
            Ok((file, Some(name)))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Puts the file that [`aside`] made in `folder` in the place of `target`.
fn publish(file: &File, name: Option<TempPath>, folder: &Path, target: &Path) -> io::Result<()> {
    let name = match name {
        Some(name) => name,
        None => {
            // The way that is open to everybody (open(2), O_TMPFILE).
            let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
            let link = |path: &Path| {
                let linked = linkat(CWD, &*itself, CWD, path, AtFlags::SYMLINK_FOLLOW);
                linked.map_err(io::Error::from)
            };
            tempfile::Builder::new()
                .make_in(folder, link)?
                .into_temp_path()
        }
    };
    name.persist(target).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image(path: &Path) -> Result<Saved, Error> {
        Image::default().save(&"app:1".parse().unwrap(), path)
    }

    fn names(folder: &Path) -> Vec<String> {
        let found = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = found
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_archive_comes_in_the_place_of_no_device() {
        let folder = tempfile::tempdir().unwrap();
        // A socket stands for whatever is no file.
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        for path in [&socket, &link] {
            let error = image(path).unwrap_err().to_string();
            assert!(error.contains("regular file"), "{error}");
        }
    }

    #[test]
    fn a_file_that_was_there_keeps_its_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.tar");
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        image(&path).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.mode() & 0o7777, 0o640);
        assert_eq!((after.uid(), after.gid()), (1234, 4321));
        assert!(after.len() > 1000);
        assert_eq!(names(folder.path()), ["app.tar"]);
    }

    #[test]
    fn links_are_followed_also_to_what_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        symlink("second", path("first")).unwrap();
        symlink(path("target.tar"), path("second")).unwrap();
        for _ in 0..2 {
            image(&path("first")).unwrap();
            assert!(path("target.tar").symlink_metadata().unwrap().is_file());
            assert!(path("first").is_symlink() && path("second").is_symlink());
        }
        symlink("round", path("round")).unwrap();
        let error = image(&path("round")).unwrap_err();
        assert!(matches!(error, Error::Save { .. }), "{error}");
        assert_eq!(
            names(folder.path()),
            ["first", "round", "second", "target.tar"]
        );
    }

    #[test]
    fn nothing_stays_of_what_is_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.tar");
        let failed: Result<((), File), Error> = save(&path, |_| {
            // Were this process killed here, nothing would stay.
            assert!(names(folder.path()).is_empty());
            Err(Error::NoImage)
        });
        assert!(matches!(failed, Err(Error::NoImage)));
        assert!(names(folder.path()).is_empty());
    }
}
