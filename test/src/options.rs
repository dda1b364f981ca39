//! The runtime options that containerd's clients send, as protobuf messages of
//! our own, so that the shim's reading of them is checked by another hand.

use prost::Message;
use prost_types::Any;

/// `containerd.runc.v1.Options`, as in containerd's
/// core/runtime/v2/runc/options/oci.proto.
#[derive(Clone, PartialEq, Message)]
pub struct RuncOptions {
    /// Do not pivot into the rootfs.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// Do not make a new session keyring.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The cgroup for the shim itself.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Owner of the stdio pipes.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Group of the stdio pipes.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The runtime's program.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The folder of the runtime's state.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Let systemd make the cgroups.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

impl RuncOptions {
    /// The message as a client sends it.
    pub fn any(&self) -> Any {
        Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: self.encode_to_vec(),
        }
    }
}

/// `containerd.runc.v1.CheckpointOptions`, of the same file.
#[derive(Clone, PartialEq, Message)]
pub struct CheckpointOptions {
    /// End the container after the checkpoint.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Take established TCP connections along.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// The folder for the images.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// The folder for criu's log.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

impl CheckpointOptions {
    /// The message as a client sends it.
    pub fn any(&self) -> Any {
        Any {
            type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
            value: self.encode_to_vec(),
        }
    }
}

/// `runtimeoptions.v1.Options`, as in containerd's
/// api/types/runtimeoptions/v1/api.proto.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeOptions {
    /// What the configuration is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file that holds it.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The configuration itself.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

impl RuntimeOptions {
    /// Options with a TOML text in them.
    pub fn body(toml: &str) -> Any {
        Self {
            config_body: toml.as_bytes().to_vec(),
            ..Default::default()
        }
        .any()
    }

    /// Options that name a TOML file.
    pub fn path(file: &std::path::Path) -> Any {
        Self {
            config_path: file.display().to_string(),
            ..Default::default()
        }
        .any()
    }

    /// The message as a client sends it.
    pub fn any(&self) -> Any {
        Any {
            type_url: "runtimeoptions.v1.Options".to_owned(),
            value: self.encode_to_vec(),
        }
    }
}
