//! What a container with a user namespace takes from the host: bind mounts and namespaces.
//!
//! libcontainer (0.7) opens the source of a bind mount, and the file of a namespace, as the
//! container's root, who may be nobody special to the host: engines keep them (a pod's /dev/shm, its
//! hosts file, its network) below folders that only the host's root may enter. And it maps no ids. So
//! they are mounted again, in the bundle and with their ids mapped, in a mount namespace of the helper's
//! that the container's is copied from and that ends with the helper.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

use crate::bundle::mount_point;
use crate::idmap::{self, IdMap};
use crate::mounts::{has, is_bind};
use crate::users::table;

/// The options that ask for mapped ids, of the mount alone or of those below it too, with the
/// container's own mappings where the mount has none (OCI runtime spec, "Linux mount options").
const IDMAP: &str = "idmap";
const RIDMAP: &str = "ridmap";

/// Mounts the sources of the bind mounts in `spec`, and the files of namespaces, anew where the
/// container's root can reach them, with their ids mapped where that is asked for, and has `spec` name them there. Nothing is done for
/// a container that needs none of it; else this process gets a mount namespace of its own, so the root
/// file system has to be mounted before.
///
/// # Errors
/// Which mount, and why not.
pub(crate) fn prepare(spec: &mut Spec, bundle: &Path) -> Result<(), String> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let of_container = match mapped(&mounts) {
        false if !has_users(spec) => return Ok(()),
        _ => spec.linux().as_ref().map(|linux| {
            let (users, groups) = (linux.uid_mappings(), linux.gid_mappings());
            (users.clone(), groups.clone())
        }),
    };
    let error = |reason: &dyn std::fmt::Display| format!("preparing the bind mounts: {reason}");
    unshare(CloneFlags::CLONE_NEWNS).map_err(|reason| error(&reason))?;
    // What is mounted from here on is nobody else's; what others mount is seen still.
    let slaves = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slaves, None::<&str>)
        .map_err(|reason| error(&reason))?;
    let folder = mount_point(bundle).with_extension("binds");
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&folder)
        .map_err(|reason| error(&reason))?;
    for (at, mount) in mounts.iter_mut().enumerate() {
        let place = folder.join(at.to_string());
        let destination = mount.destination().display().to_string();
        again(mount, &place, bundle, of_container.as_ref())
            .map_err(|reason| format!("preparing the mount on {destination}: {reason}"))?;
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        for namespace in &mut namespaces {
            let kind = namespace.typ();
            let Some(path) = namespace
                .path()
                .as_deref()
                .filter(|path| !path.starts_with("/proc"))
            else {
                continue;
            };
            let place = folder.join(kind.to_string());
            let again = mount_again(&idmap::copy(path, false)?, path, &place);
            again.map_err(|reason| format!("preparing the {kind} namespace: {reason}"))?;
            namespace.set_path(Some(place));
        }
        linux.set_namespaces(Some(namespaces));
    }
    Ok(())
}

type Mappings = (Option<Vec<LinuxIdMapping>>, Option<Vec<LinuxIdMapping>>);

/// Whether one of `mounts` is to have its ids mapped.
fn mapped(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        mount.uid_mappings().is_some()
            || mount.gid_mappings().is_some()
            || has(mount, IDMAP)
            || has(mount, RIDMAP)
    })
}

fn has_users(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// Mounts the source of `mount` on `place` if it is a bind mount.
fn again(
    mount: &mut Mount,
    place: &Path,
    bundle: &Path,
    of_container: Option<&Mappings>,
) -> Result<(), String> {
    let map = id_map(mount, of_container)?;
    let recursive = has(mount, "rbind");
    if !is_bind(mount) {
        return match map {
            None => Ok(()),
            Some(_) => Err("only bind mounts can have their ids mapped".to_owned()),
        };
    }
    let source = mount.source().clone().ok_or("it has no source")?;
    let source = bundle.join(source);
    let copy = match map {
        None => idmap::copy(&source, recursive),
        Some(map) => map.copy(&source, recursive, has(mount, RIDMAP)),
    }?;
    mount_again(&copy, &source, place)?;
    let options = mount.options().iter().flatten();
    let options: Vec<String> = options
        .filter(|option| ![IDMAP, RIDMAP].contains(&option.as_str()))
        .cloned()
        .collect();
    mount
        .set_source(Some(PathBuf::from(place)))
        .set_options(Some(options))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    Ok(())
}

/// What `mount` wants its ids mapped by, if it does.
fn id_map(mount: &Mount, of_container: Option<&Mappings>) -> Result<Option<IdMap>, String> {
    let own = (mount.uid_mappings().clone(), mount.gid_mappings().clone());
    let (users, groups) = match (&own, of_container) {
        ((None, None), _) if !has(mount, IDMAP) && !has(mount, RIDMAP) => return Ok(None),
        ((None, None), Some(of_container)) => of_container,
        _ => &own,
    };
    Ok(Some(IdMap {
        users: table("uidMappings", users.as_ref())?,
        groups: table("gidMappings", groups.as_ref())?,
    }))
}

/// Mounts `copy`, which is of `source`, on `place`, a folder or file that is made for it.
fn mount_again(copy: &OwnedFd, source: &Path, place: &Path) -> Result<(), String> {
    let make = || match fs::metadata(source)?.is_dir() {
        true => fs::create_dir(place),
        false => File::create_new(place).map(drop),
    };
    match make() {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("making {}: {error}", place.display()))
        }
        _ => idmap::attach(copy, place),
    }
}
