//! What a bundle's configuration says, in the words that libcontainer acts on.
//!
//! Where libcontainer (0.7) leaves out something that the runtime spec asks for and runc does,
//! another part of the configuration mostly has the same effect. Each function here is one such
//! case. config.json is written anew only if one of them has changed something.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use oci_spec::runtime::{Capabilities, Hook, LinuxCapabilities, LinuxDeviceCgroup, Process, Spec};
use pathrs::Root;
use pathrs::flags::OpenFlags;

use crate::bundle::Bundle;
use crate::holder::Holder;
use crate::mounts::{follows, has, is_bind};
use crate::zygote::Create;
use crate::{binds, cgroup, cgroup_mounts, cwd, environment, home, hooks, paths, pod, users};

/// What libcontainer cannot take from the configuration.
pub(crate) struct Apart {
    /// The `startContainer` hooks, which the init is to run itself.
    pub start_hooks: Vec<Hook>,
    /// Holds the container's own user namespace until the container is in it.
    pub users: Option<Holder>,
    /// Whether the process's user has a home, see [`home::add`].
    pub has_home: bool,
}

/// Adapts `bundle`, its config.json included, for libcontainer.
///
/// # Errors
/// When a hook's program is missing, a user namespace cannot be made, or config.json cannot be
/// replaced.
pub(crate) fn adapt(bundle: &mut Bundle, request: &Create) -> Result<Apart, String> {
    let before = bundle.spec.clone();
    let spec = &mut bundle.spec;
    if let Some(pod) = &request.pod {
        pod::join(spec, pod);
    }
    let mut has_home = false;
    if let Some(process) = spec.process_mut() {
        limit_capabilities(process);
        privileges_are_a_yes_or_nothing(process);
        environment::settle(process)?;
        cwd::settle(process)?;
        has_home = home::add(process, || passwd(&bundle.rootfs));
    }
    plain_mounts(spec);
    private_mounts(spec);
    root_propagation(spec);
    deny_devices(spec);
    if !request.systemd_cgroup && !cgroup::is_v1() {
        no_swap(spec);
    }
    if request.systemd_cgroup && cgroup::is_v1() {
        plain_path(spec)?;
    }
    let start_hooks = hooks::take_over(spec)?;
    binds::prepare(spec, &bundle.path)?;
    cgroup_mounts::spell_out(spec, &request.target.id, request.systemd_cgroup)?;
    let users = users::make(spec)?;
    if bundle.spec != before || !bundle.unknown_capabilities.is_empty() {
        replace(&bundle.path, &bundle.spec)
            .map_err(|error| format!("adapting the bundle's config.json: {error}"))?;
    }
    Ok(Apart {
        start_hooks,
        users,
        has_home,
    })
}

fn replace(bundle: &Path, spec: &Spec) -> io::Result<()> {
    let new = bundle.join("config.json.new");
    fs::write(&new, serde_json::to_vec(spec)?)?;
    fs::rename(new, bundle.join("config.json"))
}

/// Settles which capabilities the process has, in every one of their sets.
///
/// A set that is left out is empty, as runc has it; libcontainer would leave the daemon's in it, and
/// it is by an empty object that engines drop all.
///
/// A user other than root loses those that execve(2) would take (capabilities(7), "Transformation
/// of capabilities during execve"): all but the ambient ones. Engines leave that to the kernel, and
/// a guest is never exec'd.
pub(crate) fn limit_capabilities(process: &mut Process) {
    let given = process.capabilities().as_ref();
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        given
            .and_then(|given| of(given).clone())
            .unwrap_or_default()
    };
    let ambient = set(LinuxCapabilities::ambient);
    let (effective, permitted) = if process.user().uid() == 0 {
        (
            set(LinuxCapabilities::effective),
            set(LinuxCapabilities::permitted),
        )
    } else {
        (ambient.clone(), ambient.clone())
    };
    let mut settled = LinuxCapabilities::default();
    settled
        .set_bounding(Some(set(LinuxCapabilities::bounding)))
        .set_inheritable(Some(set(LinuxCapabilities::inheritable)))
        .set_effective(Some(effective))
        .set_permitted(Some(permitted))
        .set_ambient(Some(ambient));
    process.set_capabilities(Some(settled));
}

/// libcontainer takes any word on noNewPrivileges for a yes when it orders its steps.
pub(crate) fn privileges_are_a_yes_or_nothing(process: &mut Process) {
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
}

/// Opens /etc/passwd below `rootfs`, whatever symbolic links the image holds, if it is a regular file: this process, which
/// is in none of the container's cgroups, must not open devices for an image, nor wait for the writer of a pipe.
fn passwd(rootfs: &Path) -> io::Result<File> {
    let find = || Root::open(rootfs)?.resolve("/etc/passwd");
    let found = find().map_err(io::Error::other)?;
    let place = File::from(found.as_fd().try_clone_to_owned()?);
    if !place.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = found.reopen(OpenFlags::O_RDONLY);
    file.map_err(io::Error::other)
}

/// Writes where mounts go as the container's root has it, and gives a source to those that need none: libcontainer asks for one.
fn plain_mounts(spec: &mut Spec) {
    let Some(mut mounts) = spec.mounts().clone() else {
        return;
    };
    for mount in &mut mounts {
        mount.set_destination(paths::clean(mount.destination()));
        if mount.source().is_none() && !is_bind(mount) {
            mount.set_source(mount.typ().clone().map(Into::into));
        }
    }
    spec.set_mounts(Some(mounts));
}

/// Mounts with the options `private` or `rprivate` get nothing of later mounts on the host. They
/// do so when the whole mount namespace is private from the start; that is possible where no
/// other mount asks to follow the host.
fn private_mounts(spec: &mut Spec) {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let private = mounts
        .iter()
        .any(|mount| ["private", "rprivate"].iter().any(|kind| has(mount, kind)));
    // What is bound without a word on it follows the host, as the root does.
    let follows = mounts
        .iter()
        .any(|mount| follows(mount).unwrap_or_else(|| is_bind(mount)));
    if let Some(linux) = spec.linux_mut()
        && private
        && !follows
        && linux.rootfs_propagation().is_none()
    {
        linux.set_rootfs_propagation(Some("private".to_owned()));
    }
}

/// libcontainer knows the root's propagation only by its plain names, and sets it recursively
/// whatever it is called.
fn root_propagation(spec: &mut Spec) {
    if let Some(linux) = spec.linux_mut()
        && let Some(name) = linux.rootfs_propagation().clone()
        && let Some(plain @ ("shared" | "slave" | "private" | "unbindable")) =
            name.strip_prefix('r')
    {
        linux.set_rootfs_propagation(Some(plain.to_owned()));
    }
}

/// What no rule is about is denied, as with runc; a new cgroup of v1 has what the one above it has.
fn deny_devices(spec: &mut Spec) {
    let mut all = LinuxDeviceCgroup::default();
    all.set_access(Some("rwm".to_owned()));
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if rules.first().map(ToString::to_string) == Some(all.to_string()) {
        return;
    }
    rules.insert(0, all);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

/// On cgroup v2 swap is counted apart from memory, so a limit of memory and swap together that is
/// as high as that of memory is one of 0, which libcgroups takes for none.
fn no_swap(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let Some(mut resources) = linux.resources().clone() else {
        return;
    };
    let Some(memory) = resources.memory() else {
        return;
    };
    if memory.limit().is_none_or(|limit| limit <= 0) || memory.limit() != memory.swap() {
        return;
    }
    let mut unified = resources.unified().clone().unwrap_or_default();
    unified
        .entry("memory.swap.max".to_owned())
        .or_insert_with(|| "0".to_owned());
    resources.set_unified(Some(unified));
    linux.set_resources(Some(resources));
}

/// On cgroup v1 a container's cgroup is plain folders, where the systemd driver is asked for at the places where systemd would make
/// them: it lets others make folders of v1 there.
fn plain_path(spec: &mut Spec) -> Result<(), String> {
    if let Some(linux) = spec.linux_mut()
        && let Some(path) = linux.cgroups_path()
    {
        let path = cgroup::plain(path, true).map_err(|error| error.to_string())?;
        linux.set_cgroups_path(Some(path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(change: impl FnOnce(&mut Value)) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 1000, "gid": 0}},
            "linux": {},
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    fn value(spec: &Spec) -> Value {
        serde_json::to_value(spec).unwrap()
    }

    #[test]
    fn a_user_keeps_the_ambient_capabilities() {
        let mut user = spec(|spec| {
            spec["process"]["capabilities"] = json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": ["CAP_KILL"],
                "ambient": ["CAP_KILL"],
            });
        });
        limit_capabilities(user.process_mut().as_mut().unwrap());
        let left = value(&user)["process"]["capabilities"].clone();
        assert_eq!(left["effective"], json!(["CAP_KILL"]));
        assert_eq!(left["permitted"], json!(["CAP_KILL"]));
        assert_eq!(left["bounding"].as_array().unwrap().len(), 2);

        let mut without = spec(|_| {});
        limit_capabilities(without.process_mut().as_mut().unwrap());
        let left = value(&without)["process"]["capabilities"].clone();
        assert_eq!(left["permitted"], json!([]));
    }

    #[test]
    fn root_keeps_its_capabilities_and_has_no_others() {
        let mut root = spec(|spec| {
            spec["process"]["user"]["uid"] = json!(0);
            spec["process"]["capabilities"] = json!({"effective": ["CAP_CHOWN"]});
        });
        limit_capabilities(root.process_mut().as_mut().unwrap());
        assert_eq!(
            value(&root)["process"]["capabilities"],
            json!({
                "effective": ["CAP_CHOWN"],
                "bounding": [], "permitted": [], "inheritable": [], "ambient": [],
            })
        );
        for dropped in [json!(null), json!({})] {
            let mut root = spec(|spec| {
                spec["process"]["user"]["uid"] = json!(0);
                spec["process"]["capabilities"] = dropped;
            });
            limit_capabilities(root.process_mut().as_mut().unwrap());
            let left = value(&root)["process"]["capabilities"].clone();
            assert_eq!(
                (&left["effective"], &left["permitted"]),
                (&json!([]), &json!([]))
            );
        }
    }

    #[test]
    fn private_mounts_make_a_private_namespace_unless_others_follow() {
        let mounts = |options: &[&str]| {
            let mut with = spec(|spec| {
                spec["mounts"] = options
                    .iter()
                    .map(|o| json!({"destination": "/d", "type": "bind", "source": "/", "options": ["rbind", o]}))
                    .collect();
            });
            private_mounts(&mut with);
            value(&with)["linux"]["rootfsPropagation"].clone()
        };
        assert_eq!(mounts(&["rprivate"]), json!("private"));
        assert_eq!(mounts(&["rprivate", "rslave"]), Value::Null);
        assert_eq!(mounts(&["ro"]), Value::Null);
    }

    #[test]
    fn the_roots_propagation_has_a_name_that_libcontainer_knows() {
        for (given, taken) in [
            ("rslave", "slave"),
            ("rshared", "shared"),
            ("slave", "slave"),
        ] {
            let mut with = spec(|spec| spec["linux"]["rootfsPropagation"] = json!(given));
            root_propagation(&mut with);
            assert_eq!(value(&with)["linux"]["rootfsPropagation"], json!(taken));
        }
    }

    #[test]
    fn all_devices_are_denied_first() {
        let rules = |given: Value| {
            let mut with = spec(|spec| spec["linux"]["resources"] = given);
            deny_devices(&mut with);
            let resources = with.linux().as_ref().unwrap().resources().clone();
            let rules = resources.unwrap().devices().clone().unwrap();
            let rule = |rule: &LinuxDeviceCgroup| (rule.allow(), rule.to_string());
            rules.iter().map(rule).collect::<Vec<_>>()
        };
        let all = || (false, "a *:* rwm".to_owned());
        let null = || (true, "c 1:3 rwm".to_owned());
        let allow = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        let deny = json!({"allow": false, "access": "rwm"});
        assert_eq!(rules(Value::Null), [all()]);
        assert_eq!(rules(json!({"devices": []})), [all()]);
        assert_eq!(rules(json!({"devices": [allow]})), [all(), null()]);
        assert_eq!(rules(json!({"devices": [deny, allow]})), [all(), null()]);
    }

    #[test]
    fn a_limit_without_swap_is_said_in_v2s_words() {
        let unified = |memory: Value| {
            let mut with = spec(|spec| spec["linux"]["resources"] = json!({"memory": memory}));
            no_swap(&mut with);
            value(&with)["linux"]["resources"]["unified"].clone()
        };
        assert_eq!(
            unified(json!({"limit": 64, "swap": 64})),
            json!({"memory.swap.max": "0"})
        );
        assert_eq!(unified(json!({"limit": 64, "swap": 128})), Value::Null);
        assert_eq!(unified(json!({"limit": 64})), Value::Null);
    }
}
