//! What a module could do that has taken the compiler over: a process that has entered the sandbox
//! tries to get out of it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

use libc::c_long;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{MAX_MEMORY, die_in_time, enter};
use crate::package::Job;

/// Has `act` done in a new process, and gives what it has written and how it has ended.
fn in_a_process(act: impl FnOnce(&mut File)) -> (String, WaitStatus) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    // SAFETY: the child calls nothing that depends on other threads: no lock of the test harness
    // is taken, and glibc makes its allocator usable after a fork.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => {
            // SAFETY: a system call with numbers.
            unsafe { libc::dup2(writer.as_raw_fd(), 1) };
            // SAFETY: standard output is open and not owned by anything else that closes it.
            let mut output: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(1) };
            act(&mut output);
            // SAFETY: ends the process without running what its parent has registered.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = String::new();
            File::from(reader).read_to_string(&mut said).expect("text");
            (said, waitpid(child, None).expect("its end"))
        }
    }
}

/// The error number of a system call, 0 if it was granted.
fn attempt(number: c_long, arguments: [usize; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: it is refused before it does anything, which is what the tests are about; pointers
    // among the arguments are null or to constants that end in a zero.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

fn path(path: &'static std::ffi::CStr) -> usize {
    path.as_ptr() as usize
}

/// What is tried: its name, the system call, and the error that it must give.
type Attempt = (&'static str, c_long, [usize; 6], i32);

/// What must not be granted to a worker, which can open files or not.
fn attempts(reads: bool) -> Vec<Attempt> {
    let parent = std::process::id() as usize;
    let here = libc::AT_FDCWD as usize;
    let one = |a: usize| [a, 0, 0, 0, 0, 0];
    let passwd = path(c"/etc/passwd");
    const UNLIMITED: [u64; 2] = [u64::MAX; 2];
    let unlimited = UNLIMITED.as_ptr() as usize;
    vec![
        // Files.
        (
            "openat",
            libc::SYS_openat,
            [here, passwd, 0, 0, 0, 0],
            if reads { libc::ENOENT } else { libc::EPERM },
        ),
        (
            "openat2",
            libc::SYS_openat2,
            [here, passwd, 0, 0, 0, 0],
            if reads { libc::EINVAL } else { libc::EPERM },
        ),
        (
            "open a handle",
            libc::SYS_open_by_handle_at,
            one(0),
            libc::EPERM,
        ),
        (
            "stat",
            libc::SYS_newfstatat,
            [here, passwd, 0, 0, 0, 0],
            libc::ENOENT,
        ),
        (
            "make a file",
            libc::SYS_mknodat,
            [here, path(c"/x"), 0o100644, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "make a folder",
            libc::SYS_mkdirat,
            [here, path(c"/x"), 0o755, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "unlink",
            libc::SYS_unlinkat,
            [here, passwd, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "change the mode of the output",
            libc::SYS_fchmod,
            [1, 0o777, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "change the owner of the output",
            libc::SYS_fchown,
            [1, 0, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "control a terminal",
            libc::SYS_ioctl,
            [0, 0x5412, passwd, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "make memory a file",
            libc::SYS_memfd_create,
            one(passwd),
            libc::EPERM,
        ),
        // The tree of mounts, and namespaces.
        ("chroot", libc::SYS_chroot, one(path(c"/")), libc::EPERM),
        ("chdir", libc::SYS_chdir, one(path(c"..")), libc::EPERM),
        (
            "mount",
            libc::SYS_mount,
            [passwd, passwd, passwd, 0, 0, 0],
            libc::EPERM,
        ),
        ("umount", libc::SYS_umount2, one(path(c"/")), libc::EPERM),
        (
            "open a mount",
            libc::SYS_open_tree,
            [here, path(c"/"), 1, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "unshare",
            libc::SYS_unshare,
            one(libc::CLONE_NEWUSER as usize),
            libc::EPERM,
        ),
        ("setns", libc::SYS_setns, one(0), libc::EPERM),
        // Privileges.
        ("setuid", libc::SYS_setuid, one(0), libc::EPERM),
        ("setresuid", libc::SYS_setresuid, one(0), libc::EPERM),
        ("setgroups", libc::SYS_setgroups, one(0), libc::EPERM),
        ("capset", libc::SYS_capset, one(0), libc::EPERM),
        (
            "prctl",
            libc::SYS_prctl,
            one(libc::PR_SET_DUMPABLE as usize),
            libc::EPERM,
        ),
        ("another filter", libc::SYS_seccomp, one(0), libc::EPERM),
        (
            "a higher limit",
            libc::SYS_prlimit64,
            [0, 2, unlimited, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "another's limits",
            libc::SYS_prlimit64,
            [parent, 7, unlimited, 0, 0, 0],
            libc::EPERM,
        ),
        // Other processes.
        (
            "fork",
            libc::SYS_clone,
            one(libc::SIGCHLD as usize),
            libc::EPERM,
        ),
        (
            "clone3",
            libc::SYS_clone3,
            [passwd, 88, 0, 0, 0, 0],
            libc::ENOSYS,
        ),
        (
            "execve",
            libc::SYS_execve,
            one(path(c"/bin/sh")),
            libc::EPERM,
        ),
        (
            "execveat",
            libc::SYS_execveat,
            [0, path(c""), 0, 0, 0x1000, 0],
            libc::EPERM,
        ),
        ("kill", libc::SYS_kill, one(parent), libc::EPERM),
        (
            "kill a thread",
            libc::SYS_tgkill,
            [parent, parent, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "ptrace",
            libc::SYS_ptrace,
            [16, parent, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "read memory",
            libc::SYS_process_vm_readv,
            one(parent),
            libc::EPERM,
        ),
        (
            "write memory",
            libc::SYS_process_vm_writev,
            one(parent),
            libc::EPERM,
        ),
        ("pidfd_open", libc::SYS_pidfd_open, one(parent), libc::EPERM),
        (
            "set another's processors",
            libc::SYS_sched_setaffinity,
            one(parent),
            libc::EPERM,
        ),
        // Network and messages.
        (
            "socket",
            libc::SYS_socket,
            [libc::AF_INET as usize, 1, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "a local socket",
            libc::SYS_socket,
            [libc::AF_UNIX as usize, 1, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "a pair of sockets",
            libc::SYS_socketpair,
            [1, 1, 0, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "shared memory",
            libc::SYS_shmget,
            [0, 4096, 0o1600, 0, 0, 0],
            libc::EPERM,
        ),
        (
            "a message queue",
            libc::SYS_msgget,
            [0, 0o1600, 0, 0, 0, 0],
            libc::EPERM,
        ),
        // The kernel's large surfaces.
        ("io_uring", libc::SYS_io_uring_setup, one(1), libc::EPERM),
        ("bpf", libc::SYS_bpf, one(0), libc::EPERM),
        ("perf", libc::SYS_perf_event_open, one(passwd), libc::EPERM),
        ("userfaultfd", libc::SYS_userfaultfd, one(0), libc::EPERM),
        ("keyctl", libc::SYS_keyctl, one(0), libc::EPERM),
        (
            "a module of the kernel",
            libc::SYS_init_module,
            one(0),
            libc::EPERM,
        ),
        ("reboot", libc::SYS_reboot, one(0), libc::EPERM),
        // The deadline.
        (
            "stop the deadline",
            libc::SYS_timer_delete,
            one(0),
            libc::EPERM,
        ),
        (
            "move the deadline",
            libc::SYS_timer_settime,
            one(0),
            libc::EPERM,
        ),
        // What it may have of memory.
        (
            "more memory than allowed",
            libc::SYS_mmap,
            [
                0,
                (MAX_MEMORY + (1 << 20)) as usize,
                (libc::PROT_READ | libc::PROT_WRITE) as usize,
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize,
                usize::MAX,
                0,
            ],
            libc::ENOMEM,
        ),
    ]
}

/// Has all of `attempts` made in the sandbox, and then `more` done. Gives what either has said.
fn tried(job: Option<&Job>, attempts: &[Attempt], more: impl FnOnce(&mut File)) -> String {
    let (said, end) = in_a_process(|output| {
        if let Err(error) = enter(job) {
            let _ = writeln!(output, "not isolated: {error}");
            return;
        }
        for (name, number, arguments, expected) in attempts {
            let got = attempt(*number, *arguments);
            if got != *expected {
                let _ = writeln!(output, "{name}: {got} in the place of {expected}");
            }
        }
        let _ = writeln!(output, "{} tried", attempts.len());
        more(output);
    });
    assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}");
    said
}

#[test]
fn nothing_leads_out() {
    let attempts = attempts(false);
    let said = tried(None, &attempts, |_| ());
    assert_eq!(said, format!("{} tried\n", attempts.len()));
}

/// Who has a module's initialisation run sees the files that it was given, and no others; it changes none.
#[test]
fn nothing_leads_out_of_an_initialisation() {
    const GIVEN: &str = "what is given";
    let job = serde_json::json!({
        "function": "f", "time": "1s", "files": [{"path": "/lib/given", "size": GIVEN.len()}],
    });
    let job: Job = serde_json::from_value(job).expect("a job");
    let mut contents = tempfile::tempfile().expect("a file");
    contents.write_all(GIVEN.as_bytes()).expect("room for it");
    contents.rewind().expect("its beginning");

    let open = |path: &'static std::ffi::CStr, flags: i32| {
        [
            libc::AT_FDCWD as usize,
            path.as_ptr() as usize,
            flags as usize,
            0o600,
            0,
            0,
        ]
    };
    let mut attempts = attempts(true);
    for (name, path, flags, error) in [
        ("the way up", c"/lib/../../../etc/passwd", 0, libc::ENOENT),
        ("processes", c"/proc/self/environ", 0, libc::ENOENT),
        ("devices", c"/dev/null", 0, libc::ENOENT),
        (
            "write what is given",
            c"/lib/given",
            libc::O_WRONLY,
            libc::EROFS,
        ),
        (
            "a new file",
            c"/lib/new",
            libc::O_WRONLY | libc::O_CREAT,
            libc::EROFS,
        ),
        (
            "a file without a name",
            c"/lib",
            libc::O_RDWR | libc::O_TMPFILE,
            libc::EROFS,
        ),
    ] {
        attempts.push((name, libc::SYS_openat, open(path, flags), error));
    }
    let said = {
        // SAFETY: a system call with numbers; nobody in this test program reads its standard input.
        unsafe { libc::dup2(contents.as_raw_fd(), 0) };
        tried(Some(&job), &attempts, |output| {
            let given = std::fs::read_to_string("/lib/given");
            let _ = writeln!(output, "{given:?}");
        })
    };
    assert_eq!(said, format!("{} tried\nOk({GIVEN:?})\n", attempts.len()));
}

/// The filter knows the numbers of one table of system calls; another would be a way around it.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_numbers_of_x32_are_no_way_around_the_filter() {
    const X32: c_long = 0x4000_0000;
    let (said, end) = in_a_process(|output| {
        if let Err(error) = enter(None) {
            let _ = writeln!(output, "not isolated: {error}");
            return;
        }
        attempt(X32 | libc::SYS_getpid, [0; 6]);
        let _ = writeln!(output, "it goes on");
    });
    assert_eq!(said, "");
    assert!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)),
        "{end:?}"
    );
}

#[test]
fn a_deadline_cannot_be_survived() {
    let (said, end) = in_a_process(|output| {
        // SAFETY: system calls with numbers, and a set that lives long enough.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        }
        if let Err(error) = die_in_time(1) {
            let _ = writeln!(output, "no deadline: {error}");
            return;
        }
        loop {
            // SAFETY: it only waits.
            unsafe { libc::pause() };
        }
    });
    assert_eq!(said, "");
    assert!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "{end:?}"
    );
}
