//! The command as a user types it.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
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
            "not a wasm module",
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
