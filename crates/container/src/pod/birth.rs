//! The helper's part: making what a pod has.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::Pid;

use super::namespace::{IPC, Kind, NET, PID, USER, UTS};
use super::{Pod, init, namespace};
use crate::holder::Holder;
use crate::{message, rootfs, sys};

/// What fits into the pod's file system, which is above all its /dev/shm: the size of one with a
/// pause container.
const SIZE: &str = "mode=755,size=64m";

const NOTHING: Option<&str> = None;

/// Makes the pod's files and namespaces.
pub(crate) fn make(pod: &Pod) -> Result<(), String> {
    let folder = pod.folder();
    let made = make_files(pod, &folder)
        .map_err(|error| format!("making the pod's files in {}: {error}", folder.display()))
        .and_then(|()| make_namespaces(pod));
    if made.is_err()
        && let Err(leftover) = rootfs::unmount(&folder)
    {
        log::warn!("{leftover}");
    }
    made
}

fn make_files(pod: &Pod, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pod"), folder, Some("tmpfs"), flags, Some(SIZE))?;
    // What is bound below is nobody else's, and goes when it is unmounted here.
    mount(NOTHING, folder, NOTHING, MsFlags::MS_PRIVATE, NOTHING)?;
    fs::create_dir(folder.join("ns"))?;

    let name = match &pod.hostname {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    let resolv_conf = match &pod.resolv_conf {
        Some(text) => text.clone().into_bytes(),
        None => read_if_there("/etc/resolv.conf")?,
    };
    let (uid, gid) = pod.users.unwrap_or_default();
    let own = |path: &Path| chown(path, Some(uid), Some(gid));
    for (file, text) in [
        ("hostname", format!("{name}\n").into_bytes()),
        ("hosts", read_if_there("/etc/hosts")?),
        ("resolv.conf", resolv_conf),
    ] {
        let file = folder.join(file);
        fs::write(&file, text)?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        own(&file)?;
    }
    if pod.ipc {
        let shm = folder.join("shm");
        fs::create_dir(&shm)?;
        // As /tmp: everyone's, and what is in it belongs to who made it.
        fs::set_permissions(&shm, Permissions::from_mode(0o1777))?;
        own(&shm)?;
    }
    Ok(())
}

fn read_if_there(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

fn make_namespaces(pod: &Pod) -> Result<(), String> {
    let (holder, _) = Holder::spawn(|| namespace::enter_new(pod).map(|()| None))?;
    for (kind, has) in [
        (IPC, pod.ipc),
        (UTS, pod.hostname.is_some()),
        (USER, pod.users.is_some()),
    ] {
        if has {
            bind(pod, &kind, &holder, kind.name)?;
        }
    }
    Ok(())
}

/// Binds the namespace that `holder` has under `name` to where the pod keeps those of this kind.
fn bind(pod: &Pod, kind: &Kind, holder: &Holder, name: &str) -> Result<(), String> {
    let from = format!("/proc/{}/ns/{name}", holder.pid);
    let to = pod.namespace(kind.name);
    let bound = File::create(&to).and_then(|_| {
        mount(Some(&*from), &to, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(Into::into)
    });
    bound.map_err(|error: io::Error| {
        let _ = fs::remove_file(&to);
        format!("keeping the pod's {}: {error}", kind.name)
    })
}

/// Makes the pod's pid namespace; returns its init, which is a child of the daemon, and a pidfd of
/// it.
pub(crate) fn make_pid_namespace(pod: &Pod) -> Result<(i32, OwnedFd), String> {
    let error = |error: io::Error| format!("the pod's init: {error}");
    let (ours, theirs) = message::pair().map_err(error)?;
    let (holder, init) = Holder::spawn(|| {
        enter_pods(pod)?;
        PID.leave()?;
        clone_init(&ours, &theirs).map(Some)
    })?;
    drop(theirs);
    match message::receive::<Result<(), String>>(&ours).map_err(error)? {
        Some((ready, _)) => ready?,
        None => return Err("the pod's init died".to_owned()),
    }
    bind(pod, &PID, &holder, "pid_for_children")?;
    // Without this word it ends.
    message::send(&ours, &(), &[]).map_err(error)?;
    init.ok_or_else(|| "the pod's init has no pidfd".to_owned())
}

/// Moves this process into the pod's namespaces.
fn enter_pods(pod: &Pod) -> Result<(), String> {
    // Opened with the rights of here.
    let open = |kind: Kind| match File::open(pod.namespace(kind.name)) {
        Ok(file) => Ok(Some((kind, file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("opening the pod's {}: {error}", kind.name)),
    };
    let others = [open(IPC)?, open(UTS)?];
    let network = namespace::open_network(pod)?;
    namespace::enter_users(network.as_ref(), pod)?;
    for (kind, file) in others.into_iter().flatten() {
        kind.enter(file)?;
    }
    network.map_or(Ok(()), |network| NET.enter(network))
}

fn clone_init(ours: &OwnedFd, theirs: &OwnedFd) -> Result<(Pid, OwnedFd), String> {
    match sys::clone_sibling() {
        Ok(Some(init)) => Ok(init),
        Ok(None) => init::run(ours, theirs),
        Err(error) => Err(format!("the pod's init: {error}")),
    }
}
