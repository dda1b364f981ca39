//! The command as a user types it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, symlink},
    },
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn lighter(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lighter"))
        .current_dir(folder)
        .args(args)
        .output()
        .unwrap()
}

/// Runs a command that must fail and gives its message.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = lighter(folder, args);
    assert!(!output.status.success(), "{args:?} was accepted");
    String::from_utf8(output.stderr).unwrap()
}

fn files(tar: impl Read) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    files
}

/// The configuration and the layer of the one image in an archive.
fn image(archive: &Path) -> (Value, Vec<u8>) {
    let mut files = files(fs::File::open(archive).unwrap());
    let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let config = serde_json::from_slice(&files[docker[0]["Config"].as_str().unwrap()]).unwrap();
    let layer = files.remove(docker[0]["Layers"][0].as_str().unwrap());
    (config, layer.unwrap())
}

#[test]
fn a_program_becomes_the_entrypoint() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::write(folder.path().join("out/app.wasm"), b"\0asm\x01\0\0\0").unwrap();
    let output = lighter(
        folder.path(),
        &[
            "build",
            "out/app.wasm",
            "-t",
            "app:2",
            "-o",
            "app.tar",
            "--cmd",
            "serve",
            "--cmd",
            "-v",
            "--env",
            "A=1=2",
            "--workdir",
            "/data",
            "--user",
            "1000",
            "--stop-signal",
            "SIGINT",
            "--label",
            "k=v",
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.starts_with("docker.io/library/app:2 sha256:"),
        "{printed}"
    );

    let (config, layer) = image(&folder.path().join("app.tar"));
    assert_eq!(config["os"], "wasi");
    assert_eq!(config["architecture"], "wasm");
    assert_eq!(
        config["config"],
        json!({
            "Entrypoint": ["/app.wasm"], "Cmd": ["serve", "-v"], "Env": ["A=1=2"],
            "WorkingDir": "/data", "User": "1000", "StopSignal": "SIGINT", "Labels": {"k": "v"},
        })
    );
    assert_eq!(files(&layer[..])["app.wasm"], b"\0asm\x01\0\0\0");
}

#[test]
fn a_linux_image_is_made_of_files_folders_and_links() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("etc/deep")).unwrap();
    fs::write(folder.path().join("busybox"), "ELF").unwrap();
    fs::write(folder.path().join("etc/deep/file"), "text").unwrap();
    let output = lighter(
        folder.path(),
        &[
            "build",
            "-t",
            "busybox",
            "-o",
            "b.tar",
            "--platform",
            "linux/amd64",
            "--add",
            "./busybox:/bin/busybox",
            "--add",
            "etc:/etc",
            "--link",
            "/bin/sh:busybox",
            "--entrypoint",
            "/bin/sh",
            "--entrypoint",
            "-c",
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let (config, layer) = image(&folder.path().join("b.tar"));
    assert_eq!(config["os"], "linux");
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh", "-c"]));
    let files = files(&layer[..]);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "bin/",
            "bin/busybox",
            "bin/sh",
            "etc/",
            "etc/deep/",
            "etc/deep/file"
        ]
    );
}

#[test]
fn an_artifact_is_the_programs_file() {
    let folder = tempfile::tempdir().unwrap();
    let wasm = b"\0asm\x0d\0\x01\0";
    fs::write(folder.path().join("app.wasm"), wasm).unwrap();
    fs::write(folder.path().join("data"), "text").unwrap();
    let args = [
        "build",
        "app.wasm",
        "-t",
        "app",
        "--artifact",
        "-o",
        "a.tar",
        "--cmd",
        "serve",
        "--env",
        "A=1",
        "--label",
        "k=v",
        "--add",
        "data:/etc/data",
    ];
    let output = lighter(folder.path(), &args);
    assert!(output.status.success(), "{output:?}");
    let files = files(fs::File::open(folder.path().join("a.tar")).unwrap());
    let read = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
        files[&format!("blobs/{digest}")].clone()
    };
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0])).unwrap();
    assert_eq!(manifest["annotations"], json!({"k": "v"}));
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(read(&manifest["layers"][0]), wasm);
    let beside = read(&manifest["layers"][1]);
    assert_eq!(crate::files(&beside[..])["etc/data"], b"text");
    let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
    // Engines unpack the files only for a configuration that they know.
    let ordinary = "application/vnd.oci.image.config.v1+json";
    assert_eq!(manifest["config"]["mediaType"], ordinary);
    assert_eq!(
        config["rootfs"]["diff_ids"],
        json!([manifest["layers"][1]["digest"]])
    );
    assert_eq!(config["os"], "wasip2");
    assert_eq!(
        config["layerDigests"],
        json!([manifest["layers"][0]["digest"]])
    );
    assert_eq!(
        config["config"],
        json!({"Entrypoint": ["/app.wasm"], "Cmd": ["serve"], "Env": ["A=1"], "Labels": {"k": "v"}})
    );
    let first = fs::read(folder.path().join("a.tar")).unwrap();
    assert!(lighter(folder.path(), &args).status.success());
    assert_eq!(fs::read(folder.path().join("a.tar")).unwrap(), first);
}

#[test]
fn several_platforms_make_an_index() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app.wasm"), "").unwrap();
    let platforms = [
        "--platform",
        "wasi/wasm,linux/amd64",
        "--platform",
        "linux/arm64/v8",
    ];
    let args = [
        &["build", "app.wasm", "-t", "app", "-o", "a.tar"],
        &platforms[..],
    ]
    .concat();
    let output = lighter(folder.path(), &args);
    assert!(output.status.success(), "{output:?}");
    let files = files(fs::File::open(folder.path().join("a.tar")).unwrap());
    let top: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let digest = top["manifests"][0]["digest"].as_str().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, format!("docker.io/library/app:latest {digest}\n"));
    let index = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    let index: Value = serde_json::from_slice(index).unwrap();
    let found: Vec<&Value> = (0..3).map(|n| &index["manifests"][n]["platform"]).collect();
    assert_eq!(
        found,
        [
            &json!({"os": "wasi", "architecture": "wasm"}),
            &json!({"os": "linux", "architecture": "amd64"}),
            &json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ]
    );
}

#[test]
fn mistakes_are_named_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app.wasm"), "").unwrap();
    for (args, expected) in [
        (
            &["build", "gone.wasm", "-t", "a", "-o", "o.tar"][..],
            "gone.wasm",
        ),
        (
            &["build", "app.wasm", "-t", "A b", "-o", "o.tar"],
            "not an image name",
        ),
        (
            &["build", "app.wasm", "-t", "a", "-o", "no/o.tar"],
            "no/o.tar",
        ),
        (&["build", "app.wasm", "-t", "a"], "--output"),
        (&["build", "-t", "a", "-o", "o.tar"], "<APP>"),
        (
            &["build", "app.wasm", "-t", "a", "-o", "o.tar", "--artifact"],
            "it is an empty file",
        ),
        (
            &[
                "build",
                "--artifact",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--add",
                "app.wasm:/a",
            ],
            "<APP>",
        ),
        (
            &[
                "build",
                "app.wasm",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--artifact",
                "--platform",
                "linux/amd64",
            ],
            "cannot be used with",
        ),
        (
            &[
                "build",
                "app.wasm",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--platform",
                "wasi/wasm,wasi/wasm",
            ],
            "wasi/wasm is given twice",
        ),
        (
            &["build", "app.wasm", "-t", "a", "-o", "o.tar", "--env", "A"],
            "`=`",
        ),
        (
            &[
                "build", "app.wasm", "-t", "a", "-o", "o.tar", "--env", "A=1", "--env", "A=2",
            ],
            "twice",
        ),
        (
            &["build", "app.wasm", "-t", "a", "-o", "o.tar", "--add", "x"],
            "two paths",
        ),
        (
            &[
                "build",
                "app.wasm",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--add",
                "app.wasm:/app.wasm",
            ],
            "already",
        ),
        (
            &[
                "build",
                "app.wasm",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--platform",
                "wasm",
            ],
            "wasi/wasm",
        ),
        (
            &[
                "build",
                "app.wasm",
                "-t",
                "a",
                "-o",
                "o.tar",
                "--workdir",
                "data",
            ],
            "absolute",
        ),
    ] {
        let message = refused(folder.path(), args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// What goes into an image is not overwritten by it, and an archive does not hold the one before.
#[test]
fn an_archive_takes_the_place_of_none_of_its_sources() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("app.wasm"), "the program").unwrap();
    symlink("app.wasm", path("link")).unwrap();
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/data"), "data").unwrap();
    let build = |output, more: &[&str]| {
        let args = ["build", "app.wasm", "-t", "a", "-o", output];
        lighter(folder.path(), &[&args, more].concat())
    };
    for (output, more) in [
        ("app.wasm", &[][..]),
        ("app.wasm", &["--artifact"]),
        ("link", &[]),
        ("tree/data", &["--add", "tree/data:/data"]),
        ("tree/data", &["--add", "tree:/"]),
    ] {
        let refused = build(output, more);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{output} {more:?}");
        assert!(error.contains("goes into the image"), "{error}");
        assert_eq!(fs::read(path("app.wasm")).unwrap(), b"the program");
        assert_eq!(fs::read(path("tree/data")).unwrap(), b"data");
    }
    let within = ["--add", "tree:/"];
    assert!(build("tree/a.tar", &within).status.success());
    assert!(!build("tree/a.tar", &within).status.success());
}

/// A path that ends in a slash is a folder, as it is for cp and in a Dockerfile.
#[test]
fn a_file_is_put_into_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("text"), "text").unwrap();
    let args = ["build", "-t", "a", "-o", "o.tar", "--add", "text:/etc/"];
    let done = lighter(folder.path(), &[&args[..], &["--add", "text:/"]].concat());
    assert!(done.status.success(), "{done:?}");
    let (_, layer) = image(&path("o.tar"));
    let files = files(&layer[..]);
    assert_eq!(files["etc/text"], b"text");
    assert_eq!(files["text"], b"text");
}

/// What would become something else in the image, or would be waited for in vain.
#[test]
fn what_cannot_be_put_into_an_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("text"), "text").unwrap();
    for tree in ["whiteout", "link", "empty"] {
        fs::create_dir(path(tree)).unwrap();
    }
    fs::write(path("whiteout/.wh.text"), "").unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9"), path("link/link")).unwrap();
    let made = Command::new("mkfifo").arg(path("pipe.wasm")).status();
    assert!(made.unwrap().success());
    assert!(
        fs::metadata(path("pipe.wasm"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    for (args, expected) in [
        (&["--add", "whiteout:/w"][..], "`.wh.`"),
        (&["--add", "text:/w/.wh..wh..opq"], "`.wh.`"),
        (&["--add", "link:/"], "UTF-8"),
        (&["--add", "text:/x", "--add", "empty:/x"], "already"),
        (&["--artifact", "pipe.wasm"], "pipe.wasm"),
        (&["--artifact", "/dev/zero"], "/dev/zero"),
        (&["pipe.wasm"], "pipe.wasm"),
        (&["nothing.wasm"], "nothing.wasm"),
    ] {
        let args = [&["build", "-t", "a", "-o", "o.tar"], args].concat();
        let error = refused(folder.path(), &args);
        assert!(error.contains(expected), "{args:?}: {error}");
        assert!(error.matches("No such file").count() < 2, "{error}");
        assert!(!path("o.tar").exists());
    }
}

/// Who has no room is named: the archive's folder, or that for temporary files.
#[test]
fn no_room_is_no_fault_of_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("app.wasm"), vec![0; 100_000]).unwrap();
    let limited = |kilobytes: u32, temporary: &str| {
        // No file may be larger; writing past that is an error then, as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script, "-", env!("CARGO_BIN_EXE_lighter")])
            .args(["build", "app.wasm", "-t", "a", "-o", "o.tar"])
            .current_dir(folder.path())
            .env("TMPDIR", path(temporary))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    fs::create_dir(path("temporary")).unwrap();
    let temporary = path("temporary").display().to_string();
    for error in [limited(50, "temporary"), limited(50, "nowhere")] {
        assert!(error.contains("TMPDIR"), "{error}");
        assert!(!error.contains("cannot read"), "{error}");
    }
    assert!(limited(50, "temporary").contains(&temporary));
    // Room for the layer, and none for what the archive adds to it.
    let error = limited(101, "temporary");
    assert!(error.contains("o.tar: File too large"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// Docker's classic store says nothing of an artifact, and has nothing then.
#[test]
fn docker_has_to_say_what_it_has_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("app.wasm"), b"\0asm\x01\0\0\0").unwrap();
    let build = |says: &str| {
        // By another process: a program that this one has open, or a child of another test has, cannot be run.
        let write = format!("printf '#!/bin/sh\\n{says}\\n' >docker && chmod 755 docker");
        let mut shell = Command::new("sh");
        let written = shell.current_dir(&folder).args(["-c", &write]).status();
        assert!(written.unwrap().success());
        Command::new(env!("CARGO_BIN_EXE_lighter"))
            .current_dir(folder.path())
            .args(["build", "app.wasm", "-t", "a", "--artifact", "--docker"])
            .env("PATH", folder.path())
            .output()
            .unwrap()
    };
    let loaded = build("echo Loaded image: a:latest");
    assert!(loaded.status.success(), "{loaded:?}");
    let nothing = build("");
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    assert!(nothing.stdout.is_empty(), "{nothing:?}");
    let error = String::from_utf8(nothing.stderr).unwrap();
    assert!(
        error.contains(r#""features": {"containerd-snapshotter": true}"#),
        "{error}"
    );
}
