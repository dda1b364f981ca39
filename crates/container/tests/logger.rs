//! Loggers in the daemon's hands. The reaper waits for every child of its process, so it has this
//! one to itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use container::{Logging, ProcessStdio, Reaper, Stdio, StdioPaths};
use nix::unistd::{getgid, getuid};

async fn connect(
    folder: &Path,
    script: &str,
    reaper: &Reaper,
) -> Result<(Stdio, [fs::File; 2]), String> {
    let program = folder.join("logger");
    fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let paths = StdioPaths {
        stdout: format!("binary://{}?to={}", program.display(), folder.display()),
        ..StdioPaths::default()
    };
    let logging = Logging {
        id: "c",
        namespace: "n",
        reaper,
    };
    match Stdio::connect(&paths, (getuid(), getgid()), logging).await {
        Ok((stdio, ProcessStdio::Streams { stdout, stderr, .. })) => {
            Ok((stdio, [stdout.into(), stderr.into()]))
        }
        Ok(_) => panic!("no terminal was asked for"),
        Err(error) => Err(error.to_string()),
    }
}

async fn takes_what_is_written(reaper: &Reaper) {
    let folder = tempfile::tempdir().unwrap();
    let script = "exec 5>&-; cat <&3 >$2/out; cat <&4 >$2/err";
    let (stdio, [mut stdout, mut stderr]) = connect(folder.path(), script, reaper).await.unwrap();
    stdout.write_all(b"said").unwrap();
    stderr.write_all(b"wrong").unwrap();
    drop((stdout, stderr));
    stdio.drain(None).await;
    stdio.close().await;
    let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!((read("out"), read("err")), ("said".into(), "wrong".into()));
}

async fn never_ready(reaper: &Reaper) {
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let script = "echo $$ >$2/pid; while :; do sleep 1; done";
    let error = connect(folder.path(), script, reaper).await.err().unwrap();
    assert!(error.contains("close descriptor 5"), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(30));
    gone(folder.path()).await;
}

/// A byte is as good as the end. A logger that nobody waits for is killed.
async fn writes_that_it_is_ready(reaper: &Reaper) {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo $$ >$2/pid; echo >&5; exec sleep 1000";
    drop(connect(folder.path(), script, reaper).await.unwrap());
    gone(folder.path()).await;
}

/// Waits until the logger that has noted its pid in `folder` has been reaped.
async fn gone(folder: &Path) {
    let pid = fs::read_to_string(folder.join("pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    while process.exists() {
        tokio::task::yield_now().await;
    }
}

async fn leaves_early(reaper: &Reaper) {
    let folder = tempfile::tempdir().unwrap();
    for (script, status) in [("exit 0", "status 0"), ("kill -9 $$", "status 137")] {
        let error = connect(folder.path(), script, reaper).await.err().unwrap();
        assert!(error.contains(status), "{error}");
    }
}

#[tokio::test]
async fn loggers_are_run_and_waited_for() {
    let reaper = Reaper::start().unwrap();
    tokio::join!(
        takes_what_is_written(&reaper),
        never_ready(&reaper),
        writes_that_it_is_ready(&reaper),
        leaves_early(&reaper),
    );
}
