//! Create.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Instant;

use container::cgroup::{Cgroup, OomWatch};
use container::rootfs::{self, Mount};
use container::{Bundle, Container, Create, OomKills, Restore, Stdio, StdioPaths, Target, Wanted};
use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::protobuf::MessageField;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::{Phase, Task, pause};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::events::{TaskCreate, TaskIO};
use crate::guests;
use crate::memo::Memo;
use crate::process::{stream_owner, warn_of_capabilities};
use crate::settings::Options;

impl Task {
    /// Creates the task that `request` asks for, up to where its init waits to be started. Once that
    /// is `given_up`, a module is not waited for any more: what compiles it goes on, for the next.
    ///
    /// # Errors
    /// The reason, with nothing left behind.
    pub async fn create(
        daemon: &Arc<Daemon>,
        request: &CreateTaskRequest,
        given_up: &CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let bundle = Bundle::load(request.bundle.as_ref())
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let options = Options::of(request.options.as_ref(), bundle.spec.annotations().as_ref())
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        for name in options.ignored() {
            log::info!(
                "{}: the runtime option {name} has no meaning here",
                request.id
            );
        }
        warn_of_capabilities(&request.id, &bundle.unknown_capabilities);
        let mut memo = Memo::new(&daemon.namespace, &bundle.path, &options);
        let mut create = create_request(&memo.root, request, &bundle, &options);
        if create.mounts.is_empty() {
            bundle
                .check_rootfs()
                .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        }
        // What is in there would be killed with the container.
        Cgroup::of_spec(&bundle.spec, &request.id, options.systemd_cgroup)
            .and_then(|cgroup| cgroup.ensure_free())
            .map_err(|error| Error::Unknown(format!("OCI runtime create failed: {error}")))?;
        let paths = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = stream_owner(&options, bundle.owner());
        let (stdio, theirs) = Stdio::connect(&paths, owner, daemon.logging(&request.id))
            .await
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;

        if !options.no_new_keyring {
            let name = container::keyring_name(&request.id);
            let name =
                name.map_err(|error| Error::Unknown(format!("naming a keyring: {error}")))?;
            create.keyring = Some(name);
        }
        let keyring = create.keyring.clone();
        create.pod = daemon.sandbox.join(daemon, &bundle).await?;
        // Before there is anything to free: a daemon may be killed at any point after.
        memo.write(&bundle.path)
            .map_err(|error| Error::Unknown(format!("noting the container's state: {error}")))?;
        let since = Instant::now();
        let kills = OomKills::now();
        let artifact = async |wanted: Wanted| {
            let made = daemon.artifact(&request.id, &bundle, &options, wanted);
            let made = given_up.run_until_cancelled(made).await;
            made.unwrap_or_else(|| Err(Error::given_up().to_string()))
        };
        let created = Container::create(&daemon.zygote, create, theirs, artifact).await;
        let (container, console) = match created {
            Ok(created) => created,
            Err(reason) => {
                // The zygote's helper has done so, unless it died on the way.
                if let Err(error) = rootfs::unmount(&bundle.mount_point) {
                    log::warn!("{}: {error}", request.id);
                }
                stdio.close().await;
                let reason = kills.explain(&reason, &bundle);
                return Err(Error::Unknown(format!(
                    "OCI runtime create failed: {reason}"
                )));
            }
        };
        if let Some(console) = console {
            stdio.attach(console);
        }
        let init = daemon.reaper.exit_of(container.init.pid, since);
        let pid = container.init.pid.as_raw();
        memo.pid = pid as u32;
        if let Err(error) = memo.write(&bundle.path) {
            log::warn!("{}: noting the container's pid: {error}", request.id);
        }
        let cgroup = Cgroup::of(pid as u32)
            .inspect_err(|error| log::warn!("{}: {error}", request.id))
            .ok();
        let (exited, exit) = watch::channel(None);
        let task = Arc::new(Self {
            id: request.id.clone(),
            bundle: bundle.path.clone(),
            mount_point: bundle.mount_point.clone(),
            memo,
            paths,
            owns_pid_namespace: bundle.owns_pid_namespace(),
            keyring,
            container,
            stdio,
            cgroup,
            cgroup_of_systemd: options.systemd_cgroup
                && bundle.cgroups_path().is_none_or(Path::is_relative),
            freezer: pause::Freezer::default(),
            lifecycle: Mutex::new(Phase::Created),
            options,
            execs: SyncMutex::default(),
            exit,
        });
        daemon.publisher.publish(TaskCreate {
            container_id: task.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..TaskIO::default()
            }),
            checkpoint: request.checkpoint.clone(),
            pid: task.pid(),
            ..TaskCreate::default()
        });
        // Made before the task can be started, so that no kill is missed.
        let oom = task.cgroup.as_ref().and_then(|cgroup| {
            OomWatch::new(cgroup, kills)
                .inspect_err(|error| log::warn!("{}: {error}", task.id))
                .ok()
        });
        tokio::spawn(
            task.clone()
                .supervise(daemon.publisher.clone(), oom, init, exited),
        );
        Ok(task)
    }
}

fn create_request(
    root: &Path,
    request: &CreateTaskRequest,
    bundle: &Bundle,
    options: &Options,
) -> Create {
    Create {
        target: Target {
            id: request.id.clone(),
            root: root.to_owned(),
        },
        bundle: bundle.path.clone(),
        mounts: request
            .rootfs
            .iter()
            .map(|mount| Mount {
                kind: mount.type_.clone(),
                source: mount.source.clone(),
                target: mount.target.clone(),
                options: mount.options.clone(),
            })
            .collect(),
        terminal: request.terminal,
        systemd_cgroup: options.systemd_cgroup,
        no_pivot_root: options.no_pivot_root,
        keyring: None,
        guest: guests::write(&options.guest),
        pod: None,
        restore: (!request.checkpoint.is_empty()).then(|| Restore {
            images: PathBuf::from(&request.checkpoint),
            work: (!options.criu_work_path.is_empty())
                .then(|| PathBuf::from(&options.criu_work_path)),
        }),
    }
}
