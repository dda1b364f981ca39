//! Compiled guests: made once, shared, kept by content, never taken from an
//! image.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use lighter_test::{Containerd, Rootfs, each_containerd, guest, options::RuntimeOptions};

each_containerd!(
    second_start_compiles_nothing,
    shared_by_content,
    many_at_once,
    damaged,
    compiled_code_in_an_image
);

/// A cache folder for one test.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Result<Self> {
        Ok(Self(
            tempfile::Builder::new()
                .prefix("cache-")
                .tempdir_in("/var/tmp")?,
        ))
    }

    fn run(&self, engine: &Containerd, program: &str, rootfs: &Rootfs) -> Result<String> {
        // One that the shim makes: it takes no folder that others may write to.
        let path = self.0.path().join("cache").display().to_string();
        engine
            .container(rootfs)
            .args([program])
            .options(RuntimeOptions::body(&format!("cache_dir = {path:?}\n")))
            .run()?
            .success()
    }

    /// The artifacts: every file with content, with what changes when it is made
    /// anew.
    fn artifacts(&self) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(data) = entry.metadata() else { continue };
                if data.is_dir() {
                    folders.push(entry.path());
                } else if data.len() > 0 {
                    found.insert(
                        entry.path(),
                        (data.ino(), data.mtime(), data.mtime_nsec(), data.len()),
                    );
                }
            }
        }
        found
    }

    fn only_artifact(&self) -> Result<PathBuf> {
        let artifacts = self.artifacts();
        anyhow::ensure!(artifacts.len() == 1, "{artifacts:?}");
        artifacts.into_keys().next().context("one")
    }
}

fn second_start_compiles_nothing(engine: &Containerd) -> Result<()> {
    let (cache, rootfs) = (Cache::new()?, Rootfs::guests()?);
    cache.run(engine, "/hello.wasm", &rootfs)?;
    let first = cache.artifacts();
    assert_eq!(first.len(), 1, "{first:?}");
    for _ in 0..3 {
        cache.run(engine, "/hello.wasm", &rootfs)?;
        assert_eq!(cache.artifacts(), first, "nothing was made anew");
    }
    cache.run(engine, "/hello-component.wasm", &rootfs)?;
    assert_eq!(
        cache.artifacts().len(),
        2,
        "another guest, another artifact"
    );
    Ok(())
}

/// The key is what a guest is, not what it is called or where it lies.
fn shared_by_content(engine: &Containerd) -> Result<()> {
    let cache = Cache::new()?;
    let rootfs = Rootfs::guests()?.copy(guest("hello.wasm")?, "/bin/hello");
    cache.run(engine, "/hello.wasm", &rootfs)?;
    let first = cache.artifacts();
    cache.run(engine, "hello", &rootfs)?;
    assert_eq!(cache.artifacts(), first);
    Ok(())
}

fn many_at_once(engine: &Containerd) -> Result<()> {
    let (cache, rootfs) = (Cache::new()?, Rootfs::guests()?);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| cache.run(engine, "/hello-rust.wasm", &rootfs)))
            .collect();
        runs.into_iter()
            .try_for_each(|run| run.join().expect("no run panics").map(drop))
    })?;
    assert_eq!(cache.artifacts().len(), 1);
    Ok(())
}

/// A damaged or foreign file is never run: it is made again.
fn damaged(engine: &Containerd) -> Result<()> {
    let (cache, rootfs) = (Cache::new()?, Rootfs::guests()?);
    let expected = cache.run(engine, "/hello.wasm", &rootfs)?;
    let artifact = cache.only_artifact()?;
    let good = fs::read(&artifact)?;
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("foreign", |bytes| {
            *bytes = b"something else altogether".repeat(1000)
        }),
        ("zeroed in the middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle..middle + 4096].fill(0);
        }),
        ("changed in its first bytes", |bytes| bytes[..16].fill(0xff)),
    ];
    for (case, damage) in damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        replace(&artifact, &bytes)?;
        let output = cache
            .run(engine, "/hello.wasm", &rootfs)
            .with_context(|| case.to_owned())?;
        assert_eq!(output, expected, "{case}");
        let now = fs::read(&artifact)?;
        assert!(
            now.len() == good.len() && now != bytes,
            "{case}: it was made again"
        );
    }
    Ok(())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    fs::write(path, bytes)?;
    Ok(())
}

/// Native code that comes in an image is not wasm and not run, whatever its
/// header says.
fn compiled_code_in_an_image(engine: &Containerd) -> Result<()> {
    let (cache, rootfs) = (Cache::new()?, Rootfs::guests()?);
    cache.run(engine, "/hello.wasm", &rootfs)?;
    let artifact = cache.only_artifact()?;
    let rootfs = rootfs.copy(&artifact, "/compiled.wasm");
    let text = engine
        .container(&rootfs)
        .args(["/compiled.wasm"])
        .refused()?;
    assert!(text.contains("/compiled.wasm"), "{text}");
    Ok(())
}
