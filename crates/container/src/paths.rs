//! Paths in a container, as the configuration writes them.

use std::path::{Component, Path, PathBuf};

/// `path`, from the container's root, without `.` and `..`: as the words say, whatever links there are. So runc reads
/// the destinations of mounts and the working directory; what is not there yet cannot be left by `..` (pathrs refuses that).
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_gone_through_from_the_root() {
        for (given, expected) in [
            ("/a/bin/../config", "/a/config"),
            ("/../../a//./b/", "/a/b"),
            ("a/..", "/"),
            ("a", "/a"),
        ] {
            assert_eq!(clean(Path::new(given)), Path::new(expected), "{given}");
        }
    }
}
