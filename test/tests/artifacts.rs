//! Wasm that is a layer of an image and no file: the CNCF's artifacts and runwasi's older layers, by
//! every way that an engine lets them through; what is wrong with them; and `lighter build` into a
//! containerd. docs/images.md says the same in words. Docker's part is in docker_build.rs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::{DeleteContentRequest, DeleteImageRequest};
use lighter_test::{
    Builder, Containerd, Registry, Rootfs, Version, WASMTIME,
    artifact::{COMPONENT_LAYER, Layer, Raw, WASM_LAYER, digest, unique},
    call,
    cri::{self, Cri},
    each_containerd, each_cri, eventually, guest, module,
};
use tempfile::NamedTempFile;

each_containerd!(
    artifact,
    component_layer,
    ctr_run,
    ctr_run_artifact,
    ctr_import_and_pull,
    ctr_pull_with_files,
    function,
    name_before_function,
    several_layers,
    layers_are_composed,
    composed_before_the_first_start,
    index,
    index_with_files,
    index_pulled_for_a_platform,
    files_go_before_layers,
    added_processes,
    image_gone,
    image_of_files_gone,
    not_whole,
    malformed,
    damaged_in_the_store,
    build_into_containerd,
    build_for_several_platforms,
);

mod pods {
    use super::*;
    each_cri!(pod_of_an_artifact, pod_of_a_component_layer, pulled);
}

/// A name for an image that no other test has.
fn name(engine: &Containerd) -> String {
    format!("example.com/{}:1", engine.new_id("image"))
}

/// Puts an image into the daemon's store, packed, and gives its name.
fn import(engine: &Containerd, image: &Raw) -> Result<String> {
    let name = name(engine);
    let archive = NamedTempFile::new_in(engine.folder())?;
    image.save(&name, archive.path())?;
    engine.import_packed(archive.path())?;
    Ok(name)
}

fn read(file: &str) -> Result<Vec<u8>> {
    Ok(fs::read(guest(file)?)?)
}

/// A container of an image that has no files.
fn container<'a>(engine: &'a Containerd, image: &str) -> Builder<'a> {
    engine.container(&Rootfs::base()).image(image)
}

fn lighter(engine: &Containerd, args: &[&str]) -> Result<Output> {
    let output = Command::new(lighter_test::built_programs()?.join("lighter"))
        .args(args)
        .env("CONTAINERD_ADDRESS", engine.socket())
        .env("CONTAINERD_NAMESPACE", engine.namespace())
        .output()?;
    Ok(output)
}

/// Runs `lighter build` and gives what it prints.
fn build(engine: &Containerd, args: &[&str]) -> Result<String> {
    let output = lighter(engine, &[&["build"], args].concat())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "lighter build {args:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn artifact(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("hello.wasm")?).title("hello.wasm");
    let image = import(engine, &Raw::artifact(&[layer]))?;
    let builder = container(engine, &image).args(["/hello.wasm", "one"]);
    let output = builder.run()?.success()?;
    assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
    let arguments = "argument 0: /hello.wasm\nargument 1: one\n";
    assert!(output.contains(arguments), "{output}");
    // It is no file.
    let files = output.lines().find(|line| line.starts_with("files in /:"));
    assert!(files.is_some_and(|line| !line.contains("wasm")), "{output}");
    // An image's only layer is what any entrypoint means that is no file.
    let output = container(engine, &image).args(["start", "two"]).run()?;
    let output = output.success()?;
    assert!(
        output.contains("argument 0: start\nargument 1: two\n"),
        "{output}"
    );
    engine.ensure_clean()
}

fn component_layer(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(COMPONENT_LAYER, read("hello-component.wasm")?);
    let image = import(engine, &Raw::component("hello.wasm", &[layer]))?;
    let output = container(engine, &image).args(["hello.wasm"]).run()?;
    let output = output.success()?;
    let greeting = "Hello from a WebAssembly component!\n";
    assert!(output.starts_with(greeting), "{output}");
    Ok(())
}

/// What ctr 1.6 says to an image that has layers of which its configuration knows nothing.
const MISMATCH: &str = "mismatched image rootfs and manifest layers";

fn ctr_run(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(COMPONENT_LAYER, read("hello.wasm")?);
    let image = import(engine, &Raw::component("hello.wasm", &[layer]))?;
    let id = engine.new_id("ctr");
    let run = ["run", "--rm", "--runtime", WASMTIME, &image, &id];
    let output = engine.run_ctr(run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if engine.version() == Version::V1_6 {
        assert!(
            !output.status.success() && errors.contains(MISMATCH),
            "{errors}"
        );
        return Ok(());
    }
    assert!(output.status.success(), "{errors}");
    assert!(text.starts_with("Hello from WebAssembly!\n"), "{text}");
    engine.ensure_gone(&id)?;
    let output = engine.run_ctr(run.into_iter().chain(["/hello.wasm", "one"]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("argument 1: one\n"), "{text}");
    engine.ensure_gone(&id)
}

/// ctr has a list of configurations' types, and this one is not on it.
fn ctr_run_artifact(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("hello.wasm")?);
    let image = import(engine, &Raw::artifact(&[layer]))?;
    let id = engine.new_id("ctr");
    let output = engine.run_ctr(["run", "--rm", "--runtime", WASMTIME, &image, &id, "hello"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let expected = match engine.version() {
        Version::V1_6 => MISMATCH,
        _ => "unknown image config media type application/vnd.wasm.config.v0+json",
    };
    assert!(
        !output.status.success() && errors.contains(expected),
        "{errors}"
    );
    Ok(())
}

/// ctr unpacks what it imports and pulls; there is nothing to unpack.
fn ctr_import_and_pull(engine: &Containerd) -> Result<()> {
    let layer = |kind| Ok::<_, anyhow::Error>(Layer::new(kind, read("hello.wasm")?));
    let archive = NamedTempFile::new_in(engine.folder())?;
    let path = archive.path().display().to_string();
    for image in [
        Raw::artifact(&[layer(WASM_LAYER)?]),
        Raw::component("hello.wasm", &[layer(COMPONENT_LAYER)?]),
    ] {
        let imported = name(engine);
        image.save(&imported, archive.path())?;
        let registry = Registry::serve(archive.path(), None)?;
        let (_, short) = imported.split_once('/').context("a registry")?;
        let pulled = registry.name(short)?;
        for (name, args) in [
            (&imported, &["import", "--all-platforms", &path][..]),
            (&pulled, &["pull", "--plain-http", &pulled]),
        ] {
            let output = engine.run_ctr(["images"].iter().chain(args))?;
            let errors = String::from_utf8_lossy(&output.stderr);
            if engine.version() == Version::V1_6 {
                assert!(errors.contains(MISMATCH), "{args:?}: {errors}");
                continue;
            }
            ensure!(output.status.success(), "{args:?}: {errors}");
            let output = container(engine, name)
                .args(["hello.wasm"])
                .run()?
                .success()?;
            assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
        }
    }
    Ok(())
}

/// A file beside the wasm, and how `lighter build` is told to add it.
fn beside(engine: &Containerd) -> Result<(NamedTempFile, String)> {
    let file = NamedTempFile::new_in(engine.folder())?;
    fs::write(file.path(), "beside the wasm\n")?;
    let add = format!("{}:/data/file", file.path().display());
    Ok((file, add))
}

/// Files beside the wasm are fetched and unpacked.
fn ctr_pull_with_files(engine: &Containerd) -> Result<()> {
    let (_file, add) = beside(engine)?;
    let (name, tool) = (name(engine), guest("tool.wasm")?.display().to_string());
    let archive = NamedTempFile::new_in(engine.folder())?;
    let path = archive.path().display().to_string();
    let args = [
        &*tool,
        "-t",
        &name,
        "--artifact",
        "--add",
        &add,
        "-o",
        &path,
    ];
    build(engine, &args)?;
    let registry = Registry::serve(archive.path(), None)?;
    let (_, short) = name.split_once('/').context("a registry")?;
    let pulled = registry.name(short)?;
    let id = engine.new_id("ctr");
    let run = ["run", "--rm", "--runtime", WASMTIME, &pulled, &id];
    let read = ["/tool.wasm", "read", "/data/file"];
    let mut printed = Vec::new();
    for args in [
        &["images", "pull", "--plain-http", &pulled][..],
        &[&run[..], &read].concat(),
    ] {
        let output = engine.run_ctr(args)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if engine.version() == Version::V1_6 {
            assert!(errors.contains(MISMATCH), "{args:?}: {errors}");
            return Ok(());
        }
        ensure!(output.status.success(), "{args:?}: {errors}");
        printed = output.stdout;
    }
    assert_eq!(String::from_utf8_lossy(&printed), "beside the wasm\n");
    engine.ensure_gone(&id)
}

fn function(engine: &Containerd) -> Result<()> {
    let wasm = module::exporting("greet");
    let image = import(engine, &Raw::artifact(&[Layer::new(WASM_LAYER, wasm)]))?;
    let builder = container(engine, &image).args(["/app.wasm#greet"]);
    builder.run()?.success()?;
    let text = container(engine, &image).args(["/app.wasm"]).refused()?;
    assert!(text.contains("_start"), "{text}");
    Ok(())
}

/// What comes after a `#` is a function only where no layer has the whole name.
fn name_before_function(engine: &Containerd) -> Result<()> {
    let layers = [
        Layer::new(WASM_LAYER, module::exporting("_start")).title("c#.wasm"),
        Layer::new(WASM_LAYER, module::exporting("greet")).title("c#"),
    ];
    let image = import(engine, &Raw::artifact(&layers))?;
    for program in ["/c#.wasm", "c##greet"] {
        let builder = container(engine, &image).args([program]);
        builder.run()?.success().context(program)?;
    }
    let alone = import(engine, &Raw::artifact(&layers[..1]))?;
    container(engine, &alone)
        .args(["/c#.wasm"])
        .run()?
        .success()?;
    Ok(())
}

fn several_layers(engine: &Containerd) -> Result<()> {
    let layers = [
        Layer::new(WASM_LAYER, read("hello.wasm")?).title("hello.wasm"),
        Layer::new(WASM_LAYER, read("tool.wasm")?).title("bin/tool.wasm"),
    ];
    let image = import(engine, &Raw::artifact(&layers))?;
    for (program, expected) in [
        ("/bin/tool.wasm", "/bin/tool.wasm\nargs\n"),
        ("bin/tool.wasm", "bin/tool.wasm\nargs\n"),
    ] {
        let output = container(engine, &image).args([program, "args"]).run()?;
        assert_eq!(output.success()?, expected);
    }
    let by_digest = digest(&read("hello.wasm")?);
    let output = container(engine, &image)
        .args([by_digest])
        .run()?
        .success()?;
    assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
    let text = container(engine, &image).args(["/other.wasm"]).refused()?;
    for part in [
        "/other.wasm",
        "hello.wasm, bin/tool.wasm",
        "must name one",
        &image,
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    Ok(())
}

/// A component whose exit status is what a function of an interface gives that it imports.
fn importing(interface: &str) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!(
        r#"(component
            (import "{interface}" (instance $other (export "code" (func (result u32)))))
            (core func $code (canon lower (func $other "code")))
            (core module $m
                (import "other" "code" (func $code (result i32)))
                (func (export "run") (result i32) call $code))
            (core instance $i (instantiate $m
                (with "other" (instance (export "code" (func $code))))))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $cli (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    ))?)
}

/// A component that exports that function, which gives `code`.
fn exporting(interface: &str, code: u32) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!(
        r#"(component
            (core module $m (func (export "code") (result i32) i32.const {code}))
            (core instance $i (instantiate $m))
            (func $code (result u32) (canon lift (core func $i "code")))
            (instance $e (export "code" (func $code)))
            (export "{interface}" (instance $e)))"#
    ))?)
}

/// What a component imports is taken from the layer that exports it.
fn layers_are_composed(engine: &Containerd) -> Result<()> {
    let program = Layer::new(WASM_LAYER, importing("test:codes/code")?).title("program.wasm");
    let artifact = |layers: &[Layer]| import(engine, &Raw::artifact(layers));
    let run = |image: &str| container(engine, image).args(["program.wasm"]).run();
    // The same program with others has other code.
    for code in [0, 1, 0] {
        let other = Layer::new(WASM_LAYER, exporting("test:codes/code", code)?);
        let image = artifact(&[other.title("other.wasm"), program.clone()])?;
        assert_eq!(run(&image)?.status, code);
    }
    // Alone, or with a layer that exports something else, it cannot run.
    let stranger = Layer::new(WASM_LAYER, exporting("test:codes/strange", 0)?);
    for layers in [&[program.clone()][..], &[program, stranger]] {
        let image = artifact(layers)?;
        let text = container(engine, &image).args(["program.wasm"]).refused()?;
        assert!(text.contains("test:codes/code"), "{text}");
    }
    engine.ensure_clean()
}

/// `lighter cache warm` makes what a container will run, and so the container compiles nothing.
fn composed_before_the_first_start(engine: &Containerd) -> Result<()> {
    let program = Layer::new(COMPONENT_LAYER, unique(&importing("test:codes/code")?));
    let other = Layer::new(COMPONENT_LAYER, exporting("test:codes/code", 0)?).title("other.wasm");
    let layers = [other, program.title("program.wasm")];
    let mut warmed = Vec::new();
    for image in [
        Raw::component("/program.wasm", &layers),
        // Whose containers may name any of its layers.
        Raw::artifact(&layers),
    ] {
        let image = import(engine, &image)?;
        let warm = |is: &str| -> Result<()> {
            let socket = engine.socket().display().to_string();
            let place = ["--address", &socket, "--namespace", engine.namespace()];
            let output = lighter(
                engine,
                &[&["cache", "warm"], &place[..], &[&image]].concat(),
            )?;
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{output:?}");
            let line = printed
                .lines()
                .find(|line| line.contains(" program.wasm: "));
            ensure!(line.is_some_and(|line| line.contains(is)), "{printed}");
            Ok(())
        };
        // Those of the second image are the same.
        warm(": ")?;
        warm("is there already")?;
        let run = container(engine, &image).args(["program.wasm"]).run()?;
        run.success()?;
        warmed.push(image);
    }
    // Of which the log would tell.
    let alone = Layer::new(WASM_LAYER, unique(&read("hello.wasm")?)).title("alone.wasm");
    let cold = import(engine, &Raw::artifact(&[alone]))?;
    container(engine, &cold)
        .args(["alone.wasm"])
        .run()?
        .success()?;
    let compiled = |layer: &str, image: &str| {
        let log = engine.log();
        let of_it = log
            .lines()
            .filter(|line| line.contains(layer) && line.contains(image));
        of_it.filter(|line| line.contains(": compiling it")).count()
    };
    eventually("the log tells", || {
        (compiled("alone.wasm", &cold) > 0).then_some(())
    })?;
    for image in warmed {
        ensure!(
            compiled("program.wasm", &image) == 0,
            "{image} was compiled once more"
        );
    }
    Ok(())
}

/// Puts one image for several platforms into an archive, and gives its name.
fn save_index(engine: &Containerd, images: &[Raw], archive: &Path) -> Result<String> {
    let name = name(engine);
    Raw::save_index(images, &name, archive)?;
    Ok(name)
}

/// Artifacts for several platforms, which no other image has: one that prints its arguments, and
/// one that does not.
fn of_an_index() -> Result<[Raw; 2]> {
    let layer = |file| {
        let layer = Layer::new(WASM_LAYER, unique(&read(file)?));
        Ok::<_, anyhow::Error>(layer.title(file))
    };
    let (hello, tool) = (layer("hello.wasm")?, layer("tool.wasm")?);
    Ok([Raw::artifact(&[hello]), Raw::artifact(&[tool]).os("wasip2")])
}

fn index(engine: &Containerd) -> Result<()> {
    let [hello, tool] = of_an_index()?;
    let own = tool.clone().os("wasi");
    let machine = image::Platform::of_this_machine().architecture;
    let of_machine = |image: &Raw, machine: &str| image.clone().os("linux").architecture(machine);
    let (here, elsewhere) = (of_machine(&tool, &machine), of_machine(&hello, "s390x"));
    let archive = NamedTempFile::new_in(engine.folder())?;
    for (images, program, prints_arguments) in [
        (&[hello.clone()][..], "/any", false),
        // The first, where containerd has several and the entrypoint is of none of them.
        (&[hello.clone(), tool.clone()], "/any", false),
        (&[tool.clone(), hello.clone()], "/any", true),
        // An artifact may be for machines: this one goes before others, and wasm before them.
        (&[elsewhere.clone(), here.clone()], "/any", true),
        (&[elsewhere, here, hello.clone()], "/any", false),
        (
            &[tool.clone().os("wasi").architecture("wasm32")],
            "/any",
            true,
        ),
        // That for wasi/wasm goes before.
        (&[hello.clone(), own.clone()], "/any", true),
        // An entrypoint tells more than the order and the platform.
        (&[hello.clone(), tool], "/tool.wasm", true),
        (&[own, hello], "hello.wasm", false),
    ] {
        let name = save_index(engine, images, archive.path())?;
        engine.import_packed(archive.path())?;
        let output = container(engine, &name).args([program, "args"]).run()?;
        let output = output.success()?;
        let expected = match prints_arguments {
            true => format!("{program}\nargs\n"),
            false => "Hello from WebAssembly!\n".to_owned(),
        };
        assert!(output.starts_with(&expected), "{images:?}: {output}");
    }
    Ok(())
}

/// A container that may be of another platform's files runs wasm by its name only.
fn index_with_files(engine: &Containerd) -> Result<()> {
    let [hello, _] = of_an_index()?;
    let files = Raw::component("/bin/sh", &[]).os("linux");
    let machine = image::Platform::of_this_machine().architecture;
    let files = files.architecture(&machine);
    let archive = NamedTempFile::new_in(engine.folder())?;
    let name = save_index(engine, &[files, hello], archive.path())?;
    engine.import_packed(archive.path())?;
    let text = container(engine, &name).args(["/bin/typo"]).refused()?;
    assert!(
        text.contains("/bin/typo") && text.contains("no such file or directory"),
        "{text}"
    );
    let output = container(engine, &name).args(["/hello.wasm"]).run()?;
    let output = output.success()?;
    assert!(output.starts_with("Hello from WebAssembly!\n"), "{output}");
    Ok(())
}

/// A client that pulls an index for one platform has no other's wasm.
fn index_pulled_for_a_platform(engine: &Containerd) -> Result<()> {
    let archive = NamedTempFile::new_in(engine.folder())?;
    let name = save_index(engine, &of_an_index()?, archive.path())?;
    let registry = Registry::serve(archive.path(), None)?;
    let (_, short) = name.split_once('/').context("a registry")?;
    let pulled = registry.name(short)?;
    let platform = ["--platform", "wasip2/wasm"];
    let pull = ["images", "pull", "--plain-http"];
    let output = engine.run_ctr(pull.iter().chain(&platform).chain([&pulled.as_str()]))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if engine.version() == Version::V1_6 {
        assert!(errors.contains(MISMATCH), "{errors}");
        return Ok(());
    }
    ensure!(output.status.success(), "{errors}");
    let builder = container(engine, &pulled).args(["/any", "args"]);
    assert_eq!(builder.run()?.success()?, "/any\nargs\n");
    Ok(())
}

fn files_go_before_layers(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("hello.wasm")?).title("tool.wasm");
    let image = import(engine, &Raw::artifact(&[layer]))?;
    let rootfs = Rootfs::guests()?;
    let builder = engine.container(&rootfs).image(&image);
    let output = builder.args(["/tool.wasm", "args"]).run()?.success()?;
    assert_eq!(output, "/tool.wasm\nargs\n");
    let builder = engine.container(&rootfs).image(&image);
    let output = builder.args(["/bin/echo", "linux"]).run()?.success()?;
    assert_eq!(output, "linux\n");
    Ok(())
}

fn added_processes(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("tool.wasm")?).title("tool.wasm");
    let image = import(engine, &Raw::artifact(&[layer]))?;
    let container = container(engine, &image).args(["/app", "loop"]).create()?;
    container.start()?;
    container.wait_for_output("looping")?;
    // By its title, and as the container's own process calls it.
    for program in ["tool.wasm", "/app"] {
        let output = container.exec([program, "args"])?.run()?;
        assert_eq!(output.text(), format!("{program}\nargs\n"));
    }
    // Nothing else is taken for it.
    for program in ["sh", "/bin/sh"] {
        let error = container
            .exec([program])?
            .run()
            .expect_err("there is no shell");
        let text = format!("{error:#}");
        assert!(
            text.contains(program) && text.contains("not found") || text.contains("no such file"),
            "{text}"
        );
    }
    container.kill(nix::sys::signal::Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

fn image_gone(engine: &Containerd) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("hello.wasm")?);
    let image = import(engine, &Raw::artifact(&[layer]))?;
    let request = DeleteImageRequest {
        name: image.clone(),
        ..Default::default()
    };
    call(engine.client().images().delete(engine.request(request)))?;
    let text = container(engine, &image).args(["/hello.wasm"]).refused()?;
    for part in ["/hello.wasm", "no such file or directory", &image] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    Ok(())
}

/// Of a container of files nothing depends on its image, and a wrong name is just that.
fn image_of_files_gone(engine: &Containerd) -> Result<()> {
    let image = name(engine);
    let builder = engine.container(&Rootfs::guests()?).image(&image);
    let container = builder.args(["/tool.wasm", "loop"]).create()?;
    container.start()?;
    container.wait_for_output("looping")?;
    let error = container.exec(["/bin/typo"])?.run();
    let text = format!("{:#}", error.err().context("it runs")?);
    assert!(
        text.contains("stat /bin/typo: no such file or directory"),
        "{text}"
    );
    assert!(!text.contains(&image), "{text}");
    container.kill(nix::sys::signal::Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

/// Fails unless a container of `image` is refused with a text that names the image and `parts`.
fn refused(engine: &Containerd, image: &str, parts: &[&str]) -> Result<()> {
    let text = container(engine, image).args(["/app.wasm"]).refused()?;
    for part in parts.iter().chain([&image]) {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    Ok(())
}

fn not_whole(engine: &Containerd) -> Result<()> {
    let lacking = |image: &str, digest: &str| -> Result<()> {
        let request = DeleteContentRequest {
            digest: digest.to_owned(),
        };
        call(engine.client().content().delete(engine.request(request)))?;
        refused(
            engine,
            image,
            &["is not whole", digest, "pull or import it again"],
        )
    };
    let wasm = unique(&module::exporting("_start"));
    let layer = Layer::new(WASM_LAYER, wasm.clone());
    let config = format!(
        r#"{{"architecture": "wasm", "id": "{}"}}"#,
        engine.new_id("whole")
    );
    let image = Raw::artifact(&[layer]).config(config.as_str());
    let name = import(engine, &image)?;
    lacking(&name, &digest(&wasm))?;
    lacking(&name, &digest(config.as_bytes()))?;
    // What was damaged runs once it is there again, and others never noticed.
    let archive = NamedTempFile::new_in(engine.folder())?;
    image.save(&name, archive.path())?;
    engine.import_packed(archive.path())?;
    container(engine, &name)
        .args(["/app.wasm"])
        .run()?
        .success()?;
    Ok(())
}

/// A layer of a module that has never been compiled.
fn unheard_of() -> Layer {
    Layer::new(WASM_LAYER, unique(&module::exporting("_start")))
}

fn malformed(engine: &Containerd) -> Result<()> {
    let twice = unheard_of();
    let other = Layer::new("application/octet-stream", "other");
    let lying = format!(r#"{{"layerDigests": ["{}"]}}"#, digest(b"another"));
    let large = (1 << 30) + 1;
    let text = Layer::new(WASM_LAYER, "just text");
    let gzip = Layer::new(WASM_LAYER, b"\x1f\x8b\x08\0\0\0\0\0\x02\xff");
    for (image, parts) in [
        (Raw::artifact(&[]), &["without a layer"][..]),
        (Raw::artifact(&[other]), &["without a layer", WASM_LAYER]),
        (Raw::artifact(&[twice.clone(), twice]), &["twice"]),
        (
            Raw::artifact(&[unheard_of().title("a"), unheard_of().title("a")]),
            &["two layers with the title a"],
        ),
        (
            Raw::artifact(&[unheard_of().size(large)]),
            &["1073741825 bytes", "at most"],
        ),
        (
            Raw::artifact(&[unheard_of().size(10)]),
            &["is damaged", "more than its 10 bytes"],
        ),
        (
            Raw::artifact(&[unheard_of().size(10_000)]),
            &["is damaged", "and not 10000"],
        ),
        (
            Raw::artifact(&[unheard_of()]).config("not JSON"),
            &["configuration is not JSON"],
        ),
        (
            Raw::artifact(&[unheard_of()]).config("[1]"),
            &["not a JSON object"],
        ),
        (
            Raw::artifact(&[unheard_of()]).config(lying),
            &["layerDigests lack its layer"],
        ),
        (Raw::artifact(&[text]), &["cannot run: it is a text file"]),
        (Raw::artifact(&[gzip]), &["cannot run: it is a gzip file"]),
    ] {
        let image = import(engine, &image)?;
        refused(engine, &image, parts).with_context(|| format!("{parts:?}"))?;
    }
    engine.ensure_clean()
}

/// Where the daemon keeps a blob.
fn blob(engine: &Containerd, bytes: &[u8]) -> PathBuf {
    let store = engine
        .folder()
        .join("root/io.containerd.content.v1.content");
    store.join("blobs").join(digest(bytes).replace(':', "/"))
}

/// A store whose files have been changed behind containerd's back.
fn damaged_in_the_store(engine: &Containerd) -> Result<()> {
    let wasm = unique(&module::exporting("_start"));
    let image = import(
        engine,
        &Raw::artifact(&[Layer::new(WASM_LAYER, wasm.clone())]),
    )?;
    let path = blob(engine, &wasm);
    let mut changed = wasm.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&path, &changed)?;
    let (is, was) = (digest(&changed), digest(&wasm));
    refused(engine, &image, &["is damaged", &is, &was])?;
    fs::write(&path, &wasm)?;
    container(engine, &image)
        .args(["/app.wasm"])
        .run()?
        .success()?;
    // Code is kept by digest: the module itself is not asked for again.
    fs::write(&path, &changed)?;
    container(engine, &image)
        .args(["/app.wasm"])
        .run()?
        .success()?;
    Ok(())
}

fn build_into_containerd(engine: &Containerd) -> Result<()> {
    // A layer that no other test's image has, since this one has garbage collected.
    let folder = tempfile::tempdir_in(engine.folder())?;
    let guest = folder.path().join("hello.wasm");
    fs::write(&guest, unique(&read("hello.wasm")?))?;
    let (name, guest) = (name(engine), guest.display().to_string());
    let args = [&*guest, "-t", &name, "--containerd"];
    let printed = build(
        engine,
        &[&args[..], &["--cmd", "one", "--env", "A=1"]].concat(),
    )?;
    assert!(printed.starts_with(&format!("{name} sha256:")), "{printed}");
    let run = |extra: &[&str]| -> Result<String> {
        let id = engine.new_id("ctr");
        let args = ["run", "--rm", "--runtime", WASMTIME, &name, &id];
        let output = engine.run_ctr(args.iter().chain(extra))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{errors}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let output = run(&[])?;
    assert!(
        output.contains("argument 0: /hello.wasm\nargument 1: one\n"),
        "{output}"
    );
    // Once more, and with another image under the same name.
    assert_eq!(
        build(
            engine,
            &[&args[..], &["--cmd", "one", "--env", "A=1"]].concat()
        )?,
        printed
    );
    build(engine, &[&args[..], &["--cmd", "two"]].concat())?;
    // The snapshot that ctr has made goes with the image that it was made of; ctr would find it here,
    // and not any more a moment later.
    collect_garbage(engine)?;
    let output = run(&[])?;
    assert!(output.contains("argument 1: two\n"), "{output}");
    // What garbage collection leaves is the whole image.
    collect_garbage(engine)?;
    let output = run(&["/hello.wasm", "three"])?;
    assert!(output.contains("argument 1: three\n"), "{output}");
    let leases = engine.run_ctr(["leases", "ls", "-q"])?;
    let leases = String::from_utf8_lossy(&leases.stdout).into_owned();
    assert!(!leases.contains("lighter-"), "{leases}");

    build(engine, &[&args[..], &["--artifact"]].concat())?;
    collect_garbage(engine)?;
    let output = container(engine, &name)
        .args(["/hello.wasm", "four"])
        .run()?;
    let output = output.success()?;
    assert!(output.contains("argument 1: four\n"), "{output}");

    // Another namespace is given what is in the store already.
    build(engine, &[&args[..], &["--namespace", "second"]].concat())?;
    let mut check = engine.ctr()?;
    let output = check
        .args(["--namespace", "second", "images", "check"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with(&name));
    let line = line.with_context(|| text.clone().into_owned())?;
    assert!(line.contains("complete (2/2)"), "{line}");

    let output = lighter(
        engine,
        &[
            "build",
            &guest,
            "-t",
            &name,
            "--containerd",
            "--address",
            "/nowhere",
        ],
    )?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("/nowhere"),
        "{errors}"
    );
    Ok(())
}

/// Has containerd remove what nothing refers to: deleting a lease in this way waits for that.
fn collect_garbage(engine: &Containerd) -> Result<()> {
    let id = engine.new_id("lease");
    for args in [
        &["leases", "create", "--id", &id][..],
        &["leases", "delete", "--sync", &id],
    ] {
        let output = engine.run_ctr(args)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {errors}");
    }
    Ok(())
}

fn build_for_several_platforms(engine: &Containerd) -> Result<()> {
    let (name, guest) = (name(engine), guest("hello.wasm")?.display().to_string());
    let platforms = "wasi/wasm,linux/amd64,linux/arm64";
    build(
        engine,
        &[&guest, "-t", &name, "--containerd", "--platform", platforms],
    )?;
    // The machine's own platform, as a client asks that knows no other, and wasm's.
    for platform in [
        &[][..],
        &["--platform", "wasi/wasm"],
        &["--platform", "linux/arm64"],
    ] {
        let id = engine.new_id("ctr");
        let run = [
            &["run", "--rm", "--runtime", WASMTIME],
            platform,
            &[&*name, &id],
        ]
        .concat();
        let output = engine.run_ctr(run)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.starts_with("Hello from WebAssembly!\n"),
            "{platform:?}: {text} {errors}"
        );
    }
    Ok(())
}

/// Puts an image into CRI's store, packed, and waits until CRI knows it.
fn import_for_cri(cri: &Cri, image: &Raw) -> Result<String> {
    let name = format!("example.com/{}:1", cri.new_name("image"));
    let archive = NamedTempFile::new_in(cri.engine().folder())?;
    image.save(&name, archive.path())?;
    let mut ctr = cri.engine().ctr()?;
    ctr.args(["--namespace", "k8s.io", "images", "import"]);
    let output = ctr
        .args(["--all-platforms", "--no-unpack"])
        .arg(archive.path())
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    wait_for_image(cri, &name)?;
    Ok(name)
}

fn wait_for_image(cri: &Cri, name: &str) -> Result<()> {
    eventually("CRI knows the image", || {
        let wanted = cri::v1::ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        call(cri.images().image_status(wanted))
            .ok()?
            .into_inner()
            .image
    })?;
    Ok(())
}

fn spec(name: &str) -> cri::v1::ImageSpec {
    cri::v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

fn run_in_pod(cri: &Cri, image: &str, command: &[&str]) -> Result<String> {
    let pod = cri.pod(cri::WASMTIME).run()?;
    let container = pod.container(command.iter().copied());
    let ended = container
        .with(|config| config.image = Some(spec(image)))
        .run()?;
    let output = ended.success()?;
    pod.end()?;
    Ok(output)
}

fn pod_of_an_artifact(cri: &Cri) -> Result<()> {
    let layer = Layer::new(WASM_LAYER, read("tool-component.wasm")?);
    let image = import_for_cri(cri, &Raw::artifact(&[layer]))?;
    let output = run_in_pod(cri, &image, &["/tool", "args", "one"])?;
    assert_eq!(output, "/tool\nargs\none\n");
    Ok(())
}

fn pod_of_a_component_layer(cri: &Cri) -> Result<()> {
    let layer = Layer::new(COMPONENT_LAYER, read("hello-component.wasm")?);
    let image = import_for_cri(cri, &Raw::component("hello.wasm", &[layer]))?;
    // Its configuration has an entrypoint.
    let output = run_in_pod(cri, &image, &[])?;
    assert!(
        output.starts_with("Hello from a WebAssembly component!\n"),
        "{output}"
    );
    Ok(())
}

fn pulled(cri: &Cri) -> Result<()> {
    let engine = cri.engine();
    let archive = NamedTempFile::new_in(engine.folder())?;
    let (_file, add) = beside(engine)?;
    let lighter_made = |path: &Path, more: &[&str]| -> Result<()> {
        let (guest, path) = (
            guest("tool.wasm")?.display().to_string(),
            path.display().to_string(),
        );
        let args = [&*guest, "-t", "example.com/made:1", "--artifact"];
        let others = ["--cmd", "args", "-o", &path];
        build(engine, &[&args[..], &others, more].concat())?;
        Ok(())
    };
    let layer = Layer::new(COMPONENT_LAYER, read("tool.wasm")?);
    let component = Raw::component("tool.wasm", &[layer]);
    for kind in ["artifact", "artifact with files", "component"] {
        match kind {
            "artifact" => lighter_made(archive.path(), &[])?,
            "artifact with files" => lighter_made(archive.path(), &["--add", &add])?,
            _ => component.save("example.com/made:1", archive.path())?,
        }
        let registry = Registry::serve(archive.path(), engine.network())?;
        let name = registry.name("made:1")?;
        let request = cri::v1::PullImageRequest {
            image: Some(spec(&name)),
        };
        let pulled = call(cri.images().pull_image(request));
        // One with files has a diff id for every layer that 1.6 counts.
        if engine.version() == Version::V1_6 && kind != "artifact with files" {
            let error = pulled.expect_err("containerd 1.6 wants a diff id for every layer");
            assert!(error.message().contains(MISMATCH), "{error}");
            continue;
        }
        pulled?;
        let output = run_in_pod(cri, &name, &["/tool.wasm", "args", "one"])?;
        assert_eq!(output, "/tool.wasm\nargs\none\n", "{kind}");
        if kind == "artifact with files" {
            let output = run_in_pod(cri, &name, &["/tool.wasm", "read", "/data/file"])?;
            assert_eq!(output, "beside the wasm\n");
        }
        if kind != "component" {
            // lighter puts the entrypoint into the artifact's configuration, where CRI looks.
            let output = run_in_pod(cri, &name, &[])?;
            assert_eq!(output, "/tool.wasm\nargs\n");
        }
    }
    Ok(())
}
