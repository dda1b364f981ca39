//! What a helper of the zygote does for one request, with libcontainer.

use std::error::Error;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

use libcgroups::v2::devices::controller::Devices;
use libcontainer::config::YoukiConfig;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::hooks::run_hooks;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setfsgid, setfsuid};
use oci_spec::runtime::Hook;
use pathrs::Root;

use crate::adapt::{Apart, adapt};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::checkpoint::Restore;
use crate::guest::Guests;
use crate::init::Init;
use crate::orphan::delete_orphan;
use crate::pod;
use crate::program::Launcher;
use crate::rootfs;
use crate::stdio::{ConsoleSocket, Pty};
use crate::zygote::{Create, Created, Reply, Request, Target};
use crate::{capture, checkpoint, exec};

/// Carries out `request`, whose descriptors are `fds`. Returns the answer with its descriptors, for
/// `reply_to`, which none of the processes that this one clones keeps open.
pub(crate) fn run(
    request: Request,
    fds: Vec<OwnedFd>,
    guests: &Result<Rc<dyn Guests>, String>,
    reply_to: RawFd,
) -> (Reply, Vec<OwnedFd>) {
    let done = match request {
        Request::Create(request) => match &request.restore {
            None => create(&request, fds, guests, reply_to),
            Some(from) => restore(&request, from, &fds).map(|created| (created, None)),
        }
        .map(|(created, master)| (Reply::Created(created), Vec::from_iter(master))),
        Request::Exec {
            exec: request,
            init,
        } => guests
            .clone()
            .and_then(|guests| exec::exec(*request, init, fds, guests, reply_to))
            .map(|added| {
                let fds = [Some(added.handle), added.master];
                (Reply::Added(added.pid), fds.into_iter().flatten().collect())
            }),
        Request::Checkpoint { checkpoint, init } => {
            checkpoint::dump(&checkpoint, init).map(|()| (Reply::Done, Vec::new()))
        }
        Request::Start(target) => start(&target).map(|()| (Reply::Done, Vec::new())),
        Request::Delete(target) => delete(&target).map(|()| (Reply::Done, Vec::new())),
        Request::Clear(orphan) => delete_orphan(&orphan).map(|()| (Reply::Done, Vec::new())),
        Request::Pod(pod) => pod::make(&pod).map(|()| (Reply::Done, Vec::new())),
        Request::PodInit(pod) => {
            pod::make_pid_namespace(&pod).map(|(pid, handle)| (Reply::Added(pid), vec![handle]))
        }
    };
    done.unwrap_or_else(|reason| (Reply::Failed(reason), Vec::new()))
}

/// Builds a container; returns what it is, and the master of its terminal if it has one.
fn create(
    request: &Create,
    fds: Vec<OwnedFd>,
    guests: &Result<Rc<dyn Guests>, String>,
    reply_to: RawFd,
) -> Result<(Created, Option<OwnedFd>), String> {
    let guests = guests.clone()?;
    // The birthmark is open until this process ends, and in those that it clones until they run
    // the entrypoint.
    let mut fds = fds.into_iter();
    let (Some(daemon), Some(_birthmark)) = (fds.next(), fds.next()) else {
        return Err("create came without its descriptors".to_owned());
    };
    let socket = if request.terminal {
        let socket = ConsoleSocket::listen(&request.bundle)
            .map_err(|error| format!("making a socket for the process's terminal: {error}"))?;
        Some(socket)
    } else {
        None
    };
    let captured = capture::start().map_err(|error| error.to_string())?;
    let mut bundle = Bundle::load(&request.bundle).map_err(|error| error.to_string())?;
    rootfs::mount(&request.mounts, &bundle.mount_point).map_err(|error| error.to_string())?;
    let is_needed_outside = request.mounts.is_empty() || is_needed_outside(&bundle);
    let launcher = Launcher::new(guests, request.guest.clone(), daemon, reply_to);
    let build = |start_hooks| -> Result<Container, LibcontainerError> {
        fs::create_dir_all(&request.target.root).map_err(LibcontainerError::OtherIO)?;
        let mut builder = ContainerBuilder::new(request.target.id.clone(), SyscallType::default())
            .with_root_path(&request.target.root)?
            .with_executor(Init::new(launcher, request, start_hooks))
            .with_console_socket(socket.as_ref().map(ConsoleSocket::path));
        if let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) {
            builder = builder
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr);
        }
        builder
            .as_init(&request.bundle)
            .with_systemd(request.systemd_cgroup)
            .with_no_pivot(request.no_pivot_root)
            .as_sibling(true)
            .with_detach(true)
            .build()
    };
    let built = bundle
        .check_rootfs()
        .map_err(|error| error.to_string())
        .and_then(|()| adapt(&mut bundle, request))
        .and_then(|Apart { start_hooks, users }| {
            make_working_directory(&bundle);
            // The namespace has to be there until the container is.
            let _users = users;
            let container =
                build(start_hooks).map_err(|error| explain(&error, captured.first()))?;
            container
                .pid()
                .map(|pid| pid.as_raw())
                .ok_or_else(|| "libcontainer created a container without an init".to_owned())
        });
    let finish = |pid| {
        if request.systemd_cgroup {
            restrict_devices(pid, &bundle)?;
        }
        let terminal = |socket: &ConsoleSocket| {
            let master = socket
                .receive()
                .map_err(|error| format!("receiving the process's terminal: {error}"))?;
            Pty::new(master, bundle.process(), bundle.owner().0)
        };
        let terminal = socket.as_ref().map(terminal).transpose()?;
        let has_hooks = has_hooks(&bundle);
        let created = Created { pid, has_hooks };
        Ok((created, terminal.map(|terminal| terminal.master)))
    };
    let finished = built.and_then(|pid| {
        finish(pid).map_err(|reason: String| match delete(&request.target) {
            Ok(()) => reason,
            Err(leftover) => format!("{reason}; and {leftover}"),
        })
    });
    if (finished.is_err() || !is_needed_outside)
        && let Err(leftover) = rootfs::unmount(&bundle.mount_point)
    {
        log::warn!("{leftover}");
    }
    finished
}

/// Whether somebody on the host is to see the root file system of a container that has been created.
/// Nobody else needs it: the container has mounts of its own. With each mount that the host has, all
/// containers to come take longer, as each begins with a copy of them and libcontainer reads through
/// their list.
fn is_needed_outside(bundle: &Bundle) -> bool {
    let hooks = bundle.spec.hooks().as_ref();
    hooks.is_some_and(|hooks| {
        has_hooks(bundle) || hooks.poststop().iter().any(|hooks| !hooks.is_empty())
    })
}

/// Whether hooks run once the container has started.
fn has_hooks(bundle: &Bundle) -> bool {
    let hooks = bundle.spec.hooks().as_ref();
    hooks.is_some_and(|hooks| hooks.poststart().iter().any(|hooks| !hooks.is_empty()))
}

/// Restores a container from a checkpoint.
fn restore(request: &Create, from: &Restore, fds: &[OwnedFd]) -> Result<Created, String> {
    // Nobody of it talks to the daemon. The birthmark is open until this process ends.
    let [_daemon, _birthmark, streams @ ..] = fds else {
        return Err("restore came without its descriptors".to_owned());
    };
    if request.terminal {
        return Err("a container with a terminal cannot be restored by this shim".to_owned());
    }
    let mut bundle = Bundle::load(&request.bundle).map_err(|error| error.to_string())?;
    rootfs::mount(&request.mounts, &bundle.mount_point).map_err(|error| error.to_string())?;
    let restored = bundle
        .check_rootfs()
        .map_err(|error| error.to_string())
        .and_then(|()| adapt(&mut bundle, request))
        .and_then(|_| checkpoint::restore(request, from, &bundle, streams))
        .and_then(|pid| match request.systemd_cgroup {
            true => restrict_devices(pid, &bundle).map(|()| pid),
            false => Ok(pid),
        });
    let created = |pid| Created {
        pid,
        has_hooks: has_hooks(&bundle),
    };
    restored.map(created).map_err(|reason| {
        let freed = delete(&request.target);
        if let Err(leftover) = rootfs::unmount(&bundle.mount_point) {
            log::warn!("{leftover}");
        }
        match freed {
            Ok(()) => reason,
            Err(leftover) => format!("{reason}; and {leftover}"),
        }
    })
}

/// Puts the device rules of `bundle` on the v2 cgroup of `pid`: libcgroups does so itself but for
/// cgroups that systemd makes.
fn restrict_devices(pid: i32, bundle: &Bundle) -> Result<(), String> {
    let restrict = || -> Result<(), String> {
        let cgroup = Cgroup::of(pid as u32).map_err(|error| error.to_string())?;
        let Some(folder) = cgroup.unified() else {
            return Ok(());
        };
        let linux = bundle.spec.linux().as_ref();
        let rules = linux
            .and_then(|linux| linux.resources().as_ref())
            .and_then(|resources| resources.devices().clone());
        Devices::apply_devices(folder, &rules).map_err(|error| error.to_string())
    };
    restrict().map_err(|reason| format!("restricting the container's devices: {reason}"))
}

/// Makes the process's working directory where the image lacks it, as runc does: as the container's
/// root. Where it cannot be made (on a read-only file system, say), entering it fails and tells.
fn make_working_directory(bundle: &Bundle) {
    let Some(cwd) = bundle.process().map(|process| process.cwd()) else {
        return;
    };
    let (user, group) = bundle.root();
    // Below the root whatever symbolic links the image holds.
    let made = Root::open(&bundle.rootfs).and_then(|root| {
        let (user, group) = (setfsuid(user), setfsgid(group));
        let made = root.mkdir_all(cwd, &Permissions::from_mode(0o755));
        setfsgid(group);
        setfsuid(user);
        made
    });
    if let Err(error) = made {
        log::debug!("making the working directory {}: {error}", cwd.display());
    }
}

fn start(target: &Target) -> Result<(), String> {
    let mut container =
        Container::load(target.root.join(&target.id)).map_err(|error| explain(&error, None))?;
    container.start().map_err(|error| {
        if let (LibcontainerError::Hook(_), Some(pid)) = (&error, container.pid()) {
            // A poststart hook that fails ends its container, as in runc.
            let _ = kill(Pid::from_raw(pid.as_raw()), Signal::SIGKILL);
        }
        explain(&error, None)
    })
}

/// Kills what is left of a container and frees its cgroup and state. One that is not there is
/// as good as deleted.
///
/// # Errors
/// When its cgroup or state cannot be freed.
pub(crate) fn delete(target: &Target) -> Result<(), String> {
    let folder = target.root.join(&target.id);
    if !folder.exists() {
        return Ok(());
    }
    let deleted = Container::load(folder.clone()).and_then(|mut container| {
        container.refresh_status()?;
        match Plain::of(&container, &folder) {
            Some(plain) => plain.free(&container),
            None => container.delete(true),
        }
    });
    let result = match deleted {
        Ok(()) => Ok(()),
        // The runtime spec has failing poststop hooks logged and the deletion go on.
        Err(error @ LibcontainerError::Hook(_)) => {
            log::warn!("{}: a poststop hook: {}", target.id, explain(&error, None));
            Ok(())
        }
        Err(error) => Err(explain(&error, None)),
    };
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!(
            "removing the container's state {}: {error}",
            folder.display()
        )),
        _ => result,
    }
}

/// What is left of a container that has ended, where that is a cgroup and perhaps hooks: as nearly
/// always. libcontainer looks through /proc/self/mountinfo and /proc/self/cgroup once more for every
/// controller of cgroup v1, which takes longer than to remove the cgroup.
struct Plain {
    cgroup: Cgroup,
    hooks: Option<Vec<Hook>>,
}

impl Plain {
    /// What is left of `container`, whose state is in `folder`; nothing where there may be more.
    fn of(container: &Container, folder: &Path) -> Option<Self> {
        let state = &container.state;
        let more = [&state.intel_rdt_dir, &state.intel_rdt_monitoring_dir]
            .into_iter()
            .any(Option::is_some)
            || state.clean_up_intel_rdt_subdirectory == Some(true)
            // It has a unit to be stopped.
            || container.systemd();
        if more || container.status() != ContainerStatus::Stopped {
            return None;
        }
        let config = YoukiConfig::load(folder).ok()?;
        Some(Self {
            cgroup: Cgroup::at(&config.cgroup_path, false).ok()?,
            hooks: config.hooks.and_then(|hooks| hooks.poststop().clone()),
        })
    }

    /// Frees it, as [`Container::delete`] does, but for the state.
    fn free(&self, container: &Container) -> Result<(), LibcontainerError> {
        let removed = self.cgroup.remove();
        removed.map_err(|error| LibcontainerError::Other(error.to_string()))?;
        run_hooks(
            self.hooks.as_ref(),
            Some(&container.state),
            None,
            None,
            None,
        )?;
        Ok(())
    }
}

/// What libcontainer says before its reasons whatever they are.
const WRAPPINGS: [&str; 3] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
];

/// An error with all its causes, and the first that was only logged where it says more.
fn explain(error: &dyn Error, logged: Option<String>) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    for wrapping in WRAPPINGS {
        if let Some(reason) = text.strip_prefix(wrapping) {
            text = reason.to_owned();
        }
    }
    match logged {
        Some(logged) if !logged.contains(&text) => format!("{text} ({logged})"),
        _ => text,
    }
}
