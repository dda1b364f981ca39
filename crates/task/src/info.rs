//! The flags `-v` and `-info`.

use std::io::{self, Read, Write};

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{Message, MessageField};
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::RUNTIME;
use crate::settings::Options;

/// The shim's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the shim was built from, if whoever built it said so (`LIGHTER_REVISION`).
const REVISION: &str = match option_env!("LIGHTER_REVISION") {
    Some(revision) => revision,
    None => "",
};

/// The type of the OCI's "features" structure, as containerd registers it for JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The most that is read of what containerd sends on stdin, in bytes.
const MAX_INPUT: u64 = 10 << 20;

/// Prints name, version and revision for people, as the runc shim does.
///
/// # Errors
/// write(2)'s.
pub fn print_version() -> io::Result<()> {
    writeln!(
        io::stdout(),
        "containerd-shim-wasmtime-v1:\n  Version:  {VERSION}\n  Revision: {REVISION}\n  Runtime:  {RUNTIME}"
    )
}

/// Prints a `RuntimeInfo` message for containerd 2, which asks for it with `-info` and sends the
/// runtime options on stdin, if there are any.
///
/// # Errors
/// write(2)'s; and options that cannot be used, as containers could not be created with them.
pub fn print_info() -> io::Result<()> {
    let mut input = Vec::new();
    io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
    let options = match &*input {
        [] => None,
        input => Some(Any::parse_from_bytes(input).map_err(io::Error::other)?),
    };
    Options::of(options.as_ref(), None).map_err(io::Error::other)?;
    let features = Any {
        type_url: FEATURES.to_owned(),
        value: serde_json::to_vec(&container::features())?,
        ..Any::default()
    };
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
            ..RuntimeVersion::default()
        }),
        options: MessageField(options.map(Box::new)),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.write_to_bytes().map_err(io::Error::other)?)
}
