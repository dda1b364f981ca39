//! The process's working directory. It is made where it is missing, as runc does: as the container's root.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, chdir, getcwd, setfsgid, setfsuid};
use oci_spec::runtime::{Mount, Process};
use pathrs::Root;
use pathrs::error::ErrorKind;

use crate::bundle::Bundle;
use crate::mounts::{has, is_bind};
use crate::paths;

/// Writes that of `process` as the container's root has it.
///
/// # Errors
/// It is relative, to nothing.
pub(crate) fn settle(process: &mut Process) -> Result<(), String> {
    let cwd = process.cwd();
    if cwd.is_relative() && !cwd.as_os_str().is_empty() {
        return Err(format!(
            "the working directory must be an absolute path, and is {cwd:?}"
        ));
    }
    process.set_cwd(paths::clean(cwd));
    Ok(())
}

/// Enters it, and makes sure that it is one of the container's. As the process's user, as who this process is, or else as root: a share of
/// another machine may let in one of them alone.
///
/// # Errors
/// chdir(2)'s, in words.
pub(crate) fn enter(cwd: &Path) -> Result<(), String> {
    let error = |error: Errno| {
        let reason = error.desc();
        format!("entering the working directory {}: {reason}", cwd.display())
    };
    let entered = chdir(cwd).or_else(|reason| match reason {
        Errno::EACCES | Errno::EPERM => {
            let (user, group) = (setfsuid(Uid::from_raw(0)), setfsgid(Gid::from_raw(0)));
            let entered = chdir(cwd);
            setfsgid(group);
            setfsuid(user);
            entered
        }
        _ => Err(reason),
    });
    entered.map_err(error)?;
    let reached = getcwd().map_err(error)?;
    if reached.is_absolute() {
        Ok(())
    } else {
        Err(error(Errno::ENOENT))
    }
}

/// Makes it in the image, or in the volume that it is in. Returns whether it may be in another mount, which only the container
/// has, as where a link leads there: [`make_inside`] is for that.
pub(crate) fn make(bundle: &Bundle) -> bool {
    let Some(cwd) = bundle.process().map(|process| process.cwd()) else {
        return false;
    };
    if cwd == Path::new("/") {
        return false;
    }
    let mounts = bundle.spec.mounts().iter().flatten();
    let covering = mounts
        .filter(|mount| cwd.starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().components().count());
    match covering {
        None => make_below(bundle, &bundle.rootfs, cwd),
        Some(mount) => match (volume(mount), cwd.strip_prefix(mount.destination())) {
            (Some(source), Ok(rest)) => make_below(bundle, source, rest),
            _ => return true,
        },
    }
    .is_err()
}

/// Makes it in the root file system with all that is mounted there: for a process that is [inside] of the container's mount
/// namespace.
///
/// [inside]: crate::mounts::inside
///
/// # Errors
/// Why it cannot be made.
pub(crate) fn make_inside(bundle: &Bundle) -> Result<(), String> {
    match bundle.process() {
        Some(process) => make_below(bundle, &bundle.rootfs, process.cwd()),
        None => Ok(()),
    }
}

/// The folder that is bound there to be written into, if it is one.
fn volume(mount: &Mount) -> Option<&Path> {
    let source = mount.source().as_deref().filter(|source| source.is_dir());
    source.filter(|_| is_bind(mount) && !has(mount, "ro") && !has(mount, "rro"))
}

/// What tells that there is no such folder, and cannot be. For any other reason it may be there, on a share that keeps root out
/// for one, and entering it will tell.
const HOPELESS: [i32; 5] = [
    libc::ENOTDIR,
    libc::EROFS,
    libc::ENOSPC,
    libc::EDQUOT,
    libc::ENAMETOOLONG,
];

/// Makes `cwd` below `above`, whatever symbolic links that holds.
fn make_below(bundle: &Bundle, above: &Path, cwd: &Path) -> Result<(), String> {
    let (user, group) = bundle.root();
    let made = Root::open(above).and_then(|root| {
        let (user, group) = (setfsuid(user), setfsgid(group));
        let made = root.mkdir_all(cwd, &Permissions::from_mode(0o755));
        setfsgid(group);
        setfsuid(user);
        made
    });
    let Err(error) = made else {
        return Ok(());
    };
    let place = bundle.process().map_or(cwd, |process| process.cwd());
    let told = format!("making the working directory {}", place.display());
    match error.kind() {
        ErrorKind::OsError(Some(errno)) if HOPELESS.contains(&errno) => {
            Err(format!("{told}: {}", Errno::from_raw(errno).desc()))
        }
        _ => {
            log::debug!("{told}: {error}");
            Ok(())
        }
    }
}
