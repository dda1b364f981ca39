//! What can be set, and what is not set but limited.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::guest::Invocation;

/// Where a server listens unless its environment says otherwise.
const DEFAULT_PORT: u16 = 8080;

/// How many connections the kernel keeps that have not been accepted yet.
const DEFAULT_BACKLOG: u32 = 1024;

/// The most connections at a time; the next gets 503 and is closed.
pub(super) const MAX_CONNECTIONS: usize = 4096;

/// How long a guest may take from a request to its response's headers, and once more for what it
/// does after its response.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(60);

/// How long an instance waits for its next request.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(1);

/// How many requests an instance of WASI 0.3 gets, and how many of these at a time. One of WASI 0.2
/// gets one.
pub(super) const REUSE: usize = 128;
pub(super) const REUSE_AT_A_TIME: usize = 16;

/// The largest body of a request, in bytes.
pub(super) const MAX_BODY: u64 = 1 << 30;

/// The most that a request's line and headers may take, in bytes, and how long their client.
pub(super) const MAX_HEADERS: usize = 64 << 10;
pub(super) const HEADER_TIME: Duration = Duration::from_secs(30);

/// The most memory of an instance, in bytes.
pub(super) const MAX_MEMORY: usize = 1 << 30;

/// How often guests that compute are asked whether their time is over.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// What the container's environment says of its server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Where to listen.
    pub(super) address: SocketAddr,
    /// listen(2)'s backlog.
    pub(super) backlog: u32,
}

impl Settings {
    /// Reads `WASMTIME_HTTP_PROXY_SOCKET_ADDR` and `WASMTIME_HTTP_BACKLOG`, the variables of
    /// images made for older shims, and `PORT`.
    ///
    /// # Errors
    /// A sentence that names the variable and its value.
    pub(super) fn of(invocation: &Invocation) -> Result<Self, String> {
        let variable = |name: &str| {
            let value = |entry: &'_ String| {
                let value = entry.strip_prefix(name)?.strip_prefix('=')?;
                (!value.is_empty()).then(|| value.to_owned())
            };
            invocation.env.iter().find_map(value)
        };
        let wrong = |name: &str, value: &str, wanted: &str| {
            format!("the environment variable {name} is {value:?}; it must be {wanted}")
        };
        const ADDRESS: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";
        const BACKLOG: &str = "WASMTIME_HTTP_BACKLOG";
        let address = if let Some(value) = variable(ADDRESS) {
            value.parse().map_err(|_| {
                wrong(
                    ADDRESS,
                    &value,
                    "an IP address and a port, such as 0.0.0.0:8080 or [::]:8080",
                )
            })?
        } else {
            let port = match variable("PORT") {
                None => DEFAULT_PORT,
                Some(value) => match value.parse() {
                    Ok(port) if port > 0 => port,
                    _ => return Err(wrong("PORT", &value, "a port, a number from 1 to 65535")),
                },
            };
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
        };
        let backlog = match variable(BACKLOG) {
            None => DEFAULT_BACKLOG,
            Some(value) => match value.parse() {
                Ok(backlog) if (1..=i32::MAX as u32).contains(&backlog) => backlog,
                _ => {
                    return Err(wrong(
                        BACKLOG,
                        &value,
                        "a number of connections, at least 1",
                    ));
                }
            },
        };
        Ok(Self { address, backlog })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &[&str]) -> Result<Settings, String> {
        Settings::of(&Invocation {
            env: env.iter().map(|&entry| entry.to_owned()).collect(),
            ..Invocation::default()
        })
    }

    #[test]
    fn a_server_listens_where_its_environment_says() {
        let address = |env: &[&str]| of(env).unwrap().address.to_string();
        assert_eq!(address(&[]), "0.0.0.0:8080");
        assert_eq!(address(&["PORT="]), "0.0.0.0:8080");
        assert_eq!(address(&["PORT=81"]), "0.0.0.0:81");
        let older = "WASMTIME_HTTP_PROXY_SOCKET_ADDR=[::1]:82";
        assert_eq!(address(&["PORT=81", older]), "[::1]:82");
        assert_eq!(of(&["WASMTIME_HTTP_BACKLOG=7"]).unwrap().backlog, 7);
    }

    #[test]
    fn a_bad_value_is_named() {
        for entry in [
            "PORT=http",
            "PORT=0",
            "PORT=65536",
            "WASMTIME_HTTP_PROXY_SOCKET_ADDR=localhost:80",
            "WASMTIME_HTTP_BACKLOG=-1",
            "WASMTIME_HTTP_BACKLOG=0",
        ] {
            let reason = of(&[entry]).unwrap_err();
            let (name, value) = entry.split_once('=').unwrap();
            assert!(reason.contains(name) && reason.contains(value), "{reason}");
        }
    }
}
