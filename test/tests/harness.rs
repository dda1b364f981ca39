//! The harness itself, with containerd's own runtime: what it reports of a
//! container is really so, and its search for remains finds them.

use std::process::{Command, Stdio};

use anyhow::Result;
use lighter_test::{Containerd, Input, RUNC, Rootfs, Version, each_containerd, eventually};
use nix::sys::signal::Signal;

each_containerd!(run, streams, remains, ctr);

fn run(engine: &Containerd) -> Result<()> {
    let output = engine
        .container(&Rootfs::busybox())
        .runtime(RUNC)
        .args(["/bin/sh", "-c", "echo $NAME; echo wrong >&2; exit 3"])
        .env("NAME", "value")
        .run()?;
    assert_eq!(output.status, 3);
    assert_eq!(output.text(), "value\n");
    assert_eq!(output.errors(), "wrong\n");
    Ok(())
}

fn streams(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::busybox())
        .runtime(RUNC)
        .args(["/bin/cat"])
        .stdin(Input::Fed)
        .create()?;
    container.start()?;
    container.feed(b"text");
    container.wait_for_output("text")?;
    container.end_stdin()?;
    assert_eq!(container.finish()?.success()?, "text");
    Ok(())
}

fn remains(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::busybox())
        .runtime(RUNC)
        .args(["/bin/sleep", "1000"])
        .create()?;
    container.start()?;
    let id = container.id().to_owned();
    let found = engine.remains_of(&id).join("\n");
    for kind in ["process", "mount", "cgroup", "socket", "bundle"] {
        assert!(found.contains(kind), "no {kind} found: {found}");
    }
    container.kill(Signal::SIGKILL)?;
    assert_eq!(container.finish()?.status, 137);
    engine.ensure_gone(&id)
}

fn ctr(engine: &Containerd) -> Result<()> {
    let output = engine.run_ctr(["version"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(engine.version().name()), "{text}");
    Ok(())
}

/// A daemon whose test program is killed is removed all the same: this test
/// starts itself a second time and kills that.
#[test]
fn nothing_outlives_the_test_program() -> Result<()> {
    if std::env::var_os("LIGHTER_TEST_VICTIM").is_some() {
        let engine = Containerd::start(Version::V2_1)?;
        let container = engine
            .container(&Rootfs::busybox())
            .runtime(RUNC)
            .args(["/bin/sleep", "1000"])
            .create()?;
        container.start()?;
        println!("folder {}", engine.folder().display());
        loop {
            std::thread::park();
        }
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args([
            "nothing_outlives_the_test_program",
            "--exact",
            "--nocapture",
        ])
        .env("LIGHTER_TEST_VICTIM", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = std::io::BufReader::new(victim.stdout.take().expect("its output is piped"));
    let line = std::io::BufRead::lines(output)
        .map_while(Result::ok)
        .find_map(|line| line.split_once("folder ").map(|(_, path)| path.to_owned()));
    victim.kill()?;
    victim.wait()?;
    let folder = std::path::PathBuf::from(line.expect("the second program tells its folder"));
    assert!(folder.exists(), "{} is there at first", folder.display());
    eventually("the folder is removed", || (!folder.exists()).then_some(()))?;
    let name = folder.file_name().expect("it has a name").to_owned();
    for top in [
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/pids",
        "/sys/fs/cgroup",
    ] {
        assert!(!std::path::Path::new(top).join(&name).exists(), "{top}");
    }
    Ok(())
}
