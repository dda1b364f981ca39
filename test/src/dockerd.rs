//! A private dockerd with a containerd of its own, its images, and containers
//! driven through the `docker` command.
//!
//! ```no_run
//! use lighter_test::dockerd::{Dockerd, Image, Store};
//!
//! fn main() -> anyhow::Result<()> {
//!     let engine = Dockerd::start(Store::Containerd)?;
//!     let reply = engine.run(Image::Guests, &["-e", "A=1"], &["/tool.wasm", "env"])?;
//!     assert!(reply.success()?.contains("A=1\n"));
//!     let container = engine.launch(Image::Guests, &[], &["/tool.wasm", "loop"])?;
//!     container.wait_for_log("looping")?;
//!     engine.docker(&["stop", container.id()])?.success()?;
//!     assert_eq!(container.inspect("{{.State.ExitCode}}")?, "143");
//!     Ok(())
//! }
//! ```

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use image::{Entry, Layer};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Network, Terminal, Version,
    poll::eventually,
    rootfs::run,
    version::{built_programs, guest, tools},
};

/// Where a dockerd keeps its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// containerd's content store and snapshotter; images of guests are wasi/wasm.
    Containerd,
    /// Docker's own, of overlay2; images of guests are labelled linux/amd64.
    Classic,
}

/// The images that every daemon has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The guests of `target/guests` in `/`; a greeting by default.
    Guests,
    /// busybox, linux/amd64; run with the shim as well.
    Linux,
}

impl Image {
    /// What `docker run` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Image::Guests => "guests",
            Image::Linux => "linux",
        }
    }

    fn platform(self, store: Store) -> &'static str {
        match (self, store) {
            (Image::Guests, Store::Containerd) => "wasi/wasm",
            _ => "linux/amd64",
        }
    }

    fn build(self, store: Store) -> Result<image::Image> {
        let mut layer = Layer::default();
        let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n";
        layer.add("/etc/passwd", Entry::bytes(users))?;
        layer.add("/etc/group", Entry::bytes("root:x:0:\nuser:x:1000:\n"))?;
        layer.add("/etc/plain", Entry::bytes("no program\n"))?;
        layer.add(
            "/etc/plain-executable",
            Entry::bytes("no program\n").mode(0o755),
        )?;
        layer.add("/etc/secret", Entry::bytes("root's\n").mode(0o600))?;
        layer.add("/tmp", Entry::directory().mode(0o1777))?;
        let cmd = match self {
            Image::Guests => {
                for name in GUESTS {
                    layer.add(&format!("/{name}"), Entry::file(guest(name)?).mode(0o755))?;
                }
                "/hello.wasm"
            }
            Image::Linux => {
                layer.add("/bin/busybox", Entry::file("/usr/bin/busybox").mode(0o755))?;
                for applet in APPLETS {
                    layer.add(&format!("/bin/{applet}"), Entry::symlink("busybox"))?;
                }
                "/bin/sh"
            }
        };
        Ok(image::Image {
            platform: self.platform(store).parse()?,
            cmd: vec![cmd.to_owned()],
            layers: vec![layer],
            ..image::Image::default()
        })
    }
}

const GUESTS: &[&str] = &[
    "hello.wasm",
    "tool.wasm",
    "tool-component.wasm",
    "tool-p3.wasm",
    "tcp-echo.wasm",
];
const APPLETS: &[&str] = &[
    "cat", "env", "grep", "id", "nc", "pwd", "sh", "sleep", "stty", "tail", "tty", "wget",
];

/// The file in the daemon's folder that is the settings of [`Dockerd::CONFIGURED`].
const SETTINGS: &str = "lighter.toml";

/// The daemon's address for clients in its [`Dockerd::outside`].
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// How long a `docker` command may take before it counts as hung, in seconds.
const LIMIT: &str = "60";

/// A private dockerd and its containerd 2.1, in namespaces of mounts, processes
/// and network. Everything they have lies in one folder of their own,
/// `/run/lighter-test-PID-docker-N`; that folder's name is also the cgroup above
/// their containers.
///
/// Containers outlive a dockerd that is stopped (`live-restore`).
///
/// When it is dropped, and also when the test program dies in any way, the
/// daemons and containers are killed and the folder, cgroups and network
/// namespaces removed.
pub struct Dockerd {
    store: Store,
    name: String,
    folder: PathBuf,
    client: PathBuf,
    keeper: Child,
    /// Where the keeper reads what to do; its end is the daemons'.
    orders: Mutex<Option<ChildStdin>>,
    outside: Network,
    inside: Network,
}

impl Dockerd {
    /// The runtime of daemon.json that is the shim with the settings of [`Dockerd::configure`].
    pub const CONFIGURED: &str = "configured";

    /// Gives the containers of [`Dockerd::CONFIGURED`] that are to come settings, in place of those
    /// before; at first there are none.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn configure(&self, settings: &str) -> Result<()> {
        let file = self.folder.join(SETTINGS);
        fs::write(&file, settings).with_context(|| file.display().to_string())
    }

    /// Starts a daemon, waits until it answers, and gives it the images.
    ///
    /// # Errors
    /// A missing engine, guest or shim, or a daemon that does not come up; the
    /// message ends with the daemons' logs.
    pub fn start(store: Store) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let engine = tools().join("docker/usr");
        let client = engine.join("bin/docker");
        for program in [&client, &engine.join("sbin/dockerd")] {
            ensure!(
                program.exists(),
                "{} is missing: run `make test`, or `test/setup/engines docker`",
                program.display()
            );
        }
        let mut path = vec![
            built_programs()?,
            Version::V2_1.programs()?,
            engine.join("sbin"),
        ];
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lighter-test-{}-docker-{number}", std::process::id());
        let inside = Network::new(&name)?;
        let outside = Network::new(&format!("{name}-out"))?;
        connect(&name)?;
        let folder = Path::new("/run").join(&name);
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(
            folder.join("containerd.toml"),
            containerd_configuration(&folder),
        )?;
        let configuration = configuration(store, &folder, &name, &engine);
        fs::write(folder.join("daemon.json"), configuration.to_string())?;
        fs::write(folder.join(SETTINGS), "")?;
        let mut keeper = Command::new("/bin/sh")
            .args(["-c", include_str!("dockerd.sh"), "dockerd.sh"])
            .args([folder.as_os_str(), name.as_ref()])
            .env("PATH", std::env::join_paths(path)?)
            .stdin(Stdio::piped())
            // An interrupt from the terminal must leave it to do its work.
            .process_group(0)
            .spawn()
            .context("start /bin/sh")?;
        let daemon = Self {
            store,
            name,
            folder,
            client,
            orders: Mutex::new(keeper.stdin.take()),
            keeper,
            outside,
            inside,
        };
        daemon.prepare().map_err(|error| {
            let log = |file| fs::read_to_string(daemon.folder.join(file)).unwrap_or_default();
            error.context(format!("{}\n{}", log("containerd.log"), log("dockerd.log")))
        })?;
        Ok(daemon)
    }

    /// The daemon that the tests of one program share: started by the first
    /// test that asks, gone when the last test that holds it ends.
    ///
    /// # Errors
    /// As [`Dockerd::start`].
    pub fn shared(store: Store) -> Result<Arc<Self>> {
        static SHARED: [Mutex<Weak<Dockerd>>; 2] = [const { Mutex::new(Weak::new()) }; 2];
        let mut shared = SHARED[store as usize]
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(daemon) = shared.upgrade() {
            return Ok(daemon);
        }
        let daemon = Arc::new(Self::start(store)?);
        *shared = Arc::downgrade(&daemon);
        Ok(daemon)
    }

    /// Ends dockerd, and not containerd nor what that has started, with a signal, and waits until
    /// its process is gone.
    ///
    /// # Errors
    /// It goes on.
    pub fn stop(&self, signal: Signal) -> Result<()> {
        self.order(signal.as_str().trim_start_matches("SIG"))?;
        eventually("dockerd is gone", || self.process().is_none().then_some(()))
    }

    /// dockerd's folder in /proc.
    fn process(&self) -> Option<PathBuf> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut processes = processes.map(|process| process.path());
        processes.find(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.starts_with("dockerd\0") && line.contains(&self.name)
        })
    }

    /// Starts dockerd anew and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&self) -> Result<()> {
        self.order("start")?;
        self.wait_until_up()
    }

    fn order(&self, line: &str) -> Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = orders.as_mut().context("the daemons' keeper")?;
        Ok(writeln!(orders, "{line}")?)
    }

    fn wait_until_up(&self) -> Result<()> {
        eventually("dockerd answers", || {
            self.docker(&["version"]).ok()?.success().ok()
        })?;
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        self.wait_until_up()?;
        for image in [Image::Guests, Image::Linux] {
            let archive = self.folder.join(image.name());
            image
                .build(self.store)?
                .save(&image.name().parse()?, &archive)?;
            self.docker(&["load", "--input", &archive.display().to_string()])?
                .success()?;
        }
        Ok(())
    }

    /// Where the daemon keeps its images.
    pub fn store(&self) -> Store {
        self.store
    }

    /// The folder with everything that is this daemon's own.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cgroup above its containers, and its network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is outside of the daemon's machine, as its containers see it: clients
    /// there reach published ports at [`ADDRESS`].
    pub fn outside(&self) -> &Network {
        &self.outside
    }

    /// The network that the daemon takes for the host's.
    pub fn inside(&self) -> &Network {
        &self.inside
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    /// The folder of the `docker` command.
    pub fn client(&self) -> Option<&Path> {
        self.client.parent()
    }

    /// Runs the `docker` command to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn docker(&self, args: &[&str]) -> Result<Reply> {
        self.docker_fed(args, b"")
    }

    /// As [`Dockerd::docker`], with bytes for its standard input.
    ///
    /// # Errors
    /// As [`Dockerd::docker`].
    pub fn docker_fed(&self, args: &[&str], input: &[u8]) -> Result<Reply> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start docker")?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        let output = thread::scope(|scope| {
            // A command that ends without reading all of it is no error here.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output()
        })?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // What timeout(1) ends with.
        ensure!(
            !matches!(output.status.code(), Some(124)),
            "docker {args:?} did not end within {LIMIT} s: {errors}"
        );
        let code = output.status.code().context("a signal ended timeout(1)")?;
        Ok(Reply {
            code,
            output: output.stdout,
            errors,
        })
    }

    /// `docker run` with the shim, `options` and the image's platform, attached.
    ///
    /// # Errors
    /// As [`Dockerd::docker`].
    pub fn run(&self, image: Image, options: &[&str], command: &[&str]) -> Result<Reply> {
        self.docker(&self.run_args(image, &[&["--rm"], options].concat(), command))
    }

    /// As [`Dockerd::run`], with bytes for its standard input.
    ///
    /// # Errors
    /// As [`Dockerd::docker`].
    pub fn run_fed(&self, image: Image, command: &[&str], input: &[u8]) -> Result<Reply> {
        self.docker_fed(&self.run_args(image, &["--rm", "-i"], command), input)
    }

    /// `docker run --detach` with the shim, `options` and the image's platform.
    ///
    /// # Errors
    /// What `docker` says.
    pub fn launch(
        &self,
        image: Image,
        options: &[&str],
        command: &[&str],
    ) -> Result<Container<'_>> {
        let options = [&["--detach"], options].concat();
        let reply = self.docker(&self.run_args(image, &options, command))?;
        let id = reply.success()?.trim().to_owned();
        Ok(Container { engine: self, id })
    }

    /// The arguments of a `docker run` with the shim and the image's platform.
    pub fn run_args<'a>(
        &self,
        image: Image,
        options: &[&'a str],
        command: &[&'a str],
    ) -> Vec<&'a str> {
        let runtime = ["run", "--runtime", "io.containerd.wasmtime.v1"];
        let platform = ["--platform", image.platform(self.store)];
        [&runtime[..], &platform, options, &[image.name()], command].concat()
    }

    /// The `docker` command, its output piped.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", LIMIT]).arg(&self.client);
        self.with_args(&mut command, args);
        command.stdout(Stdio::piped());
        command
    }

    /// The `docker` command in a terminal of this size.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn terminal(&self, args: &[&str], rows: u16, columns: u16) -> Result<Terminal> {
        let mut command = Command::new(&self.client);
        self.with_args(&mut command, args);
        Terminal::run(&command, rows, columns)
    }

    fn with_args(&self, command: &mut Command, args: &[&str]) {
        command
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.folder.join("client"));
    }

    /// What of the containers is on the machine now, one line each: processes,
    /// mounts, cgroups, bundles, sockets.
    pub fn remains(&self) -> Vec<String> {
        let mut remains = Vec::new();
        let address = format!("{}/containerd.sock", self.folder.display());
        let mut daemon = None;
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&address) {
                remains.push(format!("process {}: {line}", process.path().display()));
            } else if line.contains("--config-file") && line.contains(&self.name) {
                daemon = Some(process.path());
            }
        }
        let table = daemon.map(|process| fs::read_to_string(process.join("mountinfo")));
        let table = table.and_then(Result::ok).unwrap_or_default();
        let folder = format!("{}/", self.folder.display());
        let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
        // dockerd's own are the data folder, for its propagation, and the network of
        // `--network none`.
        let own = [
            format!("{folder}data"),
            format!("{folder}exec/netns/default"),
        ];
        let mounts =
            mounts.filter(|path| path.starts_with(&folder) && !own.contains(&(*path).into()));
        remains.extend(mounts.map(|path| format!("mount {path}")));
        remains.extend(self.cgroups());
        for state in [
            "state/io.containerd.runtime.v2.task/moby",
            "exec/containerd",
        ] {
            let entries = fs::read_dir(self.folder.join(state))
                .into_iter()
                .flatten()
                .flatten();
            remains.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        remains
    }

    /// Waits until [`Dockerd::remains`] is empty.
    ///
    /// # Errors
    /// Something stays; the message lists it.
    pub fn ensure_clean(&self) -> Result<()> {
        eventually("nothing is left behind", || {
            self.remains().is_empty().then_some(())
        })
        .with_context(|| self.remains().join("\n"))
    }

    fn cgroups(&self) -> Vec<String> {
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(top).into_iter().flatten().flatten();
        std::iter::once(top.to_owned())
            .chain(hierarchies.map(|entry| entry.path()))
            .flat_map(|hierarchy| {
                fs::read_dir(hierarchy.join(&self.name))
                    .into_iter()
                    .flatten()
            })
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| format!("cgroup {}", entry.path().display()))
            .collect()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        drop(orders.take());
        // It ends when the last trace is gone; there is nothing to do if not.
        let _ = self.keeper.wait();
    }
}

/// What a `docker` command printed and ended with.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its exit code: of `docker run`, the container's.
    pub code: i32,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error.
    pub errors: String,
}

impl Reply {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Its standard output, if it ended with 0.
    ///
    /// # Errors
    /// It ended with another code; the message has its standard error.
    pub fn success(&self) -> Result<String> {
        ensure!(
            self.code == 0,
            "docker ended with {}: {}",
            self.code,
            self.errors
        );
        Ok(self.text())
    }
}

/// A container that was launched; removed when dropped.
pub struct Container<'a> {
    engine: &'a Dockerd,
    id: String,
}

impl Container<'_> {
    /// Its id, all 64 digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `docker inspect --format` prints, without the newline.
    ///
    /// # Errors
    /// What `docker` says.
    pub fn inspect(&self, format: &str) -> Result<String> {
        let reply = self
            .engine
            .docker(&["inspect", "--format", format, &self.id])?;
        Ok(reply.success()?.trim_end().to_owned())
    }

    /// Waits until `docker inspect --format` prints this.
    ///
    /// # Errors
    /// It does not; the message has what it prints.
    pub fn wait_for(&self, format: &str, expected: &str) -> Result<()> {
        eventually(&format!("{format} is {expected}"), || {
            (self.inspect(format).ok()? == expected).then_some(())
        })
        .with_context(|| format!("{:?}", self.inspect(format)))
    }

    /// Follows the standard output in `docker logs` until it has this line.
    ///
    /// # Errors
    /// The container ends, or a minute does, before.
    pub fn wait_for_log(&self, line: &str) -> Result<()> {
        let mut following = self
            .engine
            .command(&["logs", "--follow", &self.id])
            .spawn()?;
        let output = following.stdout.take().context("its standard output")?;
        let mut lines = BufReader::new(output)
            .lines()
            .map_while(std::result::Result::ok);
        let found = lines.any(|found| found == line);
        // timeout(1) passes it on; it fails when all has ended already.
        let _ = kill(Pid::from_raw(following.id() as i32), Signal::SIGTERM);
        following.wait()?;
        ensure!(found, "no line {line:?} in {:?}", self.logs()?);
        Ok(())
    }

    /// `docker logs`.
    ///
    /// # Errors
    /// What `docker` says.
    pub fn logs(&self) -> Result<Reply> {
        let reply = self.engine.docker(&["logs", &self.id])?;
        reply.success()?;
        Ok(reply)
    }

    /// The exit code that `docker wait` prints.
    ///
    /// # Errors
    /// What `docker` says.
    pub fn wait(&self) -> Result<i32> {
        Ok(self
            .engine
            .docker(&["wait", &self.id])?
            .success()?
            .trim()
            .parse()?)
    }

    /// A file of its cgroup.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn cgroup_file(&self, controller: &str, file: &str) -> Result<String> {
        let folder = crate::cgroup::folder(controller)
            .join(self.engine.name())
            .join(&self.id);
        let path = folder.join(file);
        let mut text = String::new();
        fs::File::open(&path)
            .with_context(|| path.display().to_string())?
            .read_to_string(&mut text)?;
        Ok(text.trim_end().to_owned())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // It fails when the test has done it itself.
        let _ = self
            .engine
            .docker(&["rm", "--force", "--volumes", &self.id]);
    }
}

/// Connects a daemon's network with what is outside of it. Namespaces have
/// addresses of their own, so every daemon can have the same.
fn connect(name: &str) -> Result<()> {
    let outside = format!("{name}-out");
    let link = ["-n", name, "link", "add", "out", "type", "veth"];
    run(
        "ip",
        &[&link[..], &["peer", "name", "in", "netns", &outside]].concat(),
    )?;
    for (namespace, device, address) in [
        (name, "out", format!("{ADDRESS}/24")),
        (&outside, "in", "10.0.0.2/24".to_owned()),
    ] {
        run(
            "ip",
            &["-n", namespace, "address", "add", &address, "dev", device],
        )?;
        run("ip", &["-n", namespace, "link", "set", device, "up"])?;
    }
    Ok(())
}

/// The text of daemon.json.
fn configuration(store: Store, folder: &Path, name: &str, engine: &Path) -> serde_json::Value {
    serde_json::json!({
        "hosts": [format!("unix://{}", folder.join("docker.sock").display())],
        "group": "root",
        "containerd": folder.join("containerd.sock"),
        "data-root": folder.join("data"),
        "exec-root": folder.join("exec"),
        "pidfile": folder.join("docker.pid"),
        "cgroup-parent": format!("/{name}"),
        "features": {"containerd-snapshotter": store == Store::Containerd},
        "storage-driver": if store == Store::Containerd { "overlayfs" } else { "overlay2" },
        "bip": "10.1.0.1/16",
        "default-address-pools": [{"base": "10.2.0.0/16", "size": 24}],
        "live-restore": true,
        "userland-proxy-path": engine.join("sbin/docker-proxy"),
        "log-level": "info",
        "runtimes": {
            Dockerd::CONFIGURED: {
                "runtimeType": "io.containerd.wasmtime.v1",
                "options": {"ConfigPath": folder.join(SETTINGS)},
            },
        },
    })
}

/// The text of containerd.toml. Plugins that dockerd has no use for are turned
/// off.
fn containerd_configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "version = 3\n\
         root = \"{folder}/root\"\n\
         state = \"{folder}/state\"\n\
         disabled_plugins = [\n  \
           \"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\",\n  \
           \"io.containerd.cri.v1.runtime\", \"io.containerd.internal.v1.opt\",\n  \
           \"io.containerd.nri.v1.nri\", \"io.containerd.podsandbox.controller.v1.podsandbox\",\n\
         ]\n\
         [grpc]\n  address = \"{folder}/containerd.sock\"\n\
         [ttrpc]\n  address = \"{folder}/containerd.sock.ttrpc\"\n\
         [debug]\n  level = \"debug\"\n"
    )
}

/// Makes one test of each function for every [`Store`], in a module of the
/// store's name. The functions take the store's shared daemon and return a
/// `Result`.
#[macro_export]
macro_rules! each_store {
    ($($test:ident),* $(,)?) => {
        $crate::each_store!(@store containerd_store, Containerd, $($test),*);
        $crate::each_store!(@store classic_store, Classic, $($test),*);
    };
    (@store $module:ident, $store:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    $crate::ensure_root()?;
                    let store = $crate::dockerd::Store::$store;
                    super::$test(&*$crate::dockerd::Dockerd::shared(store)?)
                }
            )*
        }
    };
}
