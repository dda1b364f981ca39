//! The shim's file (elf(5)), which several processes a container are run from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lighter_test::{Containerd, Rootfs, built_programs};
use nix::sys::signal::Signal;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// What the file has for the loader: the kind of each segment, its place in the file, and its address.
fn segments() -> Result<Vec<(u32, u64, u64)>> {
    let file = fs::read(built_programs()?.join("containerd-shim-wasmtime-v1"))?;
    let bytes =
        |at: usize, length: usize| file.get(at..at + length).context("a file that is cut off");
    let half =
        |at: usize| -> Result<usize> { Ok(u16::from_le_bytes(bytes(at, 2)?.try_into()?).into()) };
    let word = |at: usize| -> Result<u32> { Ok(u32::from_le_bytes(bytes(at, 4)?.try_into()?)) };
    let long = |at: usize| -> Result<u64> { Ok(u64::from_le_bytes(bytes(at, 8)?.try_into()?)) };
    ensure!(
        bytes(0, 5)? == b"\x7fELF\x02",
        "it is no program of 64 bits"
    );
    let (first, size, count) = (long(32)? as usize, half(54)?, half(56)?);
    let headers = (0..count).map(|number| first + number * size);
    headers
        .map(|at| Ok((word(at)?, long(at + 8)?, long(at + 16)?)))
        .collect()
}

#[test]
fn no_shared_library() -> Result<()> {
    for (kind, ..) in segments()? {
        assert!(![PT_DYNAMIC, PT_INTERP].contains(&kind), "segment {kind}");
    }
    Ok(())
}

/// Huge pages of the file can be mapped where that and the memory agree.
#[test]
fn its_place_in_memory_is_that_in_huge_pages_of_the_file() -> Result<()> {
    const HUGE_PAGE: u64 = 2 << 20;
    let segments = segments()?;
    let loaded = segments.iter().filter(|(kind, ..)| *kind == PT_LOAD);
    assert!(loaded.clone().count() > 0);
    for (_, offset, address) in loaded {
        assert_eq!(
            offset % HUGE_PAGE,
            address % HUGE_PAGE,
            "{offset:x} {address:x}"
        );
    }
    Ok(())
}

/// The daemon has asked for them, and what it clones with it: `hg` among the flags of its code (proc(5), smaps).
#[test]
fn huge_pages_are_asked_for() -> Result<()> {
    ensure!(
        Path::new("/sys/kernel/mm/transparent_hugepage").exists(),
        "this kernel has no huge pages (CONFIG_TRANSPARENT_HUGEPAGE)"
    );
    let engine = Containerd::newest()?;
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    container.start()?;
    let mut processes = engine.shims_of(container.id());
    assert!(!processes.is_empty());
    processes.push(container.pid());
    for pid in processes {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let code = maps
            .split_once(" r-xp ")
            .and_then(|(_, rest)| rest.split_once("VmFlags: "))
            .and_then(|(_, flags)| flags.lines().next())
            .with_context(|| format!("no code of {pid}: {maps}"))?;
        assert!(code.split(' ').any(|flag| flag == "hg"), "{pid}: {code}");
    }
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}
