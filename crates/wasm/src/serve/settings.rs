//! What a server's environment says of it, and what is not set but limited.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::guest::Invocation;

/// How long an instance waits for its next request.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(1);

/// The most requests that an instance of WASI 0.3 gets at a time. One of WASI 0.2 gets one.
pub(super) const REUSE_AT_A_TIME: usize = 16;

/// How many requests an instance of WASI 0.3 gets in all unless [`REUSE`] says otherwise.
const REUSE_OF_P3: usize = 128;

/// The most that a request's line and headers may take, in bytes, and how long their client.
pub(super) const MAX_HEADERS: usize = 64 << 10;
pub(super) const HEADER_TIME: Duration = Duration::from_secs(30);

/// How often guests that compute are asked whether their time is over.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The most requests that can be allowed at a time: instances have their places made beforehand.
pub(crate) const MOST_REQUESTS: u32 = 256;

// The variables; those of images that were made for older shims first.
const ADDRESS: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";
const BACKLOG: &str = "WASMTIME_HTTP_BACKLOG";
const PORT: &str = "PORT";
const REQUEST_SECONDS: &str = "LIGHTER_HTTP_REQUEST_SECONDS";
const MAX_REQUESTS: &str = "LIGHTER_HTTP_MAX_REQUESTS";
const MAX_CONNECTIONS: &str = "LIGHTER_HTTP_MAX_CONNECTIONS";
const MAX_BODY: &str = "LIGHTER_HTTP_MAX_BODY";
const MAX_MEMORY: &str = "LIGHTER_HTTP_MAX_MEMORY";
const REUSE: &str = "LIGHTER_HTTP_REUSE";

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Where to listen.
    pub(super) address: SocketAddr,
    /// How many connections the kernel keeps that have not been accepted yet (listen(2)).
    pub(super) backlog: u32,
    /// How long a guest may take from a request to its response's headers, and once more for what
    /// it does afterwards.
    pub(super) request_time: Duration,
    /// The most requests that are handled at a time; the next gets 503.
    pub(super) max_requests: usize,
    /// The most connections at a time; the next gets 503 and is closed.
    pub(super) max_connections: usize,
    /// The largest body of a request, in bytes; of a larger one its client is told 413.
    pub(super) max_body: u64,
    /// The most memory of an instance, in bytes.
    pub(super) max_memory: usize,
    /// How many requests an instance gets, if that is said.
    reuse: Option<usize>,
}

impl Settings {
    /// Reads the environment of `invocation`.
    ///
    /// # Errors
    /// A sentence that names the variable and its value.
    pub(super) fn of(invocation: &Invocation) -> Result<Self, String> {
        let env = Environment(&invocation.env);
        let address = match env.text(ADDRESS) {
            Some(value) => value.parse().map_err(|_| {
                wrong(
                    ADDRESS,
                    value,
                    "an IP address and a port, such as 0.0.0.0:8080 or [::]:8080",
                )
            })?,
            None => {
                let port = env.number(PORT, 8080, u16::MAX.into())? as u16;
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
            }
        };
        let reuse = match env.number(REUSE, 0, u32::MAX.into())? {
            0 => None,
            requests => Some(requests as usize),
        };
        Ok(Self {
            address,
            backlog: env.number(BACKLOG, 1024, i32::MAX as u64)? as u32,
            request_time: Duration::from_secs(env.number(REQUEST_SECONDS, 60, 86_400)?),
            max_requests: env.number(MAX_REQUESTS, 256, MOST_REQUESTS.into())? as usize,
            max_connections: env.number(MAX_CONNECTIONS, 4096, 1 << 20)? as usize,
            max_body: env.number(MAX_BODY, 1 << 30, u64::MAX)?,
            max_memory: env.number(MAX_MEMORY, 1 << 30, 1 << 32)? as usize,
            reuse,
        })
    }

    /// How many requests an instance of WASI 0.2 gets.
    pub(super) fn reuse_of_p2(&self) -> usize {
        self.reuse.unwrap_or(1)
    }

    /// How many requests an instance of WASI 0.3 gets.
    pub(super) fn reuse_of_p3(&self) -> usize {
        self.reuse.unwrap_or(REUSE_OF_P3)
    }
}

/// A container's environment, `NAME=VALUE` each.
struct Environment<'a>(&'a [String]);

impl Environment<'_> {
    /// The value of `name`, unless it is empty.
    fn text(&self, name: &str) -> Option<&str> {
        let value = |entry: &'_ String| -> Option<usize> {
            let value = entry.strip_prefix(name)?.strip_prefix('=')?;
            (!value.is_empty()).then_some(entry.len() - value.len())
        };
        self.0
            .iter()
            .find_map(|entry| value(entry).map(|at| &entry[at..]))
    }

    /// The value of `name` as a number from 1 to `most`; `default` where there is none.
    fn number(&self, name: &str, default: u64, most: u64) -> Result<u64, String> {
        let Some(value) = self.text(name) else {
            return Ok(default);
        };
        match value.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(wrong(name, value, &format!("a number from 1 to {most}"))),
        }
    }
}

fn wrong(name: &str, value: &str, wanted: &str) -> String {
    format!("the environment variable {name} is {value:?}; it must be {wanted}")
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
        assert_eq!(address(&["PORTAL=80", "PORT=81"]), "0.0.0.0:81");
        let older = "WASMTIME_HTTP_PROXY_SOCKET_ADDR=[::1]:82";
        assert_eq!(address(&["PORT=81", older]), "[::1]:82");
        assert_eq!(of(&["WASMTIME_HTTP_BACKLOG=7"]).unwrap().backlog, 7);
    }

    #[test]
    fn instances_are_reused_as_often_as_is_said() {
        let settings = of(&[]).unwrap();
        assert_eq!((settings.reuse_of_p2(), settings.reuse_of_p3()), (1, 128));
        let settings = of(&["LIGHTER_HTTP_REUSE=9"]).unwrap();
        assert_eq!((settings.reuse_of_p2(), settings.reuse_of_p3()), (9, 9));
    }

    #[test]
    fn a_bad_value_is_named() {
        for entry in [
            "PORT=http",
            "PORT=0",
            "PORT=65536",
            "WASMTIME_HTTP_PROXY_SOCKET_ADDR=localhost:80",
            "WASMTIME_HTTP_BACKLOG=-1",
            "LIGHTER_HTTP_MAX_REQUESTS=257",
            "LIGHTER_HTTP_MAX_BODY=1M",
        ] {
            let reason = of(&[entry]).unwrap_err();
            let (name, value) = entry.split_once('=').unwrap();
            assert!(reason.contains(name) && reason.contains(value), "{reason}");
        }
    }
}
