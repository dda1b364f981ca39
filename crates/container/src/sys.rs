//! The system calls that no safe wrapper covers: cloning processes, closing descriptors wholesale,
//! requests to terminals, giving memory back.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

/// Forks a process that has one thread.
///
/// Returns the child's pid to the parent and `None` to the child.
///
/// # Errors
/// When the calling process has more than one thread: its child would inherit the locks that
/// the other threads hold (fork(2)). And fork(2)'s own errors.
pub fn fork_single_threaded() -> io::Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "a process may only be forked while it has one thread, and it has {threads}"
        )));
    }
    // SAFETY: the process has one thread, as was just made sure of, so no lock is held by a
    // thread that the child would lack.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Where the kernel has laid out what the process was started with: the same in all that are cloned from it.
#[derive(Clone)]
pub(crate) struct Place {
    arguments: Range<usize>,
    environment: Range<usize>,
}

static PLACE: OnceLock<Place> = OnceLock::new();

/// Finds out where the process's arguments and environment are, for itself and for all that it clones, who may have no
/// /proc.
///
/// # Errors
/// /proc cannot be read, or does not tell.
pub(crate) fn find_arguments() -> io::Result<&'static Place> {
    if let Some(place) = PLACE.get() {
        return Ok(place);
    }
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // arg_start, arg_end, env_start and env_end are the 48th to 51st fields, the 46th and so on after the name, which may
    // have any characters (proc_pid_stat(5)).
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ends: Vec<usize> = fields
        .split_ascii_whitespace()
        .skip(45)
        .map_while(|at| at.parse().ok())
        .collect();
    match ends[..] {
        [start, end, begin, last, ..]
            if 0 < start && start < end && end <= begin && begin <= last =>
        {
            Ok(PLACE.get_or_init(|| Place {
                arguments: start..end,
                environment: begin..last,
            }))
        }
        _ => Err(io::Error::other(
            "/proc/self/stat does not tell where the arguments are",
        )),
    }
}

/// Overwrites the environment that the process was started with: containerd's, which may have secrets in it, and which a
/// guest that is root could read (proc_pid_environ(5)). Nobody in the process is to ask for it after that.
///
/// # Errors
/// It is not known where it is: see [`find_arguments`].
pub(crate) fn forget_environment() -> io::Result<()> {
    let Range { start, end } = find_arguments()?.environment.clone();
    // SAFETY: the kernel has laid it out there, on the first thread's stack, where it stays mapped and writable. What
    // points there, `environ`, finds empty texts, which are valid.
    unsafe { std::ptr::write_bytes(start as *mut u8, 0, end - start) };
    Ok(())
}

/// Gives the process other arguments in the eyes of others (proc_pid_cmdline(5)), cut to the room that those take that it
/// was started with; its own are not to be asked for after that.
///
/// # Errors
/// It is not known where they are: see [`find_arguments`].
pub fn set_arguments<'a>(arguments: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let Range { start, end } = find_arguments()?.arguments.clone();
    // SAFETY: the kernel has laid the arguments out there, on the first thread's stack, where they stay
    // mapped and writable; nothing borrows them, as the standard library copies what it hands out.
    let room = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    lay_out(arguments, room);
    Ok(())
}

/// Writes `arguments` into `room`, each with a NUL after it, and NULs after all. Without the last, what comes after the
/// room would be shown, too: the environment.
fn lay_out<'a>(arguments: impl IntoIterator<Item = &'a str>, room: &mut [u8]) {
    room.fill(0);
    let mut left = &mut room[..];
    for argument in arguments {
        let most = left.len().saturating_sub(1);
        let (place, rest) = left.split_at_mut(argument.len().min(most));
        place.copy_from_slice(&argument.as_bytes()[..place.len()]);
        left = rest.get_mut(1..).unwrap_or_default();
    }
}

/// Clones the calling process as its own sibling: the new process has the caller's parent, which
/// also reaps it (clone(2), `CLONE_PARENT`).
///
/// Returns the sibling's pid, with a descriptor that stands for it (`CLONE_PIDFD`), to the caller,
/// and `None` to the sibling. The caller must have one thread; the zygote and its helpers, which
/// are the only callers, have.
///
/// # Errors
/// clone(2)'s.
pub fn clone_sibling() -> io::Result<Option<(Pid, OwnedFd)>> {
    clone_sibling_apart(CloneFlags::empty())
}

/// [`clone_sibling`], with the sibling in new `namespaces` of these kinds.
///
/// # Errors
/// clone(2)'s.
pub fn clone_sibling_apart(namespaces: CloneFlags) -> io::Result<Option<(Pid, OwnedFd)>> {
    let none = std::ptr::null_mut::<libc::c_void>();
    let mut handle: libc::c_int = -1;
    // SAFETY: without CLONE_VM the child gets a copy of the address space and goes on with the
    // same stack, as after fork(2); the pidfd is written to a live integer, and the other arguments
    // are unused for these flags. The caller has one thread, so no lock is left behind.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            (namespaces.bits() | libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD)
                as libc::c_ulong,
            none,
            &raw mut handle,
            none,
            none,
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel has just opened it for this process, which alone knows of it.
            let handle = unsafe { OwnedFd::from_raw_fd(handle) };
            Ok(Some((Pid::from_raw(pid as i32), handle)))
        }
    }
}

/// [`clone_sibling_apart`], with the sibling in the v2 cgroup whose folder is open as `cgroup` from its birth on (clone(2), `CLONE_INTO_CGROUP`,
/// since Linux 5.7). Returns no descriptor that stands for the sibling.
///
/// # Errors
/// clone(2)'s, such as `EACCES` in a user namespace that does not own the cgroup.
pub fn clone_sibling_into(cgroup: BorrowedFd, namespaces: CloneFlags) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all its fields are integers, for which 0 says that they are not used.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT the signal at its end is the caller's.
    arguments.flags = namespaces.bits() as u64 | libc::CLONE_PARENT as u64 | CLONE_INTO_CGROUP;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: as for `clone_sibling`; the arguments live through the call, and are as long as is said.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as i32))),
    }
}

/// Ends the process at once, without running exit handlers or destructors (_exit(2)).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit ends the process; nothing of it is used after.
    unsafe { libc::_exit(code) }
}

/// The numbers of the descriptors that are open now, from 3 upwards to the thousandth: asked with
/// one poll(2), as /proc need not be mounted.
pub fn open_descriptors() -> Vec<RawFd> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(MOST_DESCRIPTORS, |limit| {
            (limit as usize).min(MOST_DESCRIPTORS)
        });
    let mut entries: Vec<libc::pollfd> = (3..limit)
        .map(|fd| libc::pollfd {
            fd: fd as RawFd,
            events: 0,
            revents: 0,
        })
        .collect();
    // SAFETY: the pointer and length are those of a live vector; a timeout of 0 returns at once.
    let polled = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, 0) };
    if polled < 0 {
        log::warn!("listing open descriptors: {}", io::Error::last_os_error());
        return Vec::new();
    }
    entries
        .into_iter()
        .filter(|entry| entry.revents & libc::POLLNVAL == 0)
        .map(|entry| entry.fd)
        .collect()
}

/// How many descriptors [`open_descriptors`] looks at: a container's init has some twenty.
const MOST_DESCRIPTORS: usize = 1024;

/// Closes `descriptors` but `keep`. What owned them must not be used again; the caller is about
/// to run something else for good.
pub fn close_descriptors(descriptors: &[RawFd], keep: BorrowedFd) {
    for &fd in descriptors {
        if fd != keep.as_raw_fd() {
            close_range(fd as u32, fd as u32);
        }
    }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closing descriptors touches no memory of ours; the caller promises that their
    // owners are not used again.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Sets what a signal does to this process.
///
/// # Errors
/// sigaction(2)'s.
pub fn set_signal_handler(signal: Signal, handler: SigHandler) -> io::Result<()> {
    // SAFETY: callers pass SIG_DFL or SIG_IGN, which run no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }?;
    Ok(())
}

/// Replaces stdin and stdout by /dev/null.
///
/// # Errors
/// open(2)'s or dup2(2)'s.
pub fn stdio_from_null() -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

/// Closes every descriptor but the standard ones: what a process was started with beyond them
/// is nothing it knows of. To be called before it opens any.
pub fn close_inherited() {
    close_range(3, u32::MAX);
}

/// Gives the calling thread a table of descriptors of its own with `keep` alone in it (unshare(2),
/// `CLONE_FILES`): what the process has open is then closed with the process, even while this thread
/// is in a call that cannot be interrupted. The thread must use no other descriptor from then on.
///
/// # Errors
/// unshare(2)'s.
pub fn keep_only(keep: BorrowedFd) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FILES)?;
    let keep = keep.as_raw_fd() as u32;
    if let Some(last) = keep.checked_sub(1) {
        close_range(0, last);
    }
    close_range(keep + 1, u32::MAX);
    Ok(())
}

/// Sends the signal numbered `signal`, real-time ones included, to the process that `pidfd` stands
/// for (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when it is gone, `EINVAL` when there is no such signal.
pub fn send_signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed; no siginfo is passed.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the process the session keyring called `name`, an existing one that it may find or a new one
/// (KEYCTL_JOIN_SESSION_KEYRING(2const)). Returns the keyring's serial number.
///
/// # Errors
/// `EDQUOT` when its user has too many keys, `ENOSYS` from a kernel without keys.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    // SAFETY: the name ends with a NUL and lives through the call, which reads it.
    match unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        serial => Ok(serial as i32),
    }
}

/// Lets processes of the user whose the keyring `serial` is find it by its name (keyrings(7), "search permission"), beside
/// what a new session keyring allows.
///
/// # Errors
/// keyctl(2)'s.
pub fn let_users_find_keyring(serial: i32) -> io::Result<()> {
    // All to those that possess it; to its user view, read, search and link (keyctl_setperm(3)).
    const PERMISSIONS: u32 = 0x3f1b_0000;
    // SAFETY: this operation takes numbers and touches no memory.
    match unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, serial, PERMISSIONS) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets the size of a terminal, in characters; processes in its foreground get a SIGWINCH if it
/// changes (TIOCSWINSZ(2const)).
///
/// # Errors
/// ioctl(2)'s.
pub fn set_window_size(terminal: BorrowedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        // In pixels, which nobody knows.
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: this request reads a winsize, which lives through the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Opens the other side of a pseudo terminal's `master`, wherever its file system is mounted
/// (TIOCGPTPEER(2const)). It does not become the caller's controlling terminal.
///
/// # Errors
/// ioctl(2)'s.
pub fn open_terminal(master: BorrowedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this request takes open(2)'s flags and touches no memory.
    match unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor has just been made, for the caller alone.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// The user namespace that owns the namespace of `file` (ioctl_nsfs(2), `NS_GET_USERNS`).
///
/// # Errors
/// `EPERM` when it is not the caller's nor below it; `ENOTTY` when `file` is no namespace.
pub fn owning_user_namespace(file: BorrowedFd) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the descriptor is open for as long as it is borrowed; this request takes no
    // argument and touches no memory of ours.
    let owner = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for the caller, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

/// Gives back the memory that this process holds and does not use: what has been freed, and the
/// program's own code and constants, which come back out of the page cache where they are used
/// again. What runs for long takes a fraction of what it has been through to get there.
pub fn trim_memory() {
    trim_heap();
    advise_of_program(libc::MADV_DONTNEED);
}

/// Has the kernel read the program's code and constants as huge pages, here and in what is cloned of this process,
/// where its file system can and they are not in memory yet.
pub fn read_program_in_huge_pages() {
    advise_of_program(libc::MADV_HUGEPAGE);
}

/// Gives back the memory that has been freed.
pub fn trim_heap() {
    // SAFETY: it touches only what the allocator knows to be free, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}

/// Gives `advice`, MADV_DONTNEED or MADV_HUGEPAGE, of the program's pages that cannot have been written to.
fn advise_of_program(mut advice: libc::c_int) {
    // SAFETY: the function takes what it is given, keeps none of it, and does not panic.
    unsafe { libc::dl_iterate_phdr(Some(advise_of_object), (&raw mut advice).cast()) };
}

/// The same of one loaded program or library; `advice` is that of [`advise_of_program`].
unsafe extern "C" fn advise_of_object(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    advice: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the only caller hands it over.
    let advice = unsafe { *advice.cast::<libc::c_int>() };
    let page = page_size();
    // SAFETY: dl_iterate_phdr(3) hands over a description that lives through this call.
    let (base, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr as usize, headers)
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let begin = base.wrapping_add(header.p_vaddr as usize);
        let end = begin.wrapping_add(header.p_memsz as usize);
        let begin = begin / page * page;
        // SAFETY: a segment of a loaded object, which is not writable: its pages are those of its
        // file, and are read from there again. Where it is not (vDSO), or the kernel has no huge pages, the call
        // fails, which is no harm.
        unsafe { libc::madvise(begin as *mut _, end - begin, advice) };
    }
    0
}

fn page_size() -> usize {
    // SAFETY: it reads a number that does not change.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// How much of the stack below the caller's frame [`trim_stack`] leaves, for its own calls and those
/// that come at once; and how far it reaches.
const STACK_KEPT: usize = 16 << 10;
const STACK_REACH: usize = 512 << 10;

/// Gives back what the process's first thread, which must be the caller, has used of its stack
/// beyond where it is now.
pub fn trim_stack() {
    let here = 0u8;
    let page = page_size();
    let end = (&raw const here as usize - STACK_KEPT) / page * page;
    let begin = end - STACK_REACH;
    // SAFETY: what lies below the stack pointer belongs to no frame that is alive, and nothing but the
    // stack is that near below it: the kernel keeps 128 MiB free there (mmap_base). Where the stack
    // has not been that deep nothing is mapped, which is no harm.
    unsafe { libc::madvise(begin as *mut _, STACK_REACH, libc::MADV_DONTNEED) };
}

/// Has the allocator serve all threads from one arena: those of the daemon take turns, and each
/// arena keeps what it once had.
pub fn share_arena() {
    // SAFETY: it sets a number under the allocator's lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Adds `program` to the seccomp filters of this thread, which has one already; what comes of it may speculate on loads past
/// stores where it `speculates` (seccomp(2), `SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
///
/// # Errors
/// seccomp(2)'s, among them what the filters that are there answer to it.
pub(crate) fn add_filter(program: &[libc::sock_filter], speculates: bool) -> io::Result<()> {
    let flags = match speculates {
        true => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        false => 0,
    };
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the program, which outlives the call, and checks it.
    let added = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match added {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn arguments_are_laid_out_in_their_room() {
        let laid_out = |arguments: &[&str], room: usize| {
            let mut room = vec![1; room];
            lay_out(arguments.iter().copied(), &mut room);
            String::from_utf8(room).unwrap()
        };
        assert_eq!(laid_out(&["/a", "", "b c"], 10), "/a\0\0b c\0\0\0");
        assert_eq!(laid_out(&["/a", "bc"], 6), "/a\0bc\0");
        assert_eq!(laid_out(&["/a", "bc", "d"], 5), "/a\0b\0");
        assert_eq!(laid_out(&["/a", "bc"], 4), "/a\0\0");
        assert_eq!(laid_out(&["/a", "bc"], 3), "/a\0");
        assert_eq!(laid_out(&["/a", "bc"], 1), "\0");
    }

    #[test]
    fn a_thread_keeps_one_descriptor() {
        let process = File::open("/").unwrap();
        let thread = std::thread::spawn(|| {
            let kept = File::open("/").unwrap();
            keep_only(kept.as_fd()).unwrap();
            let list = fs::read_dir("/proc/thread-self/fd").unwrap();
            let open: BTreeSet<RawFd> = list
                .map(|entry| {
                    entry
                        .unwrap()
                        .file_name()
                        .to_str()
                        .unwrap()
                        .parse()
                        .unwrap()
                })
                .collect();
            // The other is the list's own.
            (open.contains(&kept.as_raw_fd()), open.len())
        });
        assert_eq!(thread.join().unwrap(), (true, 2));
        process.metadata().unwrap();
    }
}
