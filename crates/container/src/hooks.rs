//! The two kinds of hook that run inside the container, with the pid in their state.
//!
//! libcontainer runs every hook at its point, but knows the init's pid only outside of the init.
//! The runtime spec wants it in every hook's state, and for these two as the container sees it
//! (OCI runtime spec, runtime.md, "State"). So a bundle that has such hooks is changed before
//! libcontainer reads it: `startContainer` hooks are taken out and run by [`crate::init`] at the
//! same point; `createContainer` hooks are called through this program ([`run_hook`]), which puts
//! the pid into what they read.

use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::{HookError, run_hooks};
use oci_spec::runtime::{Hook, HookBuilder, Spec};

use crate::bundle::Bundle;

/// The action by which this program is told to be a hook's messenger.
pub const HOOK_ACTION: &str = "run-hook";

/// Prepares `bundle` for libcontainer and returns the `startContainer` hooks, which are then to
/// be run by the init. Writes the bundle's config.json only if it has a hook of either kind.
///
/// # Errors
/// When config.json cannot be replaced.
pub(crate) fn adapt(bundle: &Bundle) -> io::Result<Vec<Hook>> {
    let Some(hooks) = bundle.spec.hooks() else {
        return Ok(Vec::new());
    };
    let count = |hooks: &Option<Vec<Hook>>| hooks.as_ref().map_or(0, Vec::len);
    if count(hooks.create_container()) + count(hooks.start_container()) == 0 {
        return Ok(Vec::new());
    }
    let mut hooks = hooks.clone();
    let start = hooks.start_container().clone().unwrap_or_default();
    hooks.set_start_container(None);
    let called = hooks.create_container().iter().flatten();
    let called = called.map(through_us).collect::<io::Result<_>>()?;
    hooks.set_create_container(Some(called));
    let mut spec = bundle.spec.clone();
    spec.set_hooks(Some(hooks));
    replace(&bundle.path, &spec)?;
    Ok(start)
}

fn replace(bundle: &Path, spec: &Spec) -> io::Result<()> {
    let new = bundle.join("config.json.new");
    fs::write(&new, serde_json::to_vec(spec)?)?;
    fs::rename(new, bundle.join("config.json"))
}

/// `hook`, called through this program: its path, then its own arguments. The init's executable
/// is this one, and createContainer hooks see the host's /proc.
fn through_us(hook: &Hook) -> io::Result<Hook> {
    let mut args = vec![
        "containerd-shim-wasmtime-v1".to_owned(),
        HOOK_ACTION.to_owned(),
        hook.path().display().to_string(),
    ];
    args.extend(hook.args().iter().flatten().cloned());
    let mut builder = HookBuilder::default().path("/proc/self/exe").args(args);
    if let Some(env) = hook.env() {
        builder = builder.env(env.clone());
    }
    if let Some(timeout) = hook.timeout() {
        builder = builder.timeout(timeout);
    }
    builder.build().map_err(io::Error::other)
}

/// Becomes the hook that `args` names (path, then its arguments, the first being its name), with
/// the state from stdin and in it the pid of the container's init, which is this process's parent.
///
/// # Errors
/// When the state cannot be read, or the hook not be executed.
pub fn run_hook(args: &[String]) -> io::Result<()> {
    let [path, args @ ..] = args else {
        return Err(io::Error::other("no hook was named"));
    };
    let mut state = Vec::new();
    io::stdin().read_to_end(&mut state)?;
    let mut state: serde_json::Value = serde_json::from_slice(&state)?;
    state["pid"] = nix::unistd::getppid().as_raw().into();
    let mut command = Command::new(path);
    if let [name, rest @ ..] = args {
        command.arg0(name).args(rest);
    }
    Err(command.stdin(filled(&serde_json::to_vec(&state)?)?).exec())
}

/// A pipe that holds `bytes`, which must fit: a state is far smaller than a pipe.
fn filled(bytes: &[u8]) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    writer.write_all(bytes)?;
    Ok(reader)
}

/// Runs `hooks` as `startContainer` hooks in the container's init.
///
/// # Errors
/// The first that fails, and how.
pub(crate) fn run_start_hooks(
    hooks: &[Hook],
    id: &str,
    bundle: PathBuf,
    spec: &Spec,
    env: &[String],
) -> Result<(), HookError> {
    let mut state = State::new(
        id,
        ContainerStatus::Created,
        Some(nix::unistd::getpid().as_raw()),
        bundle,
    );
    state.annotations = spec.annotations().clone();
    let env = env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    run_hooks(Some(&hooks.to_vec()), Some(&state), None, None, Some(&env))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bundle(hooks: serde_json::Value) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {},
            "hooks": hooks,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let bundle = Bundle::load(folder.path()).unwrap();
        (folder, bundle)
    }

    #[test]
    fn a_bundle_without_such_hooks_is_left_alone() {
        let (folder, bundle) = bundle(json!({"poststop": [{"path": "/bin/true"}]}));
        let before = fs::read(folder.path().join("config.json")).unwrap();
        assert!(adapt(&bundle).unwrap().is_empty());
        let after = fs::read(folder.path().join("config.json")).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn hooks_inside_the_container_are_taken_over() {
        let (folder, bundle) = bundle(json!({
            "startContainer": [{"path": "/start"}],
            "createContainer": [{"path": "/create", "args": ["create", "-x"], "timeout": 3}],
            "poststop": [{"path": "/stop"}],
        }));
        let start = adapt(&bundle).unwrap();
        assert_eq!(start[0].path(), Path::new("/start"));
        let adapted = Bundle::load(folder.path()).unwrap();
        let hooks = adapted.spec.hooks().clone().unwrap();
        assert!(hooks.start_container().is_none());
        assert_eq!(
            hooks.poststop().as_ref().unwrap()[0].path(),
            Path::new("/stop")
        );
        let create = &hooks.create_container().as_ref().unwrap()[0];
        assert_eq!(create.timeout(), Some(3));
        assert_eq!(
            create.args().as_ref().unwrap()[1..],
            [HOOK_ACTION, "/create", "create", "-x"]
        );
    }
}
