//! What can be set of a guest: what it may reach, how much it may take, how it is served, and how
//! it is compiled.
//!
//! Whoever runs a guest hands these over as data; where they come from is not known here. Without
//! any, a guest has what its container has.
//!
//! Reading order: this file (the names), `quantity` (sizes, times and counts), `endpoint`,
//! `network`, `files`, `interfaces`, `engine`, `preinit`.

mod endpoint;
mod engine;
mod files;
mod interfaces;
mod network;
mod preinit;
mod quantity;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

pub use endpoint::Endpoint;
pub use engine::{Engine, Flags, Proposals};
pub use files::{Files, Preopen};
pub use interfaces::{KeyValue, LogLevel, Redis, SECRETS, Secret, Wasi};
pub use network::{Network, Peer};
pub use preinit::Preinit;
pub use quantity::{Count, Size, SizeError, Time};

/// The most requests that a server can be set to handle at a time: each has its place made
/// beforehand, of some 16 GiB of addresses.
pub(crate) const MOST_REQUESTS: u32 = 2048;

/// Everything that can be set of a guest. The names of the fields are those of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whom it may talk to.
    pub network: Network,
    /// What it sees of the container's files.
    pub files: Files,
    /// What it may take.
    pub limits: Limits,
    /// How requests over HTTP are served, if it handles them.
    pub http: Http,
    /// What it may import beside what every guest may, and how much it tells.
    pub wasi: Wasi,
    /// Where the store of `wasi:keyvalue` is.
    pub keyvalue: KeyValue,
    /// What `wasi:config` tells it, by any names.
    pub config: BTreeMap<String, String>,
    /// How it is compiled.
    pub engine: Engine,
    /// What of it is run once, when it is compiled.
    pub preinit: Preinit,
    /// Where instances that handle requests have their memories.
    pub pool: Pool,
}

/// What a guest may take. What is not set is not limited, but by the container; the memories and
/// tables of a guest that handles requests are in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest that each of its linear memories may be.
    pub memory: Option<Size>,
    /// How many linear memories an instance may have.
    pub memories: Option<Count<10_000>>,
    /// The most elements that each of its tables may have.
    pub table_elements: Option<Count<{ u32::MAX }>>,
    /// How many tables an instance may have.
    pub tables: Option<Count<10_000>>,
    /// How long a command may run, by the clock on the wall.
    pub time: Option<Time>,
    /// How many units of fuel an instance may use; most instructions of wasm take one.
    pub fuel: Option<u64>,
}

/// How requests over HTTP are served. What is set here stands where a container's environment asks
/// for nothing. Of the time for a request, and of requests, connections and bodies it is the most
/// that the environment may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The address to listen on.
    pub address: IpAddr,
    /// The port to listen on.
    pub port: Count<65_535>,
    /// Connections that wait to be accepted (listen(2)).
    pub backlog: Count<{ i32::MAX as u32 }>,
    /// Time from a request to its response's headers, and once more for what follows.
    pub request_time: Option<Time>,
    /// Time that a client may take for a request's line and headers.
    pub header_time: Time,
    /// Time that a client may leave what there is of its responses untaken.
    pub send_time: Time,
    /// Time that an instance waits for its next request.
    pub idle_time: Time,
    /// Requests at a time.
    pub max_requests: Option<Count<MOST_REQUESTS>>,
    /// Connections at a time.
    pub max_connections: Option<Count<{ 1 << 20 }>>,
    /// The size of a request's body.
    pub max_body: Option<Size>,
    /// The size of a request's line and headers.
    pub max_headers: Size,
    /// Requests that one instance gets, one after the other.
    pub reuse: Option<Count<{ u32::MAX }>>,
    /// Whether there is a line on standard output for each request.
    pub log: bool,
    /// Where Prometheus reads figures.
    pub metrics: Option<Endpoint>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: Count(8080),
            backlog: Count(1024),
            request_time: None,
            header_time: Time::seconds(30),
            send_time: Time::seconds(60),
            idle_time: Time::seconds(1),
            max_requests: None,
            max_connections: None,
            max_body: None,
            max_headers: Size(64 << 10),
            reuse: None,
            log: false,
            metrics: None,
        }
    }
}

/// The smallest that [`Http::max_headers`] can be: what hyper takes for a buffer.
const LEAST_HEADERS: Size = Size(8 << 10);

impl Http {
    /// Whether it can be served so.
    fn check(&self) -> Result<(), String> {
        match self.max_headers < LEAST_HEADERS {
            true => Err(format!("it must be {LEAST_HEADERS} at least")),
            false => Ok(()),
        }
    }
}

/// Where instances that handle requests have their memories: a pool of addresses that is laid out
/// when the guest is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// The most instances at a time.
    pub instances: Count<MOST_REQUESTS>,
    /// What stays in memory of an instance's memory for the next: clearing so much costs less than
    /// asking the kernel for new pages.
    pub memory_kept: Size,
    /// What stays in memory of an instance's table for the next.
    pub table_kept: Size,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            instances: Count(256),
            memory_kept: Size(1 << 20),
            table_kept: Size(16 << 10),
        }
    }
}

impl Settings {
    /// What of these the native code of a guest depends on, and who runs it.
    pub fn flags(&self) -> Flags {
        Flags {
            stack_size: self.engine.stack_size,
            proposals: self.engine.proposals.clone(),
            fuel: self.limits.fuel.is_some(),
            keyvalue: self.wasi.keyvalue,
            unknown_imports_trap: self.engine.unknown_imports_trap,
        }
    }

    /// Whether each of these can be what it is, whatever the others are.
    ///
    /// # Errors
    /// What the first that cannot be so should be.
    pub fn check_each(&self) -> Result<(), String> {
        self.http.check()?;
        self.keyvalue.redis.check()?;
        self.preinit.check()?;
        self.engine.check()
    }

    /// Whether these make sense together, each being right alone.
    ///
    /// # Errors
    /// A sentence that names those that do not.
    pub fn check_together(&self) -> Result<(), String> {
        let (most, instances) = (self.http.max_requests, self.pool.instances);
        match most.filter(|most| most.0 > instances.0) {
            Some(most) => Err(format!(
                "http.max_requests is {most}, but there is room for {instances} instances: \
                 raise pool.instances"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_possible_together_is_told() {
        let mut settings = Settings::default();
        assert_eq!(settings.check_together(), Ok(()));
        settings.http.max_requests = Some(Count(300));
        let reason = settings.check_together().unwrap_err();
        assert!(reason.contains("http.max_requests") && reason.contains("pool.instances"));
        settings.pool.instances = Count(300);
        assert_eq!(settings.check_together(), Ok(()));
    }

    #[test]
    fn what_is_not_possible_alone_is_told() {
        let mut settings = Settings::default();
        assert_eq!(settings.check_each(), Ok(()));
        settings.http.max_headers = Size((8 << 10) - 1);
        assert!(settings.check_each().unwrap_err().contains("8KiB"));
        settings.http.max_headers = Size(8 << 10);
        settings.engine.stack_size = Some(Size((1 << 30) + 1));
        assert!(settings.check_each().unwrap_err().contains("1GiB"));
        settings.engine.stack_size = Some(Size(1 << 30));
        assert_eq!(settings.check_each(), Ok(()));
    }

    #[test]
    fn only_what_the_code_depends_on_makes_other_flags() {
        let mut settings = Settings::default();
        settings.network.enabled = false;
        settings.limits.time = Some(Time::seconds(1));
        assert_eq!(settings.flags(), Flags::default());
        settings.limits.fuel = Some(7);
        assert_ne!(settings.flags(), Flags::default());
    }
}
