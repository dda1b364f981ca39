//! The harness of Lighter's end-to-end tests: private container engines, and
//! containers to drive through their API.
//!
//! ```no_run
//! use lighter_test::{Containerd, Input, Rootfs, Version};
//! use nix::sys::signal::Signal;
//!
//! fn main() -> anyhow::Result<()> {
//!     // A daemon of its own in /run/lighter-test-PID-N; gone when dropped, and
//!     // also when the test program dies.
//!     let engine = Containerd::start(Version::V2_1)?;
//!     // The files of a rootfs; guests come from target/guests.
//!     let rootfs = Rootfs::busybox().guest("hello.wasm")?;
//!     // A whole run: create, start, wait, delete.
//!     let output = engine
//!         .container(&rootfs)
//!         .args(["/hello.wasm", "one"])
//!         .env("NAME", "value")
//!         .run()?;
//!     assert_eq!(output.status, 0, "{}", output.errors());
//!     // Step by step.
//!     let container = engine
//!         .container(&rootfs)
//!         .args(["/bin/cat"])
//!         .stdin(Input::Fed)
//!         .create()?;
//!     container.start()?;
//!     container.feed(b"text");
//!     container.wait_for_output("text")?;
//!     container.kill(Signal::SIGKILL)?;
//!     assert_eq!(container.finish()?.status, 137);
//!     // Processes, mounts, cgroups, sockets, bundles: nothing is left.
//!     engine.ensure_clean()
//! }
//! ```
//!
//! - [`Containerd`]: the daemon ([`Containerd::start`], [`Containerd::shared`],
//!   [`Containerd::start_with`] and [`Settings`]), its folder, log, API client,
//!   `ctr` ([`Containerd::run_ctr`]) and what is left over
//!   ([`Containerd::ensure_clean`], [`Containerd::ensure_gone`]).
//! - [`Rootfs`]: files to start from. [`Builder`] and [`Container`]: one
//!   container under [`WASMTIME`] or [`RUNC`]; [`code`] gives an error's code.
//! - [`Served`]: a guest that handles requests over HTTP, and its clients; [`http2`] is
//!   what they speak beside HTTP/1.1.
//! - [`events`]: what the daemon told about a container's task.
//! - [`options`]: the runtime options of clients. [`metrics`]: the figures.
//!   [`module`]: small and broken modules. [`Terminal`]: a person's terminal.
//! - [`artifact`]: images made blob by blob. [`Registry`]: where they are pulled from.
//! - [`Redis`]: a server for `wasi:keyvalue`.
//! - [`cri`]: pods and their containers, as a kubelet runs them.
//! - [`each_containerd!`]: makes of test functions one test a version.
//!
//! What a test program needs is fetched and built by `make test`; a test whose
//! engine, guest or shim is missing fails and says so.

#![forbid(unsafe_code)]

pub mod artifact;
mod authority;
pub mod cgroup;
mod container;
mod containerd;
pub mod cri;
mod ctr;
pub mod dockerd;
pub mod events;
mod exec;
pub mod http2;
pub mod leaks;
pub mod metrics;
pub mod module;
mod network;
pub mod options;
mod poll;
mod redis;
mod registry;
mod rootfs;
mod runtime;
pub mod sandbox;
mod served;
pub mod shim;
pub mod spec;
mod stdio;
mod terminal;
mod version;

pub use authority::{Authority, Identity};
pub use container::{Builder, Container, Exit, Output, RUNC, WASMTIME, code};
pub use containerd::{Containerd, Settings, ensure_root};
pub use exec::{Exec, ExecBuilder};
pub use network::Network;
pub use poll::eventually;
pub use redis::Redis;
pub use registry::Registry;
pub use rootfs::{Rootfs, run};
pub use runtime::call;
pub use served::{Bystander, Served};
pub use stdio::Input;
pub use terminal::{CTRL_C, CTRL_D, DETACH, Terminal};
pub use version::{Version, built_programs, guest, repository, target, tools};

/// Makes one test of each function for every version of containerd, in a module
/// of the version's name. The functions take the version's shared daemon and
/// return a `Result`; after `own:` each gets a daemon that is its alone and logs
/// every event, as those need that stop it.
#[macro_export]
macro_rules! each_containerd {
    (own: $($test:ident),* $(,)?) => {
        $crate::each_containerd!(@own containerd_1_6, V1_6, $($test),*);
        $crate::each_containerd!(@own containerd_1_7, V1_7, $($test),*);
        $crate::each_containerd!(@own containerd_2_1, V2_1, $($test),*);
    };
    (@own $module:ident, $version:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    $crate::ensure_root()?;
                    let settings = $crate::Settings {
                        log_level: Some("trace"),
                        ..$crate::Settings::default()
                    };
                    let version = $crate::Version::$version;
                    super::$test(&$crate::Containerd::start_with(version, &settings)?)
                }
            )*
        }
    };
    ($($test:ident),* $(,)?) => {
        $crate::each_containerd!(@version containerd_1_6, V1_6, $($test),*);
        $crate::each_containerd!(@version containerd_1_7, V1_7, $($test),*);
        $crate::each_containerd!(@version containerd_2_1, V2_1, $($test),*);
    };
    (@version $module:ident, $version:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    $crate::ensure_root()?;
                    super::$test(&*$crate::Containerd::shared($crate::Version::$version)?)
                }
            )*
        }
    };
}
