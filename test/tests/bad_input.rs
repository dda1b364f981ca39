//! Bad input through containerd: an error that names what is wrong, and nothing
//! left behind ([`lighter_test::Builder::refused`] looks for that). What
//! containerd refuses by itself is in direct.rs, failing hooks in hooks.rs, a
//! killed daemon in recovery.rs.

use std::{fs, os::unix::process::ExitStatusExt, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use containerd_client::{tonic::Code, types::Mount};
use lighter_test::{
    Builder, Containerd, Rootfs, cgroup, code, each_containerd, guest, module,
    options::{RuncOptions, RuntimeOptions},
    run,
    spec::mount,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

each_containerd!(
    no_entrypoint,
    damaged_modules,
    modules_that_exhaust,
    modules_that_cannot_run,
    entrypoints_that_are_no_programs,
    no_rootfs,
    broken_specifications,
    bad_processes,
    bad_mounts,
    passwd_that_is_a_pipe,
    missing_namespace,
    missing_cgroup,
    cgroup_of_others,
    cgroup_that_is_frozen,
    bad_streams,
    id_twice,
    bad_options,
    full_cache,
    readonly_cache,
    cache_that_is_a_file,
    cache_open_to_others,
);

/// Fails unless the container is refused with a text that names all of `names`.
fn refused(case: &str, builder: Builder<'_>, names: &[&str]) -> Result<()> {
    let text = builder.refused().context(case.to_owned())?;
    for name in names {
        assert!(text.contains(name), "{case}: no {name:?} in: {text}");
    }
    Ok(())
}

fn guest_in<'a>(engine: &'a Containerd, content: &[u8]) -> Builder<'a> {
    let rootfs = Rootfs::base().file("/bad.wasm", content);
    engine.container(&rootfs).args(["/bad.wasm"])
}

fn no_entrypoint(engine: &Containerd) -> Result<()> {
    for program in [
        "/missing.wasm",
        "./missing.wasm",
        "missing.wasm",
        "/missing/too",
        "/hello.wasm/x",
    ] {
        let builder = engine.container(&Rootfs::guests()?).args([program]);
        refused(program, builder, &[program])?;
    }
    let builder = engine.container(&Rootfs::guests()?).args([""]);
    refused("an empty word", builder, &[])
}

fn damaged_modules(engine: &Containerd) -> Result<()> {
    let whole = fs::read(guest("tool.wasm")?)?;
    let component = fs::read(guest("tool-component.wasm")?)?;
    // The first section, of types, follows the eight bytes of the header.
    let mut flipped = whole.clone();
    flipped[10..74].fill(0xff);
    for (case, content) in [
        ("an empty file", &[][..]),
        ("only the magic bytes", b"\0asm"),
        ("a version that is not known", b"\0asm\x07\0\0\0"),
        ("a module cut in the middle", &whole[..whole.len() / 2]),
        ("a module without its last byte", &whole[..whole.len() - 1]),
        (
            "a component cut in the middle",
            &component[..component.len() / 2],
        ),
        ("a module with wrong bytes in it", &flipped),
        ("garbage after the header", &module::garbage()),
    ] {
        refused(case, guest_in(engine, content), &[])?;
    }
    Ok(())
}

/// Shapes made to exhaust the compiler: more of them in crates/wasm/tests.
fn modules_that_exhaust(engine: &Containerd) -> Result<()> {
    for (case, content) in [
        ("a section of 2 GiB", module::claiming(2 << 30)),
        ("blocks in blocks", module::nested(5_000_000)),
    ] {
        refused(case, guest_in(engine, &content), &["/bad.wasm"])?;
    }
    // A file of 2 GiB that takes no room.
    let file = tempfile::NamedTempFile::new_in(engine.folder())?;
    file.as_file().set_len(2 << 30)?;
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), &module::empty_module(), 0)?;
    let builder = engine.container(&Rootfs::base()).args(["/big.wasm"]).bind(
        file.path(),
        "/big.wasm",
        &["rbind", "ro"],
    );
    refused("a module of 2 GiB", builder, &["/big.wasm", "1073741824"])?;
    // The next one is served as ever.
    guest_in(engine, &module::exporting("_start"))
        .run()?
        .success()?;
    Ok(())
}

fn modules_that_cannot_run(engine: &Containerd) -> Result<()> {
    let unknown = module::importing("nowhere", "unheard_of");
    refused(
        "an unknown import",
        guest_in(engine, &unknown),
        &["nowhere", "unheard_of"],
    )?;
    let misspelt = module::importing("wasi_snapshot_preview1", "fd_wrote");
    refused(
        "an unknown function of WASI",
        guest_in(engine, &misspelt),
        &["fd_wrote"],
    )?;
    let typed = module::importing("wasi_snapshot_preview1", "fd_write");
    refused(
        "an import of another type",
        guest_in(engine, &typed),
        &["fd_write"],
    )?;
    refused(
        "no entry function",
        guest_in(engine, &module::exporting("main")),
        &["_start", "main"],
    )?;
    refused(
        "an empty module",
        guest_in(engine, &module::empty_module()),
        &["_start"],
    )?;
    refused(
        "an empty component",
        guest_in(engine, &module::empty_component()),
        &["component"],
    )?;
    // The same with an entry function runs.
    let good = guest_in(engine, &module::exporting("_start")).run()?;
    good.success()?;
    Ok(())
}

fn entrypoints_that_are_no_programs(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?
        .folder("/folder", 0o755)
        .file("/text", "just text\n")
        .file("/zeros", [0; 1000])
        .link("/nowhere", "/dangling")
        .link("/round", "/round")
        .file_of("/secret.wasm", module::exporting("_start"), 0o600, 0);
    for program in [
        "/folder",
        "/text",
        "/zeros",
        "/dangling",
        "/round",
        "/dev/null",
        "/proc/self",
    ] {
        refused(
            program,
            engine.container(&rootfs).args([program]),
            &[program],
        )?;
    }
    let builder = engine
        .container(&rootfs)
        .args(["/secret.wasm"])
        .user(1000, 1000);
    refused(
        "a file that the user may not read",
        builder,
        &["/secret.wasm"],
    )?;
    // A link out of the rootfs leads nowhere, whatever the machine has there.
    let outside = guest("hello.wasm")?.display().to_string();
    let builder = engine
        .container(&rootfs.clone().link(&outside, "/outside"))
        .args(["/outside"]);
    refused("a link out of the rootfs", builder, &["/outside"])
}

fn no_rootfs(engine: &Containerd) -> Result<()> {
    let builder =
        || Ok::<_, anyhow::Error>(engine.container(&Rootfs::guests()?).args(["/hello.wasm"]));
    let missing = engine.folder().join("missing/rootfs");
    let name = missing.display().to_string();
    refused(
        "a root that is not there",
        builder()?.spec(|s| s["root"]["path"] = json!(name)),
        &[&name],
    )?;
    assert!(!missing.exists(), "it is not made");
    refused(
        "an empty path of root",
        builder()?.spec(|s| s["root"]["path"] = json!("")),
        &["root"],
    )
}

fn broken_specifications(engine: &Containerd) -> Result<()> {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change); 6] = [
        ("no process", "process", |spec| {
            spec["process"] = Value::Null
        }),
        ("no args", "args", |spec| {
            spec["process"]["args"] = Value::Null
        }),
        ("empty args", "args", |spec| {
            spec["process"]["args"] = json!([])
        }),
        ("no root", "root", |spec| spec["root"] = Value::Null),
        ("an unknown rlimit", "RLIMIT_FUN", |spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_FUN", "soft": 1, "hard": 1}]);
        }),
        ("an unknown namespace", "galaxy", |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "galaxy"}]);
        }),
    ];
    for (case, named, change) in cases {
        let builder = engine
            .container(&Rootfs::guests()?)
            .args(["/hello.wasm"])
            .spec(change);
        let text = builder.refused().context(case)?;
        assert!(
            text.to_lowercase().contains(&named.to_lowercase()),
            "{case}: no {named:?} in: {text}"
        );
    }
    Ok(())
}

/// Who cannot have what it asks for is told what that was.
fn bad_processes(engine: &Containerd) -> Result<()> {
    for program in ["/hello.wasm", "/bin/true"] {
        let builder =
            || Ok::<_, anyhow::Error>(engine.container(&Rootfs::guests()?).args([program]));
        refused(
            "a relative folder",
            builder()?.cwd("rel/x"),
            &["rel/x", "absolute"],
        )?;
        refused(
            "a file for a folder",
            builder()?.cwd("/etc/passwd/x"),
            &[
                "making the working directory /etc/passwd/x",
                "Not a directory",
            ],
        )?;
        refused(
            "a variable without a name",
            builder()?.env("", "x"),
            &["=x", "has no name"],
        )?;
        refused(
            "a NUL in a variable",
            builder()?.env("k", "x\0y"),
            &["k=x", "has a NUL in it"],
        )?;
        let nul = engine.container(&Rootfs::guests()?).args([program, "a\0b"]);
        refused(
            "a NUL in an argument",
            nul,
            &["argument", "has a NUL in it"],
        )?;
        let sysctl = builder()?.spec(|spec| spec["linux"]["sysctl"] = json!({"net.foo.bar": "1"}));
        refused(
            "a sysctl that is none",
            sysctl,
            &["No such file or directory"],
        )?;
    }
    Ok(())
}

fn bad_mounts(engine: &Containerd) -> Result<()> {
    for program in ["/hello.wasm", "/bin/true"] {
        let builder =
            || Ok::<_, anyhow::Error>(engine.container(&Rootfs::guests()?).args([program]));
        let rootfs = |kind: &str, source: &str, options: &[&str]| {
            vec![Mount {
                r#type: kind.to_owned(),
                source: source.to_owned(),
                options: options.iter().map(|&o| o.to_owned()).collect(),
                ..Default::default()
            }]
        };
        refused(
            "a rootfs bound from nowhere",
            builder()?.rootfs_mounts(rootfs("bind", "/missing/rootfs", &["rbind", "rw"])),
            &["/missing/rootfs"],
        )?;
        refused(
            "a rootfs of an unknown file system",
            builder()?.rootfs_mounts(rootfs("nofs", "nothing", &[])),
            &["nofs"],
        )?;
        refused(
            "a rootfs of an overlay of nothing",
            builder()?.rootfs_mounts(rootfs(
                "overlay",
                "overlay",
                &["lowerdir=/missing/a:/missing/b"],
            )),
            &["overlay"],
        )?;
        refused(
            "a bind mount of nothing",
            builder()?.bind(Path::new("/missing/source"), "/data", &["rw"]),
            &["/missing/source"],
        )?;
        refused(
            "a mount of an unknown file system",
            builder()?.mount(mount("x", "/data", "nofs", &[])),
            &["/data"],
        )?;
        refused(
            "a folder as /proc",
            builder()?.bind(engine.folder(), "/proc", &["rw"]),
            &["/proc", "not of type proc"],
        )?;
        refused(
            "a folder in /proc",
            builder()?.bind(engine.folder(), "/proc/xx", &["rw"]),
            &["/proc/xx", "inside /proc"],
        )?;
        refused(
            "a mount over a file",
            builder()?.mount(mount("tmpfs", "/etc/passwd/deeper", "tmpfs", &[])),
            &["/etc/passwd"],
        )?;
    }
    Ok(())
}

/// Nobody waits for who would write into it.
fn passwd_that_is_a_pipe(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rootfs = folder.path();
    fs::copy(guest("tool.wasm")?, rootfs.join("tool.wasm"))?;
    for name in ["dev", "etc", "proc", "run", "sys"] {
        fs::create_dir(rootfs.join(name))?;
    }
    nix::unistd::mkfifo(&rootfs.join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR)?;
    let mounts = vec![Mount {
        r#type: "bind".to_owned(),
        source: rootfs.display().to_string(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
        ..Default::default()
    }];
    let mut container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .rootfs_mounts(mounts)
        .record()?;
    container.create_task_within(Duration::from_secs(30))?;
    container.start()?;
    let added = container.exec(["/tool.wasm", "exit", "6"])?.run()?;
    assert_eq!(added.status, 6, "{added:?}");
    container.kill(Signal::SIGKILL)?;
    let id = container.id().to_owned();
    container.finish()?;
    engine.ensure_gone(&id)
}

fn missing_namespace(engine: &Containerd) -> Result<()> {
    for kind in ["network", "pid", "ipc", "uts"] {
        for path in ["/run/netns/missing", "/etc/passwd"] {
            let builder = engine
                .container(&Rootfs::guests()?)
                .args(["/hello.wasm"])
                .spec(|spec| {
                    for namespace in spec["linux"]["namespaces"]
                        .as_array_mut()
                        .into_iter()
                        .flatten()
                    {
                        if namespace["type"] == kind {
                            namespace["path"] = json!(path);
                        }
                    }
                    spec["hostname"] = Value::Null;
                });
            refused(&format!("{kind} {path}"), builder, &[path])?;
        }
    }
    Ok(())
}

/// A cgroup for the shim that does not exist. (That of a container is made.)
fn missing_cgroup(engine: &Containerd) -> Result<()> {
    let options = RuncOptions {
        shim_cgroup: "/lighter-test-missing".to_owned(),
        ..Default::default()
    };
    let builder = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm"])
        .options(options.any());
    refused("the shim's cgroup", builder, &["cgroup"])?;
    let builder = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm"])
        .spec(|spec| spec["linux"]["resources"]["cpu"] = json!({"cpus": "4000"}));
    refused("a cgroup that cannot be had", builder, &["cpu"])
}

/// A container is not to share its cgroup: all that is in there ends with it.
fn cgroup_of_others(engine: &Containerd) -> Result<()> {
    let path = format!("{}/others", engine.namespace());
    for controller in ["devices", "memory"] {
        let folder = cgroup::folder(controller).join(&path).join("below");
        fs::create_dir_all(&folder)?;
        let mut other = Command::new("sleep").arg("1000").spawn()?;
        fs::write(folder.join("cgroup.procs"), other.id().to_string())?;
        for args in [&["/hello.wasm"][..], &["/bin/true"]] {
            let builder = engine
                .container(&Rootfs::guests()?)
                .args(args)
                .spec(|spec| spec["linux"]["cgroupsPath"] = json!(format!("/{path}")));
            let pid = other.id().to_string();
            refused("a cgroup with processes", builder, &["not empty", &pid])?;
        }
        // Nobody else has ended it.
        kill(Pid::from_raw(other.id() as i32), Signal::SIGTERM)?;
        assert_eq!(other.wait()?.signal(), Some(Signal::SIGTERM as i32));
        cgroup::remove(&folder)?;
        cgroup::remove(folder.parent().context("it is below")?)?;
    }
    Ok(())
}

/// In which a container's init would stand still for good.
fn cgroup_that_is_frozen(engine: &Containerd) -> Result<()> {
    let path = format!("{}/frozen", engine.namespace());
    let folder = cgroup::folder("freezer").join(&path);
    fs::create_dir_all(&folder)?;
    let (file, frozen) = match cgroup::unified() {
        true => ("cgroup.freeze", "1"),
        false => ("freezer.state", "FROZEN"),
    };
    fs::write(folder.join(file), frozen)?;
    for below in ["", "/below"] {
        for args in [&["/hello.wasm"][..], &["/bin/true"]] {
            let builder = engine
                .container(&Rootfs::guests()?)
                .args(args)
                .spec(|spec| spec["linux"]["cgroupsPath"] = json!(format!("/{path}{below}")));
            refused("a frozen cgroup", builder, &["frozen", &path])?;
        }
    }
    cgroup::remove(&folder)
}

fn bad_streams(engine: &Containerd) -> Result<()> {
    for (stdin, stdout, stderr) in [
        ("/missing/in", "", ""),
        ("", "/missing/out", ""),
        ("", "", "/missing/err"),
    ] {
        let builder = engine
            .container(&Rootfs::guests()?)
            .args(["/hello.wasm"])
            .streams(stdin, stdout, stderr);
        refused("streams", builder, &["/missing/"])?;
    }
    Ok(())
}

fn id_twice(engine: &Containerd) -> Result<()> {
    let mut first = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "sleep", "1000"])
        .create()?;
    let again = first
        .create_task()
        .expect_err("a second task of one container");
    assert_eq!(code(&again), Code::AlreadyExists, "{again:#}");
    // The first is none the worse for it.
    first.start()?;
    first.wait_for_output("sleeping")?;
    first.kill(nix::sys::signal::Signal::SIGKILL)?;
    assert_eq!(first.finish()?.status, 137);
    Ok(())
}

fn bad_options(engine: &Containerd) -> Result<()> {
    let builder =
        || Ok::<_, anyhow::Error>(engine.container(&Rootfs::guests()?).args(["/hello.wasm"]));
    refused(
        "no TOML",
        builder()?.options(RuntimeOptions::body("cache_dir = ")),
        &["the runtime options, line 1"],
    )?;
    refused(
        "an unknown key",
        builder()?.options(RuntimeOptions::body("cash_dir = '/x'")),
        &["cash_dir"],
    )?;
    refused(
        "no such file",
        builder()?.options(RuntimeOptions::path(Path::new("/missing.toml"))),
        &["/missing.toml"],
    )
}

fn cache(folder: &Path) -> prost_types::Any {
    RuntimeOptions::body(&format!("cache_dir = {:?}\n", folder.display().to_string()))
}

/// A file system under the cache with no room for an artifact.
fn full_cache(engine: &Containerd) -> Result<()> {
    with_tmpfs(engine, "size=16k,mode=700", |folder| {
        let builder = engine
            .container(&Rootfs::guests()?)
            .args(["/hello.wasm"])
            .options(cache(folder));
        refused("a full disk", builder, &[&folder.display().to_string()])
    })
}

fn readonly_cache(engine: &Containerd) -> Result<()> {
    with_tmpfs(engine, "ro,mode=700", |folder| {
        let builder = engine
            .container(&Rootfs::guests()?)
            .args(["/hello.wasm"])
            .options(cache(folder));
        refused(
            "a read-only folder",
            builder,
            &[&folder.display().to_string()],
        )
    })
}

fn cache_that_is_a_file(engine: &Containerd) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in("/tmp")?;
    let builder = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm"])
        .options(cache(file.path()));
    refused("a file", builder, &[&file.path().display().to_string()])
}

/// In a folder where others may write, native code could be anyone's.
fn cache_open_to_others(engine: &Containerd) -> Result<()> {
    with_tmpfs(engine, "mode=777", |folder| {
        let builder = engine
            .container(&Rootfs::guests()?)
            .args(["/hello.wasm"])
            .options(cache(folder));
        refused("an open folder", builder, &[&folder.display().to_string()])
    })
}

/// Runs `test` on a small file system, which is gone afterwards.
fn with_tmpfs(
    engine: &Containerd,
    options: &str,
    test: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix(&format!("cache-{}-", engine.namespace()))
        .tempdir_in("/tmp")?;
    let path = folder.path().display().to_string();
    run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &path])?;
    let outcome = test(folder.path());
    run("umount", &["-l", &path])?;
    outcome
}
