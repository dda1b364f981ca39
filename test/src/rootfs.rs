//! The files that a container starts from.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use containerd_client::{
    services::v1::snapshots::{
        CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    },
    types::Mount,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Containerd, runtime::call, version::guest};

/// The snapshotter of all tests.
pub const SNAPSHOTTER: &str = "overlayfs";

/// When files were last modified.
const LONG_AGO: SystemTime = SystemTime::UNIX_EPOCH;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Content {
    Folder,
    Bytes(Vec<u8>),
    Copy(PathBuf),
    Link(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    path: String,
    content: Content,
    mode: u32,
    owner: u32,
}

/// The files of a rootfs, to be committed as a snapshot that containers of one
/// daemon start from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rootfs {
    entries: Arc<Vec<Entry>>,
}

impl Rootfs {
    /// The folders that every image has, and users `root` and `user` (1000).
    pub fn base() -> Self {
        Self::default()
            .folder("/dev", 0o755)
            .folder("/etc", 0o755)
            .folder("/proc", 0o755)
            .folder("/root", 0o700)
            .folder("/run", 0o755)
            .folder("/sys", 0o755)
            .folder("/tmp", 0o1777)
            .file(
                "/etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n",
            )
            .file("/etc/group", "root:x:0:\nuser:x:1000:\n")
    }

    /// [`Rootfs::base`] with busybox and its applets in /bin.
    pub fn busybox() -> Self {
        const APPLETS: &[&str] = &[
            "cat", "chmod", "cut", "dd", "echo", "env", "false", "grep", "head", "hostname", "id",
            "ip", "kill", "ln", "ls", "mkdir", "mount", "nc", "ping", "printf", "ps", "pwd",
            "readlink", "sh", "sleep", "stat", "stty", "tail", "test", "touch", "true", "tty",
            "umount", "wc", "wget", "yes",
        ];
        let mut rootfs = Self::base()
            .folder("/bin", 0o755)
            .copy("/usr/bin/busybox", "/bin/busybox");
        for applet in APPLETS {
            rootfs = rootfs.link("busybox", &format!("/bin/{applet}"));
        }
        rootfs
    }

    /// [`Rootfs::busybox`] with every guest of `target/guests` in `/`: what most
    /// tests start from, so that a daemon makes only one snapshot for them.
    ///
    /// # Errors
    /// A guest was not built.
    pub fn guests() -> Result<Self> {
        [
            "counter.wasm",
            "counter-p3.wasm",
            "hello.wasm",
            "hello-rust.wasm",
            "hello-component.wasm",
            "hello-http.wasm",
            "reactor.wasm",
            "tcp-echo.wasm",
            "tool.wasm",
            "tool-component.wasm",
            "tool-http.wasm",
            "tool-http-p3.wasm",
            "tool-p3.wasm",
            "tool-wasi.wasm",
            "tool-wasi-p3.wasm",
        ]
        .into_iter()
        .try_fold(Self::busybox(), Self::guest)
    }

    /// Adds a guest of `target/guests` as `/NAME`.
    ///
    /// # Errors
    /// The guest was not built.
    pub fn guest(self, name: &str) -> Result<Self> {
        let path = guest(name)?;
        Ok(self.copy(path, &format!("/{name}")))
    }

    /// Adds a folder with permissions, owned by root.
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(path, Content::Folder, mode)
    }

    /// Adds a file that everyone may read and run, owned by root.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, Content::Bytes(content.as_ref().to_vec()), 0o755)
    }

    /// Adds a file with permissions, owned by a user and the group of the same
    /// number.
    pub fn file_of(self, path: &str, content: impl AsRef<[u8]>, mode: u32, owner: u32) -> Self {
        let mut rootfs = self.entry(path, Content::Bytes(content.as_ref().to_vec()), mode);
        if let Some(entry) = Arc::make_mut(&mut rootfs.entries).last_mut() {
            entry.owner = owner;
        }
        rootfs
    }

    /// Adds a copy of a file of the machine, which everyone may read and run.
    pub fn copy(self, from: impl AsRef<Path>, path: &str) -> Self {
        self.entry(path, Content::Copy(from.as_ref().to_owned()), 0o755)
    }

    /// Adds a symbolic link.
    pub fn link(self, to: &str, path: &str) -> Self {
        self.entry(path, Content::Link(PathBuf::from(to)), 0o777)
    }

    fn entry(mut self, path: &str, content: Content, mode: u32) -> Self {
        Arc::make_mut(&mut self.entries).push(Entry {
            path: path.trim_start_matches('/').to_owned(),
            content,
            mode,
            owner: 0,
        });
        self
    }

    /// Writes the files into a folder.
    ///
    /// # Errors
    /// A file that cannot be written or copied.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for entry in self.entries.iter() {
            let path = folder.join(&entry.path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)
                    .with_context(|| format!("create {}", folder.display()))?;
            }
            let written = match &entry.content {
                Content::Folder => fs::create_dir_all(&path),
                Content::Bytes(bytes) => fs::write(&path, bytes),
                Content::Copy(from) => fs::copy(from, &path).map(|_| ()),
                Content::Link(to) => symlink(to, &path),
            };
            written.with_context(|| format!("write {} for {entry:?}", path.display()))?;
            if matches!(entry.content, Content::Bytes(_) | Content::Copy(_)) {
                // As whoever unpacks an image does: files are older than their place here.
                fs::File::open(&path)?.set_modified(LONG_AGO)?;
            }
            if !matches!(entry.content, Content::Link(_)) {
                fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
                chown(&path, Some(entry.owner), Some(entry.owner))?;
            }
        }
        Ok(())
    }
}

impl Rootfs {
    /// The files as the layer of an image.
    ///
    /// # Errors
    /// A path that is there twice.
    pub fn layer(&self) -> Result<image::Layer> {
        let mut layer = image::Layer::default();
        for entry in self.entries.iter() {
            let found = match &entry.content {
                Content::Folder => image::Entry::directory(),
                Content::Bytes(bytes) => image::Entry::bytes(bytes.clone()),
                Content::Copy(from) => image::Entry::file(from),
                Content::Link(to) => image::Entry::symlink(to.to_string_lossy()),
            };
            let found = found.mode(entry.mode).owner(entry.owner, entry.owner);
            layer.add(&entry.path, found)?;
        }
        Ok(layer)
    }
}

impl Containerd {
    /// The name of a committed snapshot with these files, made at the first
    /// call and shared by all later ones.
    ///
    /// # Errors
    /// The snapshotter's, or those of [`Rootfs::write`].
    pub fn snapshot_of(&self, rootfs: &Rootfs) -> Result<String> {
        let mut known = self.rootfs.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(name) = known.get(rootfs) {
            return Ok(name.clone());
        }
        let name = format!("rootfs-{}", known.len());
        let key = format!("{name}-making");
        let mounts = self.prepare_snapshot(&key, "")?;
        let folder = tempfile::Builder::new()
            .prefix("rootfs-")
            .tempdir_in(self.folder())?;
        mount_at(&mounts, folder.path())?;
        let written = rootfs.write(folder.path());
        umount2(folder.path(), MntFlags::MNT_DETACH)?;
        written?;
        let mut snapshots = self.client().snapshots();
        call(
            snapshots.commit(
                self.request(CommitSnapshotRequest {
                    snapshotter: SNAPSHOTTER.to_owned(),
                    name: name.clone(),
                    key,
                    // The garbage collector must not take what no container uses yet.
                    labels: [(
                        "containerd.io/gc.root".to_owned(),
                        "2026-01-01T00:00:00Z".to_owned(),
                    )]
                    .into(),
                }),
            ),
        )?;
        known.insert(rootfs.clone(), name.clone());
        Ok(name)
    }

    /// Makes a writable snapshot over another (`""`: over nothing).
    ///
    /// # Errors
    /// The snapshotter's.
    pub fn prepare_snapshot(&self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: [(
                "containerd.io/gc.root".to_owned(),
                "2026-01-01T00:00:00Z".to_owned(),
            )]
            .into(),
        };
        let mut snapshots = self.client().snapshots();
        let answer = call(snapshots.prepare(self.request(request)))
            .with_context(|| format!("prepare snapshot {key} over {parent}"))?;
        Ok(answer.into_inner().mounts)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// The snapshotter's, such as when the snapshot is still used.
    pub fn remove_snapshot(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        };
        call(self.client().snapshots().remove(self.request(request)))
            .with_context(|| format!("remove snapshot {key}"))?;
        Ok(())
    }

    /// Runs `look` on a folder that shows the files of a writable snapshot.
    ///
    /// # Errors
    /// The snapshotter's, a failed mount, or what `look` says.
    pub fn look_into<T>(&self, key: &str, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let request = MountsRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        };
        let mut snapshots = self.client().snapshots();
        let mounts = call(snapshots.mounts(self.request(request)))?
            .into_inner()
            .mounts;
        let folder = tempfile::Builder::new()
            .prefix("look-")
            .tempdir_in(self.folder())?;
        mount_at(&mounts, folder.path())?;
        let seen = look(folder.path());
        umount2(folder.path(), MntFlags::MNT_DETACH)?;
        seen
    }
}

/// Mounts a snapshot; snapshots of overlayfs are one bind or one overlay mount.
fn mount_at(mounts: &[Mount], target: &Path) -> Result<()> {
    let [one] = mounts else {
        anyhow::bail!("a snapshot of {} mounts", mounts.len());
    };
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in &one.options {
        match option.as_str() {
            "rbind" | "bind" => flags |= MsFlags::MS_BIND,
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            other => data.push(other),
        }
    }
    let data = data.join(",");
    mount(
        Some(one.source.as_str()),
        target,
        Some(one.r#type.as_str()),
        flags,
        (!data.is_empty()).then_some(data.as_str()),
    )
    .with_context(|| format!("mount {one:?}"))
}

/// Runs a program of the machine to its end, for what no library does.
///
/// # Errors
/// It cannot be started or ends with another code than 0; the message has its output.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {args:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
