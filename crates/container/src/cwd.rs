//! The process's working directory, which is made where it is missing, as runc does: as the container's root. Where it cannot be
//! made (on a read-only file system, say), entering it fails and tells.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{setfsgid, setfsuid};
use oci_spec::runtime::Mount;
use pathrs::Root;

use crate::bundle::Bundle;
use crate::mounts::{has, is_bind};

/// Makes it in the image, or in the volume that it is in. Returns whether it is in another mount, which only the container has:
/// [`make_inside`] is for that.
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
    false
}

/// Makes it in the root file system with all that is mounted there: for a process that is [inside] of the container's mount
/// namespace.
///
/// [inside]: crate::mounts::inside
pub(crate) fn make_inside(bundle: &Bundle) {
    if let Some(process) = bundle.process() {
        make_below(bundle, &bundle.rootfs, process.cwd());
    }
}

/// The folder that is bound there to be written into, if it is one.
fn volume(mount: &Mount) -> Option<&Path> {
    let source = mount.source().as_deref().filter(|source| source.is_dir());
    source.filter(|_| is_bind(mount) && !has(mount, "ro") && !has(mount, "rro"))
}

/// Makes `cwd` below `above`, whatever symbolic links that holds.
fn make_below(bundle: &Bundle, above: &Path, cwd: &Path) {
    let (user, group) = bundle.root();
    let made = Root::open(above).and_then(|root| {
        let (user, group) = (setfsuid(user), setfsgid(group));
        let made = root.mkdir_all(cwd, &Permissions::from_mode(0o755));
        setfsgid(group);
        setfsuid(user);
        made
    });
    if let Err(error) = made {
        log::debug!("making the working directory {}: {error}", cwd.display());
    }
}
