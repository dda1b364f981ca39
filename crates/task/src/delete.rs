//! The action `delete`: frees what a container left of which containerd has lost the daemon.
//!
//! containerd calls it whenever a connection to a daemon has ended, also after a delete that was in
//! order. A daemon that is there may have others' containers, or this one, if containerd has given it
//! up; then the daemon frees it.

use std::fmt::Arguments;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use container::{Orphan, Target};
use containerd_shim::Flags;
use containerd_shim::api::{DeleteRequest, DeleteResponse, KillRequest, WaitRequest};
use containerd_shim::protos::protobuf::{Message, MessageField};
use containerd_shim::protos::shim_async::{Client, TaskClient};
use containerd_shim::protos::ttrpc::{self, context};
use nix::sys::signal::Signal;

use crate::group::{Group, GroupBy};
use crate::memo::Memo;
use crate::process::timestamp;
use crate::socket::{self, socket_path};
use crate::start::ADDRESS_FILE;

/// The exit status of a container whose end nobody saw: that of SIGKILL, as in the runc shim.
const KILLED: u32 = 128 + 9;

/// How long a daemon may take to free a container; containerd gives all of this five seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the socket of a daemon that was killed may go on taking connections, and how often that is
/// looked at.
const FALL: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Frees what the container of `flags` left, and prints how it ended as a `DeleteResponse`.
///
/// # Errors
/// Only when the answer cannot be printed; what cannot be freed is told on stderr, which
/// containerd logs.
pub fn delete(flags: &Flags) -> io::Result<()> {
    let bundle = bundle_path(flags)?;
    let memo = Memo::read(&bundle);
    let is_begun = memo.is_some();
    // Also a sandbox has a bundle, into which something may be about to be mounted.
    let memo = memo.unwrap_or_else(|| Memo::unknown(&bundle));
    let mut freed = None;
    let mut falling_silent = Vec::new();
    for socket in sockets(flags, &bundle) {
        // Who has freed everything and lives needs not be asked, and removes its socket when it ends.
        if remove_dead(&socket) || memo.freed {
            continue;
        }
        match have_freed(&socket, &flags.id) {
            Answer::Freed(response) => freed = Some(response),
            Answer::Refused => {}
            Answer::Nothing => falling_silent.push(socket),
        }
    }
    if !memo.freed {
        let orphan = Orphan {
            target: Target {
                id: flags.id.clone(),
                root: memo.root,
            },
            bundle: bundle.clone(),
            systemd_cgroup: memo.systemd_cgroup,
            is_begun,
        };
        if let Err(error) = container::delete_orphan(&orphan) {
            say(format_args!("freeing container {}: {error}", flags.id));
        }
    }
    // The kernel closes what a killed daemon had open one after the other.
    let until = Instant::now() + FALL;
    loop {
        falling_silent.retain(|socket| !remove_dead(socket));
        if falling_silent.is_empty() || Instant::now() > until {
            break;
        }
        sleep(PAUSE);
    }
    let response = freed.unwrap_or_else(|| DeleteResponse {
        pid: memo.pid,
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    });
    let bytes = response.write_to_bytes().map_err(io::Error::other)?;
    io::stdout().write_all(&bytes)
}

/// The bundle: as the flag says, or beside the one that containerd calls from.
fn bundle_path(flags: &Flags) -> io::Result<PathBuf> {
    if !flags.bundle.is_empty() {
        return fs::canonicalize(Path::new(&flags.bundle)).or_else(|_| Ok((&flags.bundle).into()));
    }
    let here = std::env::current_dir()?;
    Ok(here.parent().unwrap_or(&here).join(&flags.id))
}

/// Where the daemon that served `bundle` may have left its socket: as noted there, and as containerd
/// names it (`SocketAddress` in its pkg/shim), since a daemon may be killed before anything is
/// noted, and containerd may remove a bundle before it asks for this. Nobody tells how its containers
/// are grouped here.
fn sockets(flags: &Flags, bundle: &Path) -> Vec<String> {
    let noted = fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    let groups = [
        Group::of(&flags.id, bundle, GroupBy::Container).ok(),
        Some(Group::namespace()),
    ];
    let named = groups.into_iter().flatten().map(|group| {
        containerd_shim::socket_address(&flags.address, &flags.namespace, &group.name)
    });
    let mut all: Vec<String> = noted.into_iter().collect();
    for socket in named {
        if !all.contains(&socket) {
            all.push(socket);
        }
    }
    all
}

/// Tells containerd, which has it in its log; it may be gone.
fn say(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Removes `socket` if nobody listens there any more; whether it is gone, or cannot be removed.
fn remove_dead(socket: &str) -> bool {
    match socket::remove_dead(socket_path(socket)) {
        Ok(lives) => !lives,
        Err(error) => {
            say(format_args!("removing {socket}: {error}"));
            true
        }
    }
}

/// What a daemon says when it is to free a container.
enum Answer {
    /// That it has, and how that ended.
    Freed(DeleteResponse),
    /// That it has no such container, mostly.
    Refused,
    /// It says nothing: it is about to end, or hangs.
    Nothing,
}

/// Has the daemon at `socket` free the container `id`, if it has that.
fn have_freed(socket: &str, id: &str) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(format_args!("asking the daemon at {socket}: {error}"));
            return Answer::Nothing;
        }
    };
    let freed = async {
        let tasks = TaskClient::new(Client::connect(socket).await?);
        let deadline = || context::with_duration(PATIENCE);
        let mut kill = KillRequest::new();
        kill.set_id(id.to_owned());
        kill.set_signal(Signal::SIGKILL as u32);
        kill.set_all(true);
        tasks.kill(deadline(), &kill).await?;
        let mut wait = WaitRequest::new();
        wait.set_id(id.to_owned());
        tasks.wait(deadline(), &wait).await?;
        let mut delete = DeleteRequest::new();
        delete.set_id(id.to_owned());
        tasks.delete(deadline(), &delete).await
    };
    let freed = async { tokio::time::timeout(PATIENCE, freed).await };
    match runtime.block_on(freed) {
        Ok(Ok(response)) => Answer::Freed(response),
        Ok(Err(ttrpc::Error::RpcStatus(_))) => Answer::Refused,
        Ok(Err(_)) | Err(_) => Answer::Nothing,
    }
}
