//! Compiled guests: made once, shared, kept by content, never taken from an
//! image.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use lighter_test::{
    Containerd, Input, Rootfs, built_programs, each_containerd, eventually, guest, module,
    options::RuntimeOptions, run,
};

each_containerd!(
    second_start_compiles_nothing,
    shared_by_content,
    many_at_once,
    damaged,
    compiled_code_in_an_image,
    the_least_recently_used_goes,
    pruned_under_a_running_container,
    compiled_before_the_first_start,
    long_compilations_are_told,
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
        let options = RuntimeOptions::body(&self.options());
        let container = engine.container(rootfs).args([program]);
        container.options(options).run()?.success()
    }

    /// One that the shim makes: it takes no folder that others may write to.
    fn folder(&self) -> String {
        self.0.path().join("cache").display().to_string()
    }

    fn options(&self) -> String {
        format!("cache_dir = {:?}\n", self.folder())
    }

    /// `lighter cache COMMAND --cache-dir ... ARGS`.
    fn lighter(&self, command: &str, args: &[&str]) -> Result<String> {
        let folder = self.folder();
        let all = [&["cache", command, "--cache-dir", &folder], args].concat();
        let lighter = built_programs()?.join("lighter").display().to_string();
        run(&lighter, &all)
    }

    /// The artifacts: every file with content but the remembered digests, with what changes when it is made
    /// anew.
    fn artifacts(&self) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(data) = entry.metadata() else { continue };
                if data.is_dir() {
                    folders.push(entry.path());
                } else if data.len() > 0 && entry.file_name() != "digests" {
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

/// The option `cache_size`: what was used last stays, in the order of use and not
/// of making.
fn the_least_recently_used_goes(engine: &Containerd) -> Result<()> {
    let cache = Cache::new()?;
    let rootfs = Rootfs::guests()?.file("/tiny.wasm", module::exporting("_start"));
    let run = |program: &str, size: &str| {
        let options = format!("{}cache_size = {size}\n", cache.options());
        engine
            .container(&rootfs)
            .args([program])
            .options(RuntimeOptions::body(&options))
            .run()?
            .success()
    };
    run("/hello.wasm", "\"1GiB\"")?;
    let hello = cache.only_artifact()?;
    run("/hello-rust.wasm", "\"1GiB\"")?;
    let artifacts = cache.artifacts();
    let rust = artifacts
        .keys()
        .find(|path| **path != hello)
        .context("two")?
        .clone();
    let day = std::time::Duration::from_secs(24 * 3600);
    for (path, days) in [(&hello, 3), (&rust, 2)] {
        fs::File::open(path)?.set_modified(std::time::SystemTime::now() - days * day)?;
    }
    run("/hello.wasm", "\"1GiB\"")?;
    let total: u64 = artifacts.values().map(|(_, _, _, size)| size).sum();
    // Takes less room than what has to go for it.
    run("/tiny.wasm", &total.to_string())?;
    assert!(hello.exists(), "it was used later");
    assert!(!rust.exists(), "it was not used for longest");
    run("/hello-rust.wasm", "1")?;
    assert_eq!(
        cache.only_artifact()?,
        rust,
        "the last one stays in any case"
    );
    Ok(())
}

/// What runs goes on; what comes next is compiled again.
fn pruned_under_a_running_container(engine: &Containerd) -> Result<()> {
    let (cache, rootfs) = (Cache::new()?, Rootfs::guests()?);
    let container = engine
        .container(&rootfs)
        .args(["/tool.wasm", "cat"])
        .options(RuntimeOptions::body(&cache.options()))
        .stdin(Input::Fed)
        .create()?;
    container.start()?;
    let printed = cache.lighter("prune", &["--all"])?;
    assert!(printed.contains("freed"), "{printed}");
    assert_eq!(cache.artifacts().len(), 0);
    container.feed(b"still there");
    container.wait_for_output("still there")?;
    container.end_stdin()?;
    container.finish()?.success()?;
    cache.run(engine, "/hello.wasm", &rootfs)?;
    assert_eq!(cache.artifacts().len(), 1);
    Ok(())
}

/// `lighter cache warm` of an image: its first container compiles nothing.
fn compiled_before_the_first_start(engine: &Containerd) -> Result<()> {
    let cache = Cache::new()?;
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("image.tar");
    let mut layer = image::Layer::default();
    layer.add("/opt/app", image::Entry::file(guest("hello.wasm")?))?;
    layer.add("/usr/bin/other", image::Entry::bytes("no wasm"))?;
    let mut upper = image::Layer::default();
    // On the PATH that engines give to the containers of an image without one.
    let program = "/usr/local/bin/app.wasm";
    upper.add(program, image::Entry::symlink("../../../opt/app"))?;
    let mut image = image::Image {
        entrypoint: vec!["app.wasm#_start".into()],
        layers: vec![layer, upper],
        ..image::Image::default()
    };
    image.save(&"warm:1".parse()?, &archive)?;
    engine.import(&archive)?;
    image.entrypoint = vec!["other".into()];
    image.save(&"cold:1".parse()?, &archive)?;
    engine.import(&archive)?;

    let socket = engine.socket().display().to_string();
    let warm = |what: &[&str]| {
        let place = ["--address", &socket, "--namespace", engine.namespace()];
        cache.lighter("warm", &[&place, what].concat())
    };
    let printed = warm(&["warm:1"])?;
    assert!(
        printed.contains("docker.io/library/warm:1 app.wasm#_start: compiled"),
        "{printed}"
    );
    let made = cache.artifacts();
    assert_eq!(made.len(), 1, "{made:?}");
    assert!(warm(&["docker.io/library/warm:1"])?.contains("is there already"));
    let listed = cache.lighter("ls", &[])?;
    assert!(
        listed.contains("docker.io/library/warm:1 app.wasm#_start"),
        "{listed}"
    );

    let rootfs = Rootfs::base().copy(guest("hello.wasm")?, "/hello.wasm");
    cache.run(engine, "/hello.wasm", &rootfs)?;
    assert_eq!(cache.artifacts(), made, "nothing was compiled at the start");

    for (what, says) in [
        ("cold:1", "other is no wasm"),
        ("gone:1", "no image gone:1"),
    ] {
        let error = format!("{:#}", warm(&[what]).expect_err(what));
        assert!(error.contains(says), "{error}");
    }
    Ok(())
}

/// The log says what is waited for, once for a module.
fn long_compilations_are_told(engine: &Containerd) -> Result<()> {
    let cache = Cache::new()?;
    // A name of its own, and a module of its own.
    let name = format!("/{}.wasm", engine.new_id("told"));
    let rootfs = Rootfs::base().file(&name, module::exporting("_start"));
    for _ in 0..2 {
        cache.run(engine, &name, &rootfs)?;
    }
    let lines = |text: &str| engine.log().matches(&format!("{name}: {text}")).count();
    eventually("the log tells its end", || {
        (lines("that took ") > 0).then_some(())
    })?;
    assert_eq!((lines("compiling it"), lines("that took ")), (1, 1));
    Ok(())
}
