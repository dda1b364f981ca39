//! How a server works: as its settings say, and within them as its environment does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::guest::Invocation;

/// The most requests that an instance of WASI 0.3 gets at a time. One of WASI 0.2 gets one.
pub(super) const REUSE_AT_A_TIME: usize = 16;

/// How many requests an instance of WASI 0.3 gets in all unless [`REUSE`] says otherwise.
const REUSE_OF_P3: usize = 128;

/// How often guests that compute are asked whether their time is over.
pub(super) const TICK: Duration = Duration::from_millis(10);

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

/// How a server works.
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
    /// What is set and is no business of the environment.
    pub(super) set: Arc<crate::Settings>,
}

impl Settings {
    /// Reads the environment of `invocation`, which may say less than is `set`, and where there is
    /// nothing to be had of more, something else.
    ///
    /// # Errors
    /// A sentence that names the variable and its value.
    pub(super) fn of(invocation: &Invocation, set: Arc<crate::Settings>) -> Result<Self, String> {
        let env = Environment(&invocation.env);
        let http = &set.http;
        let address = match env.text(ADDRESS) {
            Some(value) => {
                let address = value.parse().ok();
                // Nobody would be told which port the kernel chooses for 0.
                let address = address.filter(|address: &SocketAddr| address.port() != 0);
                address.ok_or_else(|| {
                    wrong(
                        ADDRESS,
                        value,
                        "an IP address and a port from 1 on, such as 0.0.0.0:8080 or [::]:8080",
                    )
                })?
            }
            None => {
                let port = env.number(PORT, http.port.0.into(), u16::MAX.into())?;
                SocketAddr::new(http.address, port as u16)
            }
        };
        let reuse = http.reuse.map_or(0, |requests| requests.0.into());
        let reuse = match env.number(REUSE, reuse, u32::MAX.into())? {
            0 => None,
            requests => Some(requests as usize),
        };
        let seconds = http.request_time.map(|time| time.0.as_secs().max(1));
        let seconds = Bound("http.request_time", seconds, 60, 86_400);
        let request_time = match (env.text(REQUEST_SECONDS), http.request_time) {
            // Which may be part of a second.
            (None, Some(time)) => time.0,
            (Some(value), Some(time)) if time.0 < Duration::from_secs(1) => {
                return Err(wrong(
                    REQUEST_SECONDS,
                    value,
                    "left out: http.request_time is set to less than a second, which is the most",
                ));
            }
            _ => Duration::from_secs(env.bounded(REQUEST_SECONDS, seconds)?),
        };
        let requests = Bound(
            "http.max_requests",
            http.max_requests.map(|most| most.0.into()),
            set.pool.instances.0.min(256).into(),
            set.pool.instances.0.into(),
        );
        let connections = Bound(
            "http.max_connections",
            http.max_connections.map(|most| most.0.into()),
            4096,
            1 << 20,
        );
        let body = http.max_body.map(|size| size.0);
        let body = Bound("http.max_body", body, 1 << 30, u64::MAX);
        let memory = set.limits.memory.map(|size| size.0);
        let memory = Bound("limits.memory", memory, 1 << 30, 1 << 32);
        Ok(Self {
            address,
            backlog: env.number(BACKLOG, http.backlog.0.into(), i32::MAX as u64)? as u32,
            request_time,
            max_requests: env.bounded(MAX_REQUESTS, requests)? as usize,
            max_connections: env.bounded(MAX_CONNECTIONS, connections)? as usize,
            max_body: env.bounded(MAX_BODY, body)?,
            max_memory: env.bounded(MAX_MEMORY, memory)? as usize,
            reuse,
            set,
        })
    }

    /// That a request took longer than it may, for a sentence.
    pub(super) fn longer_than(&self) -> String {
        format!("longer than {} s", self.request_time.as_secs_f64())
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

/// A setting that bounds a variable: its name and its value if it has one, which is the variable's
/// default and the most that it may be; and what these are without one.
struct Bound(&'static str, Option<u64>, u64, u64);

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

    /// The value of `name` as a number within `bound`.
    fn bounded(&self, name: &str, bound: Bound) -> Result<u64, String> {
        let Bound(setting, set, default, most) = bound;
        let number = self.number(name, set.unwrap_or(default), set.unwrap_or(most));
        number.map_err(|wrong| match set {
            Some(_) => format!("{wrong}, the most that {setting} allows"),
            None => wrong,
        })
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
    use crate::settings::{Count, Size, Time};

    fn of(env: &[&str]) -> Result<Settings, String> {
        with(env, |_| {})
    }

    fn with(env: &[&str], change: impl FnOnce(&mut crate::Settings)) -> Result<Settings, String> {
        let invocation = Invocation {
            env: env.iter().map(|&entry| entry.to_owned()).collect(),
            ..Invocation::default()
        };
        let mut set = crate::Settings::default();
        change(&mut set);
        Settings::of(&invocation, Arc::new(set))
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
    fn what_is_set_is_the_default_and_the_most() {
        let limited = |env: &[&str]| {
            with(env, |set| {
                set.http.port = Count(81);
                set.http.reuse = Some(Count(5));
                set.http.max_body = Some(Size(1000));
                set.http.request_time = Some(Time(Duration::from_millis(1500)));
                set.limits.memory = Some(Size(1 << 20));
            })
        };
        let settings = limited(&[]).unwrap();
        assert_eq!(settings.address.port(), 81);
        assert_eq!(settings.reuse_of_p2(), 5);
        assert_eq!(settings.max_body, 1000);
        assert_eq!(settings.request_time, Duration::from_millis(1500));
        assert_eq!(settings.max_memory, 1 << 20);

        let less = [
            "PORT=82",
            "LIGHTER_HTTP_REUSE=9",
            "LIGHTER_HTTP_MAX_BODY=10",
        ];
        let settings = limited(&less).unwrap();
        assert_eq!(settings.address.port(), 82);
        assert_eq!(settings.reuse_of_p2(), 9);
        assert_eq!(settings.max_body, 10);
        for (more, setting) in [
            ("LIGHTER_HTTP_MAX_BODY=1001", "http.max_body"),
            ("LIGHTER_HTTP_REQUEST_SECONDS=2", "http.request_time"),
            ("LIGHTER_HTTP_MAX_MEMORY=2000000", "limits.memory"),
        ] {
            let reason = limited(&[more]).unwrap_err();
            assert!(reason.contains(setting), "{reason}");
        }
    }

    #[test]
    fn what_is_set_may_be_more_than_what_is_built_in() {
        let more = |env: &[&str]| {
            with(env, |set| {
                set.http.request_time = Some(Time::seconds(48 * 3600));
                set.limits.memory = Some(Size(6 << 30));
            })
        };
        let settings = more(&["LIGHTER_HTTP_REQUEST_SECONDS=90000"]).unwrap();
        assert_eq!(settings.request_time, Duration::from_secs(90_000));
        let settings = more(&["LIGHTER_HTTP_MAX_MEMORY=5368709120"]).unwrap();
        assert_eq!(settings.max_memory, 5 << 30);
        for (wrong, most) in [
            ("LIGHTER_HTTP_REQUEST_SECONDS=172801", "172800"),
            ("LIGHTER_HTTP_MAX_MEMORY=7516192768", "6442450944"),
        ] {
            assert!(more(&[wrong]).unwrap_err().contains(most));
            assert!(of(&[wrong]).is_err(), "{wrong} without a setting");
        }
    }

    #[test]
    fn no_container_gets_more_than_a_part_of_a_second() {
        let of = |env: &[&str]| {
            with(env, |set| {
                set.http.request_time = Some(Time(Duration::from_millis(200)));
            })
        };
        assert_eq!(of(&[]).unwrap().request_time, Duration::from_millis(200));
        let reason = of(&["LIGHTER_HTTP_REQUEST_SECONDS=1"]).unwrap_err();
        assert!(reason.contains("http.request_time"), "{reason}");
    }

    #[test]
    fn a_bad_value_is_named() {
        for entry in [
            "PORT=http",
            "PORT=0",
            "PORT=65536",
            "WASMTIME_HTTP_PROXY_SOCKET_ADDR=localhost:80",
            "WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:0",
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
