//! Native code is made once, kept whole, and made again where it is not.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime};

use crate::common::{PROCESS, Workshop, file, names, only_file, process, wait_until, wasm};
use wasm::settings::{Flags, Size};
use wasm::{Cache, CacheError, Inventory, Kind};

const GUEST: &str = r#"(module (func (export "_start")))"#;

/// For calls that must find what they ask for.
fn nobody(_: Command) -> io::Result<ExitStatus> {
    panic!("something was compiled")
}

fn runs(artifact: &Path) -> bool {
    let status = process(artifact, &[], &["guest"]).status();
    status.expect("a status").success()
}

#[test]
fn a_second_call_compiles_nothing_here_or_elsewhere() {
    let workshop = Workshop::new();
    let wasm = wasm(GUEST);
    workshop.compile(&wasm).expect("native code");
    workshop
        .cache
        .artifact(&file(&wasm), "guest", &nobody)
        .expect("a hit");
    let elsewhere = Cache::open(
        workshop.directory.path().join("cache"),
        PROCESS,
        Flags::default(),
    )
    .expect("a cache");
    elsewhere
        .artifact(&file(&wasm), "guest", &nobody)
        .expect("a hit");
}

#[test]
fn an_artifact_is_readable_by_its_holder_and_reachable_by_root_alone() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(GUEST);
    assert_eq!(fs::metadata(&artifact).expect("it").mode() & 0o777, 0o444);
    for folder in [workshop.entries(), workshop.directory.path().join("cache")] {
        assert_eq!(fs::metadata(folder).expect("it").mode() & 0o777, 0o700);
    }
}

#[test]
fn many_callers_of_one_module_compile_it_once() {
    let workshop = Arc::new(Workshop::new());
    let wasm = Arc::new(wasm(GUEST));
    let compiled = Arc::new(AtomicUsize::new(0));
    let barrier = Arc::new(Barrier::new(8));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (workshop, wasm) = (workshop.clone(), wasm.clone());
            let (compiled, barrier) = (compiled.clone(), barrier.clone());
            std::thread::spawn(move || {
                // Each as a daemon of its own.
                let folder = workshop.directory.path().join("cache");
                let cache = Cache::open(folder, PROCESS, Flags::default()).expect("a cache");
                barrier.wait();
                cache
                    .artifact(&file(&wasm), "guest", &|mut command| {
                        compiled.fetch_add(1, Ordering::SeqCst);
                        command.status()
                    })
                    .expect("native code")
            })
        })
        .collect();
    for caller in callers {
        caller.join().expect("an artifact");
    }
    assert_eq!(compiled.load(Ordering::SeqCst), 1);
}

/// Compiles, has `harm` done to the artifact, and expects a new one that runs.
fn assert_made_again(harm: impl FnOnce(&Path)) {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(GUEST);
    harm(&artifact);
    let mut compiled = 0;
    let counter = std::cell::RefCell::new(&mut compiled);
    workshop
        .cache
        .artifact(&file(&wasm(GUEST)), "guest", &|mut command| {
            **counter.borrow_mut() += 1;
            command.status()
        })
        .expect("native code");
    assert_eq!(compiled, 1, "the harm went unnoticed");
    assert!(runs(&only_file(&workshop.entries())));
    workshop
        .cache
        .artifact(&file(&wasm(GUEST)), "guest", &nobody)
        .expect("a hit");
}

/// Overwrites in place, as a disk would that lies.
fn overwrite(artifact: &Path, change: impl FnOnce(&fs::File, u64)) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(artifact)
        .expect("it");
    let length = file.metadata().expect("it").len();
    change(&file, length);
}

#[test]
fn a_truncated_artifact_is_made_again() {
    for keep in [0, 1, 2] {
        assert_made_again(|artifact| {
            overwrite(artifact, |file, length| {
                file.set_len(length * keep / 3).expect("shorter");
            })
        });
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    for place in [0, 1, 500, 998, 999] {
        assert_made_again(|artifact| {
            overwrite(artifact, |file, length| {
                let offset = (length - 1) * place / 999;
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).expect("a byte");
                file.write_all_at(&[byte[0] ^ 4], offset).expect("a byte");
            })
        });
    }
}

#[test]
fn a_foreign_file_a_link_or_a_folder_in_its_place_is_replaced() {
    assert_made_again(|artifact| {
        fs::write(artifact, "not an artifact").expect("a file");
    });
    assert_made_again(|artifact| {
        fs::rename(artifact, artifact.with_extension("elsewhere")).expect("a file");
        std::os::unix::fs::symlink("/etc/passwd", artifact).expect("a link");
        fs::remove_file(artifact.with_extension("elsewhere")).expect("a file");
    });
    assert_made_again(|artifact| {
        fs::remove_file(artifact).expect("a file");
        fs::create_dir(artifact).expect("a folder");
        fs::write(artifact.join("file"), "").expect("a file");
    });
    assert_made_again(|artifact| {
        std::os::unix::fs::chown(artifact, Some(1000), None).expect("another owner");
    });
}

#[test]
fn the_artifact_of_another_module_is_not_taken() {
    let other = Workshop::new().artifact_bytes(r#"(module (func (export "other")))"#);
    assert_made_again(|artifact| {
        fs::remove_file(artifact).expect("a file");
        fs::write(artifact, other).expect("a file");
    });
}

impl Workshop {
    fn artifact_bytes(&self, text: &str) -> Vec<u8> {
        fs::read(self.artifact(text)).expect("an artifact")
    }
}

#[test]
fn a_module_that_changes_while_it_is_compiled_is_filed_under_what_was_compiled() {
    let workshop = Workshop::new();
    let original = wasm(GUEST);
    let changed = wasm(r#"(module (func (export "_stark")))"#);
    assert_eq!(original.len(), changed.len());
    let module = file(&original);
    workshop
        .cache
        .artifact(&module, "guest", &|mut command| {
            module.write_all_at(&changed, 0)?;
            command.status()
        })
        .expect("native code");
    assert!(
        runs(&only_file(&workshop.entries())),
        "the first content was compiled"
    );
    workshop
        .cache
        .artifact(&file(&original), "guest", &nobody)
        .expect("a hit");
}

fn refusal(wasm: &[u8]) -> String {
    let workshop = Workshop::new();
    let error = workshop.compile(wasm).expect_err("a refusal");
    assert!(matches!(error, CacheError::Refused { .. }), "{error:?}");
    assert_eq!(names(&workshop.entries()), [""; 0], "nothing is left");
    error.to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

#[test]
fn what_is_not_wasm_is_refused_with_the_reason() {
    assert_says(&refusal(b""), &["guest.wasm", "empty"]);
    assert_says(&refusal(b"\0asm"), &["guest.wasm", "unexpected end"]);
    assert_says(&refusal(b"#!/bin/sh\n"), &["guest.wasm", "a text file"]);
    let whole = wasm(GUEST);
    assert_says(&refusal(&whole[..whole.len() - 3]), &["guest.wasm"]);
    let mut broken = whole;
    let length = broken.len();
    broken[length - 4] = 0xff;
    assert_says(&refusal(&broken), &["guest.wasm"]);
    assert_says(&refusal(b"\0asm\x0d\0\x01\0\xff"), &["guest.wasm"]);
}

#[test]
fn an_unknown_import_is_named() {
    let module = wasm(r#"(module (import "env" "foo" (func)))"#);
    assert_says(
        &refusal(&module),
        &["guest.wasm", "\"env\".\"foo\"", "WASI 0.1"],
    );
    let other = wasm(r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)))"#);
    assert_says(
        &refusal(&other),
        &["guest.wasm", "fd_write", "incompatible"],
    );
    // It is told before what would take long to compile.
    let first = wasm(
        r#"(module (import "env" "foo" (func)) (func (export "_start") (drop (i32.const 1))))"#,
    );
    let mut broken = first.clone();
    let length = broken.len();
    broken[length - 2] = 0xff;
    assert_says(&refusal(&broken), &["\"env\".\"foo\""]);
    let component =
        wasm(r#"(component (import "dock:yard/crane@1.0.0" (instance (export "lift" (func)))))"#);
    assert_says(
        &refusal(&component),
        &["dock:yard/crane@1.0.0", "WASI 0.2 and 0.3"],
    );
}

#[test]
fn a_module_that_is_too_large_is_not_even_read() {
    let workshop = Workshop::new();
    let module = file(b"\0asm");
    module
        .set_len(wasm::MAX_MODULE_BYTES + 1)
        .expect("a sparse file");
    let error = workshop
        .cache
        .artifact(&module, "guest", &nobody)
        .expect_err("too large");
    assert_says(&error.to_string(), &["guest", "1073741825", "1073741824"]);
}

#[test]
fn a_folder_as_a_module_is_an_error() {
    let workshop = Workshop::new();
    let folder = fs::File::open("/").expect("a folder");
    let error = workshop
        .cache
        .artifact(&folder, "guest", &nobody)
        .expect_err("a folder");
    assert_says(
        &error.to_string(),
        &["cannot read guest", "not a regular file"],
    );
}

#[test]
fn a_worker_that_cannot_start_or_says_nothing() {
    let workshop = Workshop::new();
    let folder = workshop.directory.path().join("cache");
    for (program, part) in [
        (
            "/nowhere/worker",
            "cannot start the compile worker /nowhere/worker",
        ),
        ("/bin/false", "the compiler ended with exit status: 1"),
        ("/bin/true", "the compiler ended with exit status: 0"),
    ] {
        let cache = Cache::open(&folder, program, Flags::default()).expect("a cache");
        let error = cache
            .artifact(&file(&wasm(GUEST)), "guest", &|mut command| {
                command.status()
            })
            .expect_err("no native code");
        assert_says(&error.to_string(), &["guest", part]);
        assert_eq!(names(&workshop.entries()), [""; 0], "nothing is left");
    }
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let folder = tempfile::TempDir::new().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    let error = Cache::open(folder.path(), PROCESS, Flags::default()).expect_err("exposed");
    assert_says(&error.to_string(), &["mode 777", "0700"]);
}

#[test]
fn a_cache_that_cannot_be_made_names_the_folder_and_the_reason() {
    let error = Cache::open("/proc/cache", PROCESS, Flags::default()).expect_err("no such place");
    assert_says(
        &error.to_string(),
        &["/proc/cache", "No such file", "writable"],
    );
}

const HOUR: Duration = Duration::from_secs(3600);

/// A guest of its own for each number.
fn numbered(number: u32) -> Vec<u8> {
    wasm(&format!(
        r#"(module (func (export "_start")) (func (export "number") (result i32) i32.const {number}))"#
    ))
}

impl Workshop {
    fn folder(&self) -> std::path::PathBuf {
        self.directory.path().join("cache")
    }

    fn inventory(&self) -> Inventory {
        Inventory::new(self.folder()).expect("an inventory")
    }

    /// Compiles [`numbered`] guests, and gives their artifacts.
    fn artifacts(&self, numbers: std::ops::Range<u32>) -> Vec<std::path::PathBuf> {
        let mut artifacts = Vec::new();
        for number in numbers {
            let before = names(&self.entries());
            self.compile(&numbered(number)).expect("native code");
            let new = names(&self.entries());
            let new = new.iter().find(|name| !before.contains(name));
            artifacts.push(self.entries().join(new.expect("a new one")));
        }
        artifacts
    }
}

/// Has a file look as if it had been written so long ago.
fn make_old(path: &Path, age: Duration) {
    let file = fs::File::open(path).expect("it");
    file.set_modified(SystemTime::now() - age).expect("a time");
}

fn age(path: &Path) -> Duration {
    let time = fs::metadata(path).expect("it").modified().expect("a time");
    SystemTime::now().duration_since(time).unwrap_or_default()
}

#[test]
fn a_use_is_noted_once_an_hour() {
    let workshop = Workshop::new();
    let artifact = workshop.artifact(GUEST);
    let stamp = artifact.with_extension("used");
    let hit = || {
        workshop
            .cache
            .artifact(&file(&wasm(GUEST)), "guest", &nobody)
            .expect("a hit")
    };
    hit();
    assert!(!stamp.exists(), "the artifact itself is new");
    make_old(&artifact, 5 * HOUR);
    hit();
    assert!(age(&stamp) < HOUR, "the use was noted");
    assert!(age(&artifact) > HOUR, "its own file is left alone");
    make_old(&stamp, HOUR / 2);
    hit();
    assert!(age(&stamp) > HOUR / 3, "that is recent enough");
    make_old(&stamp, 2 * HOUR);
    hit();
    assert!(age(&stamp) < HOUR);
    let used = workshop.inventory().entries().expect("entries")[0].used;
    assert!(used.elapsed().unwrap_or_default() < HOUR);
}

#[test]
fn what_was_not_used_for_longest_goes_when_the_cache_is_full() {
    let workshop = Workshop::new();
    let artifacts = workshop.artifacts(0..3);
    for (artifact, hours) in artifacts.iter().zip([30, 20, 10]) {
        make_old(artifact, hours * HOUR);
    }
    // The oldest is used again.
    workshop.compile(&numbered(0)).expect("a hit");
    let size = fs::metadata(&artifacts[0]).expect("it").len();
    let cache = Cache::open(workshop.folder(), PROCESS, Flags::default()).expect("a cache");
    let cache = cache.with_limit(Size(3 * size + size / 2));
    cache
        .artifact(&file(&numbered(3)), "guest", &|mut command| {
            command.status()
        })
        .expect("native code");
    let left: Vec<bool> = artifacts.iter().map(|artifact| artifact.exists()).collect();
    assert_eq!(left, [true, false, true]);
    assert_eq!(workshop.inventory().entries().expect("entries").len(), 3);
}

#[test]
fn what_was_just_made_stays_however_small_the_cache() {
    let workshop = Workshop::new();
    let artifacts = workshop.artifacts(0..2);
    let cache = Cache::open(workshop.folder(), PROCESS, Flags::default()).expect("a cache");
    let cache = cache.with_limit(Size(0));
    let compile = || {
        cache
            .artifact(&file(&numbered(2)), "guest", &|mut command| {
                command.status()
            })
            .expect("native code")
    };
    compile();
    assert!(!artifacts[0].exists() && !artifacts[1].exists());
    assert!(runs(&only_file(&workshop.entries())));
}

#[test]
fn a_removed_folder_is_made_again() {
    let workshop = Workshop::new();
    workshop.artifact(GUEST);
    for folder in [workshop.entries(), workshop.folder()] {
        fs::remove_dir_all(folder).expect("a folder");
        workshop.artifact(GUEST);
    }
}

#[test]
fn what_is_there_is_listed_with_where_it_comes_from() {
    let workshop = Workshop::new();
    let artifacts = workshop.artifacts(0..1);
    make_old(&artifacts[0], 3 * HOUR);
    workshop
        .cache
        .artifact(
            &file(&wasm("(component)")),
            &format!("/{}", "component\n".repeat(100)),
            &|mut command| command.status(),
        )
        .expect("native code");
    let entries = workshop.inventory().entries().expect("entries");
    assert_eq!(entries.len(), 2);
    let [component, module] = [0, 1].map(|index| &entries[index]);
    let source = module.source().expect("a source");
    assert_eq!(
        (source.kind, source.name.as_str()),
        (Kind::Module, "guest.wasm")
    );
    assert_eq!(
        Some(module.digest.as_str()),
        artifacts[0].file_name().and_then(|n| n.to_str())
    );
    assert_eq!(module.size, fs::metadata(&artifacts[0]).expect("it").len());
    let source = component.source().expect("a source");
    assert_eq!(source.kind, Kind::Component);
    assert_eq!(source.name.len(), 255, "a long name is cut");
    assert!(entries.iter().all(|entry| entry.current));

    let inventory = workshop.inventory();
    inventory.remove(module).expect("it goes");
    inventory.remove(module).expect("it is gone");
    assert!(!artifacts[0].exists());
    assert_eq!(inventory.entries().expect("entries").len(), 1);
}

#[test]
fn the_code_of_other_versions_is_told_apart_and_removed() {
    let workshop = Workshop::new();
    let own = workshop.artifact(GUEST);
    let other = workshop.folder().join("0123456789abcdef".repeat(2));
    let digest = own.file_name().expect("a name");
    fs::create_dir(&other).expect("a folder");
    fs::copy(&own, other.join(digest)).expect("a copy");
    fs::write(other.join(digest).with_extension("used"), "").expect("a file");
    let inventory = workshop.inventory();
    let entries = inventory.entries().expect("entries");
    assert_eq!(entries.iter().filter(|entry| entry.current).count(), 1);
    assert_eq!(entries.len(), 2);
    assert_eq!(inventory.remove_other_versions().expect("removed").len(), 1);
    // Forks of other tests have the lock for a moment.
    wait_until(|| {
        inventory.sweep().expect("swept");
        !other.exists()
    });
    assert!(runs(&own));
}

#[test]
fn what_killed_processes_have_left_is_swept_when_nobody_compiles() {
    let workshop = Workshop::new();
    let own = workshop.artifact(GUEST);
    make_old(&own, 2 * HOUR);
    workshop.compile(&wasm(GUEST)).expect("a hit");
    let strays = [
        own.with_extension("new"),
        own.with_file_name("0".repeat(64) + ".used"),
    ];
    for stray in &strays {
        fs::write(stray, "").expect("a file");
    }
    let inventory = workshop.inventory();
    workshop
        .cache
        .artifact(&file(&numbered(0)), "guest", &|mut command| {
            inventory.sweep().expect("nothing to do now");
            assert!(strays.iter().all(|stray| stray.exists()));
            command.status()
        })
        .expect("native code");
    // As above.
    wait_until(|| {
        inventory.sweep().expect("swept");
        !strays.iter().any(|stray| stray.exists())
    });
    assert!(own.with_extension("used").exists());
    assert_eq!(inventory.entries().expect("entries").len(), 2);
}

/// Folders that are named as the cache names its own, such as those of systemd's journal.
#[test]
fn what_the_cache_has_not_written_stays() {
    let workshop = Workshop::new();
    let own = workshop.artifact(GUEST);
    let folder = workshop.folder().join("0123456789abcdef".repeat(2));
    fs::create_dir(&folder).expect("a folder");
    let digest = "0".repeat(64);
    let others = [
        folder.join("system.journal"),
        folder.join("notes.used"),
        folder.join(format!("{digest}.txt")),
        own.with_extension("new.orig"),
    ];
    let stray = folder.join(format!("{digest}.used"));
    for file in others.iter().chain([&stray]) {
        fs::write(file, "").expect("a file");
    }
    let inventory = workshop.inventory();
    // As above.
    wait_until(|| {
        inventory.sweep().expect("swept");
        !stray.exists()
    });
    assert!(others.iter().all(|other| other.exists()));
}

#[test]
fn a_folder_that_others_can_write_has_no_inventory() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).expect("a mode");
    let error = Inventory::new(folder.path()).expect_err("exposed");
    assert_says(&error.to_string(), &["mode 755", "another folder"]);
    let error = Inventory::new("/proc/version").expect_err("a file");
    assert_says(&error.to_string(), &["/proc/version", "Not a directory"]);
}

#[test]
fn a_cache_that_is_not_there_holds_nothing() {
    let inventory = Inventory::new("/nowhere/cache").expect("an inventory");
    assert!(inventory.entries().expect("none").is_empty());
    assert!(inventory.shrink(0, None).expect("nothing").is_empty());
    inventory.sweep().expect("nothing to do");
}

/// A tmpfs that goes away with the value.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(options: &str) -> Self {
        let folder = tempfile::TempDir::new().expect("a folder");
        nix::mount::mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options),
        )
        .expect("a tmpfs");
        Self(folder)
    }

    /// Waits while a process that another test is starting still has files open for writing.
    fn remount_read_only(&self) {
        wait_until(|| {
            let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
            let none = None::<&str>;
            match nix::mount::mount(none, self.0.path(), none, flags, none) {
                Err(nix::Error::EBUSY) => false,
                result => {
                    result.expect("read-only");
                    true
                }
            }
        });
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).expect("umount");
    }
}

#[test]
fn a_full_disk_names_the_folder_and_leaves_nothing() {
    let disk = Mounted::new("size=64k");
    let folder = disk.0.path().join("cache");
    let cache = Cache::open(&folder, PROCESS, Flags::default()).expect("a cache");
    let bulk = "cargo".repeat(20_000);
    let module = wasm(&format!(
        "(module (memory 2) (data (i32.const 0) {bulk:?}))"
    ));
    let error = cache
        .artifact(&file(&module), "guest", &|mut command| command.status())
        .expect_err("no room");
    let path = folder.to_str().expect("UTF-8").to_owned();
    assert_says(
        &error.to_string(),
        &["guest", &path, "No space left on device", "free space"],
    );
    let left: Vec<_> = names(&folder)
        .into_iter()
        .filter(|name| folder.join(name).is_dir())
        .flat_map(|name| names(&folder.join(name)))
        .collect();
    assert_eq!(left, [""; 0]);
    // Blocks of a file that has no name are free again, too, once the last process that other
    // tests are starting at this moment has closed what it inherited.
    wait_until(|| {
        let stat = nix::sys::statvfs::statvfs(&folder).expect("figures");
        stat.blocks_free() >= stat.blocks() - 1
    });
}

/// What was not used for longest goes, though the cache may be larger: as much as is lacking.
#[test]
fn a_full_disk_is_no_end() {
    let disk = Mounted::new("size=1m");
    let folder = disk.0.path().join("cache");
    let cache = Cache::open(&folder, PROCESS, Flags::default()).expect("a cache");
    let compile = |number: u32| {
        let bulk = number.to_string().repeat(350_000);
        let module = format!("(module (memory 6) (data (i32.const 0) {bulk:?}))");
        let started = std::cell::Cell::new(0);
        let artifact = cache.artifact(&file(&wasm(&module)), "guest", &|mut command| {
            started.set(started.get() + 1);
            command.status()
        });
        artifact.map(|_| started.get())
    };
    let digests = || {
        let inventory = Inventory::new(&folder).expect("an inventory");
        let entries = inventory.entries().expect("entries");
        let digests = entries.into_iter().map(|entry| entry.digest);
        digests.collect::<Vec<_>>()
    };
    compile(1).expect("room");
    let [first] = &digests()[..] else {
        panic!("one");
    };
    for entries in names(&folder) {
        let artifact = folder.join(entries).join(first);
        if artifact.exists() {
            make_old(&artifact, 5 * HOUR);
        }
    }
    compile(2).expect("room");
    let second = digests()[0].clone();
    assert_eq!(compile(3).expect("room was made"), 2, "once in vain");
    let left = digests();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(!left.contains(first) && left.contains(&second), "{left:?}");
}

#[test]
fn a_read_only_folder_serves_hits_and_names_itself_on_a_miss() {
    let disk = Mounted::new("size=16m");
    let folder = disk.0.path().join("cache");
    let compile = |cache: &Cache, text| {
        cache.artifact(&file(&wasm(text)), "guest", &|mut command| command.status())
    };
    compile(
        &Cache::open(&folder, PROCESS, Flags::default()).expect("a cache"),
        GUEST,
    )
    .expect("native code");
    disk.remount_read_only();
    let cache = Cache::open(&folder, PROCESS, Flags::default()).expect("a cache");
    compile(&cache, GUEST).expect("a hit");
    let error = compile(&cache, "(module)").expect_err("read-only");
    let path = folder.to_str().expect("UTF-8");
    assert_says(
        &error.to_string(),
        &[path, "Read-only file system", "writable"],
    );
}
