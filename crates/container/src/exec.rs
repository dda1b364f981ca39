//! A further process in a running container: from a helper of the zygote to its program.
//!
//! libcontainer's own builder for this knows no user namespaces and leaves out the seccomp filter;
//! the steps here are those of its init where the two do the same, made of the same parts.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

use libcontainer::config::PersonalityDomain;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{apparmor, capabilities};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::{set_dumpable, set_keepcaps};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxPersonalityDomain, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::adapt;
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::confinement::Confinement;
use crate::environment;
use crate::guest::Guests;
use crate::home;
use crate::keyring;
use crate::program::{Launcher, invocation};
use crate::stdio::Pty;
use crate::{cwd, limit, sys};

/// The process to add to a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The container's bundle, whose configuration says what holds for all its processes.
    pub bundle: std::path::PathBuf,
    /// The process (OCI runtime spec, `process`).
    pub process: Process,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The container's session keyring, as in [`Create::keyring`](crate::Create::keyring).
    pub keyring: Option<String>,
    /// The container's settings for guests, as in [`Create::guest`](crate::Create::guest).
    pub guest: String,
}

/// What has come of an [`Exec`].
pub(crate) struct Added {
    /// The process.
    pub(crate) pid: i32,
    /// A pidfd of it.
    pub(crate) handle: OwnedFd,
    /// The master of its terminal, if it has one.
    pub(crate) master: Option<OwnedFd>,
}

/// The namespaces of a container that setns(2) joins by the pidfd of its init, each with its file's
/// name (namespaces(7)); the user namespace only where it is another than this process's.
const NAMESPACES: [(CloneFlags, &str); 7] = [
    (CloneFlags::CLONE_NEWNS, "mnt"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
    // CLONE_NEWTIME, which nix does not name.
    (CloneFlags::from_bits_retain(0x80), "time"),
];

/// Carries out `request` for the container whose init is `init`, a pid here, and `init_handle`.
/// The answer will go to `reply_to`. From its return on the new process itself tells the daemon of its fate.
///
/// # Errors
/// Why there is no such process.
pub(crate) fn exec(
    mut request: Exec,
    init: i32,
    fds: Vec<OwnedFd>,
    guests: Rc<dyn Guests>,
    reply_to: RawFd,
) -> Result<Added, String> {
    let mut fds = fds.into_iter();
    let (Some(daemon), Some(init_handle)) = (fds.next(), fds.next()) else {
        return Err("exec came without its descriptors".to_owned());
    };
    let spec = Bundle::load(&request.bundle)
        .map_err(|error| error.to_string())?
        .spec;
    let process = &mut request.process;
    if let Some(init) = spec.process() {
        inherit(process, init);
    }
    adapt::limit_capabilities(process);
    adapt::privileges_are_a_yes_or_nothing(process);
    environment::settle(process)?;
    cwd::settle(process)?;
    let limit = limit::set_apart(process);
    keyring::join(request.keyring.as_deref())?;
    let syscall = create_syscall();
    // Its own matter: this process, which is none of the container's, is not to be seen there.
    let cgroup = Cgroup::of(init as u32)
        .and_then(|cgroup| cgroup.entry())
        .map_err(|error| error.to_string())?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("setting oom_score_adj to {score}: {error}"))?;
    }
    for rlimit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(rlimit)
            .map_err(|error| format!("setting the limit {}: {error}", rlimit.typ()))?;
    }
    // What is in the container already is not to look into a process that has more than it; execve(2) ends that.
    set_dumpable(false).map_err(|error| format!("hiding the process: {error}"))?;
    // The container's own /proc may be anything.
    let descriptors = fs::File::open("/proc/self/fd")
        .map_err(|error| format!("opening /proc/self/fd: {error}"))?;
    join_namespaces(init, &init_handle, syscall.as_ref())?;
    drop(init_handle);
    let terminal = if request.terminal {
        let user = Uid::from_raw(process.user().uid());
        Some(Pty::open(process, user, &descriptors)?)
    } else {
        None
    };
    drop(descriptors);
    // A process gets into a pid namespace only by birth.
    let born = sys::clone_sibling().map_err(|error| format!("cloning the process: {error}"))?;
    if let Some((pid, handle)) = born {
        return Ok(Added {
            pid: pid.as_raw(),
            handle,
            master: terminal.map(|terminal| terminal.master),
        });
    }
    let launcher = Launcher::new(guests, request.guest, daemon, reply_to);
    let run = || -> Result<std::convert::Infallible, String> {
        cgroup.enter().map_err(|error| error.to_string())?;
        setsid().map_err(|error| format!("starting a session: {error}"))?;
        match terminal {
            Some(Pty { terminal, master }) => {
                drop(master);
                take_terminal(&terminal)
            }
            None => take_streams(fds),
        }
        .map_err(|error| format!("taking its stdio: {error}"))?;
        become_user(&spec, &request.process, syscall.as_ref())?;
        // It may be a pipe that nobody writes into.
        let mut passwd = fs::File::options();
        passwd
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let has_home = home::add(&mut request.process, || passwd.open("/etc/passwd"));
        let program = launcher.resolve(&request.process)?;
        Err(launcher.run(
            program,
            invocation(&request.process)?,
            has_home,
            limit.as_ref(),
        ))
    };
    let Err(reason) = run();
    launcher.fail(reason);
    sys::exit_now(EXEC_FAILED)
}

/// What a process exits with that could not run its program; the daemon has been told why.
const EXEC_FAILED: i32 = 255;

/// Gives `process` what it leaves out and the container's own process has, as runc does.
fn inherit(process: &mut Process, of_container: &Process) {
    if process.capabilities().is_none() {
        process.set_capabilities(of_container.capabilities().clone());
    }
    if process
        .apparmor_profile()
        .as_deref()
        .is_none_or(str::is_empty)
    {
        process.set_apparmor_profile(of_container.apparmor_profile().clone());
    }
    if process.rlimits().as_deref().is_none_or(<[_]>::is_empty) {
        process.set_rlimits(of_container.rlimits().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(of_container.oom_score_adj());
    }
}

fn join_namespaces(init: i32, handle: &OwnedFd, syscall: &dyn Syscall) -> Result<(), String> {
    let error =
        |error: &dyn std::fmt::Display| format!("joining the container's namespaces: {error}");
    let user = |process: &str| -> io::Result<u64> {
        Ok(fs::metadata(Path::new("/proc").join(process).join("ns/user"))?.st_ino())
    };
    let ours = user("self").map_err(|reason| error(&reason))?;
    let theirs = user(&init.to_string()).map_err(|reason| error(&reason))?;
    // setns(2) refuses all where one is of a kind that this kernel was built without.
    let mut namespaces: CloneFlags = NAMESPACES
        .into_iter()
        .filter(|(_, name)| Path::new("/proc/self/ns").join(name).exists())
        .map(|(flag, _)| flag)
        .collect();
    if ours != theirs {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    setns(handle.as_fd(), namespaces).map_err(|reason| error(&reason))?;
    if ours != theirs {
        // Its root, whose ids are mapped, unlike the ones from outside.
        become_id(0, 0, syscall)?;
    }
    Ok(())
}

fn take_streams(mut fds: impl Iterator<Item = OwnedFd>) -> io::Result<()> {
    let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
        return Err(io::Error::other("they did not come along"));
    };
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    Ok(())
}

/// Makes `terminal` that of this process, which leads a session, and of what it starts.
fn take_terminal(terminal: &OwnedFd) -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    rustix::stdio::dup2_stdin(terminal)?;
    rustix::stdio::dup2_stdout(terminal)?;
    rustix::stdio::dup2_stderr(terminal)?;
    Ok(())
}

/// Takes on everything that sets `process` apart from this one, its privileges last.
fn become_user(spec: &Spec, process: &Process, syscall: &dyn Syscall) -> Result<(), String> {
    let linux = spec.linux().as_ref();
    if let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) {
        let domain = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
            LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
        };
        syscall
            .personality(domain)
            .map_err(|error| format!("setting the personality: {error}"))?;
    }
    if let Some(profile) = process.apparmor_profile() {
        apparmor::apply_profile(profile)
            .map_err(|error| format!("applying the AppArmor profile {profile:?}: {error}"))?;
    }
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_bits_truncate(mask));
    }
    set_groups(process)?;
    let (uid, gid) = (process.user().uid(), process.user().gid());
    become_id(uid, gid, syscall)?;
    syscall
        .close_range(0)
        .map_err(|error| format!("marking descriptors to be closed: {error}"))?;

    cwd::enter(process.cwd())?;
    Confinement::of(process, spec).put_on(syscall)
}

/// Becomes a user and group for good, with the permitted capabilities kept and effective.
pub(crate) fn become_id(uid: u32, gid: u32, syscall: &dyn Syscall) -> Result<(), String> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let become_them = || -> Result<(), Errno> {
        set_keepcaps(true)?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
        set_keepcaps(false)
    };
    become_them()
        .map_err(|error| error.to_string())
        .and_then(|()| {
            // setresuid(2) from root to another clears what is effective.
            capabilities::reset_effective(syscall).map_err(|error| error.to_string())
        })
        .map_err(|error| format!("becoming user {uid} and group {gid}: {error}"))
}

fn set_groups(process: &Process) -> Result<(), String> {
    let groups = process.user().additional_gids().clone().unwrap_or_default();
    let gids: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&gids) {
        // A user namespace may forbid it; then there are none to be rid of either.
        Err(error) if !gids.is_empty() => Err(format!("setting the groups {groups:?}: {error}")),
        _ => Ok(()),
    }
}
