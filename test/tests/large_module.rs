//! A module of 99 MB: CPython 3.15 with what scientists use, a reactor of WASI 0.1 that imports a function
//! which nothing provides.

use anyhow::Result;
use lighter_test::{
    Containerd, Output, Rootfs, Version, each_containerd, ensure_root, guest,
    options::RuntimeOptions,
};

each_containerd!(interpreter);

const PROGRAM: &str = "/python-scientific.wasm#run";

/// It imports a function for programs that embed it.
const SETTINGS: &str = "engine.unknown_imports_trap = true\n";

fn rootfs() -> Result<Rootfs> {
    Ok(Rootfs::base()
        .guest("python-scientific.wasm")?
        .copy(guest("python315.zip")?, "/usr/local/lib/python315.zip"))
}

fn run(engine: &Containerd, settings: &str, script: &str) -> Result<Output> {
    engine
        .container(&rootfs()?)
        .args([PROGRAM, "-c", script, "one"])
        .options(RuntimeOptions::body(&format!("{SETTINGS}{settings}")))
        .run()
}

/// What it returns is the exit code, and is not printed.
fn interpreter(engine: &Containerd) -> Result<()> {
    let script = r#"
import json, sys
import numpy
print(json.dumps([sys.argv, numpy.arange(5).reshape(5, 1).sum().item()]))
with open("/tmp/file", "w") as file:
    file.write("written")
print(open("/tmp/file").read())
sys.exit(200)
"#;
    let output = run(engine, "", script)?;
    assert_eq!(
        output.text(),
        "[[\"-c\", \"one\"], 10]\nwritten\n",
        "{}",
        output.errors()
    );
    assert_eq!(output.status, 200);
    let output = run(engine, "", "print('a line')")?;
    assert_eq!((output.status, output.text()), (0, "a line\n".into()));
    let output = run(engine, "", "raise ValueError('wrong')")?;
    assert_eq!(output.status, 1);
    assert!(
        output.errors().contains("ValueError: wrong"),
        "{}",
        output.errors()
    );
    Ok(())
}

/// The first start compiles, and the log tells so meanwhile; the second does not.
#[test]
fn compiled_once_with_news() -> Result<()> {
    ensure_root()?;
    let engine = Containerd::start(Version::V2_1)?;
    let folder = tempfile::Builder::new()
        .prefix("cache-")
        .tempdir_in("/var/tmp")?;
    let cache = format!("cache_dir = {:?}\n", folder.path().join("cache"));
    let lines = |text: &str| {
        let line = format!("/python-scientific.wasm: {text}");
        engine.log().matches(&line).count()
    };
    for _ in 0..2 {
        let printed = run(&engine, &cache, "print('a line')")?.success()?;
        assert_eq!(printed, "a line\n");
        assert_eq!((lines("compiling it"), lines("that took ")), (1, 1));
        assert!(lines("waiting for its native code since ") > 0);
    }
    Ok(())
}
