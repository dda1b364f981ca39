//! Signals end a guest at once, whatever it does.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};

use crate::common::{self, Workshop, process};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Prints a byte, then does `body`.
fn guest(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\01\00\00\00")
            (func (export "_start")
                (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                {body}))"#
    )
}

const LOOP: &str = "(loop $forever (br $forever))";
const READ: &str = "(drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))";

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Sends `signal` once the guest does what it does, and waits for its end.
fn end(body: &str, signal: Signal) -> ExitStatus {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&guest(body));
    let mut child = process(&artifact, &[], &["guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut byte = [0];
    let output = child.stdout.as_mut().expect("a pipe");
    output.read_exact(&mut byte).expect("a sign of life");
    kill(pid(&child), signal).expect("a signal");
    // Keeps the guest's standard input open until it has ended.
    let input = child.stdin.take();
    let status = child.wait().expect("an end");
    drop(input);
    status
}

#[test]
fn termination_signals_end_a_tight_loop() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ] {
        assert_eq!(
            end(LOOP, signal).code(),
            Some(128 + signal as i32),
            "{signal}"
        );
    }
}

#[test]
fn a_termination_signal_ends_a_blocked_call() {
    assert_eq!(end(READ, Signal::SIGTERM).code(), Some(143));
}

#[test]
fn sigkill_ends_a_tight_loop() {
    assert_eq!(end(LOOP, Signal::SIGKILL).signal(), Some(9));
}

#[test]
fn a_guest_that_is_loaded_and_not_started_can_be_ended() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&guest(LOOP));
    let mut child = process(&artifact, &["--hold"], &["guest"])
        .spawn()
        .expect("a process");
    let stopped = waitpid(pid(&child), Some(WaitPidFlag::WUNTRACED)).expect("a state");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    kill(pid(&child), Signal::SIGTERM).expect("a signal");
    kill(pid(&child), Signal::SIGCONT).expect("a signal");
    assert_eq!(child.wait().expect("an end").code(), Some(143));
}

#[test]
fn a_loaded_guest_has_one_thread() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&guest(LOOP));
    let mut child = process(&artifact, &["--hold"], &["guest"])
        .spawn()
        .expect("a process");
    waitpid(pid(&child), Some(WaitPidFlag::WUNTRACED)).expect("a state");
    let threads = common::names(format!("/proc/{}/task", child.id()).as_ref());
    kill(pid(&child), Signal::SIGKILL).expect("a signal");
    child.wait().expect("an end");
    assert_eq!(threads.len(), 1, "{threads:?}");
}

#[test]
fn a_running_module_has_one_thread() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&guest(READ));
    let mut child = process(&artifact, &[], &["guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let output = child.stdout.as_mut().expect("a pipe");
    output.read_exact(&mut [0]).expect("a sign of life");
    let threads = common::names(format!("/proc/{}/task", child.id()).as_ref());
    child.kill().expect("a signal");
    child.wait().expect("an end");
    assert_eq!(threads.len(), 1, "{threads:?}");
}
