//! A guest's files: the snapshot, read-only rootfs, mounts, other users' files.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::Result;
use lighter_test::{Containerd, Rootfs, each_containerd, spec::mount};

each_containerd!(
    writes_land_in_the_snapshot,
    whole_file_system,
    readonly_rootfs,
    bind_mount,
    readonly_bind_mount,
    bind_mounted_file,
    tmpfs_mount,
    user_is_kept_out,
    files_belong_to_the_user,
    no_way_out,
);

const TOOLS: [&str; 2] = ["/tool.wasm", "/tool-component.wasm"];

fn writes_land_in_the_snapshot(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args([tool, "write", "/new", "by the guest"])
            .create()?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0, "{}", container.stderr());
        let found = engine.look_into(container.id(), |root| {
            Ok(fs::read_to_string(root.join("new"))?)
        })?;
        assert_eq!(found, "by the guest", "{tool}");
    }
    Ok(())
}

fn whole_file_system(engine: &Containerd) -> Result<()> {
    // What both guests of a chain of runs do to a shared folder.
    for tool in TOOLS {
        let folder = tempfile::tempdir_in(engine.folder())?;
        let run = |words: &[&str]| -> Result<String> {
            let mut args = vec![tool];
            args.extend(words);
            engine
                .container(&Rootfs::guests()?)
                .args(args)
                .bind(folder.path(), "/shared", &["rw"])
                .run()?
                .success()
        };
        run(&["mkdir", "/shared/a"])?;
        run(&["write", "/shared/a/one", "1"])?;
        run(&["append", "/shared/a/one", "23"])?;
        assert_eq!(run(&["stat", "/shared/a/one"])?, "file 3\n");
        run(&["rename", "/shared/a/one", "/shared/a/two"])?;
        assert_eq!(run(&["ls", "/shared/a"])?, "two\n");
        std::os::unix::fs::symlink("two", folder.path().join("a/link"))?;
        assert_eq!(run(&["readlink", "/shared/a/link"])?, "two\n");
        assert_eq!(run(&["read", "/shared/a/link"])?, "123");
        run(&["unlink", "/shared/a/link"])?;
        run(&["unlink", "/shared/a/two"])?;
        run(&["rmdir", "/shared/a"])?;
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
    }
    Ok(())
}

fn readonly_rootfs(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "write", "/new", "text"])
            .readonly()
            .run()?;
        assert_eq!(output.status, 1, "{tool}");
        assert!(
            output.errors().contains("/new"),
            "{tool}: {}",
            output.errors()
        );
        // It can be read, and mounts over it can be written.
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "write", "/run/new", "text"])
            .readonly()
            .run()?;
        output.success()?;
    }
    Ok(())
}

fn bind_mount(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let folder = tempfile::tempdir_in(engine.folder())?;
        fs::write(folder.path().join("from-outside"), "outside")?;
        let run = |words: [&str; 3]| {
            engine
                .container(&Rootfs::guests()?)
                .args(
                    [tool]
                        .into_iter()
                        .chain(words)
                        .filter(|word| !word.is_empty()),
                )
                .bind(folder.path(), "/data/deep", &["rw"])
                .run()?
                .success()
        };
        assert_eq!(run(["read", "/data/deep/from-outside", ""])?, "outside");
        run(["write", "/data/deep/from-inside", "inside"])?;
        assert_eq!(
            fs::read_to_string(folder.path().join("from-inside"))?,
            "inside"
        );
    }
    Ok(())
}

fn readonly_bind_mount(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let folder = tempfile::tempdir_in(engine.folder())?;
        fs::write(folder.path().join("file"), "outside")?;
        let run = |words: &[&str]| {
            engine
                .container(&Rootfs::guests()?)
                .args([tool].iter().chain(words))
                .bind(folder.path(), "/data", &["ro"])
                .run()
        };
        assert_eq!(run(&["read", "/data/file"])?.success()?, "outside");
        for words in [&["write", "/data/file", "x"], &["write", "/data/new", "x"]] {
            let output = run(words)?;
            assert_eq!(output.status, 1, "{tool} {words:?}");
        }
        assert_eq!(fs::read_to_string(folder.path().join("file"))?, "outside");
        assert!(!folder.path().join("new").exists());
    }
    Ok(())
}

fn bind_mounted_file(engine: &Containerd) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(engine.folder())?;
    fs::write(file.path(), "one file")?;
    for tool in TOOLS {
        let output = engine
            .container(&Rootfs::guests()?)
            .args([tool, "read", "/etc/one"])
            .bind(file.path(), "/etc/one", &["ro"])
            .run()?;
        assert_eq!(output.success()?, "one file", "{tool}");
    }
    Ok(())
}

fn tmpfs_mount(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args([tool, "write", "/scratch/new", "text"])
            .mount(mount(
                "tmpfs",
                "/scratch",
                "tmpfs",
                &["nosuid", "size=64k", "mode=1777"],
            ))
            .create()?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0, "{}", container.stderr());
        // What lies in it is no part of the snapshot.
        let count = engine.look_into(container.id(), |root| {
            Ok(fs::read_dir(root.join("scratch"))?.count())
        })?;
        assert_eq!(count, 0, "{tool}");
    }
    Ok(())
}

fn user_is_kept_out(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?
        .file_of("/secret", "root's", 0o600, 0)
        .file_of("/public", "everyone's", 0o644, 0)
        .file_of("/own", "the user's", 0o600, 1000);
    for tool in TOOLS {
        let run = |words: &[&str]| {
            engine
                .container(&rootfs)
                .args([tool].iter().chain(words))
                .user(1000, 1000)
                .run()
        };
        let output = run(&["read", "/secret"])?;
        assert_eq!((output.status, output.text()), (1, String::new()), "{tool}");
        assert_eq!(run(&["read", "/own"])?.success()?, "the user's", "{tool}");
        assert_eq!(
            run(&["read", "/public"])?.success()?,
            "everyone's",
            "{tool}"
        );
        assert_eq!(run(&["write", "/public", "x"])?.status, 1, "{tool}");
        assert_eq!(run(&["write", "/etc/new", "x"])?.status, 1, "{tool}");
        assert_eq!(run(&["ls", "/root"])?.status, 1, "{tool}");
    }
    Ok(())
}

fn files_belong_to_the_user(engine: &Containerd) -> Result<()> {
    for tool in TOOLS {
        let container = engine
            .container(&Rootfs::guests()?)
            .args([tool, "write", "/tmp/new", "text"])
            .user(1000, 1001)
            .create()?;
        container.start()?;
        assert_eq!(container.wait()?.status, 0, "{}", container.stderr());
        let owner = engine.look_into(container.id(), |root| {
            let found = fs::metadata(root.join("tmp/new"))?;
            Ok((found.uid(), found.gid()))
        })?;
        assert_eq!(owner, (1000, 1001), "{tool}");
    }
    Ok(())
}

/// Neither `..` nor a link leads out of the rootfs.
fn no_way_out(engine: &Containerd) -> Result<()> {
    let outside = tempfile::NamedTempFile::new_in("/tmp")?;
    fs::write(outside.path(), "the host's")?;
    let path = outside.path().display().to_string();
    let rootfs = Rootfs::guests()?;
    for tool in TOOLS {
        for way in [
            path.clone(),
            format!("/../../..{path}"),
            format!("../../..{path}"),
        ] {
            let output = engine.container(&rootfs).args([tool, "read", &way]).run()?;
            assert_eq!(
                (output.status, output.text()),
                (1, String::new()),
                "{tool} {way}"
            );
        }
        let link = engine
            .container(&rootfs.clone().link(&path, "/link"))
            .args([tool, "read", "/link"])
            .run()?;
        assert_eq!((link.status, link.text()), (1, String::new()), "{tool}");
    }
    Ok(())
}
