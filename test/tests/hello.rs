//! The first thing a user does: running hello in three kinds of guest, and with
//! the real `ctr`.

use anyhow::{Result, ensure};
use image::{Entry, Image, Layer, Name};
use lighter_test::{Containerd, Rootfs, each_containerd, guest};

each_containerd!(
    c_module,
    rust_module,
    rust_component,
    ctr_run,
    ctr_run_linux,
    ctr_run_stdin
);

fn c_module(engine: &Containerd) -> Result<()> {
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/hello.wasm", "one", "two"])
        .run()?
        .success()?;
    assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
    assert!(
        output.contains("argument 0: /hello.wasm\nargument 1: one\nargument 2: two\n"),
        "{output}"
    );
    assert!(output.contains("working directory: /\n"), "{output}");
    assert!(output.contains(" tool.wasm"), "{output}");
    Ok(())
}

fn rust_module(engine: &Containerd) -> Result<()> {
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/hello-rust.wasm", "word"])
        .env("NAME", "value")
        .run()?
        .success()?;
    assert!(
        output.starts_with("Hello from Rust in WebAssembly!\n"),
        "{output}"
    );
    assert!(output.contains("argument 1: word\n"), "{output}");
    assert!(output.contains("environment: NAME=value\n"), "{output}");
    Ok(())
}

fn rust_component(engine: &Containerd) -> Result<()> {
    let output = engine
        .container(&Rootfs::guests()?)
        .args(["/hello-component.wasm"])
        .run()?
        .success()?;
    assert!(
        output.starts_with("Hello from a WebAssembly component!\n"),
        "{output}"
    );
    assert!(output.contains("runs in this container: 1\n"), "{output}");
    Ok(())
}

/// An image of platform wasi/wasm made of one guest, in the daemon's store.
fn import(engine: &Containerd, file: &str) -> Result<String> {
    let mut layer = Layer::default();
    layer.add(&format!("/{file}"), Entry::file(guest(file)?).mode(0o755))?;
    let image = Image {
        entrypoint: vec![format!("/{file}")],
        layers: vec![layer],
        ..Image::default()
    };
    save(engine, &image)
}

fn save(engine: &Containerd, image: &Image) -> Result<String> {
    let name: Name = format!("example.com/{}:1", engine.new_id("image")).parse()?;
    let archive = tempfile::NamedTempFile::new_in(engine.folder())?;
    image.save(&name, archive.path())?;
    engine.import(archive.path())?;
    Ok(name.to_string())
}

fn ctr_run(engine: &Containerd) -> Result<()> {
    let (image, id) = (import(engine, "hello.wasm")?, engine.new_id("ctr"));
    let runtime = ["run", "--rm", "--runtime", lighter_test::WASMTIME];
    // Arguments of `ctr run` stand in place of the image's entrypoint.
    let args = [&*image, &*id, "/hello.wasm", "one", "two"];
    let output = engine.run_ctr(runtime.into_iter().chain(args))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.starts_with("Hello from WebAssembly!\n"), "{text}");
    assert!(text.contains("argument 2: two\n"), "{text}");
    engine.ensure_gone(&id)?;
    // Without arguments it is the entrypoint that runs.
    let output = engine.run_ctr(runtime.into_iter().chain([&*image, &*id]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("Hello from WebAssembly!\n"), "{text}");
    assert_eq!(output.status.code(), Some(0));
    engine.ensure_gone(&id)
}

fn ctr_run_linux(engine: &Containerd) -> Result<()> {
    let mut layer = Layer::default();
    layer.add("/bin/busybox", Entry::file("/usr/bin/busybox").mode(0o755))?;
    let image = Image {
        platform: "linux/amd64".parse()?,
        layers: vec![layer],
        ..Image::default()
    };
    let (image, id) = (save(engine, &image)?, engine.new_id("ctr"));
    let output = engine.run_ctr([
        "run",
        "--rm",
        "--runtime",
        lighter_test::WASMTIME,
        &image,
        &id,
        "/bin/busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 4",
    ])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.starts_with("err\n"), "{errors}");
    assert_eq!(output.status.code(), Some(4));
    engine.ensure_gone(&id)
}

fn ctr_run_stdin(engine: &Containerd) -> Result<()> {
    let (image, id) = (import(engine, "tool.wasm")?, engine.new_id("ctr"));
    let args = [
        "run",
        "--rm",
        "--runtime",
        lighter_test::WASMTIME,
        &image,
        &id,
        "/tool.wasm",
        "cat",
    ];
    let output = engine.feed_ctr(&args, b"through the guest")?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through the guest");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    engine.ensure_gone(&id)
}
