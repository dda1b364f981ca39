//! The action `start`: finds or spawns the daemon of a container's group and prints its address.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant};

use containerd_shim::bootstrap::BootstrapParams;
use containerd_shim::cgroup::set_cgroup_and_oom_score;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::{Flags, StartOpts};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setpgid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;

use crate::group::{Group, Kind};
use crate::serve::{arguments, serve};
use crate::settings::Options;
use crate::socket::{self, SocketFile, listen, socket_path};

/// The task service's name for containerd 2 and for the ones before.
pub(crate) const TASK_V3: &str = "containerd.task.v3.Task";
pub(crate) const TASK_V2: &str = "containerd.task.v2.Task";

/// The most that is read of what containerd sends on stdin, in bytes.
const MAX_INPUT: u64 = 10 << 20;

/// The file in the bundle where containerd 1.6 looks for the daemon's address.
pub(crate) const ADDRESS_FILE: &str = "address";

/// What `start` says to the daemon that it has spawned: first, one byte for the [`Kind`] of its group,
/// when it is in its cgroup, so that what it clones from then on is too.
pub(crate) fn placed(kind: Kind) -> [u8; 1] {
    [kind as u8]
}

/// Then, that containerd knows of it. One to which this is never said, as `start` was killed, would
/// be left alone for ever.
pub(crate) const WANTED: [u8; 1] = [2];

/// How long the daemon may take to begin, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// Finds or spawns the daemon for the bundle in the working directory, and prints its address:
/// a plain line, which every containerd since 1.6 takes for a ttrpc shim of task API version 2.
///
/// # Errors
/// What keeps a daemon from being there.
pub fn start(flags: &Flags) -> io::Result<()> {
    // It is the first to run of all that there is of the program, after a boot too.
    container::read_program_in_huge_pages();
    let (options, socket_options) = read_input(flags)?;
    let group = Group::of(&flags.id, Path::new(""), options.group_by)?;
    let address = socket_options.socket_address(&group.name);
    let found = find(&address)?;
    let spawned = match found {
        Some(listener) => Some(Spawned::new(flags, &group, listener, &options)?),
        None => None,
    };
    let mut stdout = io::stdout();
    stdout.write_all(address.as_bytes())?;
    stdout.flush()?;
    // From here on containerd knows of the daemon.
    match spawned {
        Some(spawned) => spawned.confirm(&options),
        None => Ok(()),
    }
}

/// Listens at `address`, unless a daemon does, and notes in the bundle that the container is sent
/// there: both at once, so that no daemon that was found ends before the container comes.
fn find(address: &str) -> io::Result<Option<UnixListener>> {
    let path = socket_path(address);
    let _place = socket::lock(path)?;
    let listener = listen(path)?;
    match fs::write(ADDRESS_FILE, address) {
        Ok(()) => Ok(listener),
        Err(error) => {
            if let Some(listener) = listener {
                SocketFile::of(&listener)?.remove_locked();
            }
            let text = format!("writing {ADDRESS_FILE} into the bundle: {error}");
            Err(io::Error::new(error.kind(), text))
        }
    }
}

/// Waits until the daemon has read what it was told, at most [`PATIENCE`].
///
/// # Errors
/// It has ended before.
fn wait_until_taken(told: &io::PipeWriter) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    while ioctl_fionread(told)? > 0 && Instant::now() < until {
        // What is waited for here is the end of its reader; the rest is looked at.
        let mut end = [PollFd::new(told, PollFlags::empty())];
        let pause = Timespec::try_from(PAUSE).map_err(io::Error::other)?;
        if poll(&mut end, Some(&pause))? > 0 && ioctl_fionread(told)? > 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    Ok(())
}

/// The runtime options, and what decides the socket's place: containerd 2.3 and later send a
/// message with everything, older ones the bare options.
fn read_input(flags: &Flags) -> io::Result<(Options, StartOpts)> {
    let mut input = Vec::new();
    io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
    let mut start = StartOpts {
        address: flags.address.clone(),
        namespace: flags.namespace.clone(),
        ..StartOpts::default()
    };
    let any = match BootstrapParams::parse_from_bytes(&input) {
        Ok(params) if !input.is_empty() && params.instance_id == flags.id => {
            start = params.into();
            start.extensions.first().cloned()
        }
        _ => Any::parse_from_bytes(&input).ok(),
    };
    let options = Options::of(any.as_ref(), None).map_err(io::Error::other)?;
    Ok((options, start))
}

/// The daemon that this `start` has spawned. It answers as soon as it is up; until then containerd's
/// connection waits in the socket.
struct Spawned {
    daemon: Pid,
    socket: SocketFile,
    /// Where it is told [`placed`] and [`WANTED`], which it reads on its stdout's descriptor.
    telling: io::PipeWriter,
}

impl Spawned {
    /// Forks the daemon of `group` with `listener` as its stdin, and places it in its cgroup. To execute
    /// the program once more for it would take about as long as all else that `start` does.
    fn new(
        flags: &Flags,
        group: &Group,
        listener: UnixListener,
        options: &Options,
    ) -> io::Result<Self> {
        let socket = SocketFile::of(&listener)?;
        // Whoever looks at the machine's processes is not to take it for one container's.
        let id = match group.kind {
            Kind::Namespace => &group.name,
            Kind::Container | Kind::Annotation => &flags.id,
        };
        let flags = Flags {
            debug: flags.debug,
            namespace: flags.namespace.clone(),
            id: id.clone(),
            address: flags.address.clone(),
            ..Flags::default()
        };
        ask_the_processor();
        let fork = || -> io::Result<(Pid, io::PipeWriter)> {
            let (told, telling) = io::pipe()?;
            match container::fork_single_threaded()? {
                Some(daemon) => Ok((daemon, telling)),
                None => {
                    drop(telling);
                    be_daemon(&flags, listener, told)
                }
            }
        };
        // Without a daemon nobody will ever serve this socket.
        let (daemon, telling) = fork().inspect_err(|_| socket.remove())?;
        let mut spawned = Self {
            daemon,
            socket,
            telling,
        };
        let placed = set_cgroup_and_oom_score(daemon.as_raw() as u32, &options.shim_cgroup)
            .map_err(io::Error::other)
            .and_then(|()| spawned.telling.write_all(&placed(group.kind)));
        match placed {
            Ok(()) => Ok(spawned),
            Err(error) => {
                // Without the cgroup it was to have, it is not to be.
                spawned.end();
                Err(io::Error::other(format!(
                    "placing the shim's daemon: {error}"
                )))
            }
        }
    }

    /// Tells the daemon that containerd knows of it.
    fn confirm(mut self, options: &Options) -> io::Result<()> {
        let told = self.telling.write_all(&WANTED);
        // One that is killed after it has read this is cleaned up after, by its zygote or by `delete`.
        // That it is killed earlier is likely only where its cgroup leaves it no room; elsewhere
        // nobody is kept waiting for it.
        let lives = match options.shim_cgroup.as_str() {
            "" => told,
            cgroup => told
                .and_then(|()| wait_until_taken(&self.telling))
                .map_err(|error| {
                    io::Error::other(format!(
                        "the shim's daemon has died in its cgroup {cgroup}, which may allow it too \
                         little: {error}"
                    ))
                }),
        };
        match lives {
            Ok(()) => Ok(()),
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Ends it with its zygote, which has nothing to clean up yet and may have too little memory even to
    /// end, and removes its socket whoever has that open still.
    fn end(self) {
        // Until it leads a group of its own there is no zygote.
        let _ = kill(self.daemon, Signal::SIGKILL);
        let _ = killpg(self.daemon, Signal::SIGKILL);
        let _ = waitpid(self.daemon, None);
        self.socket.remove();
    }
}

/// Has the standard library find out what the processor can, once for all that are cloned from this process. In a
/// virtual machine each question (CPUID) is an exit to the hypervisor, and several of them would ask.
fn ask_the_processor() {
    #[cfg(target_arch = "x86_64")]
    let _ = std::is_x86_feature_detected!("avx2");
}

/// Goes on as the daemon: with `listener` as stdin and `told` as stdout, away from the signals to
/// containerd's process group, and to others a process that is no `start`.
fn be_daemon(flags: &Flags, listener: UnixListener, told: io::PipeReader) -> ! {
    let arguments = arguments(flags);
    let prepare = || -> io::Result<()> {
        rustix::stdio::dup2_stdin(listener)?;
        rustix::stdio::dup2_stdout(told)?;
        rustix::stdio::dup2_stderr(File::options().write(true).open("/dev/null")?)?;
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        container::set_arguments(arguments.iter().map(String::as_str))
    };
    match prepare().and_then(|()| serve(flags, arguments)) {
        Ok(()) => exit(0),
        Err(error) => {
            log::error!("the shim's daemon ends: {error}");
            exit(1)
        }
    }
}
