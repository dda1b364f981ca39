//! What a guest may take.

use anyhow::Result;
use lighter_test::{Containerd, each_containerd};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use crate::{COMPONENT, TOOL, guest, run, run_text, text_guest};

each_containerd!(memory, tables, time, time_that_nobody_hears_of, fuel);

fn memory(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let enough = run(engine, "limits.memory = '64MiB'", &[tool, "alloc", "16"])?;
        assert_eq!(enough.success()?, "allocated 16 MB\n");
        let more = run(engine, "limits.memory = '8MiB'", &[tool, "alloc", "16"])?;
        assert_ne!(more.status, 0, "{}", more.text());
        assert_eq!(more.text(), "");
    }
    let at_once = r#"(module (memory 17) (func (export "_start")))"#;
    run_text(engine, "limits.memory = '2MiB'", at_once)?.success()?;
    let said = text_guest(engine, "limits.memory = '1MiB'", at_once)?.refused()?;
    assert!(said.contains("memory limits"), "{said}");
    let two = r#"(module (memory 1) (memory 1) (func (export "_start")))"#;
    run_text(engine, "limits.memories = 2", two)?.success()?;
    text_guest(engine, "limits.memories = 1", two)?.refused()?;
    Ok(())
}

fn tables(engine: &Containerd) -> Result<()> {
    // Traps when it does not get the elements.
    let grows = r#"(module
        (table $table 1 funcref)
        (func (export "_start")
            (table.grow $table (ref.null func) (i32.const 100))
            (if (i32.eq (i32.const -1)) (then unreachable))))"#;
    run_text(engine, "limits.table_elements = 101", grows)?.success()?;
    let refused = run_text(engine, "limits.table_elements = 100", grows)?;
    assert_eq!(refused.status, 134, "{}", refused.errors());
    let two = r#"(module (table 1 funcref) (table 1 funcref) (func (export "_start")))"#;
    run_text(engine, "limits.tables = 2", two)?.success()?;
    text_guest(engine, "limits.tables = 1", two)?.refused()?;
    Ok(())
}

fn time(engine: &Containerd) -> Result<()> {
    let limited = "limits.time = '300ms'";
    for tool in [TOOL, COMPONENT] {
        // One that computes, and one that waits in the host.
        for command in [&["loop"][..], &["sleep", "1000"]] {
            let args = [&[tool], command].concat();
            let over = run(engine, limited, &args)?;
            assert_eq!(over.status, 124, "{args:?}: {}", over.errors());
            let said = format!("{tool}: ended after 300ms, the limit that is set (limits.time)\n");
            assert_eq!(over.errors(), said);
        }
        let done = run(engine, "limits.time = '1h'", &[tool, "exit", "1"])?;
        assert_eq!((done.status, done.errors().as_str()), (1, ""));
    }
    let container = guest(engine, limited, &["/bin/sleep", "1000"])?.create()?;
    container.start()?;
    let added = container.exec([TOOL, "loop"])?.run()?;
    assert_eq!(added.status, 124, "{added:?}");
    container.kill(Signal::SIGKILL)?;
    container.finish()?;
    Ok(())
}

/// A guest that writes where nobody reads does not outlive its time.
fn time_that_nobody_hears_of(engine: &Containerd) -> Result<()> {
    let flood = r#"(module
        (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\00\10\00\00")
        (func (export "_start")
            (loop $again
                (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br $again))))"#;
    let folder = tempfile::tempdir_in(engine.folder())?;
    let fifo = folder.path().join("err");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let mut container = text_guest(engine, "limits.time = '1s'", flood)?
        .streams("", "", &fifo.display().to_string())
        .create()?;
    container.start()?;
    assert_eq!(container.wait()?.status, 124);
    // So that the delete need not wait for somebody.
    let reader = std::thread::spawn(move || std::fs::read(fifo));
    container.delete()?;
    assert!(!reader.join().expect("it does not panic")?.is_empty());
    container.remove()
}

fn fuel(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let done = run(engine, "limits.fuel = 1_000_000_000", &[tool, "args"])?;
        assert_eq!(done.success()?, format!("{tool}\nargs\n"));
        let over = run(engine, "limits.fuel = 10_000_000", &[tool, "loop"])?;
        assert_eq!((over.status, over.text().as_str()), (134, "looping\n"));
        assert!(over.errors().contains("fuel"), "{}", over.errors());
    }
    Ok(())
}
