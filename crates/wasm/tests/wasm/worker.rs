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
fn a_worker_goes_first_when_memory_runs_out() {
    let worker = Busy::new();
    let score = fs::read_to_string(worker.path("oom_score_adj")).expect("it runs");
    assert_eq!(score.trim(), "1000");
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

/// Compiles with one limit lower than usual, as prlimit(1) writes it, which must not be enough.
fn exhausted(wasm: &[u8], limit: &str) -> String {
    let workshop = common::Workshop::new();
    let error = workshop
        .cache
        .artifact(&common::file(wasm), "guest.wasm", &|command| {
            let mut limited = Command::new("prlimit");
            limited
                .arg(limit)
                .arg(command.get_program())
                .args(command.get_args())
                .stdin(common::file(wasm))
                .stdout(common::file(b""))
                .stderr(Stdio::null());
            limited.status()
        })
        .expect_err("too much");
    assert_eq!(
        common::names(&workshop.entries()),
        [""; 0],
        "nothing is left"
    );
    error.to_string()
}

#[test]
fn a_module_that_takes_too_long_is_given_up() {
    let error = exhausted(&large_module(2000), "--cpu=1");
    assert!(error.contains("guest.wasm"), "{error}");
    assert!(error.contains("600 seconds of processor time"), "{error}");
}

#[test]
fn a_module_that_takes_too_much_memory_is_given_up() {
    // Enough for the module, not for its code.
    let error = exhausted(&large_module(2000), "--data=32000000");
    assert!(error.contains("guest.wasm"), "{error}");
    assert!(error.contains("4096 MiB of memory"), "{error}");
}

/// A number in LEB128, of as many bytes as it needs.
fn leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &leb(content.len() as u32)[..], content].concat()
}

/// A module with one function `_start` of this code.
fn function(code: &[u8]) -> Vec<u8> {
    let body = [&[0], code, &[0x0b]].concat();
    let body = [leb(body.len() as u32), body].concat();
    [
        &b"\0asm\x01\0\0\0"[..],
        &section(1, &[1, 0x60, 0, 0]),
        &section(3, &[1, 0]),
        &section(7, b"\x01\x06_start\0\0"),
        &section(10, &[&[1], &body[..]].concat()),
    ]
    .concat()
}

/// What would exhaust a compiler that trusts its input ends, in native code or in an error.
#[test]
fn shapes_made_to_exhaust_end_with_an_answer() {
    let nested = |depth: usize| function(&[[2, 0x40].repeat(depth), vec![0x0b; depth]].concat());
    let operands = [[0x41, 0].repeat(200_000), vec![0x6a; 199_999], vec![0x1a]].concat();
    let mut components = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..2000 {
        components = [&b"\0asm\x0d\0\x01\0"[..], &section(4, &components)].concat();
    }
    let header = &b"\0asm\x01\0\0\0"[..];
    let claims = |id: u8| [header, &[id], &leb(0x7fff_ffff)[..], &[0]].concat();
    let counts = |id: u8| [header, &section(id, &leb(u32::MAX))].concat();
    let locals = [&leb(1)[..], &leb(u32::MAX), &[0x7f, 0x0b]].concat();
    let locals = [leb(locals.len() as u32), locals].concat();
    let locals = [
        header,
        &section(1, &[1, 0x60, 0, 0]),
        &section(3, &[1, 0]),
        &section(10, &[&[1], &locals[..]].concat()),
    ]
    .concat();
    for (case, wasm, refused) in [
        ("blocks in blocks", nested(20_000), false),
        (
            "more blocks than a function may have",
            nested(4_000_000),
            true,
        ),
        ("a long row of operands", function(&operands), false),
        ("components in components", components, false),
        ("a section of types of 2 GiB", claims(1), true),
        ("a section of code of 2 GiB", claims(10), true),
        ("a section of data of 2 GiB", claims(11), true),
        ("a custom section of 2 GiB", claims(0), true),
        ("four thousand million types", counts(1), true),
        ("four thousand million functions", counts(3), true),
        ("four thousand million data segments", counts(12), true),
        ("four thousand million locals", locals, true),
    ] {
        let workshop = common::Workshop::new();
        let result = workshop.compile(&wasm);
        assert_eq!(result.is_err(), refused, "{case}: {result:?}");
        if let Err(error) = result {
            assert!(
                matches!(error, wasm::CacheError::Refused { .. }),
                "{case}: {error}"
            );
            assert_eq!(common::names(&workshop.entries()), [""; 0], "{case}");
        }
    }
}

/// What a stranger's file says of itself does not make it a package, which the worker reads before it is isolated.
#[test]
fn a_module_is_no_package_whatever_it_begins_with() {
    let module = common::wasm(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (func (export "_start"))
            (func (export "first") (call $exit (i32.const 77))))"#,
    );
    let job = br#"{"function":"first","time":"1s","files":[]}"#;
    let length = (job.len() as u64).to_le_bytes();
    for begin in [&b"\0lighter package"[..], b""] {
        let package = [begin, &length, job, &module].concat();
        let workshop = common::Workshop::new();
        let error = workshop.compile(&package).expect_err("it is no wasm");
        assert!(
            matches!(error, wasm::CacheError::Refused { .. }),
            "{error:?}"
        );
        assert!(!error.to_string().contains("77"), "{error}");
    }
}
