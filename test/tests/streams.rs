//! Standard input, output and error.

use anyhow::Result;
use lighter_test::{Containerd, Input, Rootfs, WASMTIME, each_containerd};
use nix::{sys::stat::Mode, unistd::mkfifo};

each_containerd!(
    hundred_megabytes,
    fed_piece_by_piece,
    closed_before_the_start,
    stderr_apart,
    nothing_to_read,
    output_before_exit
);

const PROGRAMS: [&[&str]; 4] = [
    &["/tool.wasm", "cat"],
    &["/tool-component.wasm", "cat"],
    &["/tool-p3.wasm", "cat"],
    &["/bin/cat"],
];

/// Bytes in which nothing repeats that a lost or doubled piece could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn hundred_megabytes(engine: &Containerd) -> Result<()> {
    let input = noise(100 << 20);
    for program in PROGRAMS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args(program)
            .stdin(Input::Bytes(input.clone()))
            .create()?;
        container.start()?;
        container.end_stdin()?;
        let output = container.finish()?;
        assert_eq!(output.status, 0, "{program:?}: {}", output.errors());
        assert!(
            output.stdout == input,
            "{program:?} gave {} bytes back, not the same {}",
            output.stdout.len(),
            input.len()
        );
    }
    Ok(())
}

fn fed_piece_by_piece(engine: &Containerd) -> Result<()> {
    for program in PROGRAMS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args(program)
            .stdin(Input::Fed)
            .create()?;
        container.start()?;
        for piece in ["one\n", "two\n", "three\n"] {
            container.feed(piece.as_bytes());
            container.wait_for_output(piece)?;
        }
        container.end_stdin()?;
        assert_eq!(
            container.finish()?.success()?,
            "one\ntwo\nthree\n",
            "{program:?}"
        );
    }
    Ok(())
}

/// A client whose own input ends before the start, as /dev/null does, has never opened the pipe for it.
fn closed_before_the_start(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let stdin = folder.path().join("stdin");
    mkfifo(&stdin, Mode::S_IRWXU)?;
    for program in PROGRAMS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args(program)
            .streams(&stdin.display().to_string(), "", "")
            .create()?;
        container.end_stdin()?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0, "{program:?}");
    }
    Ok(())
}

fn stderr_apart(engine: &Containerd) -> Result<()> {
    for tool in ["/tool.wasm", "/tool-component.wasm"] {
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "stderr", "only here"])
            .run()?;
        assert_eq!(
            (output.text(), output.errors()),
            (String::new(), "only here\n".to_owned())
        );
    }
    Ok(())
}

/// Without a connected input a guest reads the end at once.
fn nothing_to_read(engine: &Containerd) -> Result<()> {
    for program in PROGRAMS {
        let output = engine.container(&Rootfs::guests()?).args(program).run()?;
        assert_eq!(output.success()?, "", "{program:?}");
    }
    Ok(())
}

/// When the exit is told, all output has been passed on: a client that reads
/// what is there then misses nothing.
fn output_before_exit(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/large", "line of text\n".repeat(20_000));
    for _ in 0..5 {
        let container = engine
            .container(&rootfs)
            .runtime(WASMTIME)
            .args(["/tool.wasm", "read", "/large"])
            .create()?;
        container.start()?;
        container.wait()?;
        let output = container.finish()?;
        assert_eq!(output.stdout.len(), 20_000 * 13);
    }
    Ok(())
}
