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
use std::path::PathBuf;
use std::process::Command;

use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::{HookError, run_hooks};
use oci_spec::runtime::{Hook, HookBuilder, Spec};

/// The action by which this program is told to be a hook's messenger.
pub const HOOK_ACTION: &str = "run-hook";

/// Takes over the hooks of `spec` that run inside the container; returns the `startContainer`
/// hooks, which then the init is to run.
///
/// # Errors
/// When the program of a hook that belongs to the create is not there: libcontainer would not
/// name it.
pub(crate) fn take_over(spec: &mut Spec) -> Result<Vec<Hook>, String> {
    let Some(mut hooks) = spec.hooks().clone() else {
        return Ok(Vec::new());
    };
    for (point, hooks) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
    ] {
        for hook in hooks.iter().flatten() {
            if let Err(error) = fs::metadata(hook.path()) {
                let path = hook.path().display();
                return Err(format!("the {point} hook {path} cannot be run: {error}"));
            }
        }
    }
    let start = hooks.start_container().clone().unwrap_or_default();
    if !start.is_empty() {
        hooks.set_start_container(None);
    }
    if let Some(called) = hooks.create_container() {
        let called = called.iter().map(through_us).collect::<Result<_, _>>()?;
        hooks.set_create_container(Some(called));
    }
    spec.set_hooks(Some(hooks));
    Ok(start)
}

/// `hook`, called through this program: its path, then its own arguments. The init's executable
/// is this one, and createContainer hooks see the host's /proc.
fn through_us(hook: &Hook) -> Result<Hook, String> {
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
    builder.build().map_err(|error| error.to_string())
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
    use serde_json::{Value, json};

    fn spec(hooks: Value) -> Spec {
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {},
            "hooks": hooks,
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn hooks_outside_of_the_container_are_left_alone() {
        let mut with = spec(json!({"poststop": [{"path": "/no/such"}]}));
        let before = with.clone();
        assert!(take_over(&mut with).unwrap().is_empty());
        assert_eq!(with, before);
    }

    #[test]
    fn hooks_inside_the_container_are_taken_over() {
        let mut with = spec(json!({
            "startContainer": [{"path": "/start"}],
            "createContainer": [{"path": "/bin/true", "args": ["true", "-x"], "timeout": 3}],
            "poststop": [{"path": "/stop"}],
        }));
        let start = take_over(&mut with).unwrap();
        assert_eq!(start[0].path(), &PathBuf::from("/start"));
        let hooks = with.hooks().clone().unwrap();
        assert!(hooks.start_container().is_none());
        assert!(hooks.poststop().is_some());
        let create = &hooks.create_container().as_ref().unwrap()[0];
        assert_eq!(create.timeout(), Some(3));
        assert_eq!(
            create.args().as_ref().unwrap()[1..],
            [HOOK_ACTION, "/bin/true", "true", "-x"]
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut with = spec(json!({"createRuntime": [{"path": "/missing/hook"}]}));
        let error = take_over(&mut with).unwrap_err();
        assert!(
            error.contains("createRuntime hook /missing/hook"),
            "{error}"
        );
    }
}
