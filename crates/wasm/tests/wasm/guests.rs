//! How guests start and end.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use crate::common::{self, Workshop, process, stderr, stdout};

/// A core module with a memory, the imports that most guests need, and `body`.
fn module(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
            (memory (export "memory") 4)
            {body})"#
    )
}

/// A component whose `run` of the given version of `wasi:cli/run` does `body`.
fn command(version: &str, kind: &str, body: &str) -> String {
    format!(
        r#"(component
            (core module $code (func (export "run") (result i32) {body}))
            (core instance $instance (instantiate $code))
            (type $run (func {kind} (result (result))))
            (func $lifted (type $run) (canon lift (core func $instance "run")))
            (instance $interface (export "run" (func $lifted)))
            (export "wasi:cli/run@{version}" (instance $interface)))"#
    )
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
}

const HELLO: &str = r#"
    (data (i32.const 0) "\10\00\00\00\06\00\00\00")
    (data (i32.const 16) "hello\n")
    (func (export "_start")
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))"#;

const SINKING: &str = r#"
    (func $sink (unreachable))
    (func $hull (call $sink))
    (func (export "_start") (call $hull))"#;

#[test]
fn what_a_module_writes_arrives_and_returning_is_0() {
    let output = Workshop::run(&module(HELLO));
    assert_code(&output, 0);
    assert_eq!(stdout(&output), "hello\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn proc_exit_gives_the_lowest_eight_bits() {
    let exit = |code: u32| {
        Workshop::run(&module(&format!(
            r#"(func (export "_start") (call $proc_exit (i32.const {code})))"#
        )))
    };
    assert_code(&exit(0), 0);
    assert_code(&exit(7), 7);
    assert_code(&exit(200), 200);
    assert_code(&exit(256 + 3), 3);
    assert_code(&exit(u32::MAX), 255);
}

#[test]
fn a_trap_is_134_with_a_backtrace_of_names() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(SINKING));
    let output = process(&artifact, &[], &["guest"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("output");
    assert_code(&output, 134);
    let text = stderr(&output);
    for part in ["guest:", "wasm backtrace", "sink", "hull", "`unreachable`"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert!(!text.contains("tokio"), "the host's frames are in {text}");
}

#[test]
fn a_trap_is_134_although_nobody_listens() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(SINKING));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = process(&artifact, &[], &["guest"])
        .stderr(writer)
        .status()
        .expect("a status");
    assert_eq!(status.code(), Some(134));
}

#[test]
fn a_trap_in_the_start_function_is_the_guests_own() {
    let output = Workshop::run(&module(
        r#"(func $early (unreachable)) (start $early) (func (export "_start"))"#,
    ));
    assert_code(&output, 134);
    assert!(!stderr(&output).contains("not started"));
    assert!(stderr(&output).contains("early"), "{}", stderr(&output));
}

#[test]
fn running_out_of_stack_is_a_trap() {
    let output = Workshop::run(&module(
        r#"(func $deep (call $deep) (call $deep)) (func (export "_start") (call $deep))"#,
    ));
    assert_code(&output, 134);
    assert!(stderr(&output).contains("call stack exhausted"));
}

#[test]
fn touching_memory_that_is_not_there_is_a_trap() {
    let output = Workshop::run(&module(
        r#"(func (export "_start") (drop (i32.load (i32.const -4))))"#,
    ));
    assert_code(&output, 134);
    assert!(stderr(&output).contains("out of bounds memory access"));
}

#[test]
fn a_reactors_function_runs_after_initialize_and_its_integer_is_the_code() {
    let text = module(
        r#"(global $value (mut i32) (i32.const 1))
           (func (export "_initialize") (global.set $value (i32.const 298)))
           (func (export "answer") (result i32) (global.get $value))
           (func (export "nothing"))
           (func (export "needs") (param i32))"#,
    );
    let run = |options: &[&str]| Workshop::run_with(&text, options, &["guest"]);
    assert_code(&run(&["--function", "answer"]), 298 & 0xff);
    assert_code(&run(&["--function", "nothing"]), 0);

    let missing = run(&["--function", "needs"]);
    assert_code(&missing, 100);
    for part in ["\"needs\"", "answer", "nothing", "_initialize"] {
        assert!(stderr(&missing).contains(part), "{}", stderr(&missing));
    }
    let start = run(&[]);
    assert_code(&start, 100);
    for part in ["\"_start\"", "#FUNCTION", "answer"] {
        assert!(stderr(&start).contains(part), "{}", stderr(&start));
    }
}

#[test]
fn a_module_with_no_exports_says_so() {
    let output = Workshop::run("(module)");
    assert_code(&output, 100);
    assert!(
        stderr(&output).contains("it exports nothing"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn components_of_every_version_return_their_result() {
    for (version, kind) in [
        ("0.2.0", ""),
        ("0.2.6", ""),
        ("0.2.12", ""),
        ("0.3.0", "async"),
    ] {
        let run = |body| Workshop::run(&command(version, kind, body));
        assert_code(&run("(i32.const 0)"), 0);
        assert_code(&run("(i32.const 1)"), 1);
        let trap = run("(unreachable)");
        assert_code(&trap, 134);
        assert!(
            stderr(&trap).contains("wasm backtrace"),
            "{}",
            stderr(&trap)
        );
    }
}

#[test]
fn exit_with_code_of_components() {
    for (version, kind) in [("0.2.12", ""), ("0.3.0", "async")] {
        let output = Workshop::run(&format!(
            r#"(component
                (import "wasi:cli/exit@{version}" (instance $exit
                    (export "exit-with-code" (func (param "status-code" u8)))))
                (core func $exit (canon lower (func $exit "exit-with-code")))
                (core module $code
                    (import "" "exit" (func $exit (param i32)))
                    (func (export "run") (result i32)
                        (call $exit (i32.const 42))
                        (i32.const 0)))
                (core instance $instance (instantiate $code
                    (with "" (instance (export "exit" (func $exit))))))
                (type $run (func {kind} (result (result))))
                (func $lifted (type $run) (canon lift (core func $instance "run")))
                (instance $interface (export "run" (func $lifted)))
                (export "wasi:cli/run@{version}" (instance $interface)))"#
        ));
        assert_code(&output, 42);
    }
}

/// A component of no known world, with functions at its top and in an interface.
const LIBRARY: &str = r#"(component
    (core module $code
        (func (export "five") (result i32) (i32.const 5))
        (func (export "fails") (result i32) (i32.const 1)))
    (core instance $instance (instantiate $code))
    (func $five (result u32) (canon lift (core func $instance "five")))
    (func $fails (result (result)) (canon lift (core func $instance "fails")))
    (instance $interface (export "fails" (func $fails)))
    (export "five" (func $five))
    (export "dock:yard/crane@1.0.0" (instance $interface)))"#;

#[test]
fn a_components_function_by_name() {
    let run = |function| Workshop::run_with(LIBRARY, &["--function", function], &["guest"]);
    assert_code(&run("five"), 5);
    assert_code(&run("dock:yard/crane@1.0.0#fails"), 1);
    let missing = run("six");
    assert_code(&missing, 100);
    for part in ["\"six\"", "five", "dock:yard/crane@1.0.0"] {
        assert!(stderr(&missing).contains(part), "{}", stderr(&missing));
    }
}

#[test]
fn a_component_of_an_unknown_world_names_its_exports() {
    let output = Workshop::run(LIBRARY);
    assert_code(&output, 100);
    for part in ["wasi:cli/command", "five", "dock:yard/crane@1.0.0"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn a_component_loads_without_a_proc_file_system_and_as_another_user() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&command("0.2.0", "", "(i32.const 1)"));
    let root = workshop.directory.path().join("root");
    std::fs::create_dir(&root).expect("a folder");
    let root = root.to_str().expect("UTF-8");
    let run = |options: &[&str]| {
        process(&artifact, options, &["guest"])
            .output()
            .expect("output")
    };
    assert_code(&run(&["--root", root, "--id", "1000"]), 1);
    assert_code(&run(&["--id", "1000"]), 1);
}

#[test]
fn want_of_memory_is_an_error_before_the_start() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(r#"(func (export "_start"))"#));
    let output = std::process::Command::new("prlimit")
        .arg("--as=1000000000")
        .arg("--")
        .arg(common::PROCESS)
        .arg("run")
        .arg(&artifact)
        .arg("guest")
        .output()
        .expect("prlimit of util-linux");
    assert_code(&output, 125);
    let text = stderr(&output);
    assert!(
        text.contains("not started: cannot instantiate guest"),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

/// Copies standard input to standard output; exits with 0 at its end and 9 on a failed write.
const COPY: &str = r#"
    (func (export "_start")
        (loop $more
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const 100000))
            (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4))
                (then (call $proc_exit (i32.const 8))))
            (if (i32.eqz (i32.load (i32.const 4))) (then (return)))
            (loop $rest
                (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
                    (then (call $proc_exit (i32.const 9))))
                (i32.store (i32.const 0)
                    (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 8))))
                (i32.store (i32.const 4)
                    (i32.sub (i32.load (i32.const 4)) (i32.load (i32.const 8))))
                (br_if $rest (i32.load (i32.const 4))))
            (br $more)))"#;

#[test]
fn a_hundred_megabytes_pass_through_unharmed() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(COPY));
    let mut child = process(&artifact, &[], &["guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut input = child.stdin.take().expect("a pipe");
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| ((i * i) >> 7) as u8).collect();
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        for _ in 0..100 {
            input.write_all(&sent).expect("a reader");
        }
    });
    let mut output = child.stdout.take().expect("a pipe");
    let mut received = vec![0; block.len()];
    for _ in 0..100 {
        output.read_exact(&mut received).expect("all of it");
        assert!(received == block, "bytes changed on the way");
    }
    assert_eq!(output.read(&mut received).expect("the end"), 0);
    writer.join().expect("a writer");
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

#[test]
fn a_regular_file_as_standard_input() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(COPY));
    let output = process(&artifact, &[], &["guest"])
        .stdin(common::file(b"cargo"))
        .output()
        .expect("output");
    assert_code(&output, 0);
    assert_eq!(stdout(&output), "cargo");
}

#[test]
fn a_closed_standard_output_is_an_error_to_the_guest() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(COPY));
    let mut child = process(&artifact, &[], &["guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    drop(child.stdout.take());
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"cargo").expect("a reader");
    assert_eq!(child.wait().expect("an end").code(), Some(9));
}

#[test]
fn output_is_not_held_back_until_a_line_ends() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(&module(COPY));
    let mut child = process(&artifact, &[], &["guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"no line").expect("a reader");
    let mut bytes = [0; 7];
    let mut output = child.stdout.take().expect("a pipe");
    output.read_exact(&mut bytes).expect("an echo");
    assert_eq!(&bytes, b"no line");
    drop(input);
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

/// Prints its arguments and its environment, separated by NUL as WASI gives them.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get"
        (func $args_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get"
        (func $environ_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $environ_sizes (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 8192))
        (drop (call $args_sizes (i32.const 16) (i32.const 4)))
        (drop (call $args_get (i32.const 4096) (i32.const 8192)))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (call $environ_sizes (i32.const 16) (i32.const 4)))
        (drop (call $environ_get (i32.const 4096) (i32.const 8192)))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

#[test]
fn arguments_and_environment_arrive_as_given() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(ECHO);
    let output = process(&artifact, &["--cwd", "/tmp"], &["any name", "", "ü"])
        .env("KEEL", "a=b")
        .output()
        .expect("output");
    assert_eq!(stdout(&output), "any name\0\0ü\0KEEL=a=b\0PWD=/tmp\0");
    let output = process(&artifact, &["--cwd", "/tmp"], &["x"])
        .env("PWD", "/else")
        .output()
        .expect("output");
    assert_eq!(
        stdout(&output),
        "x\0PWD=/else\0",
        "a PWD that is there stays"
    );
    let output = process(&artifact, &["--cwd", "/"], &["x"])
        .output()
        .expect("output");
    assert_eq!(stdout(&output), "x\0", "a guest begins in / anyway");
}

/// Clocks go on while a guest does nothing but ask for them.
#[test]
fn a_guest_may_ask_again_and_again_whether_something_is_ready() {
    let output = Workshop::run(
        r#"(component
            (import "wasi:io/poll@0.2.0" (instance $poll
                (export "pollable" (type $pollable (sub resource)))
                (export "[method]pollable.ready"
                    (func (param "self" (borrow $pollable)) (result bool)))))
            (alias export $poll "pollable" (type $pollable))
            (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
                (alias outer 1 $pollable (type $pollable))
                (export "subscribe-duration"
                    (func (param "when" u64) (result (own $pollable))))))
            (core func $ready (canon lower (func $poll "[method]pollable.ready")))
            (core func $subscribe (canon lower (func $clock "subscribe-duration")))
            (core module $code
                (import "" "ready" (func $ready (param i32) (result i32)))
                (import "" "subscribe" (func $subscribe (param i64) (result i32)))
                (func (export "run") (result i32) (local $pollable i32)
                    (local.set $pollable (call $subscribe (i64.const 50000000)))
                    (loop $again
                        (br_if $again (i32.eqz (call $ready (local.get $pollable)))))
                    (i32.const 0)))
            (core instance $instance (instantiate $code
                (with "" (instance
                    (export "ready" (func $ready))
                    (export "subscribe" (func $subscribe))))))
            (func $run (result (result)) (canon lift (core func $instance "run")))
            (instance $interface (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $interface)))"#,
    );
    assert_code(&output, 0);
}
