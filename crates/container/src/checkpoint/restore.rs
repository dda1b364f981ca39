//! Images to a container that stands still until it is started.

use std::convert::Infallible;
use std::fs::{self, File, Permissions};
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::hooks::run_hooks;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Spec};
use pathrs::{InodeType, Root};
use rustix::event::{PollFd, PollFlags, poll};

use super::criu::Criu;
use super::{MountLine, Notes, Restore, cgroups_of, owner, shared_namespaces};
use crate::bundle::Bundle;
use crate::cgroup::{self, Cgroup};
use crate::mounts::is_bind;
use crate::sys;
use crate::zygote::Create;

/// The lowest descriptor that criu inherits for a container: those below may be its own.
const FIRST_INHERITED: RawFd = 20;

/// How long a restored process may take to stand still, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// Restores the container of `bundle`, which `request` asks for; its root file system is there and its
/// configuration adapted. Its processes are stopped, as by SIGSTOP, and the first is a child of this
/// process's parent, with `streams` in the place of those it had. Returns its pid.
///
/// # Errors
/// What was tried, and why it failed. What has been made is freed by the container's delete.
pub(crate) fn restore(
    request: &Create,
    from: &Restore,
    bundle: &Bundle,
    streams: &[OwnedFd],
) -> Result<i32, String> {
    let notes = Notes::read(&from.images)?;
    let target = &request.target;
    let folder = target.root.join(&target.id);
    fs::create_dir_all(&folder)
        .map_err(|error| format!("making the folder {}: {error}", folder.display()))?;
    let state = |status, pid| {
        let container = Container::new(&target.id, status, pid, &request.bundle, &folder);
        let mut container = container.map_err(|error| error.to_string())?;
        container.set_systemd(request.by_systemd());
        container.save().map_err(|error| error.to_string())?;
        Ok::<_, String>(container)
    };
    state(ContainerStatus::Creating, None)?;
    let config = YoukiConfig::from_spec(&bundle.spec, &target.id).map_err(|e| e.to_string())?;
    config.save(&folder).map_err(|error| error.to_string())?;
    make_mount_points(bundle)?;

    let mut criu = Criu::new(
        "restore",
        &from.images,
        from.work.as_deref(),
        &request.bundle,
    )?;
    let pid_file = criu.work().join("restored.pid");
    // A folder of the caller's may have been used before.
    let _ = fs::remove_file(&pid_file);
    criu.value("--root", &bundle.rootfs)
        .option("--restore-detached")
        .option("--restore-sibling")
        .option("--leave-stopped")
        .value("--pidfile", &pid_file)
        .option("--manage-cgroups=soft");
    let mut inherited = Inherited::default();
    inherited.streams(&mut criu, &notes, streams)?;
    inherited.namespaces(&mut criu, &bundle.spec)?;
    let launch = |criu: &mut Criu| -> Result<Infallible, String> {
        // It must not outlive the daemon, which is its parent.
        set_pdeathsig(Signal::SIGKILL).map_err(|error| error.to_string())?;
        join(&bundle.spec, &config.cgroup_path, request)?;
        place(criu)?;
        mounts(criu, bundle, &notes)?;
        inherited.open()?;
        let error = criu.command().exec();
        Err(format!("criu cannot be run: {error}"))
    };
    run(&mut criu, launch)?;
    let Some(pid) = stopped(&pid_file) else {
        return Err(format!(
            "criu failed to restore the container: {}",
            criu.failure(&request.bundle)
        ));
    };
    let container = state(ContainerStatus::Created, Some(pid))?;
    let hooks = bundle.spec.hooks().as_ref();
    for hooks in [
        hooks.and_then(|hooks| hooks.prestart().as_ref()),
        hooks.and_then(|hooks| hooks.create_runtime().as_ref()),
    ] {
        run_hooks(hooks, Some(&container.state), None, container.pid(), None)
            .map_err(|error| format!("a hook failed: {error}"))?;
    }
    Ok(pid)
}

/// Runs `launch` in a child of this process's parent, and waits until that has ended. What it
/// restores becomes the parent's child, too.
fn run(
    criu: &mut Criu,
    launch: impl FnOnce(&mut Criu) -> Result<Infallible, String>,
) -> Result<(), String> {
    let (mut trouble, theirs) = io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
    match sys::clone_sibling().map_err(|error| format!("cloning a process for criu: {error}"))? {
        None => {
            drop(trouble);
            let Err(reason) = launch(criu);
            tell(theirs, &reason);
            sys::exit_now(1)
        }
        Some((_, process)) => {
            drop(theirs);
            let mut reason = String::new();
            trouble
                .read_to_string(&mut reason)
                .map_err(|error| format!("reading from criu's process: {error}"))?;
            // As a child of another it can be waited for by its descriptor alone.
            let ended = &mut [PollFd::new(&process, PollFlags::IN)];
            while let Err(error) = poll(ended, None) {
                if error != rustix::io::Errno::INTR {
                    return Err(format!("waiting for criu: {error}"));
                }
            }
            match reason.is_empty() {
                true => Ok(()),
                false => Err(reason),
            }
        }
    }
}

fn tell(mut to: PipeWriter, reason: &str) {
    if let Err(error) = to.write_all(reason.as_bytes()) {
        log::error!("nobody hears that {reason}: {error}");
    }
}

/// The pid in `file`, if criu has restored a process and left it stopped, for which it may take
/// [`PATIENCE`]: criu sends the signal, lets go of the process, and ends, perhaps before the process
/// has run into it.
fn stopped(file: &Path) -> Option<i32> {
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may have any characters (proc_pid_stat(5)).
        let (_, rest) = stat.rsplit_once(") ")?;
        match rest.chars().next()? {
            'T' => return Some(pid),
            'Z' | 'X' => return None,
            _ if Instant::now() > until => return None,
            // Only its parent, which this process is not, could wait for the stop itself.
            _ => thread::sleep(PAUSE),
        }
    }
}

/// Makes what the mounts of the container are mounted on, where its image lacks it. What lies on
/// another mount comes with that.
fn make_mount_points(bundle: &Bundle) -> Result<(), String> {
    let root = Root::open(&bundle.rootfs).map_err(|error| error.to_string())?;
    let mounts = bundle.spec.mounts().iter().flatten();
    for mount in mounts {
        let point = mount.destination();
        let above = point.parent().and_then(|above| owner(&bundle.spec, above));
        if above.is_some() || root.resolve(point).is_ok() {
            continue;
        }
        let source = mount.source().as_ref().map(|path| bundle.path.join(path));
        let is_file = is_bind(mount) && source.is_some_and(|source| !source.is_dir());
        let folder = if is_file {
            point.parent()
        } else {
            Some(point.as_path())
        };
        let made = root
            .mkdir_all(folder.unwrap_or(point), &Permissions::from_mode(0o755))
            .and_then(|_| match is_file {
                true => root.create(point, &InodeType::File(Permissions::from_mode(0o644))),
                false => Ok(()),
            });
        made.map_err(|error| format!("making the mount point {}: {error}", point.display()))?;
    }
    Ok(())
}

/// Moves this process into the container's cgroup, which gets the limits of `spec`.
fn join(spec: &Spec, path: &Path, request: &Create) -> Result<(), String> {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    if request.by_systemd() {
        return join_of_systemd(path, &request.target.id, resources)
            .map_err(|error| format!("making the container's cgroup: {error}"));
    }
    let join = || -> cgroup::Result<()> {
        let cgroup = Cgroup::at(path, request.systemd_cgroup)?;
        cgroup.make()?;
        if let Some(resources) = resources {
            cgroup.limit(resources)?;
        }
        cgroup.entry()?.enter()
    };
    join().map_err(|error| format!("making the container's cgroup: {error}"))
}

/// The same, where systemd makes the cgroup `path` for the container `id`.
fn join_of_systemd(
    path: &Path,
    id: &str,
    resources: Option<&LinuxResources>,
) -> Result<(), String> {
    let cgroup = create_cgroup_manager(CgroupConfig {
        cgroup_path: path.to_path_buf(),
        systemd_cgroup: true,
        container_name: id.to_owned(),
    })
    .map_err(|error| error.to_string())?;
    // A pid of the type that libcgroups takes, which is another release's.
    let this = Container::default().set_pid(Pid::this().as_raw()).pid();
    if let Some(this) = this {
        cgroup.add_task(this).map_err(|error| error.to_string())?;
    }
    if let Some(resources) = resources {
        let limits = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        cgroup.apply(&limits).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Has the container restored into the cgroups of this process.
fn place(criu: &mut Criu) -> Result<(), String> {
    for (controllers, path) in cgroups_of("self")? {
        if controllers.is_empty() {
            criu.value("--cgroup-root", &path);
        }
        for controller in controllers {
            criu.value("--cgroup-root", format!("{controller}:{}", path.display()));
        }
    }
    Ok(())
}

/// Says what is to be mounted where the container had something from outside.
fn mounts(criu: &mut Criu, bundle: &Bundle, notes: &Notes) -> Result<(), String> {
    for mount in &notes.mounts {
        let source = match &mount.hierarchy {
            Some(options) => hierarchy(options),
            None => bind_source(bundle, &mount.point),
        };
        let source = source.ok_or_else(|| {
            format!(
                "the checkpoint has something from outside mounted on {}, and the container's \
                 configuration has not",
                mount.point.display()
            )
        })?;
        criu.external(&format!("mnt[{}]", mount.point.display()), &source);
    }
    Ok(())
}

fn bind_source(bundle: &Bundle, point: &Path) -> Option<PathBuf> {
    let mount = owner(&bundle.spec, point).filter(|mount| is_bind(mount))?;
    let source = bundle.path.join(mount.source().as_ref()?);
    let below = point.strip_prefix(mount.destination()).ok()?;
    Some(match below.as_os_str().is_empty() {
        true => source,
        false => source.join(below),
    })
}

/// The folder of this process's cgroup in the v1 hierarchy with these mount options.
fn hierarchy(options: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts
        .lines()
        .filter_map(MountLine::parse)
        .find(|mount| mount.kind == "cgroup" && mount.options == options)?;
    let named = |controllers: &[String]| {
        let mut options = options.split(',');
        options.any(|option| controllers.iter().any(|name| name == option))
    };
    let cgroups = cgroups_of("self").ok()?;
    let (_, path) = cgroups.iter().find(|(controllers, _)| named(controllers))?;
    let below = path.strip_prefix(mount.root).ok()?;
    Some(mount.point.join(below))
}

/// Descriptors that criu inherits, each a number from [`FIRST_INHERITED`] on.
#[derive(Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Adds one, which takes the place of what `name` says. It is closed by an execve(2) until
    /// [`Inherited::open`].
    fn add(&mut self, criu: &mut Criu, fd: BorrowedFd<'_>, name: &str) -> Result<(), String> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, FIRST_INHERITED)
            .map_err(|error| format!("duplicating a descriptor: {error}"))?;
        criu.value("--inherit-fd", format!("fd[{}]:{name}", fd.as_raw_fd()));
        self.0.push(fd);
        Ok(())
    }

    /// The new streams, for the pipes that were the old ones.
    fn streams(
        &mut self,
        criu: &mut Criu,
        notes: &Notes,
        streams: &[OwnedFd],
    ) -> Result<(), String> {
        let mut known: Vec<&str> = Vec::new();
        for (old, new) in notes.streams.iter().zip(streams) {
            // Two may have been one; others than pipes were the container's own.
            if old.starts_with("pipe:") && !known.contains(&old.as_str()) {
                self.add(criu, new.as_fd(), old)?;
                known.push(old);
            }
        }
        Ok(())
    }

    /// The namespaces that the container shares.
    fn namespaces(&mut self, criu: &mut Criu, spec: &Spec) -> Result<(), String> {
        for (_, name, path) in shared_namespaces(spec) {
            let namespace = File::open(&path)
                .map_err(|error| format!("opening {}: {error}", path.display()))?;
            self.add(criu, namespace.as_fd(), name)?;
        }
        Ok(())
    }

    /// Has an execve(2) leave them open.
    fn open(&self) -> Result<(), String> {
        for fd in &self.0 {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|error| format!("leaving a descriptor open: {error}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::kill;

    use super::*;

    #[test]
    fn a_process_that_is_about_to_stop_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        fs::write(file.path(), pid.to_string()).unwrap();
        let (begun, stop) = io::pipe().unwrap();
        let found = thread::scope(|scope| {
            let found = scope.spawn(move || {
                drop(stop);
                stopped(file.path())
            });
            let mut begun = begun;
            begun.read_to_end(&mut Vec::new()).unwrap();
            // Long enough for a look at the process while it runs.
            thread::sleep(PAUSE * 50);
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
            found.join().unwrap()
        });
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(found, Some(pid));
    }

    #[test]
    fn a_process_that_is_killed_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(file.path(), process.id().to_string()).unwrap();
        process.kill().unwrap();
        assert_eq!(stopped(file.path()), None);
        process.wait().unwrap();
        assert_eq!(stopped(file.path()), None);
    }
}
