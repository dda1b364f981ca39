//! A private containerd: its folder, configuration, life and connection.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use containerd_client::{
    Client,
    services::v1::{CreateNamespaceRequest, Namespace, PluginInfoRequest, PluginInfoResponse},
    tonic::{Request, metadata::MetadataValue},
};

use nix::sys::signal::Signal;

use crate::{
    Network, Rootfs, Version,
    events::Recorder,
    poll::eventually,
    runtime::{call, handle},
    version::built_programs,
};

/// What a daemon is started with beyond what every one gets.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Load the CRI plugin; without it the daemon starts faster.
    pub cri: bool,
    /// More lines for config.toml, after those of the harness; `@FOLDER@` stands
    /// for the daemon's folder.
    pub config: String,
    /// The whole text of config.toml, in place of the harness's; `@FOLDER@` as above.
    pub whole_config: Option<String>,
    /// Files that config.toml imports.
    pub imports: Vec<PathBuf>,
    /// Run the daemon in a network namespace of its own, see [`Containerd::network`].
    pub network: bool,
    /// Folders that go before the usual ones on the daemon's PATH.
    pub path: Vec<PathBuf>,
    /// More variables of the daemon's environment.
    pub environment: Vec<(String, String)>,
    /// How much the daemon logs and has its shims log, in its own words. `None`: `debug`, as a test that fails tells by it
    /// what went on; `trace` has every event too.
    pub log_level: Option<&'static str>,
    /// Subscribe to no events: [`Containerd::recorder`] is not there. Each event that is sent costs the daemon and
    /// its client time.
    pub unrecorded: bool,
    /// Where the daemon keeps its things in place of /run: a folder that exists.
    pub parent: Option<PathBuf>,
}

/// A private containerd. Everything it has lies in one folder of its own,
/// `/run/lighter-test-PID-N`; that folder's name is also the containerd
/// namespace of the tests and the cgroup above their containers.
///
/// When it is dropped, and also when the test program dies in any way, the
/// daemon, its shims and containers are killed and the folder, mounts, cgroups
/// and sockets removed.
pub struct Containerd {
    version: Version,
    folder: PathBuf,
    namespace: String,
    keeper: Child,
    /// Where the keeper reads what to do; its end is the daemon's.
    orders: Mutex<Option<ChildStdin>>,
    network: Option<Network>,
    client: Client,
    recorder: Option<Recorder>,
    /// The names of the snapshots that there are.
    pub(crate) rootfs: Mutex<HashMap<Rootfs, String>>,
    ids: AtomicU32,
}

impl Containerd {
    /// Starts a daemon without CRI and waits until it answers.
    ///
    /// # Errors
    /// A missing engine or shim, or a daemon that does not come up; the message
    /// ends with the daemon's log.
    pub fn start(version: Version) -> Result<Self> {
        Self::start_with(version, &Settings::default())
    }

    /// The daemon that the tests of one program share: started by the first
    /// test that asks, gone when the last test that holds it ends.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn shared(version: Version) -> Result<Arc<Self>> {
        static SHARED: [Mutex<Weak<Containerd>>; 3] = [const { Mutex::new(Weak::new()) }; 3];
        let mut shared = SHARED[version as usize]
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(daemon) = shared.upgrade() {
            return Ok(daemon);
        }
        let daemon = Arc::new(Self::start(version)?);
        *shared = Arc::downgrade(&daemon);
        Ok(daemon)
    }

    /// The shared daemon of containerd 2.1, for what does not depend on who asks for a container.
    ///
    /// # Errors
    /// As [`Containerd::start`]; the program does not run as root.
    pub fn newest() -> Result<Arc<Self>> {
        ensure_root()?;
        Self::shared(Version::V2_1)
    }

    /// Starts a daemon with settings of its own and waits until it answers.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_with(version: Version, settings: &Settings) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let programs = version.programs()?;
        let mut path = settings.path.clone();
        path.extend([built_programs()?, programs.clone()]);
        if let Some(inherited) = std::env::var_os("PATH") {
            path.extend(std::env::split_paths(&inherited));
        }

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("lighter-test-{}-{number}", std::process::id());
        let parent = settings.parent.as_deref().unwrap_or(Path::new("/run"));
        let folder = parent.join(&namespace);
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(
            folder.join("config.toml"),
            configuration(version, &folder, settings),
        )?;

        let network = settings
            .network
            .then(|| Network::new(&namespace))
            .transpose()?;
        let mut keeper = Command::new("/bin/sh");
        keeper
            .args(["-c", include_str!("undertaker.sh"), "undertaker"])
            .args([folder.as_os_str(), namespace.as_ref()]);
        if let Some(network) = &network {
            // It becomes containerd, so the process stays the same.
            let path = network.path();
            keeper
                .arg("nsenter")
                .arg(format!("--net={}", path.display()));
        }
        let mut keeper = keeper
            .arg(programs.join("containerd"))
            .arg("--config")
            .arg(folder.join("config.toml"))
            .env("PATH", std::env::join_paths(path)?)
            .envs(settings.environment.iter().cloned())
            .stdin(Stdio::piped())
            // An interrupt from the terminal must leave it to do its work.
            .process_group(0)
            .spawn()
            .context("start /bin/sh")?;

        let socket = folder.join("containerd.sock");
        let connected = connect(&socket, &namespace).and_then(|client| {
            let recorder = match settings.unrecorded {
                true => None,
                false => Some(Recorder::start(&client, &namespace)?),
            };
            Ok((client, recorder))
        });
        let (client, recorder) = match connected {
            Ok(pair) => pair,
            Err(error) => {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                bury(keeper);
                return Err(error.context(format!("containerd {}: {log}", version.name())));
            }
        };
        Ok(Self {
            version,
            folder,
            namespace,
            orders: Mutex::new(keeper.stdin.take()),
            keeper,
            network,
            client,
            recorder,
            rootfs: Mutex::default(),
            ids: AtomicU32::new(0),
        })
    }

    /// The daemon's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The folder with everything that is this daemon's own.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// The folder of its running state; bundles lie below it.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The containerd namespace of the tests, and the cgroup above their
    /// containers.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What the daemon and its shims have logged until now.
    pub fn log(&self) -> String {
        fs::read(self.folder.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The daemon's process.
    ///
    /// # Errors
    /// It is not running.
    pub fn pid(&self) -> Result<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.keeper.id());
        for pid in fs::read_to_string(&children)?.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "containerd" {
                return Ok(pid.parse()?);
            }
        }
        anyhow::bail!("containerd {} is not running", self.version.name())
    }

    /// The network namespace that the daemon runs in, when [`Settings::network`]
    /// asked for one: what it takes for the host's.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// A connection to the daemon's API, to be used with [`Containerd::request`].
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A request in the tests' namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        in_namespace(&self.namespace, message)
    }

    /// What a plugin tells of itself.
    ///
    /// # Errors
    /// What containerd says.
    pub fn plugin_info(&self, request: PluginInfoRequest) -> Result<PluginInfoResponse> {
        let answer = call(
            self.client
                .introspection()
                .plugin_info(self.request(request)),
        )?;
        Ok(answer.into_inner())
    }

    /// The record of every event that the daemon published.
    ///
    /// # Panics
    /// With [`Settings::unrecorded`] there is none.
    pub fn recorder(&self) -> &Recorder {
        self.recorder.as_ref().expect("events are recorded")
    }

    /// Ends the daemon, and not what it has started, with a signal, and waits until it is gone.
    ///
    /// # Errors
    /// It does not run, or goes on.
    pub fn stop(&self, signal: Signal) -> Result<()> {
        let pid = self.pid()?;
        let name = signal.as_str().trim_start_matches("SIG");
        self.order(name)?;
        eventually("containerd is gone", || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        })
    }

    /// Starts the daemon anew and waits until it answers.
    ///
    /// # Errors
    /// It does not come up; the message ends with its log.
    pub fn restart(&self) -> Result<()> {
        self.order("start")?;
        eventually("containerd answers", || {
            call(self.client.version().version(())).ok()
        })
        .with_context(|| self.log())?;
        match &self.recorder {
            Some(recorder) => recorder.resume(&self.client),
            None => Ok(()),
        }
    }

    fn order(&self, line: &str) -> Result<()> {
        let mut orders = self.orders.lock().expect("no writer panics");
        let orders = orders.as_mut().context("the daemon's keeper")?;
        Ok(writeln!(orders, "{line}")?)
    }

    /// A container id that no other test has.
    pub fn new_id(&self, stem: &str) -> String {
        format!("{stem}-{}", self.ids.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let mut orders = self
            .orders
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(orders.take());
        // It ends when the last trace is gone; there is nothing to do if not.
        let _ = self.keeper.wait();
    }
}

/// Ends a daemon that never became a [`Containerd`].
fn bury(mut keeper: Child) {
    drop(keeper.stdin.take());
    let _ = keeper.wait();
}

/// Puts a message into a containerd namespace.
pub(crate) fn in_namespace<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(namespace).expect("namespaces are plain ASCII");
    request.metadata_mut().insert("containerd-namespace", value);
    request
}

/// Connects and makes the namespace.
fn connect(socket: &Path, namespace: &str) -> Result<Client> {
    let mut refusal = String::new();
    let client = eventually("containerd answers", || {
        let client = handle().block_on(Client::from_path(socket)).ok()?;
        match call(client.version().version(())) {
            Ok(_) => Some(client),
            Err(status) => {
                refusal = status.to_string();
                None
            }
        }
    })
    .with_context(|| refusal.clone())?;
    let request = CreateNamespaceRequest {
        namespace: Some(Namespace {
            name: namespace.to_owned(),
            labels: HashMap::new(),
        }),
    };
    // containerd 1.6 wants a namespace even for the event that one was made.
    call(client.namespaces().create(in_namespace(namespace, request)))
        .context("create the namespace")?;
    Ok(client)
}

/// The text of config.toml. Plugins that would touch anything outside of the
/// folder, or load kernel modules, are turned off.
fn configuration(version: Version, folder: &Path, settings: &Settings) -> String {
    let folder = folder.display();
    if let Some(text) = &settings.whole_config {
        return text.replace("@FOLDER@", &folder.to_string());
    }
    let mut disabled = vec![
        "io.containerd.internal.v1.opt",
        "io.containerd.nri.v1.nri",
        "io.containerd.tracing.processor.v1.otlp",
        "io.containerd.internal.v1.tracing",
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
    ];
    if !settings.cri {
        disabled.extend([
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.podsandbox.controller.v1.podsandbox",
        ]);
    }
    let layout = if version < Version::V2_1 { 2 } else { 3 };
    format!(
        "version = {layout}\n\
         imports = {:?}\n\
         root = \"{folder}/root\"\n\
         state = \"{folder}/state\"\n\
         disabled_plugins = {disabled:?}\n\
         [grpc]\n  address = \"{folder}/containerd.sock\"\n\
         [ttrpc]\n  address = \"{folder}/containerd.sock.ttrpc\"\n\
         [debug]\n  address = \"{folder}/debug.sock\"\n  level = \"{}\"\n\
         {}\n",
        settings.imports,
        settings.log_level.unwrap_or("debug"),
        settings.config.replace("@FOLDER@", &folder.to_string())
    )
}

/// Says what is missing on a machine that cannot run the tests at all.
///
/// # Errors
/// The tests do not run as root.
pub fn ensure_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "these tests start containers: run them as root"
    );
    Ok(())
}
