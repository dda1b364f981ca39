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
use crate::socket::{self, socket_path};
use crate::start::ADDRESS_FILE;
use crate::task::timestamp;

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
    remove_dead_socket(&bundle);
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

/// Removes the socket of the daemon that served `bundle`, if nobody listens on it any more.
fn remove_dead_socket(bundle: &Path) {
    let Ok(address) = fs::read_to_string(bundle.join(ADDRESS_FILE)) else {
        return;
    };
    if let Err(error) = socket::remove_dead(socket_path(&address)) {
        eprintln!("removing {address}: {error}");
    }
}
