//! What is left to a compile worker while it compiles.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{self, PROCESS, wait_until};

/// A module whose compilation takes some seconds: `functions` functions with a long body each.
fn large_module(functions: usize) -> Vec<u8> {
    let mut text = String::from("(module (memory 1)");
    for function in 0..functions {
        text.push_str("(func (param i32) (result i32) (local i32 i32 i32)");
        for step in 0..400 {
            let local = 1 + (step + function) % 3;
            text.push_str(&format!(
                "(local.set {local} (i32.add (i32.mul (local.get {}) (i32.const {}))
                    (i32.load offset={} (local.get 0))))",
                step % 4,
                step * 7 + function,
                step * 4,
            ));
        }
        text.push_str("(local.get 1))");
    }
    text.push(')');
    common::wasm(&text)
}

/// A worker that compiles something large.
struct Busy(Child);

impl Busy {
    fn new() -> Self {
        let child = Command::new(PROCESS)
            .arg("compile-worker")
            .stdin(common::file(&large_module(2000)))
            .stdout(common::file(b""))
            .stderr(Stdio::null())
            .spawn()
            .expect("a worker");
        let busy = Self(child);
        // It is isolated before it reads, so that a module's worth of bytes read shows both.
        wait_until(|| {
            let io = fs::read_to_string(busy.path("io")).expect("it runs");
            let read = fields(&io)["rchar"].parse::<u64>().expect("a number");
            read > 1 << 20
        });
        busy
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().expect("a signal");
        self.0.wait().expect("an end");
    }
}

/// `name: value` lines.
fn fields(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.trim()))
        .collect()
}

#[test]
fn a_worker_has_given_up_everything() {
    let worker = Busy::new();
    let status = fs::read_to_string(worker.path("status")).expect("it runs");
    let status = fields(&status);
    for (field, value) in [
        ("Uid", "64999\t64999\t64999\t64999"),
        ("Gid", "64999\t64999\t64999\t64999"),
        ("Groups", ""),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |path: &str| fs::read_link(path).expect("a namespace");
        let own = of(&format!("/proc/self/ns/{namespace}"));
        let its = of(&worker.path(&format!("ns/{namespace}")));
        assert_ne!(own, its, "{namespace}");
    }
}

#[test]
fn a_worker_sees_no_file_and_holds_only_its_three() {
    let worker = Busy::new();
    assert_eq!(common::names(Path::new(&worker.path("root"))), [""; 0]);
    let mounts = fs::read_to_string(worker.path("mounts")).expect("it runs");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.contains(" / tmpfs ro,nosuid,nodev,noexec"),
        "{mounts}"
    );
    let mut descriptors = common::names(Path::new(&worker.path("fd")));
    descriptors.sort();
    assert_eq!(descriptors, ["0", "1", "2"]);
}

#[test]
fn a_worker_is_limited() {
    let worker = Busy::new();
    let limits = fs::read_to_string(worker.path("limits")).expect("it runs");
    for (limit, most) in [
        ("Max data size", 4 << 30),
        ("Max address space", 8 << 30),
        ("Max cpu time", 600),
        ("Max file size", 4 << 30),
        ("Max open files", 16),
        ("Max processes", 4096),
        ("Max core file size", 0),
    ] {
        let line = limits.lines().find(|line| line.starts_with(limit));
        let hard = line.expect(limit).split_whitespace().rev().nth(1);
        let hard: u64 = hard.expect(limit).parse().expect("a number, not unlimited");
        assert!(hard <= most, "{limit}: {hard}");
    }
}

#[test]
fn a_worker_dies_with_the_process_that_started_it() {
    let mut module = tempfile::NamedTempFile::new().expect("a file");
    module.write_all(&large_module(4000)).expect("room");
    let path = module.path().display();
    // A shell that starts a worker and names it.
    let mut shell = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!(
            "{PROCESS} compile-worker < {path} > /dev/null & echo $!; wait"
        ))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut line = String::new();
    let output = shell.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut line).expect("a line");
    let worker = line.trim();
    let state = |field: &str| {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
        Some(fields(&status)[field].to_owned())
    };
    wait_until(|| state("Seccomp").expect("it runs") == "2");
    shell.kill().expect("a signal");
    shell.wait().expect("an end");
    wait_until(|| state("State").is_none_or(|state| state.starts_with('Z')));
}

#[test]
fn a_worker_that_cannot_isolate_itself_refuses() {
    // Without root there is nothing to unshare.
    let mut worker = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"])
        .args([PROCESS, "compile-worker"])
        .stdin(common::file(&common::wasm("(module)")))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv of util-linux");
    worker.stdin.take();
    let output = worker.wait_with_output().expect("an end");
    assert!(!output.status.success());
    assert_eq!(common::stdout(&output), "", "nothing was compiled");
    let text = common::stderr(&output);
    assert!(text.contains("exposed"), "{text}");
    assert!(text.contains("leave the mount namespace"), "{text}");
}

#[test]
fn huge_functions_compile_within_the_limits() {
    // One function of a megabyte, which is the shape that compilers like least.
    let mut text = String::from("(module (func (export \"_start\") (local i32)");
    for step in 0..100_000 {
        text.push_str(&format!(
            "(local.set 0 (i32.xor (local.get 0) (i32.const {step})))"
        ));
    }
    text.push_str("))");
    let workshop = common::Workshop::new();
    workshop.compile(&common::wasm(&text)).expect("native code");
}
