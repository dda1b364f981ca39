//! Settings from the host's file, the runtime options and annotations: who wins, who may, and what
//! is said of those that are wrong.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use lighter_test::{
    Builder, Containerd, Rootfs, Settings, Version,
    cri::{self, Cri},
    dockerd::{Dockerd, Image},
    each_containerd, each_store, ensure_root,
    options::RuntimeOptions,
};
use tempfile::NamedTempFile;

each_containerd!(
    names_that_are_wrong,
    values_that_are_wrong,
    annotations,
    added_processes
);

each_store!(of_docker);

const TOOL: &str = "/tool.wasm";

/// A guest that tells whether it may write.
fn writer(engine: &Containerd) -> Result<Builder<'_>> {
    let rootfs = Rootfs::guests()?;
    Ok(engine
        .container(&rootfs)
        .args([TOOL, "write", "/written", "text"]))
}

fn file(text: &str) -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    Ok(file)
}

#[track_caller]
fn ensure_says(text: &str, parts: &[&str]) {
    // A status is shown with its message in quotes.
    let text = text.replace("\\\"", "\"");
    for part in parts {
        assert!(text.contains(part), "{part} in: {text}");
    }
}

fn names_that_are_wrong(engine: &Containerd) -> Result<()> {
    let wrong = file("[limits]\nmemry = '1MiB'\n")?;
    let options = RuntimeOptions::path(wrong.path());
    let path = wrong.path().display().to_string();
    let said = writer(engine)?.options(options).refused()?;
    ensure_says(&said, &[&path, "\"limits.memry\"", "\"limits.memory\""]);

    let options = RuntimeOptions::body("read_only = true");
    let said = writer(engine)?.options(options).refused()?;
    ensure_says(
        &said,
        &["runtime options", "\"read_only\"", "\"files.read_only\""],
    );

    let options = RuntimeOptions::body("annotations = ['limit']");
    let said = writer(engine)?.options(options).refused()?;
    ensure_says(&said, &["annotations", "\"limit\"", "\"limits\""]);

    let options = RuntimeOptions::body("[files\n");
    let said = writer(engine)?.options(options).refused()?;
    ensure_says(&said, &["runtime options, line 1"]);
    Ok(())
}

fn values_that_are_wrong(engine: &Containerd) -> Result<()> {
    for (text, parts) in [
        ("limits.memory = 'lots'", ["limits.memory", "lots", "64MiB"]),
        ("limits.time = 0", ["limits.time", "0", "30s"]),
        ("http.port = 65536", ["http.port", "65536", "65535"]),
        (
            "network.enabled = 'no'",
            ["network.enabled", "no", "boolean"],
        ),
        (
            "network.allow = ['10.0.0.0/33']",
            ["network.allow", "10.0.0.0/33", "10.0.0.0/8"],
        ),
        (
            "files.preopens = ['data']",
            ["files.preopens", "data", "/data:ro"],
        ),
        (
            "engine.proposals.simd = 1",
            ["engine.proposals.simd", "1", "boolean"],
        ),
        (
            "engine.stack_size = '2GiB'",
            ["engine.stack_size cannot be", "2GiB", "1GiB"],
        ),
        (
            "root = 'state'",
            ["root cannot be", "state", "absolute path"],
        ),
        (
            "cache_dir = 'cache'",
            ["cache_dir cannot be", "cache", "absolute path"],
        ),
        (
            "http.max_requests = 300",
            ["http.max_requests", "300", "pool.instances"],
        ),
        (
            "engine.proposals.simd = false\nengine.proposals.relaxed_simd = true",
            ["settings", "simd", "relaxed"],
        ),
    ] {
        let wrong = file(text)?;
        let options = RuntimeOptions::path(wrong.path());
        let said = writer(engine)?.options(options).refused()?;
        ensure_says(&said, &parts);
    }
    Ok(())
}

/// Those that are allowed count more than the options; others are refused.
fn annotations(engine: &Containerd) -> Result<()> {
    let options = |text: &str| RuntimeOptions::body(text);
    let key = "lighter/files.read_only";
    for allowed in ["files", "files.read_only"] {
        let text = format!("annotations = ['{allowed}']\nfiles.read_only = true");
        let output = writer(engine)?.options(options(&text)).run()?;
        assert_eq!(output.status, 1, "read-only without the annotation");
        let written = writer(engine)?
            .options(options(&text))
            .annotation(key, "false");
        written.run()?.success()?;
    }
    for text in ["", "annotations = ['limits', 'files.preopens']"] {
        let said = writer(engine)?
            .options(options(text))
            .annotation(key, "true")
            .refused()?;
        ensure_says(&said, &[key, "not allowed", "add \"files.read_only\""]);
    }
    let allowing = options("annotations = ['files']");
    let said = writer(engine)?
        .options(allowing.clone())
        .annotation("lighter/files.readonly", "true")
        .refused()?;
    ensure_says(&said, &["lighter/files.readonly", "\"files.read_only\""]);
    let said = writer(engine)?
        .options(allowing.clone())
        .annotation(key, "perhaps")
        .refused()?;
    ensure_says(&said, &[key, "perhaps", "boolean"]);
    let said = writer(engine)?
        .options(options("annotations = ['pool']"))
        .annotation("lighter/pool.instances", "4000")
        .refused()?;
    ensure_says(&said, &["lighter/pool.instances", "1 to 2048"]);
    let said = writer(engine)?
        .options(allowing)
        .annotation("lighter/cache_dir", "/tmp")
        .refused()?;
    ensure_says(&said, &["lighter/cache_dir", "not for annotations"]);
    // Those of others are none of ours.
    writer(engine)?
        .annotation("example.com/files.read_only", "true")
        .run()?
        .success()?;
    Ok(())
}

/// What is added to a container has its settings.
fn added_processes(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args([TOOL, "sleep", "1000"])
        .options(RuntimeOptions::body(
            "annotations = ['files']\nfiles.preopens = ['/tmp:/name']",
        ))
        .annotation("lighter/files.read_only", "true")
        .create()?;
    container.start()?;
    let refused = container.exec([TOOL, "write", "/tmp/a", "text"])?.run()?;
    assert_eq!(refused.status, 1, "{refused:?}");
    let written = container.exec([TOOL, "write", "/name/a", "text"])?.run()?;
    assert_eq!(written.status, 0, "{written:?}");
    let read = container.exec([TOOL, "read", "/tmp/a"])?.run()?;
    assert_eq!(read.text(), "text");
    container.kill(nix::sys::signal::Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

/// The host's file is below the options, and those are below annotations.
fn layers(version: Version) -> Result<()> {
    ensure_root()?;
    let host = file(
        "annotations = ['files.root']\n[files]\nread_only = true\npreopens = ['/tmp:/name']\n",
    )?;
    let engine = Containerd::start_with(
        version,
        &Settings {
            environment: vec![(
                "LIGHTER_CONFIG".to_owned(),
                host.path().display().to_string(),
            )],
            ..Settings::default()
        },
    )?;
    let run = |args: [&str; 4], options: &str, root: Option<&str>| {
        let mut builder = engine
            .container(&Rootfs::guests()?)
            .args(args)
            .options(RuntimeOptions::body(options));
        if let Some(root) = root {
            builder = builder.annotation("lighter/files.root", root);
        }
        Ok::<_, anyhow::Error>(builder.run()?.status)
    };
    let in_root = [TOOL, "write", "/written", "text"];
    let in_name = [TOOL, "write", "/name/written", "text"];
    assert_eq!(run(in_root, "", None)?, 1, "the file's read_only");
    assert_eq!(run(in_name, "", None)?, 0, "the file's preopens");
    let writable = "files.read_only = false";
    assert_eq!(run(in_root, writable, None)?, 0, "the options' read_only");
    assert_eq!(
        run(in_name, writable, None)?,
        0,
        "the file's preopens still"
    );
    assert_eq!(
        run(in_root, writable, Some("false"))?,
        1,
        "the annotation's"
    );
    assert_eq!(run(in_name, writable, Some("false"))?, 0, "only the root");
    // A list is set as a whole.
    let no_preopens = "files.preopens = []";
    assert_eq!(run(in_name, no_preopens, None)?, 1, "the options' preopens");

    let path = host.path().display().to_string();
    let said = writer(&engine)?
        .annotation("lighter/limits.memory", "1MiB")
        .refused()?;
    ensure_says(&said, &["add \"limits.memory\"", &format!("in {path}, or")]);

    fs::write(host.path(), "[files]\nreadonly = true\n")?;
    let said = writer(&engine)?.refused()?;
    ensure_says(&said, &[&path, "\"files.readonly\"", "\"files.read_only\""]);
    fs::remove_file(host.path())?;
    let said = writer(&engine)?.refused()?;
    ensure_says(&said, &[&path, "No such file"]);
    fs::write(host.path(), "")?;
    writer(&engine)?.run()?.success()?;
    Ok(())
}

#[test]
fn layers_in_1_6() -> Result<()> {
    layers(Version::V1_6)
}

#[test]
fn layers_in_1_7() -> Result<()> {
    layers(Version::V1_7)
}

#[test]
fn layers_in_2_1() -> Result<()> {
    layers(Version::V2_1)
}

/// Without the variable it is the file in /etc: here that of a namespace of mounts.
#[test]
fn the_hosts_file() -> Result<()> {
    ensure_root()?;
    let shim = lighter_test::built_programs()?.join("containerd-shim-wasmtime-v1");
    let info = |file: &str| {
        let script = format!(
            "mount -t tmpfs none /etc && mkdir /etc/lighter && {file} && exec {} -info </dev/null",
            shim.display()
        );
        Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .env_remove("LIGHTER_CONFIG")
            .output()
            .context("run unshare")
    };
    let wrong = info("echo 'cash_dir = 7' >/etc/lighter/config.toml")?;
    assert!(!wrong.status.success());
    let said = String::from_utf8_lossy(&wrong.stderr);
    ensure_says(
        &said,
        &["/etc/lighter/config.toml", "cash_dir", "\"cache_dir\""],
    );
    let without = info("true")?;
    assert!(without.status.success(), "{without:?}");
    Ok(())
}

/// Options of daemon.json, and annotations of `docker run`.
fn of_docker(engine: &Dockerd) -> Result<()> {
    let run = |more: &[&str]| {
        // Of two runtimes the last counts.
        let options = [&["--rm", "--runtime", Dockerd::CONFIGURED], more].concat();
        let command = [TOOL, "write", "/tmp/written", "text"];
        engine.docker(&engine.run_args(Image::Guests, &options, &command))
    };
    engine.configure("annotations = ['files.read_only']\n")?;
    run(&[])?.success()?;
    let read_only = ["--annotation", "lighter/files.read_only=true"];
    assert_eq!(run(&read_only)?.code, 1);
    engine.configure("files.read_only = true\n")?;
    assert_eq!(run(&[])?.code, 1);
    let refused = run(&read_only)?;
    assert_eq!(refused.code, 125, "{refused:?}");
    ensure_says(&refused.errors, &["lighter/files.read_only", "not allowed"]);

    engine.configure("[limits]\nmemry = 1\n")?;
    let refused = run(&[])?;
    assert_ne!(refused.code, 0, "{refused:?}");
    let path = engine.folder().join("lighter.toml").display().to_string();
    ensure_says(
        &refused.errors,
        &[&path, "limits.memry", "\"limits.memory\""],
    );
    engine.configure("")
}

/// A handler's options, and a pod's annotations.
fn of_cri(version: Version) -> Result<()> {
    ensure_root()?;
    let config = file("annotations = ['files']\nfiles.preopens = ['/tmp:/name']\n")?;
    let plugin = match version {
        Version::V2_1 => "io.containerd.cri.v1.runtime",
        _ => "io.containerd.grpc.v1.cri",
    };
    let table = format!("plugins.'{plugin}'.containerd.runtimes.configured");
    // containerd 1.6 passes a path on and nothing else.
    let inline = match version {
        Version::V1_6 => String::new(),
        _ => {
            let table = format!("plugins.'{plugin}'.containerd.runtimes.inline");
            format!(
                "[{table}]\nruntime_type = 'io.containerd.wasmtime.v1'\n\
                 [{table}.options.files]\nread_only = true\n"
            )
        }
    };
    let cri = Cri::start_with(
        version,
        Settings {
            config: format!(
                "{inline}[{table}]\nruntime_type = 'io.containerd.wasmtime.v1'\n\
                 pod_annotations = ['lighter/*']\n\
                 [{table}.options]\nConfigPath = '{}'\n",
                config.path().display()
            ),
            ..Settings::default()
        },
    )?;
    let run = |handler: &str, annotation: Option<&str>, path: &str| {
        let mut pod = cri.pod(handler);
        if let Some(value) = annotation {
            let (key, value) = ("lighter/files.read_only".to_owned(), value.to_owned());
            pod = pod.with(|config| drop(config.annotations.insert(key, value)));
        }
        let pod = pod.run()?;
        let ended = pod.container([TOOL, "write", path, "text"]).run()?;
        pod.end()?;
        Ok::<_, anyhow::Error>(ended.code)
    };
    assert_eq!(
        run(cri::WASMTIME, None, "/name/a")?,
        1,
        "no options, no folder"
    );
    assert_eq!(
        run("configured", None, "/name/a")?,
        0,
        "the handler's folder"
    );
    assert_eq!(run("configured", None, "/a")?, 0, "no annotation");
    assert_eq!(
        run("configured", Some("true"), "/a")?,
        1,
        "the pod's annotation"
    );
    assert_eq!(
        run("configured", Some("true"), "/name/a")?,
        0,
        "and the folder"
    );
    if version != Version::V1_6 {
        assert_eq!(run("inline", None, "/a")?, 1, "the table's own");
    }
    // Where the handler does not let annotations through, there are none.
    assert_eq!(run(cri::WASMTIME, Some("true"), "/a")?, 0);
    Ok(())
}

#[test]
fn of_cri_in_1_6() -> Result<()> {
    of_cri(Version::V1_6)
}

#[test]
fn of_cri_in_1_7() -> Result<()> {
    of_cri(Version::V1_7)
}

#[test]
fn of_cri_in_2_1() -> Result<()> {
    of_cri(Version::V2_1)
}
