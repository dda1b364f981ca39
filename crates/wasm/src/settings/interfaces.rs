//! Interfaces of WASI beside those that are always the same.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Count, Size, Time};

/// What a guest may import, and how much it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wasi {
    /// Whether it may import `wasi:keyvalue`.
    pub keyvalue: bool,
    /// The level that a message of `wasi:logging` has at least to be shown.
    pub log_level: LogLevel,
}

/// Levels of `wasi:logging`, the least important first, and one above all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the interface's own names")]
pub enum LogLevel {
    #[default]
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
    /// Nothing is shown.
    Off,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        })
    }
}

/// Where the store of `wasi:keyvalue` is: in Redis if that has a host, else in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyValue {
    /// How much the store in memory may hold.
    pub memory: Size,
    /// The Redis server.
    pub redis: Redis,
}

impl Default for KeyValue {
    fn default() -> Self {
        Self {
            memory: Size(64 << 20),
            redis: Redis::default(),
        }
    }
}

/// A Redis server, or one that speaks its protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// Its name or address; without one there is no such store.
    pub host: Option<String>,
    /// Its port.
    pub port: Count<65_535>,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// The user to be there; without one the server's default user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A file of the container that holds the password, which is then taken in place of the other.
    pub password_file: Option<String>,
    /// The number of the database.
    pub database: u32,
    /// How long a connection may take, and each answer.
    pub time: Time,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            host: None,
            port: Count(6379),
            tls: false,
            user: None,
            password: None,
            password_file: None,
            database: 0,
            time: Time::seconds(5),
        }
    }
}

impl Redis {
    /// Whether it can be looked for.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.host.as_deref() == Some("") {
            return Err("it must be a name or an address".into());
        }
        match &self.password_file {
            Some(path) if !path.starts_with('/') => Err("it must be an absolute path".into()),
            _ => Ok(()),
        }
    }
}

/// The names of settings whose values are [`Secret`]s, each with the names of those that say who is
/// told it.
pub const SECRETS: [(&str, &[&str]); 1] = [(
    "keyvalue.redis.password",
    &[
        "keyvalue.redis.host",
        "keyvalue.redis.port",
        "keyvalue.redis.tls",
    ],
)];

/// A text that is not to be seen in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_in_order() {
        assert!(LogLevel::Trace < LogLevel::Debug);
        assert!(LogLevel::Critical < LogLevel::Off);
        let written = serde_json::to_value(LogLevel::Warn).unwrap();
        assert_eq!(written, LogLevel::Warn.to_string());
    }

    #[test]
    fn secrets_are_not_shown() {
        let redis = Redis {
            password: Some(Secret("open sesame".into())),
            ..Redis::default()
        };
        assert!(!format!("{redis:?}").contains("sesame"));
    }

    #[test]
    fn a_server_that_cannot_be_is_told() {
        let mut redis = Redis::default();
        assert_eq!(redis.check(), Ok(()));
        redis.host = Some(String::new());
        assert!(redis.check().unwrap_err().contains("a name"));
        redis.host = Some("peer".into());
        redis.password_file = Some("secret".into());
        assert!(redis.check().unwrap_err().contains("absolute path"));
    }
}
