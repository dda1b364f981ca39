//! Images of guests on their way into Docker: a Dockerfile, `lighter build`, artifacts that are
//! loaded or pulled. docs/images.md says the same in words.

use std::{fs, os::unix::fs::symlink, process::Command};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Registry, WASMTIME,
    artifact::{COMPONENT_LAYER, Layer, Raw, WASM_LAYER},
    dockerd::{Dockerd, Reply, Store},
    each_store, ensure_root, guest, tools,
};

each_store!(dockerfile, lighter_build, several_platforms);

/// A name that no other test has.
fn name(test: &str) -> String {
    format!("example.com/{test}-{}:1", std::process::id())
}

/// `docker run` of an image for a platform, with the shim.
fn run(engine: &Dockerd, platform: &str, image: &str, args: &[&str]) -> Result<Reply> {
    let run = [
        "run",
        "--rm",
        "--runtime",
        WASMTIME,
        "--platform",
        platform,
        image,
    ];
    engine.docker(&[&run, args].concat())
}

/// The platform that a store's images of guests are for.
fn platform(engine: &Dockerd) -> &'static str {
    match engine.store() {
        Store::Containerd => "wasi/wasm",
        Store::Classic => "linux/amd64",
    }
}

/// `lighter build ARGS... --docker` as a user of the daemon.
fn lighter_docker(engine: &Dockerd, args: &[&str]) -> Result<String> {
    let mut path = vec![engine.client().context("the docker command")?.to_owned()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let output = Command::new(lighter_test::built_programs()?.join("lighter"))
        .arg("build")
        .args(args)
        .arg("--docker")
        .env("PATH", std::env::join_paths(path)?)
        .env(
            "DOCKER_HOST",
            format!("unix://{}", engine.socket().display()),
        )
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A Dockerfile of three lines, built by dockerd's BuildKit.
fn dockerfile(engine: &Dockerd) -> Result<()> {
    // Where the client looks for its commands.
    let plugins = engine.folder().join("client/cli-plugins");
    fs::create_dir_all(&plugins)?;
    let buildx = tools().join("docker/usr/libexec/docker/cli-plugins/docker-buildx");
    ensure!(
        buildx.exists(),
        "{} is missing: run `make test`, or `test/setup/engines docker`",
        buildx.display()
    );
    symlink(buildx, plugins.join("docker-buildx"))?;
    let context = tempfile::tempdir_in(engine.folder())?;
    fs::copy(guest("tool.wasm")?, context.path().join("tool.wasm"))?;
    let lines = "FROM scratch\nCOPY tool.wasm /tool.wasm\nENTRYPOINT [\"/tool.wasm\"]\n";
    fs::write(context.path().join("Dockerfile"), lines)?;
    let (name, folder) = (name("dockerfile"), context.path().display().to_string());
    let platform = platform(engine);
    let build = ["build", "--platform", platform, "--tag", &name, &folder];
    engine.docker(&build)?.success()?;
    let reply = run(engine, platform, &name, &["args", "one"])?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\none\n");
    Ok(())
}

fn lighter_build(engine: &Dockerd) -> Result<()> {
    let (name, guest) = (name("lighter"), guest("tool.wasm")?.display().to_string());
    let platform = platform(engine);
    let args = [
        "-t",
        &name,
        "--platform",
        platform,
        "--entrypoint",
        "/tool.wasm",
    ];
    let more = ["--entrypoint", "args", "--cmd", "one", "--label", "k=v"];
    let printed = lighter_docker(engine, &[&[&*guest], &args[..], &more].concat())?;
    assert!(printed.starts_with(&format!("{name} sha256:")), "{printed}");
    let reply = run(engine, platform, &name, &[])?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\none\n");
    let inspect = [
        "image",
        "inspect",
        "--format",
        "{{index .Config.Labels \"k\"}}",
        &name,
    ];
    assert_eq!(engine.docker(&inspect)?.success()?, "v\n");
    Ok(())
}

fn several_platforms(engine: &Dockerd) -> Result<()> {
    let (name, guest) = (
        name("platforms"),
        guest("hello.wasm")?.display().to_string(),
    );
    let platforms = "wasi/wasm,linux/amd64,linux/arm64";
    lighter_docker(engine, &[&guest, "-t", &name, "--platform", platforms])?;
    let all = match engine.store() {
        Store::Containerd => &["wasi/wasm", "linux/amd64", "linux/arm64"][..],
        // It is given the first that it can run.
        Store::Classic => &["linux/amd64"],
    };
    for platform in all {
        let output = run(engine, platform, &name, &[])?.success()?;
        assert!(
            output.starts_with("Hello from WebAssembly!\n"),
            "{platform}: {output}"
        );
    }
    Ok(())
}

/// A daemon with containerd's store, which alone can hold artifacts.
fn containerd_store() -> Result<std::sync::Arc<Dockerd>> {
    ensure_root()?;
    Dockerd::shared(Store::Containerd)
}

/// An image in the daemon's store.
fn load(engine: &Dockerd, test: &str, image: &Raw) -> Result<String> {
    let name = name(test);
    let archive = tempfile::NamedTempFile::new_in(engine.folder())?;
    image.save(&name, archive.path())?;
    let path = archive.path().display().to_string();
    engine.docker(&["load", "--input", &path])?.success()?;
    Ok(name)
}

/// The platform that an artifact of a module is for, as its configuration says.
const ARTIFACTS: &str = "wasip1/wasm";

#[test]
fn artifact() -> Result<()> {
    let engine = containerd_store()?;
    let layer = Layer::new(WASM_LAYER, fs::read(guest("tool.wasm")?)?).title("tool.wasm");
    let image = load(&engine, "artifact", &Raw::artifact(&[layer]))?;
    let command = ["/tool.wasm", "args", "one"];
    let reply = run(&engine, ARTIFACTS, &image, &command)?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\none\n");
    // Without a platform Docker warns, and runs it.
    let any = ["run", "--rm", "--runtime", WASMTIME, &image];
    let reply = engine.docker(&[&any, &command[..]].concat())?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\none\n");
    // To Docker it is not for wasi/wasm.
    let reply = run(&engine, "wasi/wasm", &image, &command)?;
    assert_eq!(reply.code, 125, "{reply:?}");
    Ok(())
}

#[test]
fn component_layer() -> Result<()> {
    let engine = containerd_store()?;
    let layer = Layer::new(COMPONENT_LAYER, fs::read(guest("tool.wasm")?)?);
    let image = load(&engine, "component", &Raw::component("tool.wasm", &[layer]))?;
    let reply = run(&engine, ARTIFACTS, &image, &["args", "one"])?;
    assert_eq!(reply.success()?, "tool.wasm\nargs\none\n");
    Ok(())
}

/// lighter puts how an artifact is run into its configuration, where Docker looks.
#[test]
fn lighters_artifact() -> Result<()> {
    let engine = containerd_store()?;
    let (name, guest) = (name("made"), guest("tool.wasm")?.display().to_string());
    let beside = tempfile::NamedTempFile::new_in(engine.folder())?;
    fs::write(beside.path(), "beside the wasm\n")?;
    let beside = format!("{}:/data/file", beside.path().display());
    let args = [&*guest, "-t", &name, "--artifact", "--add", &beside];
    let more = ["--cmd", "env", "--env", "A=1"];
    lighter_docker(&engine, &[&args[..], &more].concat())?;
    let output = run(&engine, ARTIFACTS, &name, &[])?.success()?;
    assert!(output.lines().any(|line| line == "A=1"), "{output}");
    let reply = run(&engine, ARTIFACTS, &name, &["args", "one"])?;
    assert_eq!(reply.success()?, "/tool.wasm\nargs\none\n");
    let reply = run(&engine, ARTIFACTS, &name, &["read", "/data/file"])?;
    assert_eq!(reply.success()?, "beside the wasm\n");
    Ok(())
}

/// The classic store takes the archive without a word, and nothing of it.
#[test]
fn an_artifact_for_the_classic_store() -> Result<()> {
    ensure_root()?;
    let engine = Dockerd::shared(Store::Classic)?;
    let (name, guest) = (name("classic"), guest("tool.wasm")?.display().to_string());
    let built = lighter_docker(&engine, &[&guest, "-t", &name, "--artifact"]);
    let error = built.err().context("nothing was loaded")?.to_string();
    ensure!(error.contains("containerd-snapshotter"), "{error}");
    Ok(())
}

#[test]
fn pulled() -> Result<()> {
    let engine = containerd_store()?;
    let archive = tempfile::NamedTempFile::new_in(engine.folder())?;
    let tool = fs::read(guest("tool.wasm")?)?;
    let artifact = Raw::artifact(&[Layer::new(WASM_LAYER, tool.clone())]);
    let component = Raw::component("/tool.wasm", &[Layer::new(COMPONENT_LAYER, tool)]);
    for (image, command) in [
        (artifact, &["/tool.wasm", "args"][..]),
        (component, &["args"]),
    ] {
        image.save("example.com/pulled:1", archive.path())?;
        let registry = Registry::serve(archive.path(), Some(engine.inside()))?;
        let name = registry.name("pulled:1")?;
        engine
            .docker(&["pull", "--platform", ARTIFACTS, &name])?
            .success()?;
        let reply = run(&engine, ARTIFACTS, &name, command)?;
        assert_eq!(reply.success()?, "/tool.wasm\nargs\n");
    }
    Ok(())
}

/// An index that has a wasm artifact for each of several platforms: Docker takes the one that it is
/// asked for, or the one that there is.
#[test]
fn index_of_artifacts() -> Result<()> {
    let engine = containerd_store()?;
    let layer = |file: &str| -> Result<Layer> {
        Ok(Layer::new(WASM_LAYER, fs::read(guest(file)?)?).title(file))
    };
    let hello = Raw::artifact(&[layer("hello.wasm")?]);
    let tool = Raw::artifact(&[layer("tool-component.wasm")?]).os("wasip2");
    let archive = tempfile::NamedTempFile::new_in(engine.folder())?;
    let path = archive.path().display().to_string();
    let runs = |image: &str| -> Result<()> {
        let reply = run(&engine, "wasip1/wasm", image, &["/hello.wasm"])?;
        let output = reply.success()?;
        ensure!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
        let reply = run(
            &engine,
            "wasip2/wasm",
            image,
            &["/tool-component.wasm", "args"],
        )?;
        assert_eq!(reply.success()?, "/tool-component.wasm\nargs\n");
        Ok(())
    };
    let loaded = name("index");
    Raw::save_index(&[hello.clone(), tool.clone()], &loaded, archive.path())?;
    engine.docker(&["load", "--input", &path])?.success()?;
    runs(&loaded)?;

    let registry = Registry::serve(archive.path(), Some(engine.inside()))?;
    let pulled = registry.name(loaded.trim_start_matches("example.com/"))?;
    for platform in ["wasip1/wasm", "wasip2/wasm"] {
        let pull = ["pull", "--platform", platform, &pulled];
        engine.docker(&pull)?.success()?;
    }
    runs(&pulled)?;
    // What an index has for no platform is not there.
    let reply = run(&engine, "wasi/wasm", &loaded, &["/hello.wasm"])?;
    assert_eq!(reply.code, 125, "{reply:?}");
    Ok(())
}

/// What is wrong with an artifact stands in what `docker run` prints.
#[test]
fn malformed() -> Result<()> {
    let engine = containerd_store()?;
    let layer = Layer::new(WASM_LAYER, "just text");
    let image = load(&engine, "malformed", &Raw::artifact(&[layer]))?;
    let reply = run(&engine, ARTIFACTS, &image, &["/app.wasm"])?;
    assert!(
        reply.code != 0 && reply.errors.contains("cannot run"),
        "{reply:?}"
    );
    assert!(reply.errors.contains(&image), "{reply:?}");
    Ok(())
}
