use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    blob::{Blob, Source, Spool},
};

/// What the names of whiteouts begin with (OCI image specification, `layer.md`).
const WHITEOUT: &str = ".wh.";

/// A layer of an image's file system: entries by their path.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Keys are without slashes at their ends. A directory sorts before what it holds.
    entries: BTreeMap<String, Entry>,
}

/// A file, directory or symbolic link of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    content: Content,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug)]
enum Content {
    Directory,
    Bytes(Vec<u8>),
    Host(PathBuf),
    Symlink(String),
}

impl Entry {
    /// A directory, mode 0755.
    pub fn directory() -> Self {
        Self::new(Content::Directory)
    }

    /// A file holding these bytes, mode 0644.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(Content::Bytes(bytes.into()))
    }

    /// A copy of a file on the host, read when the archive is written, with its mode.
    pub fn file(host: impl Into<PathBuf>) -> Self {
        Self::new(Content::Host(host.into()))
    }

    /// A symbolic link to `target`, which need not exist.
    pub fn symlink(target: impl Into<String>) -> Self {
        Self::new(Content::Symlink(target.into()))
    }

    /// The same with other permission bits. A symbolic link has none.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// The same owned by others than root.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    fn new(content: Content) -> Self {
        Self {
            content,
            mode: None,
            uid: 0,
            gid: 0,
        }
    }
}

impl Layer {
    /// Adds an entry at a path of the image, absolute or relative to its root.
    /// Parents that are not added become directories of root, mode 0755.
    ///
    /// Fails if the path has `..`, is the root, is taken, or would mean in a layer that something is gone.
    pub fn add(&mut self, path: &str, entry: Entry) -> Result<(), Error> {
        let path = normal(path)?;
        if path.split('/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(Error::Path {
                path,
                reason: "in a layer, a name that begins with `.wh.` takes a file of the layers below away",
            });
        }
        if path.is_empty() {
            return Err(Error::Path {
                path: "/".into(),
                reason: "it is the root, which every image has",
            });
        }
        if self.entries.contains_key(&path) {
            return Err(Error::Duplicate(format!("/{path}")));
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// Adds what a directory of the host holds, at any depth, below a path of
    /// the image, owned by root, with the modes that it has there. The path gets the directory's own
    /// mode, unless the layer has it already. Links are copied as links.
    pub fn add_tree(&mut self, host: &Path, path: &str) -> Result<(), Error> {
        let failed = |source| Error::Read {
            host: host.into(),
            path: path.into(),
            source,
        };
        let base = normal(path)?;
        match self.entries.get(&base) {
            None if base.is_empty() => {}
            None => {
                let mode = mode(&fs::metadata(host).map_err(failed)?);
                self.add(&base, Entry::directory().mode(mode))?;
            }
            Some(Entry {
                content: Content::Directory,
                ..
            }) => {}
            Some(_) => return Err(Error::Duplicate(format!("/{base}"))),
        }
        for found in fs::read_dir(host).map_err(failed)? {
            let found = found.map_err(failed)?;
            let name = utf8(found.file_name())?;
            let (host, path) = (found.path(), format!("{base}/{name}"));
            let kind = found.file_type().map_err(failed)?;
            if kind.is_dir() {
                self.add_tree(&host, &path)?;
            } else if kind.is_file() {
                self.add(&path, Entry::file(host))?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&host).map_err(failed)?;
                self.add(&path, Entry::symlink(utf8(target.into())?))?;
            } else {
                return Err(Error::Kind(host));
            }
        }
        Ok(())
    }

    /// The files of the host whose content goes into the layer.
    pub fn sources(&self) -> impl Iterator<Item = &Path> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.content {
                Content::Host(path) => Some(path.as_path()),
                _ => None,
            })
    }

    /// The layer as an uncompressed tar.
    pub(crate) fn blob(&self) -> Result<Blob<impl Read + use<>>, Error> {
        let spool = |source| Error::Spool { source };
        let mut tar = tar::Builder::new(Spool::new().map_err(spool)?);
        for (path, entry) in self.with_parents()? {
            append(&mut tar, &path, &entry)?;
        }
        tar.into_inner().and_then(Spool::finish).map_err(spool)
    }

    /// All entries and the directories that lead to them.
    fn with_parents(&self) -> Result<BTreeMap<String, Entry>, Error> {
        let mut all = self.entries.clone();
        for path in self.entries.keys() {
            for (end, _) in path.match_indices('/') {
                let parent = all
                    .entry(path[..end].to_owned())
                    .or_insert_with(Entry::directory);
                if !matches!(parent.content, Content::Directory) {
                    return Err(Error::Parent {
                        path: format!("/{path}"),
                        parent: format!("/{}", &path[..end]),
                    });
                }
            }
        }
        Ok(all)
    }
}

/// The permission bits of what the host has.
fn mode(found: &fs::Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}

fn utf8(name: OsString) -> Result<String, Error> {
    name.into_string().map_err(|name| Error::Path {
        path: name.to_string_lossy().into(),
        reason: "it is not UTF-8",
    })
}

/// A path without `.`, double slashes and slashes at its ends; the root is empty.
fn normal(path: &str) -> Result<String, Error> {
    let refuse = |reason| Error::Path {
        path: path.into(),
        reason,
    };
    if path.contains('\0') {
        return Err(refuse("it contains a zero byte"));
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(refuse("it contains `..`"));
    }
    Ok(parts.join("/"))
}

fn append(tar: &mut tar::Builder<Spool>, path: &str, entry: &Entry) -> Result<(), Error> {
    let spool = |source| Error::Spool { source };
    // Everything that a header can tell of a machine or an hour stays zero.
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    match &entry.content {
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(entry.mode.unwrap_or(0o755));
            header.set_size(0);
            tar.append_data(&mut header, format!("{path}/"), io::empty())
                .map_err(spool)
        }
        Content::Bytes(bytes) => {
            header.set_mode(entry.mode.unwrap_or(0o644));
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())
                .map_err(spool)
        }
        Content::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            tar.append_link(&mut header, path, target).map_err(spool)
        }
        Content::Host(host) => {
            let failed = |source| Error::Read {
                host: host.clone(),
                path: format!("/{path}"),
                source,
            };
            // Opening a pipe would wait for a writer, so look first.
            let found = fs::metadata(host).map_err(failed)?;
            if found.is_dir() {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            if !found.is_file() {
                return Err(Error::Kind(host.clone()));
            }
            let file = fs::File::open(host).map_err(failed)?;
            header.set_mode(entry.mode.unwrap_or_else(|| mode(&found)));
            header.set_size(found.len());
            // The header has the size in it: read so much, no more and no less.
            let mut source = Source::new(file);
            let mut content = (&mut source).take(found.len());
            let appended = tar.append_data(&mut header, path, &mut content);
            match (appended, content.limit()) {
                (Ok(()), 0) => Ok(()),
                (Ok(()), _) => Err(Error::Changed(host.clone())),
                (Err(error), _) if source.has_failed => Err(failed(error)),
                (Err(error), _) => Err(spool(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(layer: &Layer) -> String {
        match layer.blob() {
            Ok(_) => panic!("the layer was made"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut layer = Layer::default();
        layer
            .add("/bin/app", Entry::file("/nowhere/app.wasm"))
            .unwrap();
        let error = error(&layer);
        assert!(error.contains("/nowhere/app.wasm"), "{error}");
        assert!(error.contains("`/bin/app`"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_directory_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut layer = Layer::default();
        layer.add("/app", Entry::file(folder.path())).unwrap();
        let error = error(&layer);
        assert!(error.contains("is a directory"), "{error}");
    }

    #[test]
    fn a_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut layer = Layer::default();
        let error = layer.add_tree(folder.path(), "/").unwrap_err();
        assert!(
            matches!(&error, Error::Kind(found) if *found == path),
            "{error}"
        );
    }

    #[test]
    fn modes_are_those_of_the_host() {
        let host = tempfile::tempdir().unwrap();
        let made = |name: &str, mode: u32| {
            let path = host.path().join(name);
            if name.ends_with('/') {
                fs::create_dir(&path).unwrap();
            } else {
                fs::write(&path, "").unwrap();
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o750)).unwrap();
        made("tmp/", 0o1777);
        made("tmp/key", 0o600);
        let program = made("busybox", 0o4755);
        let mut layer = Layer::default();
        layer.add_tree(host.path(), "/opt/tree").unwrap();
        layer.add("/bin/busybox", Entry::file(program)).unwrap();
        let blob = layer.blob().unwrap();
        let found: Vec<(String, u32)> = tar::Archive::new(blob.content)
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        let expected = [
            ("bin/", 0o755),
            ("bin/busybox", 0o4755),
            ("opt/", 0o755),
            ("opt/tree/", 0o750),
            ("opt/tree/busybox", 0o4755),
            ("opt/tree/tmp/", 0o1777),
            ("opt/tree/tmp/key", 0o600),
        ];
        assert_eq!(found, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn paths_cannot_leave_the_image_or_meet() {
        let mut layer = Layer::default();
        for path in ["../etc", "/a/../../b", "", "/", "a\0b"] {
            let error = layer.add(path, Entry::directory()).unwrap_err();
            assert!(matches!(error, Error::Path { .. }), "{path}: {error}");
        }
        layer.add("/a/b", Entry::bytes("one")).unwrap();
        let again = layer.add("a//./b/", Entry::bytes("two")).unwrap_err();
        assert!(matches!(again, Error::Duplicate(path) if path == "/a/b"));
        layer.add("/a/b/c", Entry::bytes("three")).unwrap();
        assert!(error(&layer).contains("`/a/b` in the same layer is not a directory"));
    }
}
