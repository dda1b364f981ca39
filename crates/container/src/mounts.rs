//! What of a container's mounts libcontainer (0.7) takes that it should not, and what it cannot do.
//!
//! It always fills /dev with devices and links, also where the host's own is bound there. It is given another to fill, in whose
//! place the bound one then comes, with what is mounted below. And it gives all mounts the propagation of the root, whatever
//! theirs is to be. Both is done by the helper, in the container's mount namespace, when all mounts are there and the
//! container's init is still outside of them.

use std::env;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::syscall::linux::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use oci_spec::runtime::{Mount, Spec};
use pathrs::Root;
use pathrs::flags::OpenFlags;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::{idmap, paths};

/// What may be mounted inside of /proc, as runc has it: files that tell of the machine.
const INSIDE_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Makes sure that /proc is the kernel's. Relative sources of mounts are below `bundle`.
///
/// # Errors
/// Which mount would be in its place, or inside.
pub(crate) fn check(spec: &Spec, bundle: &Path) -> Result<(), String> {
    for mount in spec.mounts().iter().flatten() {
        let place = paths::clean(mount.destination());
        let source = bundle.join(mount.source().as_deref().unwrap_or(Path::new("")));
        let is_proc = place == Path::new("/proc");
        // A source that is missing is told of when it is mounted.
        let is_other = |source: &Path| {
            statfs(source).is_ok_and(|system| system.filesystem_type() != PROC_SUPER_MAGIC)
        };
        let reason = if is_proc && is_bind(mount) && is_other(&source) {
            "it is not of type proc"
        } else if !is_proc
            && place.starts_with("/proc")
            && !INSIDE_PROC
                .iter()
                .any(|allowed| place == Path::new(allowed))
        {
            "it is inside /proc"
        } else {
            continue;
        };
        return Err(format!(
            "{:?} cannot be mounted on {place:?} because {reason}",
            source
        ));
    }
    Ok(())
}

/// Does `work` in the mount namespace of the container's `init`, whose root is still the host's. This process is in `bundle`
/// afterwards.
///
/// # Errors
/// That of `work`, or the kernel's reason not to go there or back.
pub(crate) fn inside(
    init: i32,
    bundle: &Path,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let namespace = |path: String| {
        let opened = File::open(&path);
        opened.map_err(|error| format!("opening {path}: {error}"))
    };
    let home = namespace("/proc/self/ns/mnt".to_owned())?;
    let container = namespace(format!("/proc/{init}/ns/mnt"))?;
    let enter = |namespace: &File| {
        let entered = setns(namespace, CloneFlags::CLONE_NEWNS);
        entered.map_err(|error| format!("entering a mount namespace: {error}"))
    };
    enter(&container)?;
    let done = work();
    enter(&home)?;
    let back = env::set_current_dir(bundle);
    done.and(back.map_err(|error| format!("entering the bundle: {error}")))
}

/// What is to be done once libcontainer has made the mounts.
#[derive(Default)]
pub(crate) struct Late {
    /// What is bound on /dev.
    devices: Option<Mount>,
    /// Where something is mounted below that.
    below: Vec<PathBuf>,
    /// The propagation of mounts that is not the root's.
    propagation: Vec<(PathBuf, MsFlags)>,
}

impl Late {
    /// Takes it out of `spec`.
    pub(crate) fn take_over(spec: &mut Spec) -> Self {
        let mut late = Self::default();
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let own: Vec<(PathBuf, MsFlags)> = mounts
            .iter()
            .filter_map(|mount| Some((mount.destination().clone(), propagation(mount)?)))
            .collect();
        for mount in &mut mounts {
            if mount.destination() == Path::new("/dev") && is_bind(mount) {
                late.devices = Some(mount.clone());
                late.below.clear();
                let options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
                mount
                    .set_typ(Some("tmpfs".to_owned()))
                    .set_source(Some("tmpfs".into()))
                    .set_options(Some(options.map(str::to_owned).to_vec()));
            } else if late.devices.is_some() && mount.destination().starts_with("/dev") {
                late.below.push(mount.destination().clone());
            }
        }
        let of_root = spec.linux().as_ref();
        let of_root = of_root.and_then(|linux| linux.rootfs_propagation().clone());
        let asks = |flags: MsFlags| own.iter().any(|(_, own)| own.intersects(flags));
        let follows = asks(MsFlags::MS_SHARED | MsFlags::MS_SLAVE);
        let is_private = of_root.as_deref() == Some("private");
        if asks(MsFlags::MS_SHARED) || (asks(MsFlags::MS_PRIVATE) && (follows || !is_private)) {
            late.propagation = own;
        }
        if late.devices.is_some() {
            spec.set_mounts(Some(mounts));
        }
        late
    }

    /// Whether there is anything to do.
    pub(crate) fn is_needed(&self) -> bool {
        self.devices.is_some() || !self.propagation.is_empty()
    }

    /// Does it, to the mounts on `rootfs`, [`inside`] of the container's mount namespace. Relative sources are below `bundle`.
    ///
    /// # Errors
    /// Which step failed and why.
    pub(crate) fn carry_out(&self, rootfs: &Path, bundle: &Path) -> Result<(), String> {
        let root = Root::open(rootfs).map_err(|error| error.to_string())?;
        if let Some(devices) = &self.devices {
            self.replace(&root, devices, bundle)
                .map_err(|reason| format!("mounting on \"/dev\": {reason}"))?;
        }
        for (path, flags) in &self.propagation {
            let place = place(&root, path)?;
            mount(
                None::<&str>,
                &*itself(&place),
                None::<&str>,
                *flags,
                None::<&str>,
            )
            .map_err(|error| format!("setting the propagation of {path:?}: {error}"))?;
        }
        Ok(())
    }

    /// Replaces the /dev that libcontainer has made by the `bound` one.
    fn replace(&self, root: &Root, bound: &Mount, bundle: &Path) -> Result<(), String> {
        let copy_of = |path: &PathBuf| {
            let place = place(root, path)?;
            idmap::copy(Path::new(&itself(&place)), true)
        };
        let below: Vec<OwnedFd> = self.below.iter().map(copy_of).collect::<Result<_, _>>()?;
        let source = bound.source().as_deref().ok_or("it has no source")?;
        let copy = idmap::copy(&bundle.join(source), has(bound, "rbind"))?;
        // What is mounted below must not come to the host, whatever the bound one is to be in the end.
        let apart = MsFlags::MS_SLAVE.bits();
        for (all, attr_set, propagation) in [(true, 0, apart), (false, attributes(bound), 0)] {
            let attributes = MountAttr {
                attr_set,
                attr_clr: 0,
                propagation,
                userns_fd: 0,
            };
            idmap::set_attributes(&copy, all, &attributes)
                .map_err(|error| format!("setting its options: {error}"))?;
        }
        let dev = Path::new("/dev");
        umount2(&*itself(&place(root, dev)?), MntFlags::MNT_DETACH)
            .map_err(|error| format!("taking libcontainer's away: {error}"))?;
        put(&copy, &place(root, dev)?).map_err(|error| error.to_string())?;
        for (path, mount) in self.below.iter().zip(&below) {
            let place = match place(root, path) {
                Ok(place) => place,
                // As runc does: in what is bound.
                Err(_) => make_place(root, path, mount)?,
            };
            put(mount, &place).map_err(|error| format!("mounting {path:?} again: {error}"))?;
        }
        Ok(())
    }
}

/// What is at `path` in `root`, whatever symbolic links lead there.
fn place(root: &Root, path: &Path) -> Result<OwnedFd, String> {
    let found = root.resolve(path);
    let found = found.map_err(|error| format!("looking for {path:?}: {error}"))?;
    Ok(found.into())
}

/// Makes what `mount` can be put on at `path`, a folder or a file as that is.
fn make_place(root: &Root, path: &Path, mount: &OwnedFd) -> Result<OwnedFd, String> {
    let folders = Permissions::from_mode(0o755);
    let is_folder = || -> io::Result<bool> {
        let copy = File::from(mount.try_clone()?);
        Ok(copy.metadata()?.is_dir())
    };
    let make = || -> io::Result<()> {
        if is_folder()? {
            root.mkdir_all(path, &folders).map_err(io::Error::other)?;
            return Ok(());
        }
        if let Some(above) = path.parent() {
            root.mkdir_all(above, &folders).map_err(io::Error::other)?;
        }
        let flags = OpenFlags::O_WRONLY | OpenFlags::O_EXCL | OpenFlags::O_NOFOLLOW;
        root.create_file(path, flags, &Permissions::from_mode(0o644))
            .map_err(io::Error::other)?;
        Ok(())
    };
    make().map_err(|error| format!("making {path:?}: {error}"))?;
    place(root, path)
}

/// A path to what is open, for calls that take no descriptors.
fn itself(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

/// Puts a mount on what is at `place`.
fn put(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}

/// Whether `mount` has this option.
pub(crate) fn has(mount: &Mount, option: &str) -> bool {
    let options = mount.options().as_ref();
    options.is_some_and(|options| options.iter().any(|given| given == option))
}

/// Whether `mount` is of a file or folder of the host's.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    has(mount, "bind") || has(mount, "rbind") || mount.typ().as_deref() == Some("bind")
}

/// Whether a mount asks to get what is mounted below its source later, or not to; `None` where it says nothing.
pub(crate) fn follows(mount: &Mount) -> Option<bool> {
    let flags = propagation(mount)?;
    Some(flags.intersects(MsFlags::MS_SHARED | MsFlags::MS_SLAVE))
}

/// The propagation that a mount asks for, by the last of such options (mount(8)).
fn propagation(mount: &Mount) -> Option<MsFlags> {
    let of = |option: &String| {
        let (kind, depth) = match option.strip_prefix('r') {
            Some(kind) => (kind, MsFlags::MS_REC),
            None => (option.as_str(), MsFlags::empty()),
        };
        let flag = match kind {
            "shared" => MsFlags::MS_SHARED,
            "slave" => MsFlags::MS_SLAVE,
            "private" => MsFlags::MS_PRIVATE,
            "unbindable" => MsFlags::MS_UNBINDABLE,
            _ => return None,
        };
        Some(flag | depth)
    };
    mount.options().iter().flatten().filter_map(of).next_back()
}

/// The attributes (mount_setattr(2)) that a bind mount asks for.
fn attributes(mount: &Mount) -> u64 {
    let named = [
        ("ro", MOUNT_ATTR_RDONLY),
        ("nosuid", MOUNT_ATTR_NOSUID),
        ("nodev", MOUNT_ATTR_NODEV),
        ("noexec", MOUNT_ATTR_NOEXEC),
    ];
    let asked = named.iter().filter(|(name, _)| has(mount, name));
    asked.fold(0, |all, (_, flag)| all | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(mounts: &[(&str, &str, &str, &[&str])]) -> Spec {
        let mounts = mounts.iter().map(|(destination, kind, source, options)| {
            let mut mount = Mount::default();
            mount
                .set_destination(destination.into())
                .set_typ(Some((*kind).to_owned()))
                .set_source(Some(source.into()))
                .set_options(Some(options.iter().map(ToString::to_string).collect()));
            mount
        });
        let mut spec = Spec::default();
        spec.set_mounts(Some(mounts.collect()));
        if let Some(linux) = spec.linux_mut() {
            linux.set_rootfs_propagation(None);
        }
        spec
    }

    #[test]
    fn proc_is_the_kernels() {
        let checked = |mount| check(&spec(&[mount]), Path::new("/"));
        checked(("/proc", "proc", "proc", &[])).unwrap();
        checked(("/proc", "none", "/proc", &["rbind"])).unwrap();
        checked(("/proc/meminfo", "bind", "/x", &["bind"])).unwrap();
        checked(("/process", "bind", "/x", &["bind"])).unwrap();
        checked(("/proc", "none", "proc", &["rbind"])).unwrap();
        for wrong in [
            ("/proc", "bind", "/tmp", &["rbind"][..]),
            ("/proc/x", "tmpfs", "tmpfs", &[]),
            ("/proc/sys", "bind", "/x", &["bind"]),
            ("/absent/../proc", "bind", "/tmp", &["rbind"]),
            ("/../proc/sys", "bind", "/x", &["bind"]),
            ("proc", "bind", "/tmp", &["rbind"]),
        ] {
            checked(wrong).unwrap_err();
        }
    }

    #[test]
    fn only_what_libcontainer_gets_wrong_is_taken_over() {
        let late = |mounts: &[(&str, &str, &str, &[&str])]| Late::take_over(&mut spec(mounts));
        let usual = ("/dev", "tmpfs", "tmpfs", &["nosuid"][..]);
        let slave = ("/a", "bind", "/a", &["rbind", "rslave"][..]);
        let private = ("/b", "bind", "/b", &["rprivate", "rbind"][..]);
        let kept = [usual, slave];
        assert!(!late(&kept).is_needed());
        let own = [usual, slave, private];
        assert_eq!(late(&own).propagation.len(), 2);
        let mut spec = spec(&[
            ("/dev", "bind", "/dev", &["rbind", "ro", "rprivate"]),
            ("/dev/shm", "tmpfs", "shm", &[]),
        ]);
        let late = Late::take_over(&mut spec);
        assert_eq!(late.below, [Path::new("/dev/shm")]);
        assert_eq!(late.propagation.len(), 1);
        assert_eq!(
            late.devices.as_ref().map(attributes),
            Some(MOUNT_ATTR_RDONLY)
        );
        let mounts = spec.mounts().as_ref().unwrap();
        assert!(!is_bind(&mounts[0]) && mounts.len() == 2);
    }
}
