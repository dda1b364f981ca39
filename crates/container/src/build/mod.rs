//! Builds a container's init out of libcontainer's parts, and moves it into the container's cgroup.
//!
//! libcontainer has its intermediate process moved by `cgroup.procs`, for which the kernel waits for an RCU grace
//! period ([`cgroup::expect_move`]): longer, on an idle machine, than all else that a create does. There are ways
//! without that wait. On v1 a process moves itself by `tasks`; on v2 one is born in a cgroup (clone(2), `CLONE_INTO_CGROUP`).
//! It has to be the init for which that is done, before it has namespaces of its own, and
//! libcontainer has no place for it. Hence this: its main and its intermediate process once more, around
//! the init that it has (`container_init_process`), as far as most containers need them.
//!
//! ```text
//! helper: makes the cgroup, and sets its limits
//!    │
//!    ├── clone ──────────────────────────────► init, in a new pid namespace
//!    └── clone ──► intermediate ── clone ────► init, where there is a user namespace or a pid namespace to be joined
//! ```

mod intermediate;
mod place;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::{ErrInvalidSpec, LibcontainerError};
use libcontainer::hooks::run_hooks;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifyListener};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::{self, ChannelError, InitReceiver, MainSender};
use libcontainer::process::container_main_process::ProcessError;
use libcontainer::process::init::container_init_process;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::user_ns::UserNamespaceConfig;
use libcontainer::validator::Validator;
use libcontainer::{apparmor, seccomp, tty, utils};
use nix::sys::prctl;
use nix::unistd::Uid;
use oci_spec::runtime::{LinuxCpu, LinuxResources, Mount, Spec};

use self::intermediate::{born_into, intermediate_process, prepare};
use self::place::{Birth, Place};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::explain::explain;
use crate::init::Init;
use crate::zygote::Create;
use crate::{message, sys};

type Result<T> = std::result::Result<T, LibcontainerError>;

/// Whether the init has come into its cgroup, and why not.
type Entered = std::result::Result<(), String>;

/// What an intermediate process or an init exits with that could not do its work; the helper has been told why.
const FAILED: i32 = 255;

/// Whether [`build`] can build the container that `request` asks for; otherwise libcontainer's own builder does. That is so
/// where systemd makes the cgroup, and for what few ask for and the main process has to do.
pub(crate) fn can_build(bundle: &Bundle, request: &Create) -> bool {
    let spec = &bundle.spec;
    let Some(linux) = spec.linux() else {
        return false;
    };
    let maps_ids = |mount: &Mount| mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    let listens = linux.seccomp().as_ref().is_some_and(seccomp::is_notify);
    let moves_devices = linux
        .net_devices()
        .iter()
        .any(|devices| !devices.is_empty());
    let shifts_time = linux
        .time_offsets()
        .iter()
        .any(|offsets| !offsets.is_empty());
    !listens
        && !moves_devices
        && !shifts_time
        && linux.intel_rdt().is_none()
        && !spec.mounts().iter().flatten().any(maps_ids)
        && !request.by_systemd()
}

/// Builds the container that `request` asks for up to where it is "created". Its process runs `init`, and has `streams`
/// (stdin, stdout, stderr) or a terminal, whose master goes to the socket `console`. Where the spec has hooks, `mounted` is called with
/// the process's pid when that has its mounts and is still outside of them; `entered` in any case as soon as it is inside. Returns
/// the pid.
///
/// # Errors
/// Why there is none; then nothing is left of it.
pub(crate) fn build(
    bundle: &Bundle,
    request: &Create,
    init: Init,
    console: Option<&Path>,
    streams: &[OwnedFd],
    mounted: impl FnOnce(i32) -> std::result::Result<(), String>,
    entered: impl FnOnce(),
) -> Result<i32> {
    let spec = &bundle.spec;
    validate(spec)?;
    let id = &request.target.id;
    let config = YoukiConfig::from_spec(spec, id)?;
    let folder = request.target.root.join(id);
    if folder.exists() {
        return Err(LibcontainerError::Exist);
    }
    fs::create_dir_all(&folder).map_err(LibcontainerError::OtherIO)?;
    let cgroup = Cgroup::of_spec(spec, id, request.systemd_cgroup).map_err(other);
    let built = cgroup.and_then(|cgroup| {
        let build = || -> Result<i32> {
            config.save(&folder)?;
            let mut container = Container::new(
                id,
                ContainerStatus::Creating,
                None,
                &request.bundle,
                &folder,
            )?;
            container.set_annotations(spec.annotations().clone());
            container.save()?;
            let console = console
                .map(|socket| tty::setup_console_socket(&folder, socket, "console-socket"))
                .transpose()?;
            let mut for_init = spec.clone();
            let init = init.take_over(&mut for_init);
            let stream = |number: usize| streams.get(number).map(OwnedFd::as_raw_fd);
            let args = ContainerArgs {
                container_type: ContainerType::InitContainer,
                syscall: SyscallType::default(),
                spec: Rc::new(for_init),
                rootfs: fs::canonicalize(&bundle.rootfs).map_err(LibcontainerError::OtherIO)?,
                console_socket: console.as_ref().map(AsRawFd::as_raw_fd),
                notify_listener: NotifyListener::new(&folder.join(NOTIFY_FILE))?,
                preserve_fds: 0,
                container: Some(container.clone()),
                user_ns_config: UserNamespaceConfig::new(spec)?,
                cgroup_config: CgroupConfig {
                    cgroup_path: config.cgroup_path.clone(),
                    systemd_cgroup: false,
                    container_name: id.clone(),
                },
                detached: true,
                executor: Box::new(init.clone()),
                no_pivot: request.no_pivot_root,
                stdin: stream(0),
                stdout: stream(1),
                stderr: stream(2),
                as_sibling: true,
                pid_file: None,
            };
            let keyring = request.keyring.as_deref();
            let pid = main_process(&args, &container, &cgroup, keyring, &init, mounted, entered)?;
            container
                .set_status(ContainerStatus::Created)
                .set_creator(Uid::effective().as_raw())
                .set_pid(pid)
                .save()?;
            Ok(pid)
        };
        build().inspect_err(|_| {
            if let Err(leftover) = cgroup.remove() {
                log::warn!("{leftover}");
            }
        })
    });
    built.inspect_err(|_| {
        if let Err(error) = fs::remove_dir_all(&folder) {
            log::warn!("removing {}: {error}", folder.display());
        }
    })
}

/// What libcontainer's builder looks at before it begins.
fn validate(spec: &Spec) -> Result<()> {
    if !spec.version().starts_with("1.") {
        return Err(ErrInvalidSpec::UnsupportedVersion.into());
    }
    Validator::validate_spec(spec)?;
    let process = spec.process().as_ref();
    if process.is_some_and(|process| process.apparmor_profile().is_some())
        && !apparmor::is_enabled().map_err(LibcontainerError::OtherIO)?
    {
        return Err(ErrInvalidSpec::AppArmorNotEnabled.into());
    }
    if let Some(mounts) = spec.mounts() {
        utils::validate_mount_options(mounts)?;
    }
    Ok(())
}

/// Has the init born and sees it through to where it waits for its start. Returns its pid.
fn main_process(
    args: &ContainerArgs,
    container: &Container,
    cgroup: &Cgroup,
    keyring: Option<&str>,
    init: &Init,
    mounted: impl FnOnce(i32) -> std::result::Result<(), String>,
    entered: impl FnOnce(),
) -> Result<i32> {
    let spec = &args.spec;
    cgroup.make().map_err(other)?;
    let (limits, time) = limits(spec);
    // What the init is charged for begins with its limits.
    cgroup.limit(&limits).map_err(other)?;
    let place = Place::of(cgroup).map_err(other)?;
    let (mut inside, pipe) = io::pipe().map_err(LibcontainerError::OtherIO)?;
    init.until_inside(pipe);
    let (mut to_main, mut from_init) = channel::main_channel().map_err(channel_failed)?;
    let (mut to_init, mut from_main) = channel::init_channel().map_err(channel_failed)?;
    let mut be_init = |entered: Entered| {
        let _ = from_init.close();
        let _ = to_init.close();
        init_process(args, entered, &mut to_main, &mut from_main)
    };
    let pid = match born_into(spec) {
        Some(namespaces) => match place.clone_into(namespaces).map_err(other)? {
            Birth::Own(entered) => {
                sys::exit_now(be_init(entered.and_then(|()| prepare(spec, keyring))))
            }
            Birth::Of(pid) => pid,
        },
        None => through_intermediate(spec, place, keyring, be_init)?,
    };
    init.leave();
    to_main.close().map_err(channel_failed)?;
    from_main.close().map_err(channel_failed)?;

    if let Some(hooks) = spec.hooks() {
        from_init.wait_for_hook_request().map_err(channel_failed)?;
        // Before the hooks, which are to find all mounts.
        mounted(pid).map_err(other)?;
        let its_pid = container.clone().set_pid(pid).pid();
        for (name, hooks) in [
            ("prestart", hooks.prestart()),
            ("createRuntime", hooks.create_runtime()),
        ] {
            run_hooks(hooks.as_ref(), Some(&container.state), None, its_pid, None)
                .map_err(|error| other(format!("a {name} hook failed: {error}")))?;
        }
        to_init.hook_done().map_err(channel_failed)?;
    }
    to_init.close().map_err(channel_failed)?;
    // Nothing is ever written: the end comes when the init is inside, or has died.
    let _ = inside.read(&mut [0]);
    entered();
    from_init.wait_for_init_ready().map_err(channel_failed)?;
    cgroup.update(&time, None).map_err(other)?;
    Ok(pid)
}

/// Has the init born by an intermediate process. The init calls `be_init`, and ends with what that returns. Returns the init's pid.
fn through_intermediate(
    spec: &Spec,
    place: Place,
    keyring: Option<&str>,
    be_init: impl FnOnce(Entered) -> i32,
) -> Result<i32> {
    let (ours, theirs) = message::pair().map_err(LibcontainerError::OtherIO)?;
    if sys::clone_sibling()
        .map_err(LibcontainerError::OtherIO)?
        .is_none()
    {
        drop(ours);
        let born = match intermediate_process(spec, place, keyring) {
            Ok(Birth::Own(entered)) => {
                // Its end is to tell of the process that uses it.
                drop(theirs);
                sys::exit_now(be_init(entered))
            }
            Ok(Birth::Of(pid)) => Ok(pid),
            Err(reason) => Err(reason),
        };
        // The helper sees the end of the socket at worst.
        let _ = message::send(&theirs, &born, &[]);
        sys::exit_now(born.map_or(FAILED, |_| 0));
    }
    drop((theirs, place));
    let born = message::receive(&ours).map_err(LibcontainerError::OtherIO)?;
    let (born, _): (std::result::Result<i32, String>, _) =
        born.ok_or_else(|| other("the process that was to clone the container's init died"))?;
    born.map_err(other)
}

/// The limits that the container's init is to begin with, and those of the processor's time for when it has come to where it waits
/// for its start: on its way there it runs nothing of the container's, and with a hundredth of a processor that takes
/// half a second.
fn limits(spec: &Spec) -> (LinuxResources, LinuxResources) {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().clone());
    let (mut limits, mut time) = (resources.unwrap_or_default(), LinuxResources::default());
    if let Some(mut cpu) = limits.cpu().clone() {
        let mut later = LinuxCpu::default();
        later
            .set_quota(cpu.quota())
            .set_period(cpu.period())
            .set_burst(cpu.burst());
        cpu.set_quota(None).set_period(None).set_burst(None);
        limits.set_cpu(Some(cpu));
        time.set_cpu(Some(later));
    }
    (limits, time)
}

/// Is libcontainer's init, which becomes the container's program. Where it does not, or has not `entered` the cgroup, the helper is
/// told why. Returns what it ends with.
fn init_process(
    args: &ContainerArgs,
    entered: Entered,
    to_main: &mut MainSender,
    from_main: &mut InitReceiver,
) -> i32 {
    let _ = prctl::set_name(c"lighter-init");
    let lived = entered.and_then(|()| {
        container_init_process(args, to_main, from_main).map_err(|error| explain(&error, None))
    });
    let reason = lived
        .err()
        .unwrap_or_else(|| "it has ended before its program".to_owned());
    let _ = to_main.exec_failed(reason);
    FAILED
}

fn channel_failed(error: ChannelError) -> LibcontainerError {
    ProcessError::from(error).into()
}

fn other(error: impl ToString) -> LibcontainerError {
    LibcontainerError::Other(error.to_string())
}
