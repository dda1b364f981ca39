//! Whom a guest may talk to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whom a guest may talk to, within the container's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Whether it has sockets, and may make requests over HTTP.
    pub enabled: bool,
    /// Whether it may look host names up.
    pub names: bool,
    /// Whom it may talk to; everybody unless this is set.
    pub allow: Option<Vec<Peer>>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            enabled: true,
            names: true,
            allow: None,
        }
    }
}

impl Network {
    /// Whether a guest may talk to this address.
    pub(crate) fn allows(&self, address: SocketAddr) -> bool {
        self.enabled
            && self
                .allow
                .as_ref()
                .is_none_or(|peers| peers.iter().any(|peer| peer.has_address(address)))
    }

    /// Whether requests to this host and port are allowed by its name, whatever its address.
    pub(crate) fn allows_name(&self, host: &str, port: u16) -> bool {
        self.enabled
            && self
                .allow
                .as_ref()
                .is_none_or(|peers| peers.iter().any(|peer| peer.has_name(host, port)))
    }
}

/// Somebody to talk to: an address, a network as `ADDRESS/BITS`, or a host name, which counts for
/// requests over HTTP only; then a port or several, as `:PORT` or `:FIRST-LAST`. An address of IPv6
/// with a port is in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Peer {
    text: String,
    host: Host,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Network(IpAddr, u8),
    Name(String),
}

impl Peer {
    fn has_address(&self, address: SocketAddr) -> bool {
        let Host::Network(network, bits) = &self.host else {
            return false;
        };
        // An address of IPv4 may come as one of IPv6.
        same_network(*network, address.ip().to_canonical(), *bits)
            && self.ports.contains(&address.port())
    }

    fn has_name(&self, host: &str, port: u16) -> bool {
        matches!(&self.host, Host::Name(name) if name.eq_ignore_ascii_case(host))
            && self.ports.contains(&port)
    }
}

/// Whether the first `bits` of two addresses are the same.
fn same_network(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let bits = u32::from(bits);
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let differing = one.to_bits() ^ other.to_bits();
            differing.leading_zeros() >= bits
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let differing = one.to_bits() ^ other.to_bits();
            differing.leading_zeros() >= bits
        }
        _ => false,
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = split(text).and_then(|(host, ports)| {
            Some(Self {
                text: text.to_owned(),
                host: parse_host(host)?,
                ports: match ports {
                    None => 0..=u16::MAX,
                    Some(ports) => parse_ports(ports)?,
                },
            })
        });
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is nobody to talk to; an address is written as \"10.0.0.7\", \"::1\", \
                 \"10.0.0.0/8:443\", \"[fd00::/8]:8000-8080\" or \"api.example.com:443\""
            )
        })
    }
}

/// The host and the ports, which are optional.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        // More than one: all of it is an address of IPv6.
        Some((host, ports)) if !ports.contains(':') => Some((host, Some(ports))),
        _ => Some((text, None)),
    }
}

fn parse_host(text: &str) -> Option<Host> {
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        return (bits <= most).then_some(Host::Network(address, bits));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Some(Host::Network(address, bits));
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    // What looks like a number was meant to be an address.
    let last = text.rsplit('.').next()?;
    (text.split('.').all(is_label) && !last.chars().all(|c| c.is_ascii_digit()))
        .then(|| Host::Name(text.to_owned()))
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl TryFrom<String> for Peer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.text
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(peers: &[&str]) -> Network {
        Network {
            allow: Some(peers.iter().map(|peer| peer.parse().unwrap()).collect()),
            ..Network::default()
        }
    }

    fn allows(peers: &[&str], address: &str) -> bool {
        allowing(peers).allows(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_in_networks() {
        assert!(Network::default().allows("1.2.3.4:5".parse().unwrap()));
        assert!(!allows(&[], "1.2.3.4:5"));
        assert!(allows(&["1.2.3.4"], "1.2.3.4:5"));
        assert!(!allows(&["1.2.3.4"], "1.2.3.5:5"));
        assert!(allows(&["10.0.0.0/8"], "10.1.2.3:5"));
        assert!(!allows(&["10.0.0.0/8"], "11.1.2.3:5"));
        assert!(allows(&["0.0.0.0/0"], "11.1.2.3:5"));
        assert!(!allows(&["0.0.0.0/0"], "[::1]:5"));
        assert!(allows(&["::1"], "[::1]:5"));
        assert!(allows(&["9.9.9.9", "fd00::/8"], "[fd12::1]:5"));
        // IPv4 within IPv6.
        assert!(allows(&["1.2.3.4"], "[::ffff:1.2.3.4]:5"));
    }

    #[test]
    fn ports_are_told_apart() {
        assert!(allows(&["10.0.0.0/8:443"], "10.1.2.3:443"));
        assert!(!allows(&["10.0.0.0/8:443"], "10.1.2.3:444"));
        assert!(allows(&["1.2.3.4:80-90"], "1.2.3.4:90"));
        assert!(!allows(&["1.2.3.4:80-90"], "1.2.3.4:91"));
        assert!(allows(&["[fd00::/8]:7"], "[fd12::1]:7"));
        assert!(!allows(&["[fd00::/8]:7"], "[fd12::1]:8"));
    }

    #[test]
    fn names_count_for_names_alone() {
        let network = allowing(&["api.example.com:443"]);
        assert!(network.allows_name("API.example.com", 443));
        assert!(!network.allows_name("api.example.com", 80));
        assert!(!network.allows_name("example.com", 443));
        assert!(!network.allows("1.2.3.4:443".parse().unwrap()));
        let off = Network {
            enabled: false,
            ..Network::default()
        };
        assert!(!off.allows_name("example.com", 443) && !off.allows("1.2.3.4:5".parse().unwrap()));
    }

    #[test]
    fn nobody_is_told() {
        for wrong in [
            "",
            "1.2.3",
            "1.2.3.4/33",
            "1.2.3.4:x",
            "1.2.3.4:9-8",
            "[::1",
            "[::1]x",
            "a b",
            "::g",
            "http://a",
        ] {
            let reason = wrong.parse::<Peer>().unwrap_err();
            assert!(reason.contains(&format!("{wrong:?}")), "{reason}");
        }
    }
}
