//! What pods may and may not: users, capabilities, filters, namespaces, file systems. Linux containers get the
//! same as under runc; guests are held to the same.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use lighter_test::{
    Version,
    cri::{Builder, Container, Cri, Ended, Pod, RUNC, WASMTIME, v1},
    each_cri, run,
};
use serde_json::json;

each_cri!(
    users,
    user_by_name,
    capabilities,
    no_new_privileges,
    filters,
    filter_from_a_file,
    read_only_root,
    masked_and_read_only_paths,
    privileged,
    sysctls,
    processes_of_the_container,
    processes_of_the_pod,
    processes_of_the_node,
    processes_of_another_container,
    ipc,
    devices,
    volumes,
    read_only_volumes,
    volumes_in_memory,
    mounts_from_the_node,
    mounts_to_the_node,
    user_namespaces,
    mapped_volumes,
);

/// A change, as a closure that takes builders of any lifetime.
fn changing<F: for<'a> Fn(Builder<'a>) -> Builder<'a>>(change: F) -> F {
    change
}

/// What a guest is told of a read-only file system: the WASI host has no word for EROFS yet.
const READ_ONLY: &str = "I/O error";

const STATUS: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status";

/// Runs a shell script in a container that `change` has changed, under both handlers, and
/// gives what both say.
fn same_as_runc(
    cri: &Cri,
    script: &str,
    change: impl for<'a> Fn(Builder<'a>) -> Builder<'a>,
) -> Result<Ended> {
    let run = |handler: &str| {
        let pod = cri.pod(handler).run()?;
        let ended = change(pod.container(["/bin/sh", "-c", script])).run()?;
        pod.end()?;
        Ok::<_, anyhow::Error>(ended)
    };
    let (expected, ended) = (run(RUNC)?, run(WASMTIME)?);
    assert_eq!(ended.output, expected.output, "{script}");
    assert_eq!(ended.code, expected.code, "{script}");
    Ok(ended)
}

/// Runs a guest in a container that `change` has changed.
fn guest(
    cri: &Cri,
    args: &[&str],
    change: impl for<'a> Fn(Builder<'a>) -> Builder<'a>,
) -> Result<Ended> {
    let pod = cri.pod(WASMTIME).run()?;
    let ended = change(pod.container(args.iter().copied())).run()?;
    pod.end()?;
    Ok(ended)
}

/// Lines of `/proc/PID/status` of a guest that runs in a container that `change` has changed.
fn guests_status(cri: &Cri, change: impl for<'a> Fn(Builder<'a>) -> Builder<'a>) -> Result<String> {
    let pod = cri.pod(WASMTIME).run()?;
    let container = change(pod.container(["/tool.wasm", "sleep", "1000"])).start()?;
    container.wait_for_log("sleeping")?;
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid()?))?;
    pod.end()?;
    Ok(status)
}

/// A line's value in the text of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("{name} in {status}"))
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn users(cri: &Cri) -> Result<()> {
    fn user(container: Builder) -> Builder {
        container.security(|security| {
            security.run_as_user = id(1234);
            security.run_as_group = id(2345);
            security.supplemental_groups = vec![3456, 4567];
        })
    }
    let seen = same_as_runc(
        cri,
        "id -u; id -g; id -G; echo x > /tmp/file && stat -c %u:%g /tmp/file",
        user,
    )?;
    assert_eq!(seen.success()?, "1234\n2345\n2345 3456 4567\n1234:2345\n");
    let status = guests_status(cri, user)?;
    assert_eq!(field(&status, "Uid")?, "1234\t1234\t1234\t1234");
    assert_eq!(field(&status, "Gid")?, "2345\t2345\t2345\t2345");
    assert_eq!(field(&status, "Groups")?, "2345 3456 4567");
    let refused = guest(cri, &["/tool.wasm", "write", "/file", "x"], user)?;
    assert!(refused.errors.contains("Permission denied"), "{refused:?}");
    guest(cri, &["/tool.wasm", "write", "/tmp/file", "x"], user)?.success()?;
    Ok(())
}

/// The image says who that is.
fn user_by_name(cri: &Cri) -> Result<()> {
    fn user(container: Builder) -> Builder {
        container.security(|security| security.run_as_username = "user".into())
    }
    let seen = same_as_runc(cri, "id -u; id -g; echo $HOME", user)?;
    assert_eq!(seen.success()?, "1000\n1000\n/\n");
    assert_eq!(
        field(&guests_status(cri, user)?, "Uid")?,
        "1000\t1000\t1000\t1000"
    );
    Ok(())
}

fn capabilities(cri: &Cri) -> Result<()> {
    fn change<'a>(container: Builder<'a>, add: &[&str], drop: &[&str], user: i64) -> Builder<'a> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = v1::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Default::default()
        };
        container.security(|security| {
            security.capabilities = Some(capabilities);
            security.run_as_user = id(user);
        })
    }
    // What each set of changes leaves a process; the bits are those of capability.h.
    let default = 0xa804_25fb_u64;
    let (net_admin, chown) = (1 << 12, 1);
    for (add, drop, user, effective, bounding) in [
        (&[][..], &[][..], 0, default, default),
        (
            &["NET_ADMIN"],
            &[],
            0,
            default | net_admin,
            default | net_admin,
        ),
        (&[], &["CHOWN"], 0, default & !chown, default & !chown),
        (&[], &["ALL"], 0, 0, 0),
        (&["NET_ADMIN"], &["ALL"], 0, net_admin, net_admin),
        (&["NET_ADMIN"], &[], 1000, 0, default | net_admin),
    ] {
        let changed = changing(|container| change(container, add, drop, user));
        let linux = same_as_runc(cri, STATUS, changed)?.success()?;
        let status = guests_status(cri, changed)?;
        for status in [linux, status] {
            let what = format!("add {add:?}, drop {drop:?}, user {user}: {status}");
            let wanted = |bits: u64| format!("{bits:016x}");
            assert_eq!(field(&status, "CapEff")?, wanted(effective), "{what}");
            assert_eq!(field(&status, "CapPrm")?, wanted(effective), "{what}");
            assert_eq!(field(&status, "CapBnd")?, wanted(bounding), "{what}");
        }
    }
    Ok(())
}

fn no_new_privileges(cri: &Cri) -> Result<()> {
    for wanted in [false, true] {
        let change =
            changing(|container| container.security(|security| security.no_new_privs = wanted));
        let linux = same_as_runc(cri, STATUS, change)?.success()?;
        let status = guests_status(cri, change)?;
        for status in [linux, status] {
            let told = field(&status, "NoNewPrivs")?;
            assert_eq!(told, if wanted { "1" } else { "0" }, "{status}");
        }
    }
    Ok(())
}

fn profile<'a>(
    container: Builder<'a>,
    kind: v1::security_profile::ProfileType,
    file: &Path,
) -> Builder<'a> {
    container.security(|security| {
        security.seccomp = Some(v1::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: file.display().to_string(),
        });
    })
}

/// containerd's own filter and none.
fn filters(cri: &Cri) -> Result<()> {
    use v1::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    for (kind, mode) in [(RuntimeDefault, "2"), (Unconfined, "0")] {
        let change = changing(|container| profile(container, kind, Path::new("")));
        let linux = same_as_runc(cri, STATUS, change)?.success()?;
        let status = guests_status(cri, change)?;
        for status in [linux, status] {
            assert_eq!(field(&status, "Seccomp")?, mode, "{kind:?}: {status}");
        }
        // A call that the default filter forbids without a capability.
        let script = "busybox unshare -U true 2>/dev/null; echo $?";
        let seen = same_as_runc(cri, script, change)?.success()?;
        let expected = if kind == RuntimeDefault { "1\n" } else { "0\n" };
        assert_eq!(seen, expected, "{kind:?}");
    }
    Ok(())
}

/// A profile of the node's; a guest's calls come to the same system calls.
fn filter_from_a_file(cri: &Cri) -> Result<()> {
    use v1::security_profile::ProfileType::Localhost;
    let file = cri.engine().folder().join(cri.new_name("profile"));
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    fs::write(&file, rules.to_string())?;
    let change = changing(|container| profile(container, Localhost, &file));
    let seen = same_as_runc(
        cri,
        "touch /file; mkdir /folder 2>/dev/null; echo $?; ls -d /f*",
        change,
    )?;
    assert_eq!(seen.success()?, "1\n/file\n");
    guest(cri, &["/tool.wasm", "write", "/file", "x"], change)?.success()?;
    let refused = guest(cri, &["/tool.wasm", "mkdir", "/folder"], change)?;
    assert!(refused.errors.contains("not permitted"), "{refused:?}");
    guest(cri, &["/tool.wasm", "mkdir", "/folder"], |container| {
        container
    })?
    .success()?;

    let missing = changing(|container| profile(container, Localhost, Path::new("/nowhere.json")));
    for handler in [RUNC, WASMTIME] {
        let pod = cri.pod(handler).run()?;
        let error = missing(pod.container(["/bin/true"]))
            .start()
            .err()
            .context("a missing profile")?;
        assert!(format!("{error:#}").contains("/nowhere.json"), "{error:#}");
        pod.end()?;
    }
    Ok(())
}

fn read_only_root(cri: &Cri) -> Result<()> {
    fn change(container: Builder) -> Builder {
        container.security(|security| security.readonly_rootfs = true)
    }
    let script = "touch /file || echo refused; touch /dev/shm/file && echo taken";
    let seen = same_as_runc(cri, script, change)?;
    assert_eq!(seen.success()?, "refused\ntaken\n");
    let refused = guest(cri, &["/tool.wasm", "write", "/file", "x"], change)?;
    assert!(refused.errors.contains(READ_ONLY), "{refused:?}");
    guest(cri, &["/tool.wasm", "write", "/dev/shm/file", "x"], change)?.success()?;
    guest(cri, &["/tool.wasm", "write", "/file", "x"], |container| {
        container
    })?
    .success()?;
    Ok(())
}

fn masked_and_read_only_paths(cri: &Cri) -> Result<()> {
    fn change(container: Builder) -> Builder {
        container.security(|security| {
            security.masked_paths = vec!["/proc/uptime".into(), "/etc".into(), "/nowhere".into()];
            security.readonly_paths = vec!["/tmp".into(), "/nowhere".into()];
        })
    }
    let script = "cat /proc/uptime; ls /etc; touch /tmp/file || echo refused";
    let seen = same_as_runc(cri, script, change)?;
    // The files of names that CRI mounts lie under what is masked.
    assert_eq!(seen.success()?, "refused\n");
    let seen = guest(cri, &["/tool.wasm", "read", "/proc/uptime"], change)?;
    assert_eq!(seen.success()?, "");
    let seen = guest(cri, &["/tool.wasm", "ls", "/etc"], change)?;
    assert_eq!(seen.success()?, "");
    let refused = guest(cri, &["/tool.wasm", "write", "/tmp/file", "x"], change)?;
    assert!(refused.errors.contains(READ_ONLY), "{refused:?}");
    let seen = guest(cri, &["/tool.wasm", "read", "/proc/uptime"], |container| {
        container
    })?;
    assert_ne!(seen.success()?, "", "a guest that may, reads it");
    Ok(())
}

/// All capabilities of the node's root, its devices, and nothing masked or read-only.
fn privileged(cri: &Cri) -> Result<()> {
    let run = |handler: &str, args: &[&str], privileged: bool| {
        let pod = cri
            .pod(handler)
            .security(|security| security.privileged = privileged)
            .run()?;
        let container = pod
            .container(args.iter().copied())
            .security(|security| security.privileged = privileged)
            .start()?;
        let status = match args {
            [_, "sleep", ..] => {
                container.wait_for_log("sleeping")?;
                fs::read_to_string(format!("/proc/{}/status", container.pid()?))?
            }
            _ => container.wait()?.success()?,
        };
        pod.end()?;
        Ok::<_, anyhow::Error>(status)
    };
    let script = format!("{STATUS}; grep -oE ' /sys sysfs r.' /proc/mounts; ls /dev | sort");
    let linux = ["/bin/sh", "-c", script.as_str()];
    let (expected, seen) = (run(RUNC, &linux, true)?, run(WASMTIME, &linux, true)?);
    // Under containerd 1 runc leaves a privileged container's /sys as its pod's is, read-only.
    let others = |text: &str| {
        text.replace(" /sys sysfs ro", "")
            .replace(" /sys sysfs rw", "")
    };
    assert_eq!(others(&seen), others(&expected));
    let own = fs::read_to_string("/proc/self/status")?;
    assert_eq!(field(&seen, "CapEff")?, field(&own, "CapEff")?);
    assert!(seen.contains(" /sys sysfs rw\n"), "{seen}");
    let confined = run(WASMTIME, &linux, false)?;
    assert_ne!(field(&confined, "CapEff")?, field(&own, "CapEff")?);
    assert!(confined.contains(" /sys sysfs ro\n"), "{confined}");
    assert!(
        seen.lines().count() > confined.lines().count(),
        "the node's devices"
    );
    let guest = run(WASMTIME, &["/tool.wasm", "sleep", "1000"], true)?;
    assert_eq!(field(&guest, "CapEff")?, field(&own, "CapEff")?);
    assert_eq!(field(&guest, "Seccomp")?, "0");
    Ok(())
}

/// Those of the pod's namespaces.
fn sysctls(cri: &Cri) -> Result<()> {
    for handler in [RUNC, WASMTIME] {
        let pod = cri
            .pod(handler)
            .linux(|linux| {
                for (name, value) in [
                    ("kernel.shm_rmid_forced", "1"),
                    ("kernel.shmmni", "321"),
                    ("net.ipv4.ip_local_port_range", "20000 20001"),
                ] {
                    linux.sysctls.insert(name.to_owned(), value.to_owned());
                }
            })
            .run()?;
        let files = [
            "/proc/sys/kernel/shm_rmid_forced",
            "/proc/sys/kernel/shmmni",
            "/proc/sys/net/ipv4/ip_local_port_range",
        ];
        let linux = pod.container([&["/bin/cat"][..], &files].concat()).run()?;
        assert_eq!(linux.success()?, "1\n321\n20000\t20001\n", "{handler}");
        if handler == WASMTIME {
            let guest = pod.container(["/tool.wasm", "read", files[1]]).run()?;
            assert_eq!(guest.success()?, "321\n");
        }
        pod.end()?;
    }
    Ok(())
}

fn namespace(container: &Container, kind: &str) -> Result<PathBuf> {
    let path = format!("/proc/{}/ns/{kind}", container.pid()?);
    fs::read_link(&path).context(path)
}

/// A guest and a Linux container that stay, in a pod with namespaces as `mode` says.
fn pair<'a>(pod: &'a Pod) -> Result<[Container<'a>; 2]> {
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    guest.wait_for_log("sleeping")?;
    Ok([guest, pod.container(["/bin/sleep", "1000"]).start()?])
}

fn own(kind: &str) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/self/ns/{kind}"))?)
}

/// The number of processes that a container sees, `ps` itself not counted.
fn processes(container: &Container) -> Result<usize> {
    let seen = container
        .exec_sync(["/bin/ps", "-o", "pid"], 10)?
        .success()?;
    // The title and the process that looks.
    Ok(seen.lines().count() - 2)
}

fn processes_of_the_container(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let [guest, linux] = pair(&pod)?;
    assert_ne!(namespace(&guest, "pid")?, namespace(&linux, "pid")?);
    assert_eq!((processes(&guest)?, processes(&linux)?), (1, 1));
    pod.end()
}

fn processes_of_the_pod(cri: &Cri) -> Result<()> {
    let shared = v1::NamespaceMode::Pod as i32;
    let pod = cri
        .pod(WASMTIME)
        .namespaces(|namespaces| namespaces.pid = shared)
        .run()?;
    let [guest, linux] = pair(&pod)?;
    assert_eq!(namespace(&guest, "pid")?, namespace(&linux, "pid")?);
    assert_ne!(namespace(&guest, "pid")?, own("pid")?);
    // The pause process is the first.
    assert_eq!((processes(&guest)?, processes(&linux)?), (3, 3));
    guest.stop(0)?;
    assert_eq!(processes(&linux)?, 2, "nobody's end is another's");
    pod.end()
}

fn processes_of_the_node(cri: &Cri) -> Result<()> {
    let node = v1::NamespaceMode::Node as i32;
    let pod = cri
        .pod(WASMTIME)
        .namespaces(|namespaces| namespaces.pid = node)
        .run()?;
    for container in pair(&pod)? {
        assert_eq!(namespace(&container, "pid")?, own("pid")?);
        let pid = container.pid()?;
        container.stop(0)?;
        assert_eq!(container.wait()?.code, 137);
        lighter_test::leaks::ensure_dead(pid)?;
    }
    pod.end()
}

/// As a container for debugging is put beside another.
fn processes_of_another_container(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    for target in pair(&pod)? {
        let debugger = pod
            .container(["/bin/sleep", "1000"])
            .security(|security| {
                let namespaces = security.namespace_options.get_or_insert_default();
                namespaces.pid = v1::NamespaceMode::Target as i32;
                namespaces.target_id = target.id().to_owned();
            })
            .start()?;
        assert_eq!(namespace(&target, "pid")?, namespace(&debugger, "pid")?);
        assert_eq!(processes(&debugger)?, 2);
        let guest = pod
            .container(["/tool.wasm", "ls", "/proc/2"])
            .security(|security| {
                let namespaces = security.namespace_options.get_or_insert_default();
                namespaces.pid = v1::NamespaceMode::Target as i32;
                namespaces.target_id = target.id().to_owned();
            })
            .run()?;
        assert_eq!(guest.code, 0, "it sees the debugger: {guest:?}");
        debugger.stop(0)?;
        assert_eq!(processes(&target)?, 1);
    }
    pod.end()
}

fn ipc(cri: &Cri) -> Result<()> {
    let node = v1::NamespaceMode::Node as i32;
    let (pod, nodes) = (
        cri.pod(WASMTIME).run()?,
        cri.pod(WASMTIME)
            .namespaces(|namespaces| namespaces.ipc = node)
            .run()?,
    );
    let [guest, linux] = pair(&pod)?;
    assert_eq!(namespace(&guest, "ipc")?, namespace(&linux, "ipc")?);
    assert_ne!(namespace(&guest, "ipc")?, own("ipc")?);
    // One /dev/shm for the pod.
    guest.exec_sync(["/tool.wasm", "write", "/dev/shm/file", "kept"], 10)?;
    let seen = linux.exec_sync(["/bin/cat", "/dev/shm/file"], 10)?;
    assert_eq!(seen.output, "kept");
    for container in pair(&nodes)? {
        assert_eq!(namespace(&container, "ipc")?, own("ipc")?);
    }
    nodes.end()?;
    pod.end()
}

fn devices(cri: &Cri) -> Result<()> {
    fn change(container: Builder) -> Builder {
        container.with(|config| {
            config.devices = vec![v1::Device {
                container_path: "/dev/nothing".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }]
        })
    }
    let script = "echo x > /dev/nothing && stat -c '%F %t:%T' /dev/nothing; ls /dev/kmsg 2>&1";
    let seen = same_as_runc(cri, script, change)?;
    assert!(
        seen.output.starts_with("character special file 1:3\n"),
        "{seen:?}"
    );
    guest(cri, &["/tool.wasm", "write", "/dev/nothing", "x"], change)?.success()?;
    Ok(())
}

/// A folder of the node's.
fn folder(cri: &Cri) -> Result<PathBuf> {
    let folder = cri.engine().folder().join(cri.new_name("volume"));
    fs::create_dir(&folder)?;
    Ok(folder)
}

fn volume<'a>(
    container: Builder<'a>,
    host: &Path,
    change: impl FnOnce(&mut v1::Mount),
) -> Builder<'a> {
    let mut mount = v1::Mount {
        container_path: "/volume".into(),
        host_path: host.display().to_string(),
        ..Default::default()
    };
    change(&mut mount);
    container.with(|config| config.mounts.push(mount))
}

/// hostPath: files and folders of the node.
fn volumes(cri: &Cri) -> Result<()> {
    let folder = folder(cri)?;
    fs::write(folder.join("file"), "from the node\n")?;
    let change = changing(|container| volume(container, &folder, |_| ()));
    let seen = same_as_runc(
        cri,
        "cat /volume/file; echo back > /volume/new; rm /volume/new",
        change,
    )?;
    assert_eq!(seen.success()?, "from the node\n");
    guest(
        cri,
        &["/tool.wasm", "write", "/volume/guest", "from a guest"],
        change,
    )?
    .success()?;
    assert_eq!(fs::read_to_string(folder.join("guest"))?, "from a guest");
    // One file.
    let change = changing(|container| volume(container, &folder.join("guest"), |_| ()));
    let seen = same_as_runc(cri, "cat /volume", change)?;
    assert_eq!(seen.success()?, "from a guest");
    let seen = guest(cri, &["/tool.wasm", "read", "/volume"], change)?;
    assert_eq!(seen.success()?, "from a guest");
    Ok(())
}

fn read_only_volumes(cri: &Cri) -> Result<()> {
    let folder = folder(cri)?;
    let below = Tmpfs::mount(&folder.join("below"))?;
    let write = "touch /volume/file || echo refused; touch /volume/below/file && echo taken";
    let read_only = changing(|container| volume(container, &folder, |mount| mount.readonly = true));
    // As ever, what is mounted below is not meant.
    let seen = same_as_runc(cri, write, read_only)?;
    assert_eq!(seen.success()?, "refused\ntaken\n");
    let refused = guest(
        cri,
        &["/tool.wasm", "write", "/volume/file", "x"],
        read_only,
    )?;
    assert!(refused.errors.contains(READ_ONLY), "{refused:?}");
    drop(below);
    Ok(())
}

/// A tmpfs of the node's as a kubelet makes it for an emptyDir of the medium Memory; its
/// limit holds.
fn volumes_in_memory(cri: &Cri) -> Result<()> {
    let folder = folder(cri)?.join("memory");
    let mounted = Tmpfs::mount(&folder)?;
    let change = changing(|container| volume(container, &folder, |_| ()));
    let script = "grep -o ' /volume tmpfs rw' /proc/mounts; \
                  head -c 3000000 /dev/zero > /volume/file || echo full; rm /volume/file";
    let seen = same_as_runc(cri, script, change)?;
    assert_eq!(seen.success()?, " /volume tmpfs rw\nfull\n");
    guest(cri, &["/tool.wasm", "write", "/volume/guest", "x"], change)?.success()?;
    assert_eq!(fs::read_to_string(folder.join("guest"))?, "x");
    drop(mounted);
    Ok(())
}

/// A tmpfs of 2 MiB on a folder, until it is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", "size=2M", "tmpfs", &path])?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

/// A folder whose mounts are shared, as propagation wants it.
fn shared_folder(cri: &Cri) -> Result<Tmpfs> {
    let shared = Tmpfs::mount(&folder(cri)?)?;
    let path = shared.0.display().to_string();
    run("mount", &["--make-rshared", &path])?;
    Ok(shared)
}

fn with_propagation<'a>(
    container: Builder<'a>,
    host: &Path,
    propagation: v1::MountPropagation,
) -> Builder<'a> {
    volume(container, host, |mount| {
        mount.propagation = propagation.into()
    })
}

/// HostToContainer: what the node mounts later is seen, and only then.
fn mounts_from_the_node(cri: &Cri) -> Result<()> {
    use v1::MountPropagation::{PropagationHostToContainer, PropagationPrivate};
    let shared = shared_folder(cri)?;
    for (handler, program) in [
        (RUNC, "/bin/busybox"),
        (WASMTIME, "/bin/busybox"),
        (WASMTIME, "/tool.wasm"),
    ] {
        let pod = cri.pod(handler).run()?;
        let start = |propagation| {
            let container = pod.container([program, "sleep", "1000"]);
            with_propagation(container, &shared.0, propagation).start()
        };
        let (follower, private) = (
            start(PropagationHostToContainer)?,
            start(PropagationPrivate)?,
        );
        let later = Tmpfs::mount(&shared.0.join("later"))?;
        fs::write(later.0.join("file"), "later")?;
        let look =
            |container: &Container| container.exec_sync(["/bin/cat", "/volume/later/file"], 10);
        assert_eq!(look(&follower)?.output, "later", "{handler} {program}");
        assert_eq!(look(&private)?.output, "", "{handler} {program}");
        drop(later);
        pod.end()?;
    }
    Ok(())
}

/// Bidirectional: what a privileged container mounts is seen on the node.
fn mounts_to_the_node(cri: &Cri) -> Result<()> {
    let shared = shared_folder(cri)?;
    for handler in [RUNC, WASMTIME] {
        let pod = cri
            .pod(handler)
            .security(|security| security.privileged = true)
            .run()?;
        let script = "mkdir -p /volume/made && mount -t tmpfs tmpfs /volume/made && \
                      echo from the container > /volume/made/file";
        let container = pod
            .container(["/bin/sh", "-c", script])
            .security(|security| security.privileged = true);
        let propagation = v1::MountPropagation::PropagationBidirectional;
        with_propagation(container, &shared.0, propagation)
            .run()?
            .success()?;
        let file = shared.0.join("made/file");
        let seen = fs::read_to_string(&file).with_context(|| handler.to_owned())?;
        assert_eq!(seen, "from the container\n");
        pod.end()?;
        // It outlives the container, as the node's own.
        drop(Tmpfs(shared.0.join("made")));
    }
    Ok(())
}

/// The users of a pod that has its own.
const USERS: v1::IdMapping = v1::IdMapping {
    host_id: 100_000,
    container_id: 0,
    length: 65_536,
};

fn pod_with_users<'a>(cri: &'a Cri, handler: &str) -> Result<Pod<'a>> {
    cri.pod(handler)
        .namespaces(|namespaces| {
            namespaces.userns_options = Some(v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: vec![USERS],
                gids: vec![USERS],
            });
        })
        .run()
}

/// The files of the volumes belong to the pod's users as they belong to the node's, as a kubelet asks.
fn with_mapped_volumes(container: Builder) -> Builder {
    container.with(|config| {
        for mount in &mut config.mounts {
            mount.uid_mappings = vec![USERS];
            mount.gid_mappings = vec![USERS];
        }
    })
}

/// What the root of such a pod is, and what is his.
const ROOTS: &str = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; \
    stat -c '%n %u %g' / /bin/busybox /etc/hosts /work; \
    echo mine > /mine && chown 7:8 /mine && stat -c '%n %u %g' /mine; \
    echo more >> /etc/hosts && grep -c localhost /etc/hosts; touch /dev/shm/mine && echo shared";

/// A pod with users of its own (`hostUsers: false`). containerd 1.6 does not know what is asked for, and
/// gives it the node's.
fn user_namespaces(cri: &Cri) -> Result<()> {
    let version = cri.engine().version();
    let run = |handler: &str| -> Result<Ended> {
        let pod = pod_with_users(cri, handler)?;
        let container = pod.container(["/bin/sh", "-c", ROOTS]);
        let ended = container
            .with(|config| config.working_dir = "/work".into())
            .run()?;
        pod.end()?;
        Ok(ended)
    };
    let ended = run(WASMTIME)?;
    if version == Version::V2_1 {
        // Here runc has to map the ids of files, which not every runc can.
        let own = "         0     100000      65536\n";
        assert_eq!(
            ended.output,
            format!(
                "{own}{own}0\n0\n/ 0 0\n/bin/busybox 0 0\n/etc/hosts 0 0\n/work 0 0\n\
                 /mine 7 8\n1\nshared\n"
            ),
            "{}",
            ended.errors
        );
    } else {
        assert_eq!(ended, run(RUNC)?);
    }

    let pod = pod_with_users(cri, WASMTIME)?;
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    guest.wait_for_log("sleeping")?;
    if version == Version::V1_6 {
        assert_eq!(namespace(&guest, "user")?, own("user")?);
        return pod.end();
    }
    let linux = pod.container(["/bin/sleep", "1000"]).start()?;
    assert_eq!(namespace(&guest, "user")?, namespace(&linux, "user")?);
    assert_ne!(namespace(&guest, "user")?, own("user")?);
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid()?))?;
    assert_eq!(field(&status, "Uid")?, "100000\t100000\t100000\t100000");
    // Guests and Linux programs write as the pod's root, in both kinds of containers.
    for container in [&guest, &linux] {
        container
            .exec_sync(["/tool.wasm", "write", "/guests", "x"], 10)?
            .success()?;
        let written = container
            .exec_sync(["/bin/stat", "-c", "%u %g", "/guests"], 10)?
            .success()?;
        assert_eq!(written, "0 0\n");
    }
    pod.end()
}

/// A volume of such a pod: its files belong to the pod's users as they do to the node's on disk.
/// containerd 1.6 leaves out that this was asked for, 1.7 refuses it.
fn mapped_volumes(cri: &Cri) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("theirs"), "theirs")?;
    let nested = folder.path().join("nested");
    fs::create_dir(&nested)?;
    let pod = pod_with_users(cri, WASMTIME)?;
    let script = "echo mine > /volume/mine && stat -c '%n %u %g' /volume/*";
    let container = pod.container(["/bin/sh", "-c", script]);
    let ran = with_mapped_volumes(container.mount(folder.path(), "/volume")).run();
    if cri.engine().version() == Version::V1_7 {
        let error = format!("{:#}", ran.err().context("the container runs")?);
        assert!(error.contains("idmap mounts not yet supported"), "{error}");
        return pod.end();
    }
    let expected = "/volume/mine 0 0\n/volume/nested 0 0\n/volume/theirs 0 0\n";
    assert_eq!(ran?.success()?, expected);
    let guest = pod.container(["/tool.wasm", "write", "/volume/guests", "x"]);
    with_mapped_volumes(guest.mount(folder.path(), "/volume"))
        .run()?
        .success()?;
    for file in ["mine", "guests"] {
        let owner = fs::metadata(folder.path().join(file))?;
        assert_eq!((owner.uid(), owner.gid()), (0, 0), "{file}");
    }
    pod.end()
}
