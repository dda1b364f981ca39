//! Some of tool.c's commands as a component of WASI 0.3, which does its input
//! and output through streams. README.md in the folder above lists them.
use std::{fmt::Debug, hint};

use wasip3::{
    cli::{environment, exit, stderr, stdin, stdout},
    clocks::monotonic_clock,
    filesystem::{
        preopens,
        types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags},
    },
    random::random,
    wit_bindgen::StreamReader,
    wit_stream,
};

struct Tool;

wasip3::cli::command::export!(Tool);

impl wasip3::exports::cli::run::Guest for Tool {
    /// An error is `run` returning its error, nothing else.
    async fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
        match command(&arguments, &words).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let line = format!("tool: {}: {error}\n", words.join(" "));
                let (mut writer, reader) = wit_stream::new();
                let written = stderr::write_via_stream(reader);
                writer.write_all(line.into_bytes()).await;
                drop(writer);
                written.await.map_err(drop)?;
                Err(())
            }
        }
    }
}

async fn command(arguments: &[String], words: &[&str]) -> Result<(), String> {
    match *words {
        ["args", ..] => print(&arguments.join("\n")).await?,
        ["env"] => {
            for (name, value) in environment::get_environment() {
                print(&format!("{name}={value}")).await?;
            }
        }
        ["cwd"] => print(&environment::get_initial_cwd().unwrap_or("none".into())).await?,
        ["exit", code] => exit::exit_with_code(code.parse().map_err(|_| "no exit code")?),
        ["fail"] => return Err("failed as it was told".into()),
        ["trap"] => trap_outer(),
        ["cat"] => {
            let (input, read) = stdin::read_via_stream();
            copy(input).await?;
            read.await.map_err(reason)?;
        }
        ["write", path, text] => {
            let how = OpenFlags::CREATE | OpenFlags::TRUNCATE;
            let file = open(path, how, DescriptorFlags::WRITE).await?;
            let (mut writer, reader) = wit_stream::new();
            let written = file.write_via_stream(reader, 0);
            writer.write_all(text.as_bytes().to_vec()).await;
            drop(writer);
            written.await.map_err(reason)?;
        }
        ["read", path] => {
            let file = open(path, OpenFlags::empty(), DescriptorFlags::READ).await?;
            let (content, read) = file.read_via_stream(0);
            copy(content).await?;
            read.await.map_err(reason)?;
        }
        ["loop"] => {
            print("looping").await?;
            let mut turns = 0_u64;
            loop {
                turns = hint::black_box(turns.wrapping_add(1));
            }
        }
        ["sleep", seconds] => {
            let seconds: u64 = seconds.parse().map_err(|_| "no number of seconds")?;
            print("sleeping").await?;
            monotonic_clock::wait_for(seconds * 1_000_000_000).await;
            print("slept").await?;
        }
        ["random"] => {
            let bytes = random::get_random_bytes(16);
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            print(&text).await?;
        }
        _ => return Err("no such command, or not its arguments".into()),
    }
    Ok(())
}

// Two calls deep, so that a backtrace has names to show.
#[inline(never)]
fn trap_outer() {
    trap_inner();
}

#[inline(never)]
fn trap_inner() {
    core::arch::wasm32::unreachable()
}

/// An error of the host in words.
fn reason(error: impl Debug) -> String {
    format!("{error:?}")
}

/// Prints a line.
async fn print(line: &str) -> Result<(), String> {
    let (mut writer, reader) = wit_stream::new();
    let written = stdout::write_via_stream(reader);
    writer.write_all(format!("{line}\n").into_bytes()).await;
    drop(writer);
    written.await.map_err(reason)
}

/// Hands a stream to the standard output and waits for its end.
async fn copy(content: StreamReader<u8>) -> Result<(), String> {
    stdout::write_via_stream(content).await.map_err(reason)
}

/// Opens a path, which is absolute, below the root that the guest was given.
async fn open(path: &str, how: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, String> {
    let (root, _) = preopens::get_directories()
        .into_iter()
        .find(|(_, name)| name == "/")
        .ok_or("there is no root")?;
    let path = path.trim_start_matches('/').to_owned();
    root.open_at(PathFlags::SYMLINK_FOLLOW, path, how, flags)
        .await
        .map_err(reason)
}
