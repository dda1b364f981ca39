//! Where a cgroup's folders are.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Error, Result, Tree};

/// Where Linux distributions mount the cgroup file systems, and where libcgroups looks.
const ROOT: &str = "/sys/fs/cgroup";
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The hierarchy of v1 without controllers in which systemd keeps its own book; runtimes put containers there, too.
const SYSTEMD: &str = "name=systemd";

/// Controllers that tell a v1 container's path, the surest first: every runtime puts a container
/// into `devices`, so that it can be kept from the host's.
const TELLING: [&str; 8] = [
    "devices", "pids", "memory", "freezer", "cpu", "cpuacct", "cpuset", "blkio",
];

pub(super) fn of(pid: u32) -> Result<Tree> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let memberships = memberships(&path, &read(&path)?)?;
    let mounts = machines_mounts()?;
    let tree = if unified()? {
        of_v2(&memberships, mounts).map(Tree::V2)
    } else {
        of_v1(&memberships, mounts).map(Tree::V1)
    };
    tree.ok_or(Error::NotMounted { pid })
}

pub(super) fn at(cgroups_path: &Path, systemd: bool) -> Result<Tree> {
    let path = plain(cgroups_path, systemd)?;
    let path = inside(&path)
        .ok_or_else(|| bad_path(cgroups_path, "it must lie below the root, without \"..\""))?;
    if unified()? {
        return Ok(Tree::V2(Path::new(ROOT).join(path)));
    }
    let own = Path::new("/proc/self/cgroup");
    let memberships = memberships(own, &read(own)?)?;
    let controllers = at_v1(&path, &memberships, machines_mounts()?);
    if controllers.is_empty() {
        return Err(Error::NoHierarchy);
    }
    Ok(Tree::V1(controllers))
}

/// `cgroups_path` without the form slice:prefix:name, which a relative one has where the `systemd` driver is asked for.
///
/// # Errors
/// [`Error::BadPath`] when it has another form.
pub(crate) fn plain(cgroups_path: &Path, systemd: bool) -> Result<PathBuf> {
    if !systemd || cgroups_path.is_absolute() {
        return Ok(cgroups_path.to_path_buf());
    }
    let text = cgroups_path
        .to_str()
        .ok_or_else(|| bad_path(cgroups_path, "it is not UTF-8"))?;
    scope(text).ok_or_else(|| {
        bad_path(
            cgroups_path,
            "the systemd driver needs the form slice:prefix:name",
        )
    })
}

fn bad_path(path: &Path, reason: &'static str) -> Error {
    Error::BadPath {
        path: path.to_path_buf(),
        reason,
    }
}

/// The folder of one controller.
pub(super) fn folder<'a>(controllers: &'a [(String, PathBuf)], name: &str) -> Option<&'a Path> {
    let found = controllers
        .iter()
        .find(|(controller, _)| controller == name);
    found.map(|(_, folder)| folder.as_path())
}

/// The folder that speaks for a v1 cgroup as a whole, e.g. for the list of its processes.
pub(super) fn telling_folder(controllers: &[(String, PathBuf)]) -> Option<&Path> {
    let known = TELLING.iter().find_map(|name| folder(controllers, name));
    known.or_else(|| controllers.first().map(|(_, folder)| folder.as_path()))
}

/// Whether the machine is on v2, by libcgroups' rule: the type of the file system at the root.
/// A v1 hierarchy that some program mounted elsewhere does not make a v2 machine v1.
fn unified() -> Result<bool> {
    let kind = statfs(ROOT).map_err(|errno| Error::io("examine", Path::new(ROOT))(errno.into()))?;
    Ok(kind.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Whether the machine's cgroups are those of v1, or hybrid.
pub fn is_v1() -> bool {
    unified().is_ok_and(|unified| !unified)
}

/// A line of /proc/PID/cgroup, cgroups(7): `hierarchy-ID:controller,...:path`.
#[derive(Debug, PartialEq)]
struct Membership {
    /// Empty for v2; `name=...` for a hierarchy without controllers.
    controllers: Vec<String>,
    path: PathBuf,
}

fn memberships(file: &Path, text: &str) -> Result<Vec<Membership>> {
    let parse = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?.split(',').filter(|name| !name.is_empty());
        Some(Membership {
            controllers: controllers.map(str::to_owned).collect(),
            path: PathBuf::from(fields.next()?),
        })
    };
    text.lines()
        .map(|line| {
            parse(line).ok_or_else(|| Error::Malformed {
                path: file.to_path_buf(),
                line: line.to_owned(),
                expected: "hierarchy:controllers:path",
            })
        })
        .collect()
}

/// A mounted cgroup file system.
#[derive(Debug, PartialEq)]
struct Mount {
    v2: bool,
    /// The part of the hierarchy that is mounted: not `/` in a container of its own.
    root: PathBuf,
    point: PathBuf,
    /// v1: controllers (and `name=...`) among the options of the file system.
    options: Vec<String>,
}

impl Mount {
    /// The folder of a path in the hierarchy, if this mount shows it.
    fn folder(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        let shown = below.components().all(|part| part != Component::ParentDir);
        shown.then(|| self.point.join(below))
    }
}

/// Where the machine's cgroup file systems are. They are not moved while there are containers, and
/// each container may be one more line of that file, so it is read once in the life of a process.
fn machines_mounts() -> Result<&'static [Mount]> {
    static MOUNTS: OnceLock<Vec<Mount>> = OnceLock::new();
    if let Some(mounts) = MOUNTS.get() {
        return Ok(mounts);
    }
    let found = mounts(Path::new(MOUNTINFO), &read(Path::new(MOUNTINFO))?)?;
    Ok(MOUNTS.get_or_init(|| found))
}

/// Finds out where the cgroup file systems are, for this process and those that it will clone.
pub fn look_for_mounts() {
    if let Err(error) = machines_mounts() {
        log::debug!("looking for cgroups: {error}");
    }
}

/// The folders on which the machine has v1 hierarchies.
pub fn v1_mount_points() -> Vec<PathBuf> {
    let mounts = machines_mounts().unwrap_or_default().iter();
    mounts
        .filter(|mount| !mount.v2)
        .map(|mount| mount.point.clone())
        .collect()
}

/// The cgroup file systems among the lines of /proc/PID/mountinfo, proc_pid_mountinfo(5).
fn mounts(file: &Path, text: &str) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for line in text.lines() {
        let parse = || {
            let (place, kind) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(3);
            let (root, point) = (place.next()?, place.next()?);
            let mut kind = kind.split(' ');
            Some((root, point, kind.next()?, kind.nth(1)?))
        };
        let (root, point, kind, options) = parse().ok_or_else(|| Error::Malformed {
            path: file.to_path_buf(),
            line: line.to_owned(),
            expected: "the fields of proc_pid_mountinfo(5)",
        })?;
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        mounts.push(Mount {
            v2: kind == "cgroup2",
            root: unescape(root),
            point: unescape(point),
            options: options.split(',').map(str::to_owned).collect(),
        });
    }
    Ok(mounts)
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

fn of_v2(memberships: &[Membership], mounts: &[Mount]) -> Option<PathBuf> {
    let own = memberships.iter().find(|own| own.controllers.is_empty())?;
    mounts
        .iter()
        .filter(|mount| mount.v2)
        .find_map(|mount| mount.folder(&own.path))
}

fn of_v1(memberships: &[Membership], mounts: &[Mount]) -> Option<Vec<(String, PathBuf)>> {
    let path_in = |name: &str| {
        let holds = |own: &&Membership| own.controllers.iter().any(|other| other == name);
        memberships.iter().find(holds).map(|own| &own.path)
    };
    let path = TELLING.iter().find_map(|name| path_in(name))?;
    let mut controllers = Vec::new();
    for own in memberships.iter().filter(|own| own.path == *path) {
        for name in own.controllers.iter().filter(|name| is_joined(name)) {
            let mut homes = mounts.iter().filter(|mount| mount.options.contains(name));
            if let Some(folder) = homes.find_map(|mount| mount.folder(path)) {
                controllers.push((name.clone(), folder));
            }
        }
    }
    (!controllers.is_empty()).then_some(controllers)
}

/// The folders that libcgroups gives to `path`: below the mount points, whatever part of the
/// hierarchies is mounted there. `memberships` of any process tell which controllers there are.
fn at_v1(path: &Path, memberships: &[Membership], mounts: &[Mount]) -> Vec<(String, PathBuf)> {
    let names = memberships.iter().flat_map(|any| &any.controllers);
    let folders = names.filter(|name| is_joined(name)).filter_map(|name| {
        let home = mounts.iter().find(|mount| mount.options.contains(name))?;
        Some((name.clone(), home.point.join(path)))
    });
    folders.collect()
}

/// Whether a container has a folder of its own in the hierarchy of this controller, or of this name.
fn is_joined(name: &str) -> bool {
    name == SYSTEMD || !name.starts_with("name=")
}

/// A path below the root of a hierarchy, made relative to it.
fn inside(path: &Path) -> Option<PathBuf> {
    let below: PathBuf = path
        .components()
        .filter(|part| *part != Component::RootDir)
        .collect();
    let mut parts = below.components();
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    (plain && !below.as_os_str().is_empty()).then_some(below)
}

/// The path of the scope that systemd makes for `slice:prefix:name` (or `prefix:name`, in
/// system.slice): each dash in a slice's name is a level of its own, systemd.slice(5).
fn scope(cgroups_path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = cgroups_path.split(':').collect();
    let (slice, prefix, name) = match parts[..] {
        [slice, prefix, name] if !slice.is_empty() => (slice, prefix, name),
        [_, prefix, name] | [prefix, name] => ("system.slice", prefix, name),
        _ => return None,
    };
    let levels = slice
        .strip_suffix(".slice")
        .filter(|levels| !levels.is_empty())?;
    let mut path = PathBuf::from("/");
    if levels != "-" {
        let mut level = String::new();
        for part in levels.split('-') {
            if part.is_empty() || part.contains('/') {
                return None;
            }
            level.push_str(part);
            path.push(format!("{level}.slice"));
            level.push('-');
        }
    }
    path.push(match name.ends_with(".slice") {
        true => name.to_owned(),
        false => format!("{prefix}-{name}.scope"),
    });
    Some(path)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts_of(text: &str) -> Vec<Mount> {
        mounts(Path::new(MOUNTINFO), text).unwrap()
    }

    fn memberships_of(text: &str) -> Vec<Membership> {
        memberships(Path::new("/proc/1/cgroup"), text).unwrap()
    }

    const LEGACY: &str = "\
25 1 0:22 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 25 0:28 / /sys/fs/cgroup rw shared:2 - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 master:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 31 0:32 / /sys/fs/cgroup/rdma rw - cgroup cgroup rw,rdma
36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn v1_takes_every_controller_in_which_the_container_has_its_own_path() {
        let own = memberships_of(
            "7:name=systemd:/system.slice/containerd.service\n\
             6:rdma:/\n5:memory:/k8s.io/abc\n4:devices:/k8s.io/abc\n\
             3:cpu,cpuacct:/k8s.io/abc\n0::/system.slice/containerd.service\n",
        );
        let controllers = of_v1(&own, &mounts_of(LEGACY)).unwrap();
        let expected = [
            ("memory", "/sys/fs/cgroup/memory/k8s.io/abc"),
            ("devices", "/sys/fs/cgroup/devices/k8s.io/abc"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/k8s.io/abc"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/k8s.io/abc"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(controllers, expected);

        // Controllers that are mounted together are one folder, to be removed once.
        let cgroup = super::super::Cgroup {
            tree: Tree::V1(controllers),
        };
        assert_eq!(cgroup.folders().len(), 3);
    }

    #[test]
    fn v1_places_a_cgroups_path_under_every_controller() {
        let path = inside(Path::new("/default/abc")).unwrap();
        let caller = memberships_of(
            "6:name=elogind:/c\n5:name=systemd:/a\n4:memory:/b\n3:devices:/\n2:cpu,cpuacct:/\n1:perf_event:/\n0::/\n",
        );
        let controllers = at_v1(&path, &caller, &mounts_of(LEGACY));
        let expected = [
            ("name=systemd", "/sys/fs/cgroup/systemd/default/abc"),
            ("memory", "/sys/fs/cgroup/memory/default/abc"),
            ("devices", "/sys/fs/cgroup/devices/default/abc"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/default/abc"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/default/abc"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(controllers, expected);
        let telling = telling_folder(&controllers);
        assert_eq!(
            telling,
            Some(Path::new("/sys/fs/cgroup/devices/default/abc"))
        );
    }

    #[test]
    fn v2_follows_systemd_paths_and_the_root_of_the_mount() {
        let own =
            memberships_of("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-a:b.scope\n");
        let host = mounts_of("29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let scope = "kubepods.slice/kubepods-pod1.slice/cri-containerd-a:b.scope";
        assert_eq!(of_v2(&own, &host), Some(Path::new(ROOT).join(scope)));

        let nested = mounts_of("29 23 0:26 /docker/d1 /sys/fs/cgroup rw - cgroup2 none rw\n");
        let inner = memberships_of("0::/docker/d1/default/abc\n");
        assert_eq!(
            of_v2(&inner, &nested),
            Some(Path::new(ROOT).join("default/abc"))
        );
        let outside = memberships_of("0::/docker/d2\n");
        assert_eq!(of_v2(&outside, &nested), None);
        let above = memberships_of("0::/../sibling\n");
        assert_eq!(of_v2(&above, &host), None);
    }

    #[test]
    fn systemd_scopes_are_where_systemd_puts_them() {
        let cases = [
            (":docker:foo", "/system.slice/docker-foo.scope"),
            (
                "machine.slice:libpod:foo",
                "/machine.slice/libpod-foo.scope",
            ),
            ("a-b.slice:cri:foo", "/a.slice/a-b.slice/cri-foo.scope"),
            ("-.slice:cri:foo", "/cri-foo.scope"),
            ("docker:foo", "/system.slice/docker-foo.scope"),
            ("a.slice:cri:b.slice", "/a.slice/b.slice"),
        ];
        for (given, expected) in cases {
            assert_eq!(scope(given), Some(PathBuf::from(expected)), "{given}");
        }
        for wrong in ["foo", "a:b:c:d", "a:b:c", ".slice:b:c", "a--b.slice:p:n"] {
            assert_eq!(scope(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths_that_name_no_cgroup_are_refused() {
        for wrong in ["", "/", "..", "/a/../../b"] {
            let answer = at(Path::new(wrong), false);
            assert!(
                matches!(answer, Err(Error::BadPath { .. })),
                "{wrong:?}: {answer:?}"
            );
        }
    }

    #[test]
    fn mountinfo_is_unescaped_and_checked() {
        let odd = mounts_of(r"29 23 0:26 / /mnt/a\040b\134c rw - cgroup2 cgroup2 rw");
        assert_eq!(odd[0].point, Path::new(r"/mnt/a b\c"));
        let broken = mounts(Path::new(MOUNTINFO), "29 23 0:26 / /mnt rw");
        assert!(matches!(broken, Err(Error::Malformed { .. })));
        let broken = memberships(Path::new("/proc/1/cgroup"), "0:memory");
        assert!(matches!(broken, Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_running_process_is_found() {
        let tree = of(std::process::id()).unwrap();
        let folder = match &tree {
            Tree::V1(controllers) => telling_folder(controllers).unwrap(),
            Tree::V2(folder) => folder,
        };
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        let own = std::process::id().to_string();
        assert!(
            procs.lines().any(|pid| pid == own),
            "{folder:?} does not list {own}"
        );
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        // Above the largest pid_max that Linux has, 2^22.
        assert!(matches!(of(1 << 23), Err(Error::Io { .. })));
    }
}
