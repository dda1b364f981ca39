//! Everything that can be set of the shim, its containers and their guests.
//!
//! The names in the files are those of the fields here; what is set comes in layers, see
//! [`crate::settings`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::group::GroupBy;

/// What can be set. A name may also be written as the runc shim's users know it, such as
/// `SystemdCgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// The folder of compiled guests, instead of the built-in one.
    pub cache_dir: Option<PathBuf>,
    /// How large that folder may become.
    pub cache_size: Option<wasm::settings::Size>,
    /// Whether systemd makes the containers' cgroups.
    pub systemd_cgroup: bool,
    /// What puts containers without a group annotation into one daemon.
    pub group_by: GroupBy,
    /// How long a namespace's daemon stays without containers, instead of the built-in time; what
    /// the container that came last says counts.
    pub group_linger: Option<wasm::settings::Time>,
    /// The cgroup that the shim itself is put into; empty for the one of whoever starts it.
    pub shim_cgroup: String,
    /// The owner of the container's streams; 0 for the container's user.
    pub io_uid: u32,
    /// The group of the container's streams; 0 for the container's group.
    pub io_gid: u32,
    /// Whether to do without pivot_root(2), as on a ramdisk.
    pub no_pivot_root: bool,
    /// The folder for the state of containers; empty for the bundle.
    pub root: String,
    /// The folder for criu's log and other things that a restore needs for the time; empty for one
    /// in the bundle.
    pub criu_work_path: String,
    /// The settings that a container's annotations may change, each by its name or its table's.
    pub annotations: Vec<String>,
    /// Whether containers have containerd's session keyring, not one of their own.
    pub no_new_keyring: bool,
    // Accepted because containerd's own tools send them; they have no meaning here.
    /// An OCI runtime's program; there is none here.
    pub binary_name: String,
    /// A checkpoint to restore from, which containerd hands over in another place.
    pub criu_image_path: String,
    /// What can be set of guests.
    #[serde(flatten)]
    pub guest: wasm::Settings,
}

impl Options {
    /// Whether each of these can be what it is, whatever the others are.
    ///
    /// # Errors
    /// What the first that cannot be so should be.
    pub fn check_each(&self) -> Result<(), String> {
        let texts = [&self.root, &self.criu_work_path, &self.criu_image_path];
        let paths = texts.into_iter().filter(|text| !text.is_empty());
        let mut paths = paths.map(Path::new).chain(self.cache_dir.as_deref());
        // What they are relative to is each process's own.
        match paths.any(|path| !path.is_absolute()) {
            true => Err("it must be an absolute path".into()),
            false => self.guest.check_each(),
        }
    }

    /// The names of options that are set and have no meaning here, for the log.
    pub fn ignored(&self) -> Vec<&'static str> {
        let set = [("BinaryName", !self.binary_name.is_empty())];
        set.into_iter()
            .filter_map(|(name, set)| set.then_some(name))
            .collect()
    }
}
