//! A pod without a container of its own, as containerd 2's Sandbox API makes it: its state and what
//! moves it on.
//!
//! It is created, started and stopped, in this order, and goes with its daemon. `container::Pod`
//! has what its containers share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use container::{Bundle, Exit, Pod, PodInit, blocking};
use tokio::sync::watch;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::pod_config::{Mode, PodConfig};

/// The parameters that a pod with its own network gets if it does not say otherwise: containerd 2
/// gives them to every pod with a pause container, in its default configuration
/// (`enable_unprivileged_ports`, `enable_unprivileged_icmp`).
const PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
const PING: (&str, &str) = ("net.ipv4.ping_group_range", "0 2147483647");

/// The place of a daemon's sandbox.
#[derive(Default)]
pub struct Slot(Mutex<Option<Arc<Sandbox>>>);

/// A sandbox that has been created.
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// What its containers share.
    pub pod: Pod,
    /// What was asked for.
    pub config: PodConfig,
    /// When it was created.
    pub created_at: SystemTime,
    phase: Mutex<Phase>,
    /// Held by whoever moves it on, or changes what there is to free.
    init: tokio::sync::Mutex<Option<PodInit>>,
    exit: watch::Sender<Option<Exit>>,
}

/// How far a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its files and namespaces are being made.
    Creating,
    /// They are there.
    Created,
    /// Containers may join.
    Ready,
    /// They may not any more.
    Stopped,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_none()
    }

    /// The sandbox with this id.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        let sandbox = self.lock().clone();
        sandbox
            .filter(|sandbox| sandbox.id == id)
            .ok_or_else(|| Error::NotFound(format!("sandbox {id} not created")))
    }

    /// Takes the sandbox out, for good.
    pub fn clear(&self) {
        self.lock().take();
    }

    /// Creates the sandbox with this id.
    ///
    /// # Errors
    /// There is one, or it cannot be made; nothing is left then.
    pub async fn create(
        &self,
        daemon: &Daemon,
        id: &str,
        bundle: &Path,
        network: &str,
        config: PodConfig,
    ) -> Result<(), Error> {
        let pod = pod(bundle, network, &config)?;
        pod.check().map_err(Error::InvalidArgument)?;
        let sandbox = Arc::new(Sandbox {
            id: id.to_owned(),
            pod,
            config,
            created_at: SystemTime::now(),
            phase: Mutex::new(Phase::Creating),
            init: tokio::sync::Mutex::new(None),
            exit: watch::Sender::new(None),
        });
        {
            let mut slot = self.lock();
            match &*slot {
                Some(there) if there.id == id => {
                    return Err(Error::AlreadyExists(format!("sandbox {id}")));
                }
                Some(there) => {
                    return Err(Error::FailedPrecondition(format!(
                        "this shim serves the sandbox {}: each has a shim of its own",
                        there.id
                    )));
                }
                None => *slot = Some(sandbox.clone()),
            }
        }
        if let Err(reason) = sandbox.pod.make(&daemon.zygote).await {
            self.clear();
            return Err(Error::Unknown(format!("creating the sandbox: {reason}")));
        }
        sandbox.set_phase(Phase::Created);
        Ok(())
    }

    /// Makes sure that containers may be in the sandbox, if there is one.
    ///
    /// # Errors
    /// They may not, or not any more.
    pub fn expect_ready(&self) -> Result<(), Error> {
        let sandbox = self.lock().clone();
        sandbox.map_or(Ok(()), |sandbox| sandbox.expect_ready())
    }

    /// The pod for a container with this bundle, if the daemon serves one; with its pid namespace
    /// if the container asks for that.
    ///
    /// # Errors
    /// The sandbox takes no containers, or the pid namespace cannot be made.
    pub async fn join(&self, daemon: &Daemon, bundle: &Bundle) -> Result<Option<Pod>, Error> {
        let Some(sandbox) = self.lock().clone() else {
            return Ok(None);
        };
        sandbox.expect_ready()?;
        if sandbox.pod.shares_pids(bundle) {
            sandbox.share_pids(daemon).await?;
        }
        Ok(Some(sandbox.pod.clone()))
    }
}

impl Sandbox {
    fn phase_mut(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase_mut() = phase;
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        *self.phase_mut()
    }

    /// Makes sure that containers may join.
    ///
    /// # Errors
    /// They may not.
    pub fn expect_ready(&self) -> Result<(), Error> {
        match self.phase() {
            Phase::Ready => Ok(()),
            phase => Err(self.not_in(phase)),
        }
    }

    fn not_in(&self, phase: Phase) -> Error {
        let state = match phase {
            Phase::Creating => "is being created",
            Phase::Created => "has not been started",
            Phase::Ready => "has been started already",
            Phase::Stopped => "has been stopped",
        };
        Error::FailedPrecondition(format!("the sandbox {} {state}", self.id))
    }

    /// Lets containers join.
    ///
    /// # Errors
    /// It was started before, or stopped.
    pub fn start(&self) -> Result<(), Error> {
        let mut phase = self.phase_mut();
        match *phase {
            Phase::Created => *phase = Phase::Ready,
            phase => return Err(self.not_in(phase)),
        }
        Ok(())
    }

    /// Makes the pod's pid namespace, unless it is there. Its init's end is the sandbox's.
    async fn share_pids(self: &Arc<Self>, daemon: &Daemon) -> Result<(), Error> {
        let mut init = self.init.lock().await;
        // It may have been stopped while this waited.
        self.expect_ready()?;
        if init.is_some() {
            return Ok(());
        }
        let (made, ended) = self
            .pod
            .make_pid_namespace(&daemon.zygote, &daemon.reaper)
            .await
            .map_err(|reason| Error::Unknown(format!("sharing processes in the pod: {reason}")))?;
        *init = Some(made);
        let sandbox = self.clone();
        tokio::spawn(async move {
            if let Ok(exit) = ended.await
                && sandbox.phase() == Phase::Ready
            {
                log::error!(
                    "{}: the init of the pod's pid namespace was killed",
                    sandbox.id
                );
                sandbox.ended(exit);
            }
        });
        Ok(())
    }

    /// Lets no more containers join.
    ///
    /// # Errors
    /// It is being created.
    pub fn close(&self) -> Result<(), Error> {
        let mut phase = self.phase_mut();
        if *phase == Phase::Creating {
            return Err(self.not_in(*phase));
        }
        *phase = Phase::Stopped;
        Ok(())
    }

    /// Frees what the containers shared, which have ended, and is over with it.
    ///
    /// # Errors
    /// What cannot be freed.
    pub async fn free(&self) -> Result<(), Error> {
        let mut init = self.init.lock().await;
        if let Some(init) = init.take() {
            init.kill();
        }
        let pod = self.pod.clone();
        let removed = blocking(move || pod.remove()).await;
        removed
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|error| Error::Unknown(format!("stopping the sandbox: {error}")))?;
        self.ended(Exit {
            status: 0,
            at: SystemTime::now(),
        });
        Ok(())
    }

    /// It is over; what is told first counts.
    fn ended(&self, exit: Exit) {
        self.set_phase(Phase::Stopped);
        self.exit.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(exit);
            first
        });
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it is over.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        match ended {
            Ok(Some(exit)) => exit,
            // The sender is this sandbox's.
            _ => std::future::pending().await,
        }
    }
}

/// The pod that `config` asks for, whose network namespace has the path `network`, if it is not
/// empty.
fn pod(bundle: &Path, network: &str, config: &PodConfig) -> Result<Pod, Error> {
    let namespaces = config.namespaces();
    let network = (!network.is_empty()).then(|| PathBuf::from(network));
    // As in containerd, the name goes with the network.
    let hostname = match (namespaces.network, &*config.hostname) {
        (network, _) if network == Mode::Node as i32 => None,
        (_, "") => Some(node_name()?),
        (_, name) => Some(name.to_owned()),
    };
    let users = namespaces.userns_options.as_ref();
    let users = users.map_or(Ok(None), |users| users.root())?;
    let mut sysctls = config.linux().sysctls;
    if network.is_some() {
        for (name, value) in [PORTS, PING] {
            // A user namespace need not have all those groups.
            if name != PING.0 || users.is_none() {
                sysctls
                    .entry(name.to_owned())
                    .or_insert_with(|| value.to_owned());
            }
        }
    }
    Ok(Pod {
        bundle: bundle.to_owned(),
        pid: std::process::id(),
        network,
        hostname,
        ipc: namespaces.ipc != Mode::Node as i32,
        pids: namespaces.pid != Mode::Node as i32,
        users,
        sysctls,
        resolv_conf: config.dns_config.as_ref().map(|dns| dns.resolv_conf()),
    })
}

fn node_name() -> Result<String, Error> {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .map_err(|error| Error::Unknown(format!("asking for the node's name: {error}")))
}
