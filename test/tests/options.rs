//! Runtime options of every kind that clients send.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use lighter_test::{
    Containerd, RUNC, Rootfs, WASMTIME, cgroup, each_containerd, guest,
    options::{RuncOptions, RuntimeOptions},
};
use nix::sys::signal::Signal;

each_containerd!(
    none,
    toml_body,
    toml_file,
    ctr_config_path,
    of_runc,
    io_owner,
    shim_cgroup,
    root
);

fn hello(engine: &Containerd, options: Option<prost_types::Any>) -> Result<()> {
    let mut builder = engine.container(&Rootfs::guests()?).args(["/hello.wasm"]);
    if let Some(options) = options {
        builder = builder.options(options);
    }
    let output = builder.run()?.success()?;
    assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
    Ok(())
}

fn none(engine: &Containerd) -> Result<()> {
    hello(engine, None)?;
    hello(engine, Some(RuntimeOptions::default().any()))?;
    hello(engine, Some(RuncOptions::default().any()))
}

/// How many files are below a folder.
fn files(folder: &std::path::Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            if entry.path().is_dir() {
                files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

/// TOML for a cache that the shim makes in a folder.
fn cache_in(folder: &tempfile::TempDir) -> String {
    format!(
        "cache_dir = {:?}\n",
        folder.path().join("cache").display().to_string()
    )
}

fn toml_body(engine: &Containerd) -> Result<()> {
    let cache = tempfile::tempdir()?;
    hello(engine, Some(RuntimeOptions::body(&cache_in(&cache))))?;
    assert!(
        files(cache.path()) > 0,
        "the cache is where the options say"
    );
    Ok(())
}

fn toml_file(engine: &Containerd) -> Result<()> {
    let cache = tempfile::tempdir()?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), cache_in(&cache))?;
    hello(engine, Some(RuntimeOptions::path(file.path())))?;
    assert!(files(cache.path()) > 0, "the cache is where the file says");
    Ok(())
}

/// `ctr run --runtime-config-path`.
fn ctr_config_path(engine: &Containerd) -> Result<()> {
    let mut layer = image::Layer::default();
    layer.add(
        "/hello.wasm",
        image::Entry::file(guest("hello.wasm")?).mode(0o755),
    )?;
    let image = image::Image {
        entrypoint: vec!["/hello.wasm".to_owned()],
        layers: vec![layer],
        ..Default::default()
    };
    let name = format!("example.com/{}:1", engine.new_id("image"));
    let archive = tempfile::NamedTempFile::new()?;
    image.save(&name.parse()?, archive.path())?;
    engine.import(archive.path())?;

    let cache = tempfile::tempdir()?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), cache_in(&cache))?;
    let (id, path) = (engine.new_id("ctr"), file.path().display().to_string());
    let output = engine.run_ctr([
        "run",
        "--rm",
        "--runtime",
        WASMTIME,
        "--runtime-config-path",
        &path,
        &name,
        &id,
    ])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with("Hello"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(files(cache.path()) > 0, "the cache is where the file says");
    engine.ensure_gone(&id)
}

/// Those that have no meaning here are ignored, with a line in the log.
fn of_runc(engine: &Containerd) -> Result<()> {
    let options = RuncOptions {
        binary_name: "/missing/runc".to_owned(),
        no_new_keyring: true,
        ..Default::default()
    };
    hello(engine, Some(options.any()))?;
    let log = engine.log();
    let line = log
        .lines()
        .find(|line| line.contains("BinaryName"))
        .context("a line about BinaryName in the log")?;
    assert!(
        line.contains("ignored") || line.contains("no meaning"),
        "{line}"
    );
    let options = RuncOptions {
        no_pivot_root: true,
        ..Default::default()
    };
    hello(engine, Some(options.any()))?;
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/ls", "/hello.wasm"])
        .options(options.any())
        .run()?;
    assert_eq!(output.success()?, "/hello.wasm\n");
    Ok(())
}

/// IoUid and IoGid: who owns the pipes that are the container's streams, and so
/// may open them once more by their names. (The process's user always does.)
fn io_owner(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let run = |options: RuncOptions| {
            engine
                .container(&Rootfs::guests()?)
                .runtime(runtime)
                .args(["/bin/sh", "-c", "stat -L -c '%u %g' /proc/self/fd/1"])
                .user(1000, 1000)
                .options(options.any())
                .run()?
                .success()
        };
        let options = RuncOptions {
            io_uid: 1000,
            io_gid: 2000,
            ..Default::default()
        };
        assert_eq!(run(options)?, "1000 2000\n", "{runtime}");
    }
    Ok(())
}

/// The shim's daemon is in the cgroup that ShimCgroup names.
fn shim_cgroup(engine: &Containerd) -> Result<()> {
    let name = format!("{}-shim-{}", engine.namespace(), engine.new_id("g"));
    let mut folders: Vec<PathBuf> = if cgroup::unified() {
        vec![cgroup::folder("")]
    } else {
        fs::read_dir("/sys/fs/cgroup")?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?
    };
    folders.iter_mut().for_each(|folder| folder.push(&name));
    for folder in &folders {
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    }
    if !cgroup::unified() {
        // A cpuset takes nobody before it has these.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(cgroup::folder("cpuset").join(file))?;
            fs::write(cgroup::folder("cpuset").join(&name).join(file), value)?;
        }
    }
    let outcome = (|| -> Result<()> {
        let options = RuncOptions {
            shim_cgroup: format!("/{name}"),
            ..Default::default()
        };
        let container = engine
            .container(&Rootfs::guests()?)
            .args(["/tool.wasm", "sleep", "1000"])
            .options(options.any())
            .create()?;
        container.start()?;
        let id = container.id().to_owned();
        let members =
            fs::read_to_string(cgroup::folder("memory").join(&name).join("cgroup.procs"))?;
        let members: Vec<&str> = members.lines().collect();
        let shims = engine.shims_of(&id);
        assert!(!shims.is_empty());
        assert!(
            shims
                .iter()
                .any(|pid| members.contains(&pid.to_string().as_str())),
            "{shims:?} {members:?}"
        );
        assert!(
            !members.contains(&container.pid().to_string().as_str()),
            "the container has its own"
        );
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
        engine.ensure_gone(&id)
    })();
    for folder in &folders {
        cgroup::remove(folder)?;
    }
    outcome
}

/// Root: where the state of containers is kept.
fn root(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let folder = tempfile::tempdir_in(engine.folder())?;
        let options = RuncOptions {
            root: folder.path().display().to_string(),
            ..Default::default()
        };
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(["/bin/sleep", "1000"])
            .options(options.any())
            .create()?;
        container.start()?;
        let kept = folder.path().join(engine.namespace()).join(container.id());
        assert!(kept.is_dir(), "{runtime}: no {}", kept.display());
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
        assert!(!kept.exists(), "{runtime}: {} stays", kept.display());
    }
    let relative = RuncOptions {
        root: "state".to_owned(),
        ..Default::default()
    };
    let said = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/true"])
        .options(relative.any())
        .refused()?;
    assert!(said.contains("root cannot be"), "{said}");
    assert!(said.contains("it must be an absolute path"), "{said}");
    Ok(())
}
