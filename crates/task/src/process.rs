//! What an init and a process that was added have in common.

use std::time::{SystemTime, UNIX_EPOCH};

use container::{Process, Stdio};
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

use crate::error::Error;
use crate::settings::Options;

/// Sends the signal numbered `number` to `process`.
///
/// # Errors
/// When it has ended, or there is no such signal.
pub fn signal(process: &Process, number: u32) -> Result<(), Error> {
    let Err(error) = process.signal(number as i32) else {
        return Ok(());
    };
    Err(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ESRCH) => Error::NotFound("process already finished".into()),
        Some(Errno::EINVAL) => Error::InvalidArgument(format!("there is no signal {number}")),
        _ => Error::Unknown(format!("unknown error after kill: {error}")),
    })
}

/// Sets the size of a process's terminal, if it has one.
///
/// # Errors
/// When the terminal refuses.
pub fn resize(stdio: &Stdio, rows: u32, columns: u32) -> Result<(), Error> {
    // The kernel's numbers are shorter than the message's; the runc shim cuts them too.
    stdio
        .resize(rows as u16, columns as u16)
        .map_err(|error| Error::Unknown(format!("resizing the terminal: {error}")))
}

/// A time in containerd's messages.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Timestamp::default()
    }
}

/// The owner of the pipes to a process: as the options say, or its `user` on the host.
pub fn stream_owner(options: &Options, user: (Uid, Gid)) -> (Uid, Gid) {
    let (uid, gid) = user;
    (
        if options.io_uid == 0 {
            uid
        } else {
            Uid::from_raw(options.io_uid)
        },
        if options.io_gid == 0 {
            gid
        } else {
            Gid::from_raw(options.io_gid)
        },
    )
}

/// Says in the log that the process `id` goes without capabilities by these names.
pub fn warn_of_capabilities(id: &str, unknown: &[String]) {
    if !unknown.is_empty() {
        log::warn!("{id}: there are no capabilities {unknown:?}; it runs without them");
    }
}
