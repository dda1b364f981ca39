//! What CRI asks for a pod: the parts of its `runtime.v1.PodSandboxConfig` that matter to a
//! sandbox, with the field numbers of the kubernetes/cri-api repository's api.proto.
//!
//! As JSON it has the names that `crictl inspectp` shows of any runtime.

use std::collections::BTreeMap;

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use prost::Message;
use serde::Serialize;

use crate::error::Error;

/// The message's type, as containerd writes it.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// A pod.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct PodConfig {
    /// Its name.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    /// Its host name; empty in the node's network.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// The folder of its containers' logs.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// How names are looked up; as on the node without it.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// Its labels.
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[prost(btree_map = "string, string", tag = "7")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

/// A pod's name.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct Metadata {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Kubernetes's id.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Kubernetes's namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// How often it was tried before.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// The contents of resolv.conf(5).
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct DnsConfig {
    /// Addresses of name servers.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
    /// Domains to search.
    #[prost(string, repeated, tag = "2")]
    pub searches: Vec<String>,
    /// The resolver's options.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// What only Linux has of a pod.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct Linux {
    /// The cgroup above those of its containers.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Its namespaces, in what matters here.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
    /// Kernel parameters.
    #[prost(btree_map = "string, string", tag = "3")]
    pub sysctls: BTreeMap<String, String>,
}

/// A pod's namespaces.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct SecurityContext {
    /// Which it shares with the node.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOptions>,
}

/// Whose namespaces a pod has.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct NamespaceOptions {
    /// The network's, and with it the host name's.
    #[prost(enumeration = "Mode", tag = "1")]
    pub network: i32,
    /// Its containers' processes'.
    #[prost(enumeration = "Mode", tag = "2")]
    pub pid: i32,
    /// That of System V and POSIX IPC.
    #[prost(enumeration = "Mode", tag = "3")]
    pub ipc: i32,
    /// The users'; the node's without it.
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// A user namespace.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct UserNamespace {
    /// The pod's own or the node's.
    #[prost(enumeration = "Mode", tag = "1")]
    pub mode: i32,
    /// The host's user ids for the pod's.
    #[prost(message, repeated, tag = "2")]
    pub uids: Vec<IdMapping>,
    /// The host's group ids for the pod's.
    #[prost(message, repeated, tag = "3")]
    pub gids: Vec<IdMapping>,
}

/// A range of ids.
#[derive(Clone, Copy, PartialEq, Message, Serialize)]
pub struct IdMapping {
    /// The first on the host.
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    /// The first in the pod.
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    /// How many.
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// Whose a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// The pod's.
    Pod = 0,
    /// Each container's own.
    Container = 1,
    /// The node's.
    Node = 2,
    /// Another container's.
    Target = 3,
}

impl PodConfig {
    /// Decodes the options of a sandbox; without any it is a pod that asks for nothing.
    ///
    /// # Errors
    /// They are of another type, or cannot be decoded.
    pub fn from_any(options: Option<&Any>) -> Result<Self, Error> {
        let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        if options.type_url.rsplit('/').next() != Some(TYPE) {
            return Err(Error::InvalidArgument(format!(
                "the sandbox's options have the type {}; {TYPE} is taken",
                options.type_url
            )));
        }
        Self::decode(&*options.value).map_err(|error| {
            Error::InvalidArgument(format!("the sandbox's options cannot be decoded: {error}"))
        })
    }

    /// The parts that only Linux has.
    pub fn linux(&self) -> Linux {
        self.linux.clone().unwrap_or_default()
    }

    /// Whose namespaces the pod has.
    pub fn namespaces(&self) -> NamespaceOptions {
        self.linux()
            .security_context
            .and_then(|context| context.namespace_options)
            .unwrap_or_default()
    }
}

impl DnsConfig {
    /// The text of a resolv.conf(5) that says this.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, values: &str| text.push_str(&format!("{key} {values}\n"));
        if !self.searches.is_empty() {
            line("search", &self.searches.join(" "));
        }
        for server in &self.servers {
            line("nameserver", server);
        }
        if !self.options.is_empty() {
            line("options", &self.options.join(" "));
        }
        text
    }
}

impl UserNamespace {
    /// The host's user and group that are the pod's root, if it has one of its own.
    ///
    /// # Errors
    /// Nobody is root in it.
    pub fn root(&self) -> Result<Option<(u32, u32)>, Error> {
        if self.mode != Mode::Pod as i32 {
            return Ok(None);
        }
        let root = |mappings: &[IdMapping], what: &str| {
            let mapping = mappings.iter().find(|mapping| mapping.container_id == 0);
            mapping.map(|mapping| mapping.host_id).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "no {what} of the node stands for root in the pod's user namespace"
                ))
            })
        };
        Ok(Some((
            root(&self.uids, "user")?,
            root(&self.gids, "group")?,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_is_asked() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let dns = DnsConfig {
            servers: strings(&["10.0.0.1", "10.0.0.2"]),
            searches: strings(&["a.local", "b.local"]),
            options: strings(&["ndots:5"]),
        };
        assert_eq!(
            dns.resolv_conf(),
            "search a.local b.local\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
        );
        assert_eq!(DnsConfig::default().resolv_conf(), "");
    }

    #[test]
    fn only_a_pods_configuration_is_taken() {
        assert_eq!(PodConfig::from_any(None).unwrap(), PodConfig::default());
        let mut any = Any {
            type_url: TYPE.to_owned(),
            value: PodConfig {
                hostname: "h".into(),
                ..PodConfig::default()
            }
            .encode_to_vec(),
            ..Any::default()
        };
        assert_eq!(PodConfig::from_any(Some(&any)).unwrap().hostname, "h");
        any.type_url = "type.googleapis.com/google.protobuf.Empty".into();
        assert!(PodConfig::from_any(Some(&any)).is_err());
        any.type_url = TYPE.to_owned();
        any.value = vec![0xff];
        assert!(PodConfig::from_any(Some(&any)).is_err());
    }

    #[test]
    fn root_is_who_is_mapped_to_it() {
        let mapping = |container_id| IdMapping {
            host_id: 100_000,
            container_id,
            length: 65_536,
        };
        let mut users = UserNamespace {
            mode: Mode::Pod as i32,
            uids: vec![mapping(0)],
            gids: vec![mapping(0)],
        };
        assert_eq!(users.root().unwrap(), Some((100_000, 100_000)));
        users.gids = vec![mapping(5)];
        assert!(users.root().is_err());
        users.mode = Mode::Node as i32;
        assert_eq!(users.root().unwrap(), None);
    }
}
