//! containerd is stopped or killed and started again under pods: CRI finds them again, and no line
//! of their logs is missing.

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Settings, Version,
    cri::{Container, Cri, WASMTIME, v1},
    each_cri, ensure_root, eventually,
    leaks::ensure_dead,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

each_cri!(pods);

fn pods(cri: &Cri) -> Result<()> {
    across(cri, WASMTIME, Signal::SIGTERM)?;
    across(cri, WASMTIME, Signal::SIGKILL)
}

/// containerd 2 restores sandboxes that are shims too.
#[test]
fn pods_without_a_pause_container() -> Result<()> {
    const HANDLER: &str = "sandboxed";
    const CONFIG: &str = "\
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sandboxed]
  runtime_type = 'io.containerd.wasmtime.v1'
  sandboxer = 'shim'
";
    ensure_root()?;
    let settings = Settings {
        config: CONFIG.to_owned(),
        ..Settings::default()
    };
    let cri = Cri::start_with(Version::V2_1, settings)?;
    across(&cri, HANDLER, Signal::SIGTERM)?;
    across(&cri, HANDLER, Signal::SIGKILL)
}

const COUNTER: &str = "i=0; while :; do echo line $i; i=$((i + 1)); sleep 0.02; done";

fn across(cri: &Cri, handler: &str, signal: Signal) -> Result<()> {
    let pod = cri.pod(handler).run()?;
    let counter = pod.container(["/bin/sh", "-c", COUNTER]).start()?;
    let guest = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    let ending = pod.container(["/tool.wasm", "sleep", "1000"]).start()?;
    counter.wait_for_log("line 3")?;
    guest.wait_for_log("sleeping")?;
    ending.wait_for_log("sleeping")?;
    let (pid, last) = (guest.pid()?, ending.pid()?);
    let daemons = pod.shims();

    cri.engine().stop(signal)?;
    let before = lines(&counter)?;
    kill(Pid::from_raw(last as i32), Signal::SIGTERM)?;
    ensure_dead(last)?;
    cri.engine().restart()?;
    eventually("CRI serves again", || pod.status().ok())?;

    ensure!(pod.status()?.state() == v1::PodSandboxState::SandboxReady);
    for container in [&counter, &guest] {
        let status = container.status()?;
        ensure!(
            status.state() == v1::ContainerState::ContainerRunning,
            "{status:?}"
        );
    }
    ensure!(guest.pid()? == pid);
    ensure!(ending.wait()?.code == 143);
    eventually("the log goes on", || {
        (lines(&counter).ok()? > before + 10).then_some(())
    })
    .with_context(|| format!("{:?}", lines(&counter)))?;
    let late = pod.container(["/tool.wasm", "exit", "7"]).run()?;
    ensure!(late.code == 7, "{late:?}");
    ensure!(pod.shims() == daemons, "one daemon serves all");
    guest.stop(0)?;
    ensure!(guest.status()?.exit_code == 137);
    pod.end()
}

/// How many lines there are; they must be all, in order.
fn lines(counter: &Container) -> Result<usize> {
    let lines = counter.lines()?;
    for (number, line) in lines.iter().enumerate() {
        ensure!(line.text == format!("line {number}"), "{number}: {line:?}");
    }
    Ok(lines.len())
}
