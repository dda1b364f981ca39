//! How the compile worker gives up everything before it reads a module.
//!
//! The compiler is a large program that reads bytes from strangers. Should a module ever take it
//! over, this is what is left to it: the module, the file it writes to, processor time and memory,
//! both limited.
//!
//! There is no pid namespace, which would take a second process: without /proc, with its own user
//! id, and with kill(2), ptrace(2) and their kin refused, other processes are as far away.

use std::io;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, chdir, chroot, getppid, pivot_root, setgroups};

use crate::package::Job;

/// The worker's own user and group id. Nothing on a system should use it for anything else.
pub(crate) const WORKER_ID: u32 = 64_999;

/// The most memory that a compilation may use, in bytes.
pub(crate) const MAX_MEMORY: u64 = 4 << 30;

/// The most processor time that a compilation may take, in seconds, over all its threads.
pub(crate) const MAX_CPU_SECONDS: u64 = 600;

/// The most time that a compilation may take, in seconds, however little of a processor it gets.
pub(crate) const MAX_SECONDS: u64 = 1800;

/// The largest file that the worker may write, in bytes.
const MAX_OUTPUT: u64 = 4 << 30;

/// What could not be given up. Nothing must be compiled then.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub(crate) struct SandboxError {
    step: &'static str,
    source: io::Error,
}

/// Names the step that an error comes from.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, SandboxError>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError {
            step,
            source: io::Error::other(source),
        })
    }
}

/// Leaves the process with its three standard streams, one thread's memory and nothing else; with a
/// job also with its files, unpacked from standard input, to be read.
/// Must be called by root, with one thread, before anything is read but a job.
pub(crate) fn enter(job: Option<&Job>) -> Result<(), SandboxError> {
    let reads = job.is_some();
    let parent = getppid();
    close_descriptors().step("close file descriptors")?;
    offer_to_oom_killer().step("raise oom_score_adj")?;
    leave_namespaces()?;
    new_root(job)?;
    drop_privileges()?;
    limit_resources().step("set resource limits")?;
    die_with(parent)?;
    die_in_time(MAX_SECONDS).step("set a deadline")?;
    filter_system_calls(reads).step("install the seccomp filter")
}

/// Closes all but 0, 1 and 2.
fn close_descriptors() -> io::Result<()> {
    // SAFETY: this process has opened nothing yet; what it closes was inherited by mistake.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel take this process before any other when memory runs out.
fn offer_to_oom_killer() -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "1000")
}

fn leave_namespaces() -> Result<(), SandboxError> {
    for (namespace, step) in [
        (CloneFlags::CLONE_NEWNS, "leave the mount namespace"),
        (CloneFlags::CLONE_NEWNET, "leave the network namespace"),
        (CloneFlags::CLONE_NEWIPC, "leave the IPC namespace"),
        (CloneFlags::CLONE_NEWUTS, "leave the UTS namespace"),
        (CloneFlags::CLONE_NEWCGROUP, "leave the cgroup namespace"),
    ] {
        match unshare(namespace) {
            // A kernel built without this kind (unshare(2)): there is nothing of it to leave.
            Err(nix::Error::EINVAL) if namespace != CloneFlags::CLONE_NEWNS => {}
            result => result.step(step)?,
        }
    }
    Ok(())
}

/// Puts a read-only file system in the place of the whole tree: an empty one, or one with the files of a
/// job.
fn new_root(job: Option<&Job>) -> Result<(), SandboxError> {
    const NOWHERE: Option<&str> = None;
    mount(
        NOWHERE,
        "/",
        NOWHERE,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NOWHERE,
    )
    .step("make mounts private")?;
    let rights = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any folder will do that is surely there.
    let mount_root = |flags: MsFlags, size: &str| {
        let options = format!("{size},mode=0555");
        mount(
            Some("none"),
            "/proc",
            Some("tmpfs"),
            rights | flags,
            Some(options.as_str()),
        )
        .step("mount an empty root")
    };
    match job {
        None => mount_root(MsFlags::MS_RDONLY, "size=4k,nr_inodes=1")?,
        Some(job) => {
            mount_root(MsFlags::empty(), &format!("size={}", job.room()))?;
            job.unpack(Path::new("/proc")).step("copy its files")?;
            let flags = rights | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NOWHERE, "/proc", NOWHERE, flags, NOWHERE).step("keep its files")?;
        }
    }
    chdir("/proc").step("enter the empty root")?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).step("detach the old root")?,
        // The first root of an initramfs cannot be pivoted away from (pivot_root(2)).
        Err(nix::Error::EINVAL) => {
            mount(Some("."), "/", NOWHERE, MsFlags::MS_MOVE, NOWHERE)
                .step("move the empty root")?;
            chroot(".").step("enter the empty root")?;
        }
        Err(error) => Err(error).step("pivot to the empty root")?,
    }
    chdir("/").step("enter the empty root")
}

fn drop_privileges() -> Result<(), SandboxError> {
    caps::clear(None, caps::CapSet::Bounding).step("empty the capability bounding set")?;
    setgroups(&[]).step("drop supplementary groups")?;
    let gid = Gid::from_raw(WORKER_ID);
    nix::unistd::setresgid(gid, gid, gid).step("change the group id")?;
    let uid = Uid::from_raw(WORKER_ID);
    nix::unistd::setresuid(uid, uid, uid).step("change the user id")?;
    // Leaving user id 0 empties all but the inheritable set, unless securebits say otherwise.
    for set in [
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
        caps::CapSet::Inheritable,
        caps::CapSet::Ambient,
    ] {
        caps::clear(None, set).step("give up capabilities")?;
    }
    prctl::set_no_new_privs().step("set no_new_privs")?;
    prctl::set_dumpable(false).step("forbid being traced")
}

fn limit_resources() -> nix::Result<()> {
    for (resource, limit) in [
        (Resource::RLIMIT_DATA, MAX_MEMORY),
        // Also counts the module, the program and address space that is only reserved.
        (Resource::RLIMIT_AS, 2 * MAX_MEMORY),
        (Resource::RLIMIT_CPU, MAX_CPU_SECONDS),
        (Resource::RLIMIT_FSIZE, MAX_OUTPUT),
        (Resource::RLIMIT_NOFILE, 16),
        // Counted over all workers on the machine, whose threads are one a processor.
        (Resource::RLIMIT_NPROC, 4096),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_CORE, 0),
    ] {
        // A lower limit that is there already stays.
        let (_, hard) = getrlimit(resource)?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}

/// Has the kernel kill this process when the one that started it ends. Comes after the change of
/// user, which resets it (PR_SET_PDEATHSIG(2const)).
fn die_with(parent: Pid) -> Result<(), SandboxError> {
    prctl::set_pdeathsig(Signal::SIGKILL).step("tie this process to its parent")?;
    if getppid() != parent {
        return Err(io::Error::other("the parent has ended"))
            .step("tie this process to its parent");
    }
    Ok(())
}

/// Has the kernel kill this process after so many seconds. The timer cannot be stopped again: the calls
/// for it are not among the [`ALLOWED`], and nothing holds up its signal.
fn die_in_time(seconds: u64) -> io::Result<()> {
    // SAFETY: zero is a value of every field of these structures of numbers and pointers.
    let (mut event, mut after): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    after.it_value.tv_sec = seconds as libc::time_t;
    let mut timer = std::ptr::null_mut();
    // SAFETY: all pointers are to values that live until the calls have returned.
    let set = unsafe {
        libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0
            && libc::timer_settime(timer, 0, &after, std::ptr::null_mut()) == 0
    };
    match set {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// System calls that compiling needs: memory, threads of its own, and its open files.
const ALLOWED: &[&str] = &[
    "brk",
    "clock_gettime",
    "close",
    "exit",
    "exit_group",
    "fcntl",
    "fstat",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "prlimit64",
    "read",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "statx",
    "sysinfo",
    "write",
    "writev",
];

/// What an initialisation needs beside that: to look at the files of its root, to wait, and to know what it
/// has used.
const READING: &[&str] = &[
    "clock_nanosleep",
    "fadvise64",
    "getdents64",
    "getrusage",
    "openat",
    "openat2",
    "pread64",
    "preadv",
    "readlinkat",
    "readv",
];

fn filter_system_calls(reads: bool) -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    filter.set_act_badarch(ScmpAction::KillProcess)?;
    let reading = if reads { READING } else { &[] };
    for name in ALLOWED.iter().chain(reading) {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name(name)?)?;
    }
    // Threads of this process, and no other process.
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
    filter.add_rule_conditional(
        ScmpAction::Allow,
        ScmpSyscall::from_name("clone")?,
        &[ScmpArgCompare::new(
            0,
            ScmpCompareOp::MaskedEqual(thread),
            thread,
        )],
    )?;
    // A filter cannot see clone3's flags: libc uses clone where the kernel has no clone3.
    filter.add_rule(
        ScmpAction::Errno(libc::ENOSYS),
        ScmpSyscall::from_name("clone3")?,
    )?;
    // abort(3) signals its own process.
    filter.add_rule_conditional(
        ScmpAction::Allow,
        ScmpSyscall::from_name("tgkill")?,
        &[ScmpArgCompare::new(
            0,
            ScmpCompareOp::Equal,
            std::process::id().into(),
        )],
    )?;
    filter.load()
}

#[cfg(test)]
mod tests;
