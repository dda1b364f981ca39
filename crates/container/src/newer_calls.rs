//! System calls that are newer than a seccomp profile, which are not there, rather than forbidden.
//!
//! A profile names what it allows, and the library that makes a filter of it knows the names of its own time. A call that is
//! newer than both would be answered with EPERM, which programs take for the last word: on ENOSYS they make
//! the older call that does the same. So runc answers each call above the newest that the profile names with ENOSYS
//! (its `seccomp/patchbpf`), and so does this: by a second filter, since of two that refuse a call the one that was installed
//! later says why (seccomp(2)).

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use crate::sys;

/// An architecture as the profile, the library and the kernel (linux/audit.h) call it.
type Names = (Arch, ScmpArch, u32);

/// Those whose calls a kernel of this one makes.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Names; 2] = [
    (Arch::ScmpArchX86_64, ScmpArch::X8664, 0xc000_003e),
    (Arch::ScmpArchX86, ScmpArch::X86, 0x4000_0003),
];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Names; 2] = [
    (Arch::ScmpArchAarch64, ScmpArch::Aarch64, 0xc000_00b7),
    (Arch::ScmpArchArm, ScmpArch::Arm, 0x4000_0028),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURES: [Names; 0] = [];

/// From here on numbers are those of x32, or of a call that a tracer has taken back.
const OTHER: u32 = 0x4000_0000;

/// Has calls that are newer than `profile`, whose filter this process has, answered with ENOSYS where they would be refused. Where
/// the profile does not let it, nothing changes.
pub(crate) fn answer(profile: &LinuxSeccomp) {
    let refuses = profile.default_action() == LinuxSeccompAction::ScmpActErrno
        && profile.default_errno_ret() != Some(libc::ENOSYS as u32);
    if !refuses || is_deadly(profile) {
        return;
    }
    let newest: Vec<(u32, u32)> = ARCHITECTURES
        .into_iter()
        .enumerate()
        // The first is the kernel's own, which every filter is for.
        .filter(|(place, (arch, ..))| {
            *place == 0
                || profile
                    .architectures()
                    .iter()
                    .flatten()
                    .any(|named| named == arch)
        })
        .filter_map(|(_, (_, arch, audit))| Some((audit, newest(profile, arch)?)))
        .collect();
    let speculates = profile
        .flags()
        .iter()
        .flatten()
        .any(|flag| *flag == LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow);
    if let Err(error) = sys::add_filter(&program(&newest), speculates) {
        log::debug!("system calls newer than the seccomp profile are answered as it says: {error}");
    }
}

/// Whether who installs another filter may not survive it.
fn is_deadly(profile: &LinuxSeccomp) -> bool {
    let harmless = [
        LinuxSeccompAction::ScmpActAllow,
        LinuxSeccompAction::ScmpActErrno,
        LinuxSeccompAction::ScmpActLog,
    ];
    let mut calls = profile.syscalls().iter().flatten();
    calls.any(|call| {
        !harmless.contains(&call.action()) && call.names().iter().any(|name| name == "seccomp")
    })
}

/// The highest number that `profile` names on `arch`.
fn newest(profile: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let calls = profile.syscalls().iter().flatten();
    let numbers = calls.flat_map(|call| call.names()).filter_map(|name| {
        let number = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
        // Numbers below zero stand for calls that this architecture has not.
        u32::try_from(number.as_raw_syscall()).ok()
    });
    numbers.max()
}

/// The filter (seccomp(2), linux/bpf_common.h) for the `newest` call of each architecture.
fn program(newest: &[(u32, u32)]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const MORE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    // Where struct seccomp_data has them.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = vec![step(LOAD, ARCHITECTURE, 0, 0)];
    for (architecture, newest) in newest {
        program.extend([
            step(EQUAL, *architecture, 0, 5),
            step(LOAD, NUMBER, 0, 0),
            step(NOT_LESS, OTHER, 1, 0),
            step(MORE, *newest, 1, 0),
            step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
            step(RETURN, ABSENT, 0, 0),
        ]);
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    program
}
