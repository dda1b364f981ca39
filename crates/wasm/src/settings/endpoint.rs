//! Where something listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path of a Unix socket, in bytes (unix(7); the last of 108 is a zero).
const LONGEST: usize = 107;

/// Where something listens in a container: an address of its network and a port, or the absolute
/// path of a Unix socket among its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// An address and a port.
    Address(SocketAddr),
    /// A socket's path.
    Socket(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_path = text.starts_with('/') && !text.ends_with('/') && !text.contains('\0');
        if is_path && text.len() <= LONGEST {
            return Ok(Self::Socket(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::Address(address)),
            _ => Err(format!(
                "{text:?} is nowhere to listen; that is written as \"127.0.0.1:9090\" or \
                 \"[::]:9090\", or as a Unix socket's absolute path of {LONGEST} bytes at most, \
                 such as \"/run/metrics.sock\""
            )),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Address(address) => write!(formatter, "{address}"),
            Self::Socket(path) => write!(formatter, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_addresses_or_paths() {
        for text in ["127.0.0.1:9090", "[::]:9090", "/run/metrics.sock"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(String::from(endpoint), text);
        }
    }

    #[test]
    fn nowhere_is_told() {
        let long = format!("/{}", "x".repeat(LONGEST));
        for wrong in [
            "",
            "9090",
            ":9090",
            "localhost:9090",
            "1.2.3.4",
            "1.2.3.4:0",
            "1.2.3.4:65536",
            "run/x",
            "/",
            "/run/",
            "/a\0b",
            &long,
        ] {
            let reason = wrong.parse::<Endpoint>().unwrap_err();
            assert!(reason.contains(&format!("{wrong:?}")), "{reason}");
        }
    }
}
