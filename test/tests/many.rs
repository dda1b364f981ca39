//! Many containers, one after another and at once, on a daemon of their own:
//! afterwards nothing is left of them anywhere.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use lighter_test::{Containerd, Rootfs, each_containerd, eventually};

each_containerd!(two_hundred_in_a_row, twenty_at_a_time);

/// One container's life; odd numbers are Linux containers.
fn live(engine: &Containerd, rootfs: &Rootfs, number: u32) -> Result<()> {
    let status = number % 100;
    let script = format!("cat; exit {status}");
    let args = match number % 4 {
        1 => ["/bin/sh", "-c", &script],
        3 => ["/tool-component.wasm", "args", "-"],
        _ => ["/tool.wasm", "exit", &status.to_string()],
    };
    let container = engine.container(rootfs).args(args).create()?;
    container.start()?;
    let output = container.finish()?;
    let expected = if number % 4 == 3 { 0 } else { status };
    assert_eq!(output.status, expected, "{args:?}: {}", output.errors());
    Ok(())
}

/// Runs `work` on a daemon of its own and compares what it holds before and
/// after.
fn leave_nothing(
    shared: &Containerd,
    work: impl FnOnce(&Containerd, &Rootfs) -> Result<()>,
) -> Result<()> {
    let engine = Containerd::start(shared.version())?;
    let rootfs = Rootfs::guests()?;
    // What is made once stays: the snapshot, compiled guests, connections.
    for number in 0..4 {
        live(&engine, &rootfs, number)?;
    }
    engine.ensure_clean()?;
    let open = engine.open_files()?;
    work(&engine, &rootfs)?;
    engine.ensure_clean()?;
    // Connections of the shims are closed by containerd in its own time.
    eventually("containerd has no more files open than before", || {
        (engine.open_files().ok()? <= open).then_some(())
    })
    .with_context(|| format!("before {open}, after {:?}", engine.open_files()))
}

fn two_hundred_in_a_row(engine: &Containerd) -> Result<()> {
    leave_nothing(engine, |engine, rootfs| {
        (0..200).try_for_each(|number| live(engine, rootfs, number))
    })
}

fn twenty_at_a_time(engine: &Containerd) -> Result<()> {
    leave_nothing(engine, |engine, rootfs| {
        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..20)
                .map(|_| {
                    scope.spawn(|| {
                        while let number @ ..100 = next.fetch_add(1, Ordering::Relaxed) {
                            live(engine, rootfs, number)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("no worker panics"))
        })
    })
}
