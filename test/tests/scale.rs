//! Two hundred idle guests in one daemon: all start, answer and stop, and none costs more for the
//! others.

use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use lighter_test::{
    Container, Containerd, Input, Rootfs, each_containerd, leaks::open_files,
    options::RuntimeOptions,
};
use nix::sys::signal::Signal;

// All containers of an engine are of one namespace.
each_containerd!(own: two_hundred);

const SEVERAL: usize = 20;
const MANY: usize = 200;

/// How many start at a time.
const TOGETHER: usize = 8;

fn start(engine: &Containerd) -> Result<Container<'_>> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/tool.wasm", "cat"])
        .stdin(Input::Fed)
        .options(RuntimeOptions::body("group_by = 'namespace'"))
        .create()?;
    container.start()?;
    Ok(container)
}

/// `count` of them, several at a time.
fn start_all(engine: &Containerd, count: usize) -> Result<Vec<Container<'_>>> {
    let some = |worker: usize| -> Result<Vec<_>> {
        let share = (worker..count).step_by(TOGETHER);
        share.map(|_| start(engine)).collect()
    };
    let all = thread::scope(|scope| {
        let workers: Vec<_> = (0..TOGETHER)
            .map(|worker| scope.spawn(move || some(worker)))
            .collect();
        let all = workers
            .into_iter()
            .map(|it| it.join().expect("no worker panics"));
        all.collect::<Result<Vec<_>>>()
    })?;
    Ok(all.into_iter().flatten().collect())
}

/// A number of a process in a file of /proc.
fn number(pid: u32, file: &str, name: &str) -> Result<usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("no {name} in /proc/{pid}/{file}"))?;
    Ok(number.parse()?)
}

/// Descriptors that the shim's own processes have open.
fn descriptors(engine: &Containerd) -> Result<usize> {
    engine.shims_of("*").into_iter().map(open_files).sum()
}

fn two_hundred(engine: &Containerd) -> Result<()> {
    let mut all = start_all(engine, SEVERAL)?;
    let shims = engine.shims_of("*");
    ensure!(shims.len() == 2, "{shims:?}");
    let among_several = descriptors(engine)?;
    let dirty = |container: &Container| number(container.pid(), "smaps_rollup", "Private_Dirty:");
    let first = dirty(&all[SEVERAL - 1])?;

    all.extend(start_all(engine, MANY - SEVERAL)?);
    ensure!(engine.shims_of("*") == shims, "one daemon serves all");
    for pid in &shims {
        let threads = number(*pid, "status", "Threads:")?;
        ensure!(threads < 10, "{threads} threads");
    }
    let each = among_several.div_ceil(SEVERAL);
    let open = descriptors(engine)?;
    ensure!(
        open <= each * MANY,
        "{open} descriptors, among {SEVERAL} {among_several}"
    );
    // In kB; what depends on the number of mounts or processes would show.
    let last = dirty(&all[MANY - 1])?;
    ensure!(
        last <= first + first / 4,
        "{last} kB, among {SEVERAL} {first}"
    );
    let remains = engine.remains();
    let mounts = remains.iter().filter(|line| line.starts_with("mount "));
    ensure!(
        mounts.count() == 0,
        "the host has no mounts of containers: {remains:?}"
    );

    for container in &all {
        container.feed(b"hello\n");
    }
    for container in &all {
        container.wait_for_output("hello\n")?;
        ensure!(container.state()?.pid == container.pid());
    }
    for container in all {
        let id = container.id().to_owned();
        container.kill(Signal::SIGTERM)?;
        let status = container.finish()?.status;
        ensure!(status == 143, "{id}: {status}");
    }
    engine.ensure_clean()
}
