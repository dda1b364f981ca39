//! What a helper of the zygote does to create a container.

use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::Hooks;

use crate::adapt::adapt;
use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup};
use crate::checkpoint::Restore;
use crate::delete::delete;
use crate::explain::explain;
use crate::guest::Guests;
use crate::init::Init;
use crate::mounts::Late;
use crate::program::Launcher;
use crate::rootfs;
use crate::stdio::{ConsoleSocket, Pty};
use crate::zygote::{Create, Created};
use crate::{build, capture, checkpoint, cwd, keyring, limit, loopback, mounts};

/// Builds a container; returns what it is, and the master of its terminal if it has one.
pub(crate) fn create(
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
    let mount_point = bundle.mount_point.clone();
    let unmount = || {
        if let Err(leftover) = rootfs::unmount(&mount_point) {
            log::warn!("{leftover}");
        }
    };
    let launcher = Launcher::new(guests, request.guest.clone(), daemon, reply_to);
    let streams: Vec<OwnedFd> = fds.collect();
    let console = socket.as_ref().map(ConsoleSocket::path);
    let built = bundle
        .check_rootfs()
        .map_err(|error| error.to_string())
        .and_then(|()| mounts::check(&bundle.spec, &bundle.path))
        .and_then(|()| adapt(&mut bundle, request))
        .and_then(|apart| {
            let is_inside = cwd::make(&bundle);
            let can_build = build::can_build(&bundle, request);
            // Not in config.json, by which processes are added.
            let spec = &mut bundle.spec;
            let (late, limit) = match can_build {
                true => (
                    Late::take_over(spec),
                    spec.process_mut().as_mut().and_then(limit::set_apart),
                ),
                false => (Late::default(), None),
            };
            if (is_inside || late.is_needed()) && bundle.spec.hooks().is_none() {
                // For these the init waits once it has its mounts.
                bundle.spec.set_hooks(Some(Hooks::default()));
            }
            // The namespace has to be there until the container is.
            let _users = apart.users;
            let init = Init::new(launcher, request, apart.start_hooks, apart.has_home, limit);
            let built = if can_build {
                let mounted = |init| {
                    if !is_inside && !late.is_needed() {
                        return Ok(());
                    }
                    mounts::inside(init, &bundle.path, || {
                        late.carry_out(&bundle.rootfs, &bundle.path)?;
                        match is_inside {
                            true => cwd::make_inside(&bundle),
                            false => Ok(()),
                        }
                    })
                };
                let entered = || {
                    if !is_needed_outside {
                        unmount();
                    }
                };
                build::build(&bundle, request, init, console, &streams, mounted, entered)
            } else {
                build_with_libcontainer(&bundle, request, init, console, streams)
            };
            built.map_err(|error| explain(&error, captured.first()))
        });
    let finish = |pid| {
        if request.by_systemd() {
            restrict_devices(pid, &bundle)?;
        }
        loopback::bring_up(&bundle.spec, pid)?;
        let terminal = |socket: &ConsoleSocket| {
            let master = socket
                .receive()
                .map_err(|error| format!("receiving the process's terminal: {error}"))?;
            Pty::new(master, bundle.process(), bundle.owner().0)
        };
        let terminal = socket.as_ref().map(terminal).transpose()?;
        Ok((
            created(pid, &bundle),
            terminal.map(|terminal| terminal.master),
        ))
    };
    let finished = built.and_then(|pid| {
        finish(pid).map_err(|reason: String| match delete(&request.target, false) {
            Ok(()) => reason,
            Err(leftover) => format!("{reason}; and {leftover}"),
        })
    });
    if finished.is_err() || !is_needed_outside {
        unmount();
    }
    finished
}

/// What [`build::build`] does, with libcontainer's builder.
fn build_with_libcontainer(
    bundle: &Bundle,
    request: &Create,
    init: Init,
    console: Option<&Path>,
    streams: Vec<OwnedFd>,
) -> Result<i32, LibcontainerError> {
    let other = |error: cgroup::Error| LibcontainerError::Other(error.to_string());
    let id = &request.target.id;
    // It makes the folders of those hierarchies that it knows, and mounts what it is told.
    let cgroup = match cgroup::is_v1() {
        true => Some(Cgroup::of_spec(&bundle.spec, id, request.systemd_cgroup).map_err(other)?),
        false => None,
    };
    let build = || -> Result<i32, LibcontainerError> {
        // Of all that it clones, hooks too: there is no place that is the init's alone.
        keyring::make(request.keyring.as_deref()).map_err(LibcontainerError::Other)?;
        if let Some(cgroup) = &cgroup {
            cgroup.make().map_err(other)?;
        }
        fs::create_dir_all(&request.target.root).map_err(LibcontainerError::OtherIO)?;
        let mut builder = ContainerBuilder::new(id.clone(), SyscallType::default())
            .with_root_path(&request.target.root)?
            .with_executor(init)
            .with_console_socket(console);
        let mut streams = streams.into_iter();
        if let (Some(stdin), Some(stdout), Some(stderr)) =
            (streams.next(), streams.next(), streams.next())
        {
            builder = builder
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr);
        }
        let container = builder
            .as_init(&request.bundle)
            .with_systemd(request.by_systemd())
            .with_no_pivot(request.no_pivot_root)
            .as_sibling(true)
            .with_detach(true)
            .build()?;
        let pid = container.pid().map(|pid| pid.as_raw());
        pid.ok_or_else(|| {
            LibcontainerError::Other("it created a container without an init".to_owned())
        })
    };
    build().inspect_err(|_| {
        if let Some(Err(leftover)) = cgroup.as_ref().map(Cgroup::remove) {
            log::warn!("{leftover}");
        }
    })
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

/// What there is to know of the container of `bundle` with the init `pid`.
fn created(pid: i32, bundle: &Bundle) -> Created {
    Created {
        pid,
        has_hooks: has_hooks(bundle),
        owns_pid_namespace: bundle.owns_pid_namespace(),
    }
}

/// Restores a container from a checkpoint.
pub(crate) fn restore(
    request: &Create,
    from: &Restore,
    fds: &[OwnedFd],
) -> Result<Created, String> {
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
        .and_then(|_| keyring::make(request.keyring.as_deref()))
        .and_then(|()| checkpoint::restore(request, from, &bundle, streams))
        .and_then(|pid| match request.by_systemd() {
            true => restrict_devices(pid, &bundle).map(|()| pid),
            false => Ok(pid),
        });
    restored.map(|pid| created(pid, &bundle)).map_err(|reason| {
        let freed = delete(&request.target, false);
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
    let restrict = || -> cgroup::Result<()> {
        let cgroup = Cgroup::of(pid as u32)?;
        let linux = bundle.spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        cgroup.restrict_devices(rules.unwrap_or_default())
    };
    restrict().map_err(|error| format!("restricting the container's devices: {error}"))
}
