//! What a Linux container is made of. A container under our runtime is put
//! beside one of the same specification under runc: what a process sees of
//! itself in the two must be the same. The guest tells through /proc, too.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lighter_test::{
    Builder, Containerd, RUNC, Rootfs, WASMTIME, each_containerd, eventually, options::RuncOptions,
    spec::mount,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

each_containerd!(
    mounts,
    mounts_of_a_guest,
    cgroups_in_view,
    cgroups_where_systemd_has_them,
    cgroups_in_view_of_another_pid_namespace,
    capabilities,
    no_new_privileges,
    seccomp,
    newer_system_calls,
    rlimits,
    few_descriptors,
    masked_and_readonly_paths,
    sysctl,
    mount_options,
    propagation,
    propagation_of_each,
    paths_as_they_are_written,
    orphans,
    devices_of_the_host,
    devices_of_the_host_alone,
    user_and_groups,
    namespaces,
    loopback,
    user_namespaces,
    devices,
    devices_without_rules,
    devices_by_wildcards,
    session_keyring,
    hostname,
    environment_and_cwd,
    unknown_capabilities,
    variables_given_twice,
    resources,
    little_time,
    oom_score,
    umask,
);

fn rootfs() -> Result<Rootfs> {
    Ok(Rootfs::guests()?.folder("/data", 0o755))
}

/// Runs a shell script in a container of the same specification under both
/// runtimes; gives what it printed, which must be the same, and its status.
fn same(
    engine: &Containerd,
    script: &str,
    change: impl for<'a> Fn(Builder<'a>) -> Builder<'a>,
) -> Result<String> {
    let mut outputs = Vec::new();
    for runtime in [RUNC, WASMTIME] {
        let builder = engine
            .container(&rootfs()?)
            .runtime(runtime)
            .args(["/bin/sh", "-c", script]);
        let output = change(builder).run()?;
        outputs.push((output.status, output.text(), output.errors()));
    }
    assert_eq!(outputs[1], outputs[0], "ours, runc's");
    let (status, text, errors) = outputs.remove(1);
    assert_eq!(status, 0, "{text}{errors}");
    Ok(text)
}

/// What a guest reads of a file in /proc.
fn guest_reads(
    engine: &Containerd,
    path: &str,
    change: impl for<'a> Fn(Builder<'a>) -> Builder<'a>,
) -> Result<String> {
    change(
        engine
            .container(&rootfs()?)
            .args(["/tool.wasm", "read", path]),
    )
    .run()?
    .success()
}

/// Mounts that can be seen (the last on each mount point), sorted, without what differs from one container to the next, and
/// without whether the file system below, not the mount, is read-only.
fn normal(mountinfo: &str) -> Vec<String> {
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let lines: Vec<&str> = mountinfo.lines().collect();
    let mut mounts: Vec<String> = lines
        .iter()
        .enumerate()
        .filter(|(number, line)| {
            let later = &lines[number + 1..];
            !later.iter().any(|later| point(later) == point(line))
        })
        .map(|(_, line)| {
            let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
            let fields: Vec<&str> = left.split(' ').collect();
            let kind = right.split(' ').next().unwrap_or_default();
            // Root inside of the file system, mount point, options, propagation.
            let root = if kind == "cgroup" { "/" } else { fields[3] };
            let below = right.rsplit(' ').next().unwrap_or_default();
            let below = below.trim_start_matches("ro").trim_start_matches("rw");
            let below = if kind == "overlay" { "" } else { below };
            format!("{root} {} {} {kind} {below}", fields[4], fields[5])
        })
        .collect();
    mounts.sort();
    mounts
}

/// Fails when two lists of lines differ, and shows only where.
fn same_lines(ours: &[String], theirs: &[String]) {
    let only = |left: &[String], right: &[String]| -> Vec<String> {
        left.iter()
            .filter(|line| !right.contains(line))
            .cloned()
            .collect()
    };
    assert!(
        ours == theirs,
        "only ours: {:#?}\nonly runc's: {:#?}",
        only(ours, theirs),
        only(theirs, ours)
    );
}

const MOUNTINFO: &str = "/proc/self/mountinfo";

fn mounts(engine: &Containerd) -> Result<()> {
    let read = |runtime| -> Result<Vec<String>> {
        let output = engine
            .container(&rootfs()?)
            .runtime(runtime)
            .args(["/bin/cat", MOUNTINFO])
            .run()?
            .success()?;
        Ok(normal(&output))
    };
    same_lines(&read(WASMTIME)?, &read(RUNC)?);
    Ok(())
}

/// Which cgroups of v1 a process is in, and which part of each hierarchy is mounted where it can see it; on v2, what is
/// mounted there. (A line of v2, on a machine of v1, tells of no cgroup of the container's.)
const CGROUPS: &str = "grep -v ^0:: /proc/self/cgroup | sed 's/^[0-9]*//'; \
    grep ' - cgroup ' /proc/self/mountinfo | cut -d' ' -f4-6; \
    grep ' /sys/fs/cgroup ' /proc/self/mountinfo | cut -d' ' -f4-6; ls -l /sys/fs/cgroup | cut -c1-11,57-";

/// A mount of the machine's cgroups with `options`.
fn with_cgroups<'a>(builder: Builder<'a>, path: &str, options: &[&str]) -> Builder<'a> {
    builder
        .mount(mount("cgroup", "/sys/fs/cgroup", "cgroup", options))
        .spec(|spec| spec["linux"]["cgroupsPath"] = json!(path))
}

fn cgroups_in_view(engine: &Containerd) -> Result<()> {
    let path = format!("/{}/in-view", engine.namespace());
    for options in [
        ["nosuid", "noexec", "nodev", "relatime", "ro"],
        ["nosuid", "noexec", "nodev", "relatime", "rw"],
    ] {
        for own_namespace in [false, true] {
            let text = same(engine, CGROUPS, |builder| {
                with_cgroups(builder, &path, &options).spec(|spec| {
                    let namespaces = spec["linux"]["namespaces"].as_array_mut();
                    if let Some(namespaces) = namespaces.filter(|_| own_namespace) {
                        namespaces.push(json!({"type": "cgroup"}));
                    }
                })
            })?;
            let shows_path = !own_namespace && !lighter_test::cgroup::unified();
            assert_eq!(text.contains(&path), shows_path, "{text}");
        }
    }
    Ok(())
}

/// What Kubernetes calls a container's cgroup where the kubelet and its runtime leave cgroups to systemd is a place below the
/// pod's, also where there is no systemd that would make it.
fn cgroups_where_systemd_has_them(engine: &Containerd) -> Result<()> {
    let id = format!("{}-slice", engine.namespace());
    let slice = id.replace('-', "_");
    let options = RuncOptions {
        systemd_cgroup: true,
        ..RuncOptions::default()
    };
    let text = engine
        .container(&rootfs()?)
        .id(&id)
        .options(options.any())
        .spec(|spec| {
            spec["linux"]["cgroupsPath"] = json!(format!("{slice}.slice:test:{id}"));
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            namespaces
                .expect("namespaces")
                .retain(|one| one["type"] != "cgroup");
        })
        .args(["/bin/sh", "-c", "cat /proc/self/cgroup"])
        .run()?
        .success()?;
    let place = format!("/{slice}.slice/test-{id}.scope");
    let devices = text.lines().find(|line| line.contains(":devices:"));
    let devices = devices.unwrap_or(&text).to_owned();
    assert!(devices.trim_end().ends_with(&place), "{text}");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")? {
        let hierarchy = hierarchy?.path().display().to_string();
        let left = PathBuf::from(format!("{hierarchy}{place}"));
        ensure!(!left.exists(), "{} is left", left.display());
        // The slice is nobody's: that of a real pod is the kubelet's.
        let _ = left.parent().map(std::fs::remove_dir);
    }
    Ok(())
}

/// A container that joins a pid namespace has a pid there that on the machine is nobody's, or another's.
fn cgroups_in_view_of_another_pid_namespace(engine: &Containerd) -> Result<()> {
    let script = "echo $(($(cat /proc/sys/kernel/pid_max) - 1000)) > /proc/sys/kernel/ns_last_pid; \
        echo ready; exec sleep 1000";
    let pod = engine
        .container(&rootfs()?)
        .args(["/bin/sh", "-c", script])
        .spec(|spec| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
            }
            spec["linux"]["readonlyPaths"] = json!([]);
        })
        .create()?;
    pod.start()?;
    pod.wait_for_output("ready")?;
    let path = format!("/{}/joined", engine.namespace());
    let text = same(engine, CGROUPS, |builder| {
        let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        with_cgroups(builder, &path, &options).spec(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            for namespace in namespaces.into_iter().flatten() {
                if namespace["type"] == "pid" {
                    namespace["path"] = json!(format!("/proc/{}/ns/pid", pod.pid()));
                }
            }
        })
    })?;
    assert_eq!(
        text.contains(&path),
        !lighter_test::cgroup::unified(),
        "{text}"
    );
    Ok(())
}

fn mounts_of_a_guest(engine: &Containerd) -> Result<()> {
    let linux = engine
        .container(&rootfs()?)
        .runtime(RUNC)
        .args(["/bin/cat", MOUNTINFO])
        .run()?
        .success()?;
    let guest = guest_reads(engine, MOUNTINFO, |b| b)?;
    same_lines(&normal(&guest), &normal(&linux));
    Ok(())
}

fn lines<'a>(status: &'a str, names: &[&str]) -> Vec<&'a str> {
    status
        .lines()
        .filter(|line| {
            names
                .iter()
                .any(|name| line.starts_with(&format!("{name}:")))
        })
        .collect()
}

fn capabilities(engine: &Containerd) -> Result<()> {
    const NAMES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let sets = ["CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_CHOWN"];
    for names in [&sets[..], &sets[..1], &[]] {
        fn limited<'a>(builder: Builder<'a>, names: &[&str]) -> Builder<'a> {
            let names = json!(names);
            builder.spec(|spec| {
                spec["process"]["capabilities"] =
                    json!({"bounding": names, "effective": names, "permitted": names});
            })
        }
        let linux = same(engine, "grep Cap /proc/self/status", |b| limited(b, names))?;
        let guest = guest_reads(engine, "/proc/self/status", |b| limited(b, names))?;
        assert_eq!(lines(&guest, &NAMES), lines(&linux, &NAMES), "{names:?}");
    }
    // Of the ones that are given, a user other than root has none in effect.
    let linux = same(engine, "grep Cap /proc/self/status", |b| b.user(1000, 1000))?;
    let guest = guest_reads(engine, "/proc/self/status", |b| b.user(1000, 1000))?;
    assert_eq!(lines(&guest, &NAMES), lines(&linux, &NAMES));
    assert!(guest.contains("CapEff:\t0000000000000000"), "{guest}");
    Ok(())
}

fn no_new_privileges(engine: &Containerd) -> Result<()> {
    for wanted in [true, false] {
        fn choose(builder: Builder<'_>, wanted: bool) -> Builder<'_> {
            builder.spec(|spec| spec["process"]["noNewPrivileges"] = json!(wanted))
        }
        let expected = format!("NoNewPrivs:\t{}", u8::from(wanted));
        let linux = same(engine, "grep NoNewPrivs /proc/self/status", |b| {
            choose(b, wanted)
        })?;
        assert_eq!(linux.trim(), expected);
        let guest = guest_reads(engine, "/proc/self/status", |b| choose(b, wanted))?;
        assert_eq!(lines(&guest, &["NoNewPrivs"]), [expected]);
    }
    Ok(())
}

fn seccomp(engine: &Containerd) -> Result<()> {
    fn filtered(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                ],
            });
        })
    }
    let linux = same(
        engine,
        "mkdir /data/new && echo made; grep Seccomp: /proc/self/status",
        filtered,
    )?;
    assert_eq!(linux, "Seccomp:\t2\n");
    let guest = engine
        .container(&rootfs()?)
        .args(["/tool.wasm", "mkdir", "/data/new"]);
    let output = filtered(guest).run()?;
    assert_eq!(output.status, 1, "the filter is in effect for a guest");
    let status = guest_reads(engine, "/proc/self/status", filtered)?;
    assert_eq!(lines(&status, &["Seccomp"]), ["Seccomp:\t2"]);
    // The same without the filter.
    let unfiltered = engine
        .container(&rootfs()?)
        .args(["/tool.wasm", "mkdir", "/data/new"])
        .run()?;
    unfiltered.success()?;
    Ok(())
}

/// Calls that a profile does not name and that are newer than it are not there: only the others are forbidden.
fn newer_system_calls(engine: &Containerd) -> Result<()> {
    const NAMED: &str = "read write open openat openat2 close stat fstat lstat newfstatat statx statfs fstatfs access \
        faccessat faccessat2 poll ppoll select pselect6 lseek mmap mprotect munmap mremap madvise brk ioctl pread64 pwrite64 \
        readv writev pipe pipe2 dup dup2 dup3 fcntl rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack getpid gettid \
        getppid getpgrp setpgid setsid getuid geteuid getgid getegid getgroups setgroups setuid setgid setresuid setresgid \
        socketpair socket connect accept accept4 bind listen sendmsg recvmsg sendto recvfrom clone clone3 fork vfork execve \
        execveat exit exit_group wait4 waitid kill tgkill getcwd chdir fchdir getdents64 prctl arch_prctl capget capset \
        futex set_tid_address set_robust_list rseq getrandom prlimit64 getrlimit setrlimit sched_yield sched_getaffinity \
        uname umask close_range readlink readlinkat nanosleep clock_nanosleep clock_gettime epoll_create1 epoll_ctl \
        epoll_wait epoll_pwait eventfd2 unlink unlinkat mkdirat mknodat fchown fchmod seccomp restart_syscall";
    // process_vm_readv(2), fchmodat2(2), and one that no kernel has.
    const CALLS: &str = "for call in 310 452 9999; do /call $call; echo $call $?; done";
    let folder = tempfile::tempdir()?;
    let (source, program) = (folder.path().join("call.c"), folder.path().join("call"));
    std::fs::write(
        &source,
        "#include <errno.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
         int main(int n, char **call) { return syscall(atoi(call[1])) < 0 ? errno : 0; }\n",
    )?;
    let text = |path: &std::path::Path| path.display().to_string();
    lighter_test::run("gcc", &["-static", "-o", &text(&program), &text(&source)])?;
    let rootfs = rootfs()?.copy(&program, "/call");
    let names: Vec<&str> = NAMED.split_whitespace().collect();
    for no_new_privileges in [false, true] {
        let mut answers = Vec::new();
        for runtime in [RUNC, WASMTIME] {
            let host = engine
                .container(&rootfs)
                .runtime(runtime)
                .args(["/bin/sh", "-c", &format!("{CALLS}; exec sleep 1000")])
                .spec(|spec| {
                    spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                    spec["linux"]["seccomp"] = json!({
                        "defaultAction": "SCMP_ACT_ERRNO",
                        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
                    });
                })
                .create()?;
            host.start()?;
            host.wait_for_output("9999 ")?;
            let added = host.exec(["/bin/sh", "-c", CALLS])?.run()?.success()?;
            host.kill(Signal::SIGKILL)?;
            answers.push((host.finish()?.text(), added));
        }
        assert_eq!(answers[1], answers[0], "ours, runc's");
        let expected = "310 1\n452 38\n9999 38\n".to_owned();
        assert_eq!(answers[1], (expected.clone(), expected));
    }
    Ok(())
}

fn rlimits(engine: &Containerd) -> Result<()> {
    fn limited(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_FSIZE", "soft": 1_000_000, "hard": 2_000_000},
            ]);
        })
    }
    let names = ["Max open files", "Max core file size", "Max file size"];
    let pick = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| names.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect()
    };
    let linux = same(engine, "cat /proc/self/limits", limited)?;
    let guest = guest_reads(engine, "/proc/self/limits", limited)?;
    assert_eq!(pick(&guest), pick(&linux));
    assert!(
        pick(&guest)
            .iter()
            .any(|l| l.contains("100") && l.contains("200")),
        "{guest}"
    );
    Ok(())
}

/// A process may have as few descriptors as it likes, whatever its way to its program takes.
fn few_descriptors(engine: &Containerd) -> Result<()> {
    const LOOK: &str = "ulimit -Sn; ulimit -Hn; cat /proc/self/comm";
    fn limited(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 8, "hard": 20}]);
        })
    }
    assert_eq!(same(engine, LOOK, limited)?, "8\n20\ncat\n");
    let host = limited(engine.container(&rootfs()?))
        .args(["/bin/sleep", "1000"])
        .create()?;
    host.start()?;
    let added = host.exec(["/bin/sh", "-c", LOOK])?.run()?.success()?;
    assert_eq!(added, "8\n20\ncat\n");
    Ok(())
}

fn masked_and_readonly_paths(engine: &Containerd) -> Result<()> {
    fn hidden(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["linux"]["maskedPaths"] =
                json!(["/proc/version", "/etc/passwd", "/root", "/missing"]);
            spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/data", "/also/missing"]);
        })
    }
    let script = "wc -c < /etc/passwd; wc -c < /proc/version; ls -A /root; touch /root/x; touch /data/x; \
                  echo 1 > /proc/sys/kernel/sysrq; touch /tmp/x && echo writable";
    let text = same(engine, &format!("({script}) 2>/dev/null"), hidden)?;
    assert_eq!(text, "0\n0\nwritable\n");
    assert_eq!(guest_reads(engine, "/etc/passwd", hidden)?, "");
    let guest = engine
        .container(&rootfs()?)
        .args(["/tool.wasm", "write", "/data/x", "y"]);
    assert_eq!(hidden(guest).run()?.status, 1);
    Ok(())
}

fn sysctl(engine: &Containerd) -> Result<()> {
    fn set(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["linux"]["sysctl"] =
                json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000", "net.ipv4.ping_group_range": "0 10"});
        })
    }
    let files = [
        "net/ipv4/ip_forward",
        "kernel/msgmax",
        "net/ipv4/ping_group_range",
    ];
    let script: Vec<String> = files
        .iter()
        .map(|file| format!("cat /proc/sys/{file}"))
        .collect();
    let text = same(engine, &script.join("; "), set)?;
    assert!(text.starts_with("1\n9000\n0\t10"), "{text}");
    assert_eq!(
        guest_reads(engine, "/proc/sys/kernel/msgmax", set)?,
        "9000\n"
    );
    Ok(())
}

/// Every option of a mount that Docker and CRI give.
fn mount_options(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in("/tmp")?;
    std::fs::create_dir(folder.path().join("inner"))?;
    let source = folder.path().display().to_string();
    let mounts = vec![
        mount(
            "tmpfs",
            "/data/a",
            "tmpfs",
            &["nosuid", "nodev", "noexec", "size=128k", "mode=700"],
        ),
        mount(
            "tmpfs",
            "/data/b",
            "tmpfs",
            &["ro", "relatime", "nr_inodes=10"],
        ),
        mount(&source, "/data/c", "bind", &["rbind", "rw", "rprivate"]),
        mount(
            &source,
            "/data/d",
            "bind",
            &["rbind", "ro", "nosuid", "nodev", "noexec"],
        ),
        mount(&source, "/data/e", "bind", &["bind", "noatime"]),
        mount(&source, "/data/f", "", &["bind", "ro"]),
        mount(
            "cgroup",
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    fn with<'a>(mut builder: Builder<'a>, mounts: &[Value]) -> Builder<'a> {
        for mount in mounts {
            builder = builder.mount(mount.clone());
        }
        builder
    }
    let read = |runtime| -> Result<Vec<String>> {
        let builder = engine
            .container(&rootfs()?)
            .runtime(runtime)
            .args(["/bin/cat", MOUNTINFO]);
        Ok(normal(&with(builder, &mounts).run()?.success()?))
    };
    same_lines(&read(WASMTIME)?, &read(RUNC)?);
    Ok(())
}

/// A mount that appears on the machine later shows in a slave and not in a
/// private bind mount.
fn propagation(engine: &Containerd) -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount as do_mount, umount2};
    const NONE: Option<&str> = None;
    let folder = tempfile::tempdir_in(engine.folder())?;
    let shared = folder.path().join("shared");
    std::fs::create_dir_all(&shared)?;
    do_mount(Some(&shared), &shared, NONE, MsFlags::MS_BIND, NONE)?;
    do_mount(NONE, &shared, NONE, MsFlags::MS_SHARED, NONE)?;
    std::fs::create_dir(shared.join("later"))?;
    let outcome = (|| -> Result<()> {
        for runtime in [RUNC, WASMTIME] {
            for (option, expected) in [("rslave", "yes"), ("rprivate", "no")] {
                let container = engine
                    .container(&rootfs()?)
                    .runtime(runtime)
                    .args(["/bin/sh", "-c", "echo ready; read word; if test -e /data/later/file; then echo yes; else echo no; fi"])
                    .stdin(lighter_test::Input::Fed)
                    .bind(&shared, "/data", &["rw", option])
                    .create()?;
                container.start()?;
                container.wait_for_output("ready")?;
                do_mount(
                    Some("tmpfs"),
                    &shared.join("later"),
                    Some("tmpfs"),
                    MsFlags::empty(),
                    NONE,
                )?;
                std::fs::write(shared.join("later/file"), "")?;
                container.feed(b"go\n");
                let output = container.finish();
                umount2(&shared.join("later"), MntFlags::MNT_DETACH)?;
                assert_eq!(
                    output?.text(),
                    format!("ready\n{expected}\n"),
                    "{runtime} {option}"
                );
            }
        }
        Ok(())
    })();
    umount2(&shared, MntFlags::MNT_DETACH)?;
    outcome
}

/// Does `work` while each of these folders, which are made, is a mount that the host shares.
fn while_shared(folders: &[PathBuf], work: impl FnOnce() -> Result<()>) -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount as do_mount, umount2};
    const NONE: Option<&str> = None;
    for folder in folders {
        std::fs::create_dir(folder)?;
        do_mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), NONE)?;
        do_mount(NONE, folder, NONE, MsFlags::MS_SHARED, NONE)?;
    }
    let outcome = work();
    for folder in folders {
        umount2(folder, MntFlags::MNT_DETACH)?;
    }
    outcome
}

/// Mounts that are to follow the host, and others that are not, in one container.
fn propagation_of_each(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    let place = |name: &str| folder.path().join(name);
    // What each is, without the numbers of its groups.
    let script = "sed -nE 's, - .*,,; s,^.* (/[ab]) [^ ]*(.*)$,\\1\\2,p' /proc/self/mountinfo | sed 's/:[0-9]*//g'";
    while_shared(&[place("a"), place("b")], || {
        for (root, options) in [
            (json!("rshared"), ["rshared", "rprivate"]),
            (json!(null), ["rslave", "rprivate"]),
            (json!(null), ["rshared", "rslave"]),
            // Without a word it is as the root: what Docker says of a named volume beside its own files.
            (json!(null), ["rw", "rprivate"]),
        ] {
            let text = same(engine, script, |b| {
                b.bind(&place("a"), "/a", &["rbind", options[0]])
                    .bind(&place("b"), "/b", &["rbind", options[1]])
                    .spec(|spec| spec["linux"]["rootfsPropagation"] = root.clone())
            })?;
            let expected = if options[1] == "rprivate" {
                "/b\n"
            } else {
                "/b master\n"
            };
            assert!(text.ends_with(expected), "{options:?}: {text}");
        }
        Ok(())
    })
}

/// What is to be mounted and entered is found by the words alone, and made; a file system of the kernel's has no source.
fn paths_as_they_are_written(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    std::fs::write(folder.path().join("key"), "value\n")?;
    let script = "pwd; cat /config/key; sed -n 's,^[^ ]* \\(/\\(scratch\\|config\\) [^ ]*\\) .*$,\\1,p' /proc/mounts | sort";
    let text = same(engine, script, |b| {
        b.bind(folder.path(), "/absent/bin/../../config", &["rbind"])
            .mount(json!({"destination": "/absent/../scratch", "type": "tmpfs"}))
            .cwd("/other/../work/./here")
    })?;
    let (place, rest) = text.split_once('\n').unwrap_or_default();
    assert_eq!(place, "/work/here");
    assert!(
        rest.starts_with("value\n") && rest.ends_with("/scratch tmpfs\n"),
        "{rest}"
    );
    // Links that lead somewhere in the container alone.
    let volume = folder.path().join("volume");
    std::fs::create_dir_all(volume.join("releases/5"))?;
    std::os::unix::fs::symlink("/volume/releases/5", volume.join("current"))?;
    let linked = rootfs()?.link("/volume/releases/5", "/app");
    for (cwd, rootfs) in [("/volume/current", rootfs()?), ("/app", linked)] {
        for runtime in [RUNC, WASMTIME] {
            let output = engine
                .container(&rootfs)
                .runtime(runtime)
                .args(["/bin/pwd"])
                .bind(&volume, "/volume", &["rbind"])
                .cwd(cwd)
                .run()?;
            assert_eq!(output.success()?, "/volume/releases/5\n", "{runtime} {cwd}");
        }
    }
    // An added process has the same, but makes nothing.
    let host = engine
        .container(&rootfs()?)
        .args(["/bin/sleep", "1000"])
        .create()?;
    host.start()?;
    let exec = host
        .exec(["/bin/pwd"])?
        .with("/cwd", json!("/absent/../data"));
    assert_eq!(exec.run()?.success()?, "/data\n");
    Ok(())
}

/// What a container leaves behind in a pid namespace that is not its own is the shim's child, as under runc, not pid 1's, which may
/// reap nobody.
fn orphans(engine: &Containerd) -> Result<()> {
    for runtime in [RUNC, WASMTIME] {
        let container = engine
            .container(&rootfs()?)
            .runtime(runtime)
            .args(["/bin/sh", "-c", "(sleep 1234 &); echo left; sleep 1000"])
            .spec(|spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut();
                namespaces
                    .expect("namespaces")
                    .retain(|one| one["type"] != "pid");
            })
            .create()?;
        container.start()?;
        container.wait_for_output("left")?;
        let orphan = eventually("the orphan is there", || {
            container.pids().ok()?.into_iter().find(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline"));
                line.is_ok_and(|line| line.ends_with(b"sleep\x001234\0"))
            })
        })?;
        let status = std::fs::read_to_string(format!("/proc/{orphan}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let parent: u32 = parent.unwrap_or_default().trim().parse()?;
        let line = std::fs::read_to_string(format!("/proc/{parent}/cmdline"))?;
        assert!(line.contains("containerd-shim"), "{runtime}: {line}");
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

/// The host's own /dev, or what stands for it, is taken as it is, and nothing is made in it.
fn devices_of_the_host(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (name, minor) in [("null", "3"), ("zero", "5")] {
        lighter_test::run("mknod", &[&path(name), "c", "1", minor])?;
    }
    for name in ["pts", "shm", "mqueue"] {
        std::fs::create_dir(path(name))?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", path("fd"))?;
    fn bound<'a>(b: Builder<'a>, folder: &std::path::Path, options: &[&str]) -> Builder<'a> {
        let options = [&["rbind"], options].concat();
        let devices = mount(&folder.display().to_string(), "/dev", "bind", &options);
        b.spec(|spec| {
            let mounts = spec["mounts"].as_array_mut().expect("a list");
            for mount in mounts.iter_mut() {
                if mount["destination"] == "/dev" {
                    *mount = devices.clone();
                }
            }
        })
    }
    let script = "ls -A /dev; echo x >/dev/null && echo x >/dev/shm/y; grep -o ' /dev[^ ]* ' /proc/self/mountinfo | sort; \
        touch /dev/new 2>/dev/null && rm /dev/new && echo writable";
    for options in [&["rw"][..], &["ro", "nosuid"]] {
        let script = format!("{script}; true");
        let text = same(engine, &script, |b| bound(b, folder.path(), options))?;
        assert_eq!(text.contains("writable"), options == ["rw"], "{text}");
    }
    let guest = bound(engine.container(&Rootfs::guests()?), folder.path(), &[])
        .args(["/tool.wasm", "args"]);
    guest.run()?.success()?;
    let mut left: Vec<_> = std::fs::read_dir(folder.path())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    left.sort();
    assert_eq!(left, ["fd", "mqueue", "null", "pts", "shm", "zero"]);
    Ok(())
}

/// What a container mounts on its /dev, which is the host's, does not come to the host, whatever else it shares with that.
fn devices_of_the_host_alone(engine: &Containerd) -> Result<()> {
    let folder = tempfile::tempdir_in(engine.folder())?;
    let place = |name: &str| folder.path().join(name);
    let dev = place("dev");
    while_shared(&[dev.clone(), place("volume")], || {
        lighter_test::run(
            "mknod",
            &[&dev.join("null").display().to_string(), "c", "1", "3"],
        )?;
        std::fs::create_dir(dev.join("shm"))?;
        std::fs::write(place("log"), "written\n")?;
        let devices = mount(
            &dev.display().to_string(),
            "/dev",
            "bind",
            &["rbind", "rprivate"],
        );
        let container = engine
            .container(&Rootfs::guests()?)
            .args(["/bin/sh", "-c", "cat /dev/log; sleep 1000"])
            .spec(|spec| {
                let mounts = spec["mounts"].as_array_mut().expect("a list");
                for mount in mounts.iter_mut() {
                    if mount["destination"] == "/dev" {
                        *mount = devices.clone();
                    }
                }
                spec["linux"]["rootfsPropagation"] = json!("rshared");
            })
            .bind(&place("volume"), "/volume", &["rbind", "rshared"])
            .bind(&place("log"), "/dev/log", &["rbind", "rprivate"])
            .create()?;
        container.start()?;
        container.wait_for_output("written")?;
        let all = std::fs::read_to_string("/proc/self/mountinfo")?;
        let below = format!("{}/", dev.display());
        let found: Vec<&str> = all.lines().filter(|line| line.contains(&below)).collect();
        assert!(found.is_empty(), "{found:#?}");
        ensure!(dev.join("log").is_file(), "as runc makes it");
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
        Ok(())
    })
}

fn user_and_groups(engine: &Containerd) -> Result<()> {
    fn as_user(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["process"]["user"] =
                json!({"uid": 1000, "gid": 2000, "additionalGids": [3000, 4000]});
        })
    }
    let linux = same(
        engine,
        "id -u; id -g; id -G; grep -E '^(Uid|Gid|Groups):' /proc/self/status",
        as_user,
    )?;
    assert!(linux.starts_with("1000\n2000\n2000 3000 4000\n"), "{linux}");
    let guest = guest_reads(engine, "/proc/self/status", as_user)?;
    let names = ["Uid", "Gid", "Groups"];
    assert_eq!(lines(&guest, &names), lines(&linux, &names));
    Ok(())
}

/// The loopback interface of a network namespace of its own is up.
fn loopback(engine: &Containerd) -> Result<()> {
    let script = "cat /sys/class/net/lo/flags; grep -c 127.0.0.1 /proc/net/fib_trie";
    same(engine, script, |b| b)?;
    let guest = engine.container(&Rootfs::guests()?).args([
        "/tool.wasm",
        "read",
        "/sys/class/net/lo/flags",
    ]);
    assert_eq!(guest.run()?.success()?, "0x9\n");
    Ok(())
}

fn namespaces(engine: &Containerd) -> Result<()> {
    const KINDS: [&str; 5] = ["pid", "ipc", "uts", "mnt", "net"];
    let of = |pid: &str| -> Result<Vec<String>> {
        KINDS
            .iter()
            .map(|kind| {
                Ok(std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?
                    .display()
                    .to_string())
            })
            .collect()
    };
    let host = of("self")?;
    for args in [
        ["/tool.wasm", "sleep", "1000"],
        ["/bin/sh", "-c", "sleep 1000"],
    ] {
        let container = engine.container(&rootfs()?).args(args).create()?;
        container.start()?;
        let inside = of(&container.pid().to_string())?;
        for (kind, (inside, host)) in KINDS.iter().zip(inside.iter().zip(&host)) {
            assert_ne!(inside, host, "{args:?}: {kind} namespace");
        }
        // Another that joins some of these by their paths.
        let second = engine
            .container(&rootfs()?)
            .args([
                "/bin/sh",
                "-c",
                "for n in ipc net uts; do readlink /proc/self/ns/$n; done",
            ])
            .spec(|spec| {
                let path = |kind: &str| format!("/proc/{}/ns/{kind}", container.pid());
                spec["linux"]["namespaces"] = json!([
                    {"type": "pid"}, {"type": "mount"},
                    {"type": "ipc", "path": path("ipc")},
                    {"type": "uts", "path": path("uts")},
                    {"type": "network", "path": path("net")},
                ]);
                spec["hostname"] = Value::Null;
            })
            .run()?
            .success()?;
        assert_eq!(
            second,
            format!("{}\n{}\n{}\n", inside[1], inside[4], inside[2]),
            "{args:?}"
        );
        container.kill(nix::sys::signal::Signal::SIGKILL)?;
        container.finish()?;
    }
    // Without namespaces the container shares the machine's.
    let shared = engine
        .container(&rootfs()?)
        .args([
            "/bin/sh",
            "-c",
            "for n in net ipc; do readlink /proc/self/ns/$n; done",
        ])
        .spec(|spec| {
            spec["linux"]["namespaces"] =
                json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]);
            spec["mounts"] = json!([mount("proc", "/proc", "proc", &[])]);
        })
        .run()?
        .success()?;
    assert_eq!(shared, format!("{}\n{}\n", host[4], host[1]));
    Ok(())
}

/// Several mappings, which the kernel takes from root without the programs that users need.
fn user_namespaces(engine: &Containerd) -> Result<()> {
    let map = |spec: &mut Value| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "user"}));
        spec["linux"]["uidMappings"] = json!([
            {"containerID": 0, "hostID": 200_000, "size": 1000},
            {"containerID": 1000, "hostID": 300_000, "size": 64000},
        ]);
        spec["linux"]["gidMappings"] = json!([
            {"containerID": 0, "hostID": 400_000, "size": 3},
            {"containerID": 3, "hostID": 500_000, "size": 64000},
            {"containerID": 70_000, "hostID": 600_000, "size": 1},
        ]);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2, 70_000]});
    };
    let tables = "cat /proc/self/uid_map /proc/self/gid_map";
    let text = same(
        engine,
        &format!("{tables}; id -u; id -G; cat /proc/self/setgroups"),
        |builder| builder.spec(map),
    )?;
    assert!(text.contains("1000 2 70000\nallow\n"), "{text}");
    let guest = guest_reads(engine, "/proc/self/uid_map", |builder| builder.spec(map))?;
    assert_eq!(
        guest,
        text.lines()
            .take(2)
            .fold(String::new(), |all, line| all + line + "\n")
    );

    // As the host sees it; and a second process.
    let container = engine
        .container(&rootfs()?)
        .args(["/bin/sh", "-c", "sleep 1000"])
        .spec(map)
        .create()?;
    container.start()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid()))?;
    for line in ["Uid:\t300000\t", "Gid:\t500997\t", "Groups:\t400002 600000"] {
        assert!(status.contains(line), "{line:?} in {status}");
    }
    assert_eq!(container.exec(["id", "-u"])?.run()?.text(), "1000\n");
    Ok(())
}

fn devices(engine: &Containerd) -> Result<()> {
    fn with(builder: Builder<'_>) -> Builder<'_> {
        builder.spec(|spec| {
            spec["linux"]["devices"] = json!([
                {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6},
            ]);
        })
    }
    let text = same(
        engine,
        "cd /dev; stat -c '%n %F %a %u %g %t %T' null zero full random urandom tty own ptmx; \
         for l in fd stdin stdout stderr ptmx; do readlink $l; done; head -c 3 /dev/own | wc -c; \
         ls | grep -v core",
        with,
    )?;
    assert!(
        text.contains("own character special file 640 5 6 1 5"),
        "{text}"
    );
    Ok(())
}

/// Engines write -1 for all of a kind.
fn devices_by_wildcards(engine: &Containerd) -> Result<()> {
    let script =
        "cd /dev; mknod other c 1 5; mknod disk b 7 0; head -c 1 other | wc -c; head -c 1 disk";
    let text = same(engine, &format!("{{ {script}; true; }} 2>&1"), |builder| {
        builder.spec(|spec| {
            spec["linux"]["resources"]["devices"] = json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 42, "minor": -1, "access": "rwm"},
                {"allow": true, "type": "c", "major": -1, "minor": -1, "access": "rwm"},
            ]);
        })
    })?;
    assert!(text.starts_with("1\n"), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
    Ok(())
}

/// A configuration that says nothing of devices allows those that every container has.
fn devices_without_rules(engine: &Containerd) -> Result<()> {
    let script = "cd /dev; mknod other b 7 0; head -c 1 other; head -c 3 zero | wc -c";
    for changed in ["/linux/resources", "/linux"] {
        let text = same(engine, &format!("{{ {script}; }} 2>&1"), |builder| {
            builder.spec(|spec| {
                let within = spec.pointer_mut(changed).and_then(Value::as_object_mut);
                let rules = changed.rsplit('/').next() == Some("linux");
                let name = if rules { "resources" } else { "devices" };
                within.expect("it is in the specification").remove(name);
            })
        })?;
        ensure!(text.contains("Operation not permitted"), "{text}");
        ensure!(text.ends_with("3\n"), "{text}");
    }
    Ok(())
}

/// The session keyring is the container's own, and that of all its processes: only who possesses it sees another user's.
fn session_keyring(engine: &Containerd) -> Result<()> {
    let mut seen = Vec::new();
    for runtime in [RUNC, WASMTIME] {
        for own in [true, false] {
            let id = format!("{}-keyring", engine.namespace());
            let script = format!(
                "while read -r _ flags _ expiry mask user group kind name; do \
                    case $name in _ses.{id}*:*) echo $flags $expiry $mask $user $group $kind ${{name#*:}};; esac; \
                 done < /proc/keys; echo end"
            );
            let options = RuncOptions {
                no_new_keyring: !own,
                ..RuncOptions::default()
            };
            let container = engine
                .container(&rootfs()?)
                .id(&id)
                .runtime(runtime)
                .options(options.any())
                .user(1000, 1000)
                .spec(|spec| spec["linux"]["maskedPaths"] = json!([]))
                .args(["/bin/sh", "-c", &format!("{script}; sleep 1000")])
                .create()?;
            container.start()?;
            container.wait_for_output("end")?;
            let added = container
                .exec(["/bin/sh", "-c", &script])?
                .run()?
                .success()?;
            container.kill(Signal::SIGKILL)?;
            let output = container.finish()?.text();
            assert_eq!(added, output, "{runtime}: the added process's, the first's");
            assert_eq!(output != "end\n", own, "{runtime}: {output}");
            seen.push(output);
        }
    }
    assert_eq!(seen[2..], seen[..2], "ours, runc's");
    Ok(())
}

fn hostname(engine: &Containerd) -> Result<()> {
    let text = same(engine, "hostname", |b| {
        b.spec(|spec| spec["hostname"] = json!("ship"))
    })?;
    assert_eq!(text, "ship\n");
    Ok(())
}

/// Who is given a capability that there is not goes without it, and has the others.
fn unknown_capabilities(engine: &Containerd) -> Result<()> {
    let add = |spec: &mut Value| {
        for set in ["bounding", "effective", "permitted"] {
            let names = spec["process"]["capabilities"][set].as_array_mut();
            names.expect("a set").push(json!("CAP_FROB"));
        }
    };
    let text = same(engine, "grep Cap /proc/self/status", |b| b.spec(add))?;
    assert_eq!(text, same(engine, "grep Cap /proc/self/status", |b| b)?);
    // As somebody else's configuration comes to an exec: with what it has of the container.
    let container = engine
        .container(&rootfs()?)
        .args(["/bin/sleep", "1000"])
        .create()?;
    container.start()?;
    let names = json!(["CAP_KILL", "CAP_FROB"]);
    let exec = container
        .exec(["/bin/sh", "-c", "grep CapEff /proc/self/status"])?
        .with(
            "/capabilities",
            json!({"bounding": names, "effective": names, "permitted": names}),
        )
        .run()?;
    assert_eq!(exec.success()?, "CapEff:\t0000000000000020\n");
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

/// Of several values the last counts, also for where the program is looked for.
fn variables_given_twice(engine: &Containerd) -> Result<()> {
    fn twice(b: Builder<'_>) -> Builder<'_> {
        b.env("A", "1")
            .env("PATH", "/nowhere")
            .env("A", "2")
            .env("PATH", "/bin")
    }
    let text = same(engine, "env | grep -E '^(A|PATH)=' | sort", |b| {
        twice(b).args(["sh", "-c", "env | grep -E '^(A|PATH)=' | sort"])
    })?;
    assert_eq!(text, "A=2\nPATH=/bin\n");
    let guest = twice(engine.container(&Rootfs::guests()?)).args(["/tool.wasm", "env"]);
    let text = guest.run()?.success()?;
    assert!(text.contains("A=2\n") && !text.contains("A=1"), "{text}");
    let container = engine
        .container(&rootfs()?)
        .args(["/bin/sleep", "1000"])
        .create()?;
    container.start()?;
    let exec = container
        .exec(["env"])?
        .with("/env", json!(["PATH=/nowhere", "A=1", "A=2", "PATH=/bin"]))
        .run()?;
    let text = exec.success()?;
    assert!(text.contains("A=2\n") && !text.contains("A=1"), "{text}");
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

/// The environment as it arrives, and a cwd that is made when it is missing.
fn environment_and_cwd(engine: &Containerd) -> Result<()> {
    let text = same(engine, "env | grep -v '^SHLVL='; pwd", |b| {
        b.env("A", "b c").env("EMPTY", "")
    })?;
    assert!(
        text.contains("A=b c\n") && text.contains("HOME=/root\n"),
        "{text}"
    );
    let text = same(engine, "pwd; ls -ld /new/deep", |b| b.cwd("/new/deep"))?;
    assert!(text.starts_with("/new/deep\n"), "{text}");
    let volume = tempfile::tempdir()?;
    let text = same(
        engine,
        "pwd; ls -ld /volume/new/deep; rmdir /volume/new/deep",
        |b| {
            b.bind(volume.path(), "/volume", &[])
                .cwd("/volume/new/deep")
        },
    )?;
    assert!(text.starts_with("/volume/new/deep\n"), "{text}");
    ensure!(volume.path().join("new").is_dir(), "in the volume");
    fn own(b: Builder<'_>) -> Builder<'_> {
        let tmpfs = mount("tmpfs", "/own", "tmpfs", &[]);
        let within = mount("tmpfs", "/own/within", "tmpfs", &[]);
        b.mount(tmpfs).mount(within).cwd("/own/within/new/deep")
    }
    let text = same(engine, "pwd; ls -ld /own/within/new/deep", own)?;
    assert!(text.starts_with("/own/within/new/deep\n"), "{text}");
    let guest = own(engine.container(&Rootfs::guests()?)).args(["/tool-p3.wasm", "cwd"]);
    assert_eq!(guest.run()?.success()?, "/own/within/new/deep\n");
    same(engine, "env | grep HOME", |b| b.user(1000, 1000))?;
    Ok(())
}

/// The cgroup's own files say what the specification does.
fn resources(engine: &Containerd) -> Result<()> {
    let files: &[(&str, &str)] = if lighter_test::cgroup::unified() {
        &[
            ("", "memory.max"),
            ("", "pids.max"),
            ("", "cpu.max"),
            ("", "cpu.weight"),
        ]
    } else {
        &[
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.soft_limit_in_bytes"),
            ("pids", "pids.max"),
            ("cpu", "cpu.shares"),
            ("cpu", "cpu.cfs_quota_us"),
            ("cpu", "cpu.cfs_period_us"),
            ("cpuset", "cpuset.cpus"),
            ("devices", "devices.list"),
        ]
    };
    let mut seen = Vec::new();
    for (runtime, args) in [
        (RUNC, ["/bin/sh", "-c", "sleep 1000"]),
        (WASMTIME, ["/bin/sh", "-c", "sleep 1000"]),
        (WASMTIME, ["/tool.wasm", "sleep", "1000"]),
    ] {
        let container = engine
            .container(&rootfs()?)
            .runtime(runtime)
            .args(args)
            .spec(|spec| {
                let resources = &mut spec["linux"]["resources"];
                resources["memory"] = json!({"limit": 100 << 20, "reservation": 50 << 20});
                resources["pids"] = json!({"limit": 77});
                resources["cpu"] =
                    json!({"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"});
            })
            .create()?;
        container.start()?;
        let values: Vec<String> = files
            .iter()
            .map(|(controller, file)| {
                let text = container.cgroup_file(controller, file)?;
                let mut lines: Vec<&str> = text.lines().collect();
                lines.sort_unstable();
                Ok(format!("{file}: {}", lines.join(", ")))
            })
            .collect::<Result<_>>()?;
        seen.push(values);
        container.kill(nix::sys::signal::Signal::SIGKILL)?;
        container.finish()?;
    }
    assert_eq!(seen[1], seen[0], "a Linux container");
    assert_eq!(seen[2], seen[0], "a guest");
    assert!(
        seen[0].iter().any(|line| line.ends_with(": 77")),
        "{seen:?}"
    );
    Ok(())
}

/// A container that gets little of a processor does not wait for it before it has begun.
fn little_time(engine: &Containerd) -> Result<()> {
    for args in [["/bin/sleep", "1000"], ["/tool.wasm", "sleep"]] {
        let container = engine
            .container(&rootfs()?)
            .args(args)
            .spec(|spec| {
                spec["linux"]["resources"]["cpu"] = json!({"quota": 1000, "period": 100_000});
            })
            .create()?;
        assert_eq!(
            container.cgroup_file("cpu", "cpu.cfs_quota_us")?.trim(),
            "1000"
        );
        let stat = container.cgroup_file("cpu", "cpu.stat")?;
        let throttled = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "));
        // From when it was set on it counts.
        assert!(matches!(throttled, Some("0" | "1")), "{args:?}: {stat}");
        container.kill(Signal::SIGKILL)?;
        container.finish()?;
    }
    Ok(())
}

fn oom_score(engine: &Containerd) -> Result<()> {
    let text = same(engine, "cat /proc/self/oom_score_adj", |b| {
        b.spec(|spec| spec["process"]["oomScoreAdj"] = json!(500))
    })?;
    assert_eq!(text, "500\n");
    let guest = guest_reads(engine, "/proc/self/oom_score_adj", |b| {
        b.spec(|spec| spec["process"]["oomScoreAdj"] = json!(500))
    })?;
    assert_eq!(guest, "500\n");
    Ok(())
}

fn umask(engine: &Containerd) -> Result<()> {
    let script = "umask; touch /data/file; stat -c %a /data/file";
    assert_eq!(same(engine, script, |b| b)?, "0022\n644\n");
    let text = same(engine, script, |b| {
        b.spec(|spec| spec["process"]["user"]["umask"] = json!(0o077))
    })?;
    assert_eq!(text, "0077\n600\n");
    Ok(())
}
