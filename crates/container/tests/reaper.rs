//! The reaper waits for every child of its process, so it has this one to itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use container::Reaper;
use nix::unistd::Pid;

/// Spawns a shell with `script` that ends when the returned pid's stdin, at once closed, does.
#[expect(clippy::zombie_processes, reason = "the reaper waits for it")]
fn shell(script: &str) -> Pid {
    let child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    Pid::from_raw(child.id() as i32)
}

#[tokio::test]
async fn exits_reach_who_asks_before_and_after() {
    let reaper = Reaper::start().unwrap();
    let since = Instant::now();

    let asked_first = reaper.exit_of(shell("read x; exit 3"), since);
    assert_eq!(asked_first.await.unwrap().status, 3);

    let quick = shell("kill -9 $$");
    while Path::new(&format!("/proc/{quick}")).exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(reaper.exit_of(quick, since).await.unwrap().status, 137);
    let again = reaper.exit_of(quick, Instant::now());
    assert!(
        tokio::time::timeout(Duration::from_millis(10), again)
            .await
            .is_err(),
        "an exit is handed out once"
    );
}
