//! A private containerd as a kubelet sees it: its CRI services, with pods and
//! containers under the runtime handlers [`WASMTIME`] and [`RUNC`].
//!
//! ```no_run
//! use lighter_test::{Version, cri::{Cri, WASMTIME}};
//!
//! fn main() -> anyhow::Result<()> {
//!     let cri = Cri::start(Version::V2_1)?;
//!     let pod = cri.pod(WASMTIME).run()?;
//!     // A whole run: create, start, wait, log.
//!     let ended = pod.container(["/tool.wasm", "args", "one"]).run()?;
//!     assert_eq!(ended.output, "/tool.wasm\nargs\none\n");
//!     // Step by step, and beside it a Linux container.
//!     let server = pod.container(["/tool-component.wasm", "tcp-server", "80"]).start()?;
//!     server.wait_for_log("listening")?;
//!     let client = pod.container(["/bin/sh", "-c", "echo hello | nc 127.0.0.1 80"]).start()?;
//!     client.wait_for_log("hello")?;
//!     // Nothing is left of it.
//!     pod.end()
//! }
//! ```

mod config;
mod container;
mod manifest;
mod pod;
mod stream;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use tonic::transport::Channel;

pub use container::{Builder, Container, Ended, Line};
pub use manifest::Manifest;
pub use pod::{Pod, PodBuilder};
pub use stream::{Forward, Streams};

use crate::{Containerd, Network, Rootfs, Settings, Version, eventually, runtime::call};
use v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// CRI's messages and clients, generated from `test/proto/cri.proto`.
#[allow(missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The runtime handler of the shim under test.
pub const WASMTIME: &str = "wasmtime";
/// The runtime handler of containerd's shim for runc.
pub const RUNC: &str = "runc";

/// The containerd namespace of everything that CRI makes.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// The image of all pods and containers: the files of [`Rootfs::guests`]. It is
/// labelled linux/amd64, since CRI looks for images of its own platform only.
pub const IMAGE: &str = "lighter.test/guests:1";

/// A private containerd with CRI and a bridge network for pods, in a network
/// namespace of its own, which stands for the node's network.
pub struct Cri {
    engine: Containerd,
    names: AtomicU32,
}

impl Cri {
    /// Starts a daemon, waits until it can run pods and gives it the image.
    ///
    /// # Errors
    /// A missing engine, guest or shim, or a daemon that does not come up.
    pub fn start(version: Version) -> Result<Self> {
        Self::start_with(version, Settings::default())
    }

    /// As [`Cri::start`], with more settings; those that CRI needs are added.
    ///
    /// # Errors
    /// As [`Cri::start`].
    pub fn start_with(version: Version, settings: Settings) -> Result<Self> {
        let settings = config::settings(version, settings)?;
        let cri = Self {
            engine: Containerd::start_with(version, &settings)?,
            names: AtomicU32::new(0),
        };
        cri.prepare()
            .with_context(|| format!("containerd {}: {}", version.name(), cri.engine.log()))?;
        Ok(cri)
    }

    /// The daemon that the tests of one program share: started by the first
    /// test that asks, gone when the last test that holds it ends.
    ///
    /// # Errors
    /// As [`Cri::start`].
    pub fn shared(version: Version) -> Result<Arc<Self>> {
        static SHARED: [Mutex<Weak<Cri>>; 3] = [const { Mutex::new(Weak::new()) }; 3];
        let mut shared = SHARED[version as usize]
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(daemon) = shared.upgrade() {
            return Ok(daemon);
        }
        let daemon = Arc::new(Self::start(version)?);
        *shared = Arc::downgrade(&daemon);
        Ok(daemon)
    }

    fn prepare(&self) -> Result<()> {
        config::write_network(&self.engine)?;
        let image = image::Image {
            platform: "linux/amd64".parse()?,
            cmd: vec!["/bin/sleep".to_owned(), "1000000".to_owned()],
            layers: vec![Rootfs::guests()?.layer()?],
            ..image::Image::default()
        };
        self.import(IMAGE, &image)?;
        eventually("CRI has its network", || {
            let status = call(self.runtime().status(v1::StatusRequest::default()))
                .ok()?
                .into_inner()
                .status?;
            status.conditions.iter().all(|c| c.status).then_some(())
        })
        .with_context(|| {
            format!(
                "{:?}",
                call(self.runtime().status(v1::StatusRequest::default()))
            )
        })
    }

    /// Adds an image and waits until CRI knows it.
    ///
    /// # Errors
    /// An image that cannot be written, or what `ctr` says.
    pub fn import(&self, name: &str, image: &image::Image) -> Result<()> {
        let archive = tempfile::NamedTempFile::new_in(self.engine.folder())?;
        image.save(&name.parse()?, archive.path())?;
        self.import_archive(archive.path(), name)
    }

    /// Adds the image of an archive and waits until CRI knows it by its name.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import_archive(&self, archive: &Path, name: &str) -> Result<()> {
        let output = self
            .engine
            .ctr()?
            .args(["--namespace", NAMESPACE, "images", "import"])
            .arg(archive)
            .output()?;
        ensure!(
            output.status.success(),
            "ctr images import: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        eventually("CRI knows the image", || {
            let wanted = v1::ImageStatusRequest {
                image: Some(v1::ImageSpec {
                    image: name.to_owned(),
                    ..Default::default()
                }),
                verbose: false,
            };
            call(self.images().image_status(wanted))
                .ok()?
                .into_inner()
                .image
        })?;
        Ok(())
    }

    /// The containerd behind it.
    pub fn engine(&self) -> &Containerd {
        &self.engine
    }

    /// What the daemon takes for the node's network.
    pub fn network(&self) -> &Network {
        self.engine
            .network()
            .expect("the settings asked for a network")
    }

    /// A connection to the runtime service.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.engine.client().channel())
    }

    /// A connection to the image service.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.engine.client().channel())
    }

    /// A pod to be run under a runtime handler.
    pub fn pod(&self, handler: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, handler)
    }

    /// The pods that it lists.
    ///
    /// # Errors
    /// What CRI says.
    pub fn pods(&self, filter: v1::PodSandboxFilter) -> Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        Ok(call(self.runtime().list_pod_sandbox(request))?
            .into_inner()
            .items)
    }

    /// The containers that it lists.
    ///
    /// # Errors
    /// What CRI says.
    pub fn containers(&self, filter: v1::ContainerFilter) -> Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest {
            filter: Some(filter),
        };
        Ok(call(self.runtime().list_containers(request))?
            .into_inner()
            .containers)
    }

    /// The figures of all containers that a filter leaves.
    ///
    /// # Errors
    /// What CRI says.
    pub fn stats(&self, filter: v1::ContainerStatsFilter) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest {
            filter: Some(filter),
        };
        Ok(call(self.runtime().list_container_stats(request))?
            .into_inner()
            .stats)
    }

    /// A name that nothing else of this daemon has.
    pub fn new_name(&self, stem: &str) -> String {
        format!("{stem}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Where a pod's logs lie.
    fn log_folder(&self, pod: &str) -> PathBuf {
        self.engine.folder().join("logs").join(pod)
    }
}

/// Makes one test of each function for every version of containerd, in a module
/// of the version's name. The functions take the version's shared daemon and
/// return a `Result`.
#[macro_export]
macro_rules! each_cri {
    ($($test:ident),* $(,)?) => {
        $crate::each_cri!(@version containerd_1_6, V1_6, $($test),*);
        $crate::each_cri!(@version containerd_1_7, V1_7, $($test),*);
        $crate::each_cri!(@version containerd_2_1, V2_1, $($test),*);
    };
    (@version $module:ident, $version:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    $crate::ensure_root()?;
                    super::$test(&*$crate::cri::Cri::shared($crate::Version::$version)?)
                }
            )*
        }
    };
}
