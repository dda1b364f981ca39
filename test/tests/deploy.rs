//! deploy/: what is given to Kubernetes' nodes. The installer's image and manifests are run through CRI on a folder that
//! stands for a node's root, and what they leave there is given to another containerd, which runs the sample pod.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Rootfs, Settings, Version, built_programs,
    cri::{Cri, Manifest, RUNC},
    each_cri, guest, repository, run,
};
use tempfile::TempDir;

each_cri!(
    from_the_image_to_the_sample,
    every_kind_of_configuration,
    a_last_line_without_an_end,
    a_restart_that_fails,
    systemds_cgroups,
    a_configuration_that_is_refused,
    handlers_of_others,
    pods_that_still_run,
    k3s,
    handlers_with_options,
);

const PROGRAM: &str = "usr/local/bin/containerd-shim-wasmtime-v1";

fn deploy() -> PathBuf {
    repository().join("deploy")
}

/// A folder that stands for a node's root, with a program in it that stands for what runs commands
/// there: containerd's own are run, of the version under test, and systemctl's noted.
struct Node {
    folder: TempDir,
    /// Where node.sh lies with what it installs, as in the image.
    installer: TempDir,
}

impl Node {
    fn new(version: Version, config: Option<&str>) -> Result<Self> {
        let node = Self {
            folder: tempfile::tempdir()?,
            installer: tempfile::tempdir()?,
        };
        fs::create_dir_all(node.path("etc"))?;
        if let Some(config) = config {
            fs::create_dir_all(node.path("etc/containerd"))?;
            fs::write(node.path("etc/containerd/config.toml"), config)?;
        }
        for file in [
            deploy().join("kubernetes/node.sh"),
            deploy().join("containerd/1.x.toml"),
            deploy().join("containerd/2.x.toml"),
            built_programs()?.join("containerd-shim-wasmtime-v1"),
        ] {
            let name = file.file_name().context("a file's name")?;
            fs::copy(&file, node.installer.path().join(name))?;
        }
        let script = format!(
            "#!/bin/sh\n\
             case $1 in\n\
             containerd) shift 2; exec {}/containerd --config {}\"$@\" ;;\n\
             systemctl) shift; echo \"$*\" >>{}/commands; ! [ -e {} ] ;;\n\
             esac\n",
            version.programs()?.display(),
            node.folder.path().display(),
            node.installer.path().display(),
            node.broken().display(),
        );
        let on_node = node.installer.path().join("on-node");
        fs::write(&on_node, script)?;
        fs::set_permissions(&on_node, fs::Permissions::from_mode(0o755))?;
        Ok(node)
    }

    /// While it is there, systemctl fails.
    fn broken(&self) -> PathBuf {
        self.installer.path().join("broken")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn config(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("etc/containerd/config.toml"))?)
    }

    /// Runs node.sh.
    fn call(&self, action: &str) -> Result<Output> {
        Ok(Command::new(self.installer.path().join("node.sh"))
            .arg(action)
            .env("NODE", self.folder.path())
            .env("ON_NODE", self.installer.path().join("on-node"))
            .output()?)
    }

    fn succeed(&self, action: &str) -> Result<String> {
        let output = self.call(action)?;
        ensure!(output.status.success(), "{action}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn fail(&self, action: &str) -> Result<String> {
        let output = self.call(action)?;
        ensure!(output.status.code() == Some(1), "{action}: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// What systemctl was asked for since the last question.
    fn commands(&self) -> String {
        let file = self.installer.path().join("commands");
        let commands = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        commands
    }

    /// Every file with its content, every folder, with their permissions.
    fn files(&self) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let mode = fs::metadata(&path)?.permissions().mode();
                if path.is_dir() {
                    folders.push(path.clone());
                    found.insert(path, (mode, Vec::new()));
                } else {
                    let content = fs::read(&path)?;
                    found.insert(path, (mode, content));
                }
            }
        }
        // Folders that every node has; they need not be taken away again.
        found.remove(&self.path("usr"));
        found.remove(&self.path("usr/local"));
        found.remove(&self.path("usr/local/bin"));
        found.remove(&self.path("var"));
        found.remove(&self.path("var/lib"));
        found.remove(&self.path("etc/containerd"));
        Ok(found)
    }
}

/// The configuration of the daemon under test, without Lighter's handler and with `@FOLDER@` for
/// the daemon's folder.
fn without_handler(cri: &Cri) -> Result<String> {
    let folder = cri.engine().folder();
    let text = fs::read_to_string(folder.join("config.toml"))?;
    let handlers = fs::read_to_string(deploy().join("containerd/1.x.toml"))?;
    let import = deploy().join("containerd/2.x.toml");
    let text = text
        .replace(&handlers, "")
        .replace(&format!("{:?}", import.display().to_string()), "")
        .replace(&folder.display().to_string(), "@FOLDER@");
    ensure!(!text.contains("wasmtime"), "{text}");
    Ok(text)
}

/// A containerd with the configuration that the node has now, and the node's programs.
fn start(version: Version, node: &Node) -> Result<Cri> {
    let here = node.folder.path().display();
    let settings = Settings {
        whole_config: Some(node.config()?.replace(
            "/etc/containerd/conf.d",
            &format!("{here}/etc/containerd/conf.d"),
        )),
        path: vec![node.path("usr/local/bin")],
        ..Settings::default()
    };
    Cri::start_with(version, settings)
}

/// The image, both manifests and the sample, as a user would apply them.
fn from_the_image_to_the_sample(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let node = Node::new(version, Some(&without_handler(cri)?))?;
    let before = node.files()?;

    let archive = node.installer.path().join("image.tar");
    let built = Command::new(deploy().join("kubernetes/build-image"))
        .args([built_programs()?, archive.clone()])
        .output()?;
    ensure!(built.status.success(), "{built:?}");
    cri.import_archive(&archive, "docker.io/library/lighter-installer:0.1.0")?;

    let apply = |manifest: &str, container: &str| -> Result<String> {
        let file = deploy().join("kubernetes").join(manifest);
        let manifest = Manifest::read(&file, node.folder.path())?;
        let pod = manifest.run(cri, RUNC)?;
        // The node's systemd and containerd are not there to be entered.
        let ended = manifest
            .container(&pod, container)?
            .env("ON_NODE", "echo on the node:")
            .run()?;
        let done = manifest.container(&pod, "done")?.start()?;
        done.stop(0)?;
        pod.end()?;
        ended.success()
    };
    let said = apply("install.yaml", "install")?;
    assert!(said.contains("installed /usr/local/bin/"), "{said}");
    assert!(
        said.contains("on the node: systemctl restart containerd"),
        "{said}"
    );
    let shim = built_programs()?.join("containerd-shim-wasmtime-v1");
    assert!(fs::read(node.path(PROGRAM))? == fs::read(shim)?, "the shim");
    let said = apply("install.yaml", "install")?;
    assert!(!said.contains("restart"), "nothing has changed: {said}");

    sample(&start(version, &node)?, &node)?;

    let said = apply("remove.yaml", "remove")?;
    assert!(
        said.contains("on the node: systemctl restart containerd"),
        "{said}"
    );
    fs::remove_dir_all(node.path("volumes"))?;
    assert_eq!(node.files()?, before);
    let said = apply("remove.yaml", "remove")?;
    assert!(!said.contains("restart"), "nothing has changed: {said}");
    Ok(())
}

/// The DaemonSets' pods are on every node that the runtime class selects, whatever its taints are.
#[test]
fn every_node_of_the_class() -> Result<()> {
    let read = |file: &str| -> Result<serde_json::Value> {
        let text = fs::read_to_string(deploy().join("kubernetes").join(file))?;
        Ok(serde_yaml_ng::from_str(&text)?)
    };
    let class = read("runtimeclass.yaml")?;
    for file in ["install.yaml", "remove.yaml"] {
        let pod = &read(file)?["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], class["scheduling"]["nodeSelector"]);
        let all = serde_json::json!([{ "operator": "Exists" }]);
        assert_eq!(pod["tolerations"], all, "{file}");
    }
    Ok(())
}

/// Runs sample-pod.yaml with images made as docs/kubernetes.md says.
fn sample(cri: &Cri, node: &Node) -> Result<()> {
    let image = |name: &str, entrypoint: &[&str], rootfs: Rootfs| -> Result<()> {
        let image = image::Image {
            platform: "linux/amd64".parse()?,
            entrypoint: entrypoint.iter().map(|arg| (*arg).to_owned()).collect(),
            layers: vec![rootfs.layer()?],
            ..Default::default()
        };
        cri.import(name, &image)
    };
    image("docker.io/library/busybox:latest", &[], Rootfs::busybox())?;
    image(
        "docker.io/library/tcp-echo:latest",
        &["/tcp-echo.wasm"],
        Rootfs::default().copy(guest("tcp-echo.wasm")?, "/tcp-echo.wasm"),
    )?;
    let manifest = Manifest::read(
        &deploy().join("kubernetes/sample-pod.yaml"),
        node.folder.path(),
    )?;
    let class = class()?;
    assert_eq!(manifest.runtime_class(), Some(class.0.as_str()));
    let pod = manifest.run(cri, &class.1)?;
    let wasm = manifest.container(&pod, "wasm")?.start()?;
    let linux = manifest.container(&pod, "linux")?.start()?;
    linux.wait_for_log("wasm answered: hello from Linux")?;
    wasm.wait_for_log("17 bytes")?;
    for shim in pod.shims() {
        let program = fs::read_link(format!("/proc/{shim}/exe"))?;
        assert_eq!(program, node.path(PROGRAM), "the one that was installed");
    }
    // The readiness probe, from the node.
    let address = SocketAddr::new(pod.ip()?, 7000);
    let answer = cri
        .network()
        .spawn(move || {
            let mut client = TcpStream::connect(address)?;
            client.write_all(b"ready?")?;
            client.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            Ok(answer)
        })
        .join()
        .expect("a thread that connects")?;
    assert_eq!(answer, "ready?");
    let refused = node.fail("remove")?;
    assert!(refused.contains("delete them"), "{refused}");
    assert!(node.path(PROGRAM).exists());
    pod.end()
}

/// The name of the runtime class and its handler.
fn class() -> Result<(String, String)> {
    let file = deploy().join("kubernetes/runtimeclass.yaml");
    let object: serde_json::Value = serde_yaml_ng::from_str(&fs::read_to_string(file)?)?;
    ensure!(object["kind"] == "RuntimeClass", "{object}");
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let name = text(&object["metadata"]["name"]).context("no name")?;
    Ok((name, text(&object["handler"]).context("no handler")?))
}

/// Installed, installed again and removed: the files are there, nothing happens, all is as before.
fn every_kind_of_configuration(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let programs = version.programs()?;
    let default = run(
        &programs.join("containerd").display().to_string(),
        &["config", "default"],
    )?;
    let own = without_handler(cri)?;
    let mut configurations = vec![
        None,
        Some("version = 2\n".to_owned()),
        Some(own.clone()),
        Some(default),
    ];
    if version >= Version::V2_1 {
        configurations.push(Some("version = 3\n".to_owned()));
        configurations.push(Some(own.replace(
            "imports = []",
            "imports = [\n  '/etc/elsewhere.toml',\n  \"/etc/containerd/conf.d/*.toml\",\n]",
        )));
    }
    for configuration in configurations {
        let node = Node::new(version, configuration.as_deref())?;
        let before = node.files()?;
        let said = node.succeed("install")?;
        assert_eq!(node.commands(), "restart containerd\n", "{said}");
        let installed = node.files()?;
        let dumped = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(node.path("etc/containerd/config.toml"))
            .args(["config", "dump"])
            .output()?;
        let drop_in = node.path("etc/containerd/conf.d/lighter.toml");
        let told = if drop_in.exists() {
            fs::read_to_string(&drop_in)?
        } else {
            ensure!(dumped.status.success(), "{dumped:?}");
            String::from_utf8(dumped.stdout)?
        };
        assert!(told.contains("io.containerd.wasmtime.v1"), "{told}");
        node.succeed("install")?;
        assert_eq!(node.commands(), "", "nothing has changed");
        assert_eq!(node.files()?, installed);
        node.succeed("remove")?;
        assert_eq!(node.commands(), "restart containerd\n");
        assert_eq!(node.files()?, before, "{configuration:?}");
        node.succeed("remove")?;
        assert_eq!(node.commands(), "");
    }
    Ok(())
}

/// What is added is found again behind a line that had no end.
fn a_last_line_without_an_end(cri: &Cri) -> Result<()> {
    let config = "version = 2\nroot = '/var/lib/containerd'";
    let node = Node::new(cri.engine().version(), Some(config))?;
    node.succeed("install")?;
    let installed = node.files()?;
    node.succeed("install")?;
    assert_eq!(node.files()?, installed);
    node.succeed("remove")?;
    assert_eq!(node.config()?.trim_end(), config);
    Ok(())
}

/// Until containerd has taken up its configuration, each attempt restarts it.
fn a_restart_that_fails(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let mut configurations = vec!["version = 2\n"];
    if version >= Version::V2_1 {
        configurations.push("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n");
    }
    for config in configurations {
        let node = Node::new(version, Some(config))?;
        let before = node.files()?;
        for action in ["install", "remove"] {
            fs::write(node.broken(), "")?;
            for _ in 0..2 {
                let error = node.fail(action)?;
                assert!(error.contains("cannot restart containerd"), "{error}");
                assert_eq!(node.commands(), "restart containerd\n", "{action}");
            }
            assert!(node.path(PROGRAM).exists());
            fs::remove_file(node.broken())?;
            node.succeed(action)?;
            assert_eq!(node.commands(), "restart containerd\n", "{action}");
            node.succeed(action)?;
            assert_eq!(node.commands(), "", "{action}");
        }
        assert_eq!(node.files()?, before, "{config}");
    }
    Ok(())
}

/// The pods' cgroups are made by whoever makes runc's: an option of the shim.
fn systemds_cgroups(cri: &Cri) -> Result<()> {
    let config = "version = 2\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  \
        runtime_type = \"io.containerd.runc.v2\"\n  \
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n    \
        SystemdCgroup = true\n";
    let node = Node::new(cri.engine().version(), Some(config))?;
    let before = node.files()?;
    node.succeed("install")?;
    assert!(
        node.config()?
            .contains("ConfigPath = \"/etc/lighter.toml\"")
    );
    let options = fs::read_to_string(node.path("etc/lighter.toml"))?;
    assert!(options.contains("\nsystemd_cgroup = true\n"), "{options}");
    node.commands();
    node.succeed("install")?;
    assert_eq!(node.commands(), "", "nothing has changed");
    node.succeed("remove")?;
    assert_eq!(node.files()?, before);
    Ok(())
}

/// Nothing is changed that containerd could not start with.
fn a_configuration_that_is_refused(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let broken = "version = 2\n[plugins\n";
    let node = Node::new(version, Some(broken))?;
    let error = node.fail("install")?;
    assert!(error.contains("stays as it was"), "{error}");
    assert_eq!(node.config()?, broken);
    assert_eq!(node.commands(), "");
    let old = "[plugins.cri]\n";
    let node = Node::new(version, Some(old))?;
    let error = node.fail("install")?;
    assert!(error.contains("config migrate"), "{error}");
    assert_eq!(node.config()?, old);
    let empty = Command::new(node.installer.path().join("node.sh"))
        .arg("install")
        .env("NODE", "/nowhere")
        .output()?;
    assert!(String::from_utf8_lossy(&empty.stderr).contains("mount the node's there"));
    Ok(())
}

/// A handler that somebody else wrote stays, at removal too.
fn handlers_of_others(cri: &Cri) -> Result<()> {
    let node = Node::new(cri.engine().version(), None)?;
    fs::create_dir_all(node.path("etc/containerd"))?;
    let file = node.path("etc/containerd/config.toml");
    fs::copy(deploy().join("containerd/1.x.toml"), &file)?;
    let text = format!("version = 2\n{}", node.config()?);
    fs::write(&file, &text)?;
    let said = node.succeed("install")?;
    assert!(said.contains("left alone"), "{said}");
    assert_eq!(node.config()?, text);
    node.succeed("remove")?;
    assert_eq!(node.config()?, text);
    assert_eq!(node.commands(), "");
    Ok(())
}

/// The shim is not taken from under pods that run.
fn pods_that_still_run(cri: &Cri) -> Result<()> {
    let node = Node::new(cri.engine().version(), Some("version = 2\n"))?;
    // As on nodes with a file system that nobody writes to.
    fs::create_dir_all(node.path("usr"))?;
    fs::create_dir_all(node.path("var/usrlocal"))?;
    symlink("../var/usrlocal", node.path("usr/local"))?;
    node.succeed("install")?;
    fs::copy("/bin/sleep", node.path(PROGRAM))?;
    let mut running = Command::new(node.path(PROGRAM)).arg("1000").spawn()?;
    let error = node.fail("remove")?;
    running.kill()?;
    running.wait()?;
    assert!(error.contains(&running.id().to_string()), "{error}");
    assert!(node.config()?.contains("wasmtime"));
    node.succeed("remove")?;
    assert!(!node.path(PROGRAM).exists());
    Ok(())
}

/// k3s looks for shims itself when it starts; nothing is written for it.
fn k3s(cri: &Cri) -> Result<()> {
    let folder = "var/lib/rancher/k3s/agent/etc/containerd";
    let node = Node::new(cri.engine().version(), None)?;
    fs::create_dir_all(node.path(folder))?;
    let generated = node.path(folder).join("config.toml");
    fs::write(&generated, "version = 3\n")?;
    let before = node.files()?;
    let error = node.fail("install")?;
    assert!(
        node.commands().contains("restart k3s\n"),
        "it was restarted"
    );
    assert!(error.contains("too old"), "{error}");
    // What k3s would write at that restart.
    fs::copy(deploy().join("containerd/2.x.toml"), &generated)?;
    node.succeed("install")?;
    assert!(!node.commands().contains("restart"));
    fs::write(&generated, "version = 3\n")?;
    node.succeed("remove")?;
    assert!(node.commands().contains("restart k3s\n"));
    assert_eq!(node.files()?, before);
    Ok(())
}

/// The options of a handler reach the shim: the path of a file, and what k3s writes for every shim
/// that it has found.
fn handlers_with_options(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let plugin = match version {
        Version::V2_1 => "io.containerd.cri.v1.runtime",
        _ => "io.containerd.grpc.v1.cri",
    };
    let table = format!("plugins.'{plugin}'.containerd.runtimes");
    let config = format!(
        "[{table}.configured]\n\
         runtime_type = 'io.containerd.wasmtime.v1'\n\
         [{table}.configured.options]\n\
         ConfigPath = '@FOLDER@/lighter.toml'\n\
         [{table}.found]\n\
         runtime_type = 'io.containerd.wasmtime.v1'\n\
         [{table}.found.options]\n\
         BinaryName = '/usr/local/bin/containerd-shim-wasmtime-v1'\n\
         SystemdCgroup = false\n"
    );
    let cri = Cri::start_with(
        version,
        Settings {
            config,
            ..Settings::default()
        },
    )?;
    let cache = cri.engine().folder().join("cache");
    let options = format!("cache_dir = {cache:?}\n");
    fs::write(cri.engine().folder().join("lighter.toml"), options)?;
    for handler in ["found", "configured"] {
        assert!(!cache.exists(), "nobody has used it");
        let pod = cri.pod(handler).run()?;
        let guest = pod.container(["/tool.wasm", "args"]).run()?;
        assert_eq!(guest.success()?, "/tool.wasm\nargs\n");
        pod.end()?;
    }
    assert!(fs::read_dir(cache)?.next().is_some(), "the guest's code");
    Ok(())
}
