//! Signals that end a guest.
//!
//! A guest is the first process of its pid namespace, and the kernel drops signals that such a
//! process has no handler for (pid_namespaces(7)). Wasm cannot install one, so this does.

use std::io;

use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction,
};

/// The signals that mean "end", as `docker stop`, a closed terminal and a key press send them.
const TERMINATION: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];

/// Ends the process with the code that a shell gives for a death by `signal`.
extern "C" fn terminate(signal: libc::c_int) {
    // SAFETY: _exit(2) is async-signal-safe and takes any value.
    unsafe { libc::_exit(128 + signal) }
}

/// Ends the process with `code` at once, whatever its threads are at.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any value, and nothing of this process is to be written out.
    unsafe { libc::_exit(code) }
}

/// Makes SIGTERM, SIGINT, SIGQUIT and SIGHUP end the process at once with 128 + the signal's
/// number, from any state (a tight loop of the guest, a blocked system call), and unblocks them.
/// Makes SIGPIPE be ignored, so that a write to a closed pipe gives the guest an error.
///
/// [`Host::load`](crate::Host::load) calls this, so that a container that was created and not yet
/// started can be ended too.
///
/// # Errors
/// What sigaction(2) and pthread_sigmask(3) say; neither fails for these signals on Linux.
pub fn install_termination_handlers() -> nix::Result<()> {
    // On the alternate stack where there is one: a guest's own stack may have no room left.
    let end = SigAction::new(
        SigHandler::Handler(terminate),
        SaFlags::SA_ONSTACK,
        SigSet::all(),
    );
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in TERMINATION {
        // SAFETY: the handler only calls an async-signal-safe function.
        unsafe { sigaction(signal, &end) }?;
    }
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGPIPE, &ignore) }?;
    pthread_sigmask(
        SigmaskHow::SIG_UNBLOCK,
        Some(&SigSet::from_iter(TERMINATION)),
        None,
    )
}

/// Lets `stream` install a handler of its own for `signal`, in the place of one of
/// [`install_termination_handlers`]. A signal that comes meanwhile waits, while there is one thread.
///
/// # Errors
/// Those of `stream`, and what sigaction(2) and pthread_sigmask(3) say.
pub(crate) fn take_over<T>(
    signal: Signal,
    stream: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let alone = SigSet::from(signal);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&alone), None)?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(signal, &default) }?;
    let made = stream();
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&alone), None)?;
    made
}
