//! The action `delete`: frees what a container left whose daemon is gone.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use container::{Orphan, Target};
use containerd_shim::Flags;
use containerd_shim::api::DeleteResponse;
use containerd_shim::protos::protobuf::{Message, MessageField};

use crate::memo::Memo;
use crate::process::timestamp;
use crate::socket::{self, socket_path};
use crate::start::{ADDRESS_FILE, group};

/// The exit status of a container whose end nobody saw: that of SIGKILL, as in the runc shim.
const KILLED: u32 = 128 + 9;

/// Frees what the container of `flags` left, and prints how it ended as a `DeleteResponse`.
///
/// # Errors
/// Only when the answer cannot be printed; what cannot be freed is told on stderr, which
/// containerd logs.
pub fn delete(flags: &Flags) -> io::Result<()> {
    let bundle = bundle_path(flags)?;
    let memo = Memo::read(&bundle);
    let orphan = Orphan {
        target: Target {
            id: flags.id.clone(),
            root: memo.root,
        },
        bundle: bundle.clone(),
        systemd_cgroup: memo.systemd_cgroup,
    };
    if let Err(error) = container::delete_orphan(&orphan) {
        eprintln!("freeing container {}: {error}", flags.id);
    }
    for socket in sockets(flags, &bundle) {
        if let Err(error) = socket::remove_dead(socket_path(&socket)) {
            eprintln!("removing {socket}: {error}");
        }
    }
    let response = DeleteResponse {
        pid: memo.pid,
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
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
/// noted, and containerd may remove a bundle before it asks for this.
fn sockets(flags: &Flags, bundle: &Path) -> Vec<String> {
    let named = group(&flags.id, bundle)
        .map(|group| containerd_shim::socket_address(&flags.address, &flags.namespace, &group));
    let noted = fs::read_to_string(bundle.join(ADDRESS_FILE));
    [named, noted].into_iter().flatten().collect()
}
