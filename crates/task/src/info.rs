//! The flags `-v` and `-info`.

use std::io::{self, Write};

use containerd_shim::protos::protobuf::{Message, MessageField};
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::RUNTIME;

/// The shim's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints name and version for people, as the runc shim does.
///
/// # Errors
/// write(2)'s.
pub fn print_version() -> io::Result<()> {
    writeln!(
        io::stdout(),
        "containerd-shim-wasmtime-v1:\n  Version:  {VERSION}\n  Runtime:  {RUNTIME}"
    )
}

/// Prints a `RuntimeInfo` message for containerd, which asks for it with `-info`.
///
/// # Errors
/// write(2)'s.
pub fn print_info() -> io::Result<()> {
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.write_to_bytes().map_err(io::Error::other)?)
}
