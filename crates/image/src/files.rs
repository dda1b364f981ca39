//! The files of an image, read from its layers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

/// How many symbolic links a path may lead over, as Linux has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What lies where when an image's layers are put on top of one another. Nothing is written to
/// disk, so that it does not matter what an image calls its files.
#[derive(Debug, Default)]
pub struct Files {
    /// By their path, without a slash at its start.
    nodes: BTreeMap<String, Node>,
    layers: usize,
}

#[derive(Clone, Debug)]
struct Node {
    /// The layer that it comes from.
    layer: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    Symlink(String),
    File(Content),
    Other,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The layer, counted from the lowest, which is 0.
    pub layer: usize,
    /// The entry of the layer's tar.
    entry: usize,
}

impl Files {
    /// Puts a layer, a tar, over those that are there. Names that begin with `.wh.` hide what
    /// lower layers have (OCI image specification, `layer.md`, "Whiteouts").
    ///
    /// # Errors
    /// What reading says, and a tar that is damaged.
    pub fn add_layer(&mut self, tar: impl Read) -> io::Result<()> {
        let layer = self.layers;
        self.layers += 1;
        for (index, entry) in tar::Archive::new(tar).entries()?.enumerate() {
            let entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let Some(path) = self.place(&path) else {
                continue;
            };
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == ".wh..wh..opq" {
                self.remove_below(folder, layer);
                continue;
            }
            if let Some(hidden) = name.strip_prefix(".wh.") {
                let hidden = join(folder, hidden);
                self.remove_below(&hidden, layer);
                if self
                    .nodes
                    .get(&hidden)
                    .is_some_and(|node| node.layer < layer)
                {
                    self.nodes.remove(&hidden);
                }
                continue;
            }
            let target = || -> io::Result<String> {
                let name = entry.link_name()?;
                Ok(name.map_or(String::new(), |name| name.to_string_lossy().into_owned()))
            };
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => Kind::Symlink(target()?),
                tar::EntryType::Link => {
                    let target = self.place(&target()?);
                    let target = target.and_then(|target| self.nodes.get(&target));
                    target.map_or(Kind::Other, |node| node.kind.clone())
                }
                kind if kind.is_file() || kind.is_gnu_sparse() => Kind::File(Content {
                    layer,
                    entry: index,
                }),
                _ => Kind::Other,
            };
            if !matches!(kind, Kind::Directory) {
                self.remove_below(&path, layer + 1);
            }
            self.nodes.insert(path, Node { layer, kind });
        }
        Ok(())
    }

    /// The regular file that `path` leads to, with all symbolic links followed inside the image;
    /// from the folder `cwd` if it is relative.
    pub fn find(&self, path: &str, cwd: &str) -> Option<Content> {
        let path = self.resolve(&Path::new(cwd).join(path).to_string_lossy(), true)?;
        match self.nodes.get(&path)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    /// Removes what lies below `folder` and comes of layers under `layer`.
    fn remove_below(&mut self, folder: &str, layer: usize) {
        let start = join(folder, "");
        let below: Vec<String> = self
            .nodes
            .range(start.clone()..)
            .take_while(|(path, _)| path.starts_with(&start))
            .filter(|(_, node)| node.layer < layer)
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.nodes.remove(&path);
        }
    }

    /// Where an entry of this name goes: the folders that lead to it may be links. `None` for the
    /// root itself.
    fn place(&self, name: &str) -> Option<String> {
        let path = self.resolve(name, false)?;
        (!path.is_empty()).then_some(path)
    }

    /// `path` without links, `.` and `..`, which end at the root as chroot(2) has it. What is not
    /// there is taken for folders. The last part may stay a link unless `follow` says otherwise.
    fn resolve(&self, path: &str, follow: bool) -> Option<String> {
        let mut rest: Vec<String> = parts(path);
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(part);
            let node = self.nodes.get(&done.join("/"));
            if let Some(Kind::Symlink(target)) = node.map(|node| &node.kind)
                && (follow || !rest.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(parts(target));
            }
        }
        Some(done.join("/"))
    }
}

/// Copies a file's bytes out of `tar`, its layer.
///
/// # Errors
/// What reading and writing say; and a layer that has no such file, so is another.
pub fn extract(tar: impl Read, content: Content, to: &mut impl Write) -> io::Result<()> {
    let mut archive = tar::Archive::new(tar);
    let entry = archive.entries()?.nth(content.entry);
    let mut entry = entry.ok_or_else(|| io::Error::other("the layer is another by now"))??;
    io::copy(&mut entry, to)?;
    Ok(())
}

/// The parts of a path, the first one last.
fn parts(path: &str) -> Vec<String> {
    path.split('/')
        .rev()
        .filter(|part| !part.is_empty() && *part != ".")
        .map(str::to_owned)
        .collect()
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::EntryType::{self, Directory, Link, Regular, Symlink};

    /// A layer of names, kinds, and contents or targets.
    fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(0);
            match kind {
                Symlink | Link => tar.append_link(&mut header, name, text),
                _ => {
                    header.set_size(text.len() as u64);
                    tar.append_data(&mut header, name, text.as_bytes())
                }
            }
            .expect("memory");
        }
        tar.into_inner().expect("memory")
    }

    /// The content of the file that `path` leads to.
    fn read(layers: &[Vec<u8>], path: &str) -> Option<String> {
        let mut files = Files::default();
        for layer in layers {
            files.add_layer(&layer[..]).expect("a layer");
        }
        let content = files.find(path, "/work")?;
        let mut bytes = Vec::new();
        extract(&layers[content.layer][..], content, &mut bytes).expect("its content");
        Some(String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn the_uppermost_file_counts() {
        let layers = [
            layer(&[("a", Regular, "old"), ("./work/b", Regular, "b")]),
            layer(&[("a", Regular, "new")]),
        ];
        assert_eq!(read(&layers, "/a").as_deref(), Some("new"));
        assert_eq!(read(&layers, "../a").as_deref(), Some("new"));
        assert_eq!(read(&layers, "b").as_deref(), Some("b"));
        assert_eq!(read(&layers, "/b"), None);
        assert_eq!(read(&layers, "/work"), None, "a folder");
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let layers = [
            layer(&[
                ("gone", Regular, "x"),
                ("folder/gone", Regular, "x"),
                ("opaque/gone", Regular, "x"),
                ("was-folder/gone", Regular, "x"),
            ]),
            layer(&[
                (".wh.gone", Regular, ""),
                (".wh.folder", Regular, ""),
                ("opaque/new", Regular, "new"),
                ("opaque/.wh..wh..opq", Regular, ""),
                ("was-folder", Regular, "file"),
            ]),
        ];
        for path in ["/gone", "/folder/gone", "/opaque/gone", "/was-folder/gone"] {
            assert_eq!(read(&layers, path), None, "{path}");
        }
        assert_eq!(read(&layers, "/opaque/new").as_deref(), Some("new"));
        assert_eq!(read(&layers, "/was-folder").as_deref(), Some("file"));
    }

    #[test]
    fn links_are_followed_inside_the_image() {
        let layers = [
            layer(&[
                ("usr/bin", Directory, ""),
                ("bin", Symlink, "usr/bin"),
                ("usr/bin/tool", Regular, "tool"),
                ("absolute", Symlink, "/bin/tool"),
                ("escape", Symlink, "../../../../usr/bin/tool"),
                ("round", Symlink, "round"),
                ("dangling", Symlink, "/nowhere"),
                ("hard", Link, "usr/bin/tool"),
            ]),
            // Its folder is a link of the layer below.
            layer(&[("bin/other", Regular, "other")]),
        ];
        for path in ["/bin/tool", "/absolute", "/escape", "/hard"] {
            assert_eq!(read(&layers, path).as_deref(), Some("tool"), "{path}");
        }
        assert_eq!(read(&layers, "/usr/bin/other").as_deref(), Some("other"));
        for path in ["/round", "/dangling"] {
            assert_eq!(read(&layers, path), None, "{path}");
        }
    }

    #[test]
    fn a_damaged_layer_is_an_error() {
        let mut files = Files::default();
        files.add_layer(&[b'x'; 1024][..]).expect_err("no tar");
    }
}
