//! A module's initialisation, run once when it is compiled.

use std::{collections::BTreeSet, fs};

use anyhow::Result;
use lighter_test::{Builder, Containerd, Rootfs, each_containerd, options::RuntimeOptions};
use tempfile::TempDir;

use crate::{COMPONENT, guest};

each_containerd!(
    runs_once,
    by_annotations,
    depends_on_its_files_alone,
    cannot_change_anything,
    what_goes_wrong,
);

/// Reads /data/file when it is initialised, and prints what it has read when it is run.
const READER: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read"
        (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 100) "data/file")
    (data (i32.const 16) "\c8\00\00\00\40\00\00\00")
    (func (export "prepare")
        (if (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 9) (i32.const 0)
                (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))
            (then unreachable))
        (if (call $read (i32.load (i32.const 8)) (i32.const 16) (i32.const 1) (i32.const 24))
            (then unreachable))
        (i32.store (i32.const 20) (i32.load (i32.const 24))))
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))"#;

const PREPARE: &str = "[preinit]\nfunction = 'prepare'\nfiles = ['/data']\n";

/// A guest with a cache of its own.
struct Fresh(TempDir);

impl Fresh {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cache-")
            .tempdir_in("/var/tmp")?;
        Ok(Self(folder))
    }

    fn guest<'a>(
        &self,
        engine: &'a Containerd,
        settings: &str,
        module: &str,
        file: &str,
    ) -> Result<Builder<'a>> {
        let rootfs = Rootfs::base()
            .folder("/data", 0o755)
            .file("/data/file", file)
            .file("/text.wasm", wat::parse_str(module)?);
        let cache = self.0.path().join("cache").display().to_string();
        let options = format!("cache_dir = {cache:?}\n{settings}");
        Ok(engine
            .container(&rootfs)
            .args(["/text.wasm"])
            .options(RuntimeOptions::body(&options)))
    }

    /// The artifacts' names.
    fn artifacts(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for folder in fs::read_dir(self.0.path().join("cache"))? {
            let folder = folder?.path();
            for file in folder
                .is_dir()
                .then(|| fs::read_dir(folder))
                .into_iter()
                .flatten()
                .flatten()
            {
                names.insert(file?.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }
}

fn runs_once(engine: &Containerd) -> Result<()> {
    let fresh = Fresh::new()?;
    let run = |settings: &str| {
        fresh
            .guest(engine, settings, READER, "first")?
            .run()?
            .success()
    };
    assert_eq!(run(PREPARE)?, "first");
    let made = fresh.artifacts()?;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(run(PREPARE)?, "first");
    assert_eq!(fresh.artifacts()?, made, "it was not initialised again");
    let single = PREPARE.replace("/data", "/data/file");
    assert_eq!(run(&single)?, "first");
    assert_eq!(fresh.artifacts()?, made, "however the files are named");
    // What runs it is not changed by it.
    let plain = fresh.guest(engine, "", READER, "first")?.run()?.success()?;
    assert_eq!(plain.trim_matches('\0'), "");
    assert_eq!(run(PREPARE)?, "first");
    Ok(())
}

fn by_annotations(engine: &Containerd) -> Result<()> {
    let fresh = Fresh::new()?;
    let allowed = "annotations = ['preinit']\n";
    let printed = fresh
        .guest(engine, allowed, READER, "annotated")?
        .annotation("lighter/preinit.function", "prepare")
        .annotation("lighter/preinit.files", "['/data']")
        .run()?
        .success()?;
    assert_eq!(printed, "annotated");
    let refused = fresh
        .guest(engine, "", READER, "annotated")?
        .annotation("lighter/preinit.function", "prepare")
        .refused()?;
    assert!(refused.contains("preinit.function"), "{refused}");
    Ok(())
}

/// Another's files are another's artifact.
fn depends_on_its_files_alone(engine: &Containerd) -> Result<()> {
    let fresh = Fresh::new()?;
    for (file, artifacts) in [("one", 1), ("two", 2), ("one", 2), ("two", 2)] {
        let printed = fresh
            .guest(engine, PREPARE, READER, file)?
            .run()?
            .success()?;
        assert_eq!(
            (printed.as_str(), fresh.artifacts()?.len()),
            (file, artifacts)
        );
    }
    // Files that it is not given are not there.
    let none = "[preinit]\nfunction = 'prepare'\n";
    let said = fresh.guest(engine, none, READER, "one")?.refused()?;
    assert!(
        said.contains("prepare") && said.contains("unreachable"),
        "{said}"
    );
    assert_eq!(fresh.artifacts()?.len(), 2);
    Ok(())
}

/// It sees its files, and nothing that it could write to.
fn cannot_change_anything(engine: &Containerd) -> Result<()> {
    let writer = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_unlink_file"
            (func $unlink (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 100) "data/file")
        (data (i32.const 200) "data/other")
        (func (export "prepare")
            (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 200) (i32.const 10)
                    (i32.const 1) (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 8)))
                (then unreachable))
            (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 9)
                    (i32.const 0) (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 8)))
                (then unreachable))
            (if (i32.eqz (call $unlink (i32.const 3) (i32.const 100) (i32.const 9)))
                (then unreachable))
            (if (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 9)
                    (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))
                (then unreachable)))
        (func (export "_start")))"#;
    let fresh = Fresh::new()?;
    fresh
        .guest(engine, PREPARE, writer, "text")?
        .run()?
        .success()?;
    Ok(())
}

fn what_goes_wrong(engine: &Containerd) -> Result<()> {
    let module = |body: &str| {
        format!(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_write"
                    (func $write (param i32 i32 i32 i32) (result i32)))
                (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1)
                (data (i32.const 0) "\08\00\00\00\0a\00\00\00last words")
                (func (export "prepare") {body})
                (func (export "other"))
                (func (export "_start")))"#
        )
    };
    let words = "(drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 40)))";
    let fresh = Fresh::new()?;
    let refused = |settings: &str, body: &str| {
        fresh
            .guest(engine, settings, &module(body), "text")?
            .refused()
    };
    let short = format!("{PREPARE}time = '500ms'\n");
    let missing = PREPARE.replace("/data", "/nowhere");
    let special = PREPARE.replace("/data", "/dev/null");
    let relative = PREPARE.replace("/data", "data");
    let absent = PREPARE.replace("prepare", "compare");
    for (settings, body, parts) in [
        (
            PREPARE,
            &*format!("{words} unreachable"),
            &["prepare", "unreachable", "last words"][..],
        ),
        (
            &*short,
            "(loop (br 0))",
            &["prepare", "500ms", "preinit.time"],
        ),
        (
            PREPARE,
            "(call $exit (i32.const 7))",
            &["prepare", "ended the process", "7"],
        ),
        (
            &*absent,
            "",
            &["preinit.function", "compare", "prepare, other"],
        ),
        (
            &*missing,
            "",
            &["preinit.files", "/nowhere", "No such file"],
        ),
        (&*special, "", &["preinit.files", "/dev/null"]),
        (&*relative, "", &["preinit.files", "absolute"]),
    ] {
        let said = refused(settings, body)?.replace("\\\"", "\"");
        for part in parts {
            assert!(said.contains(part), "{part} in: {said}");
        }
    }
    let said = guest(engine, "preinit.function = 'run'", &[COMPONENT])?.refused()?;
    assert!(
        said.contains("component") && said.contains("preinit.function"),
        "{said}"
    );
    assert_eq!(fresh.artifacts()?.len(), 0, "nothing was kept");
    fresh
        .guest(engine, PREPARE, &module(words), "text")?
        .run()?
        .success()?;
    Ok(())
}
