//! Where output goes (FIFOs, files), and readers of it that are slow, go away or never come.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lighter_test::{
    Builder, Container, Containerd, RUNC, Rootfs, WASMTIME, each_containerd, eventually,
};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

each_containerd!(
    files,
    fifo_uris,
    blocked_alone,
    killed_and_deleted_unread,
    reader_comes_back,
    slow_reader
);

/// A folder with paths of streams.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(engine: &Containerd) -> Result<Self> {
        let builder = tempfile::Builder::new()
            .prefix("streams-")
            .tempdir_in(engine.folder())?;
        Ok(Self(builder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn fifo(&self, name: &str) -> Result<String> {
        mkfifo(&self.path(name), Mode::S_IRWXU)?;
        Ok(self.text(name))
    }
}

const BOTH: [&str; 3] = ["/bin/sh", "-c", "echo out; echo err >&2"];

/// Both streams in one file, as containerd's clients ask for it; the file is made with its folders
/// and appended to.
fn files(engine: &Containerd) -> Result<()> {
    let folder = Folder::new(engine)?;
    let mut texts = Vec::new();
    for (name, runtime) in [("runc", RUNC), ("wasmtime", WASMTIME)] {
        let log = format!("file://{}", folder.text(&format!("{name}/logs/out%20put")));
        for _ in 0..2 {
            let container = engine
                .container(&Rootfs::guests()?)
                .runtime(runtime)
                .streams("", &log, &log)
                .args(BOTH)
                .create()?;
            container.start()?;
            assert_eq!(container.finish()?.status, 0);
        }
        texts.push(fs::read_to_string(
            folder.path(&format!("{name}/logs/out put")),
        )?);
        // A plain file by its path must be there.
        let plain = folder.text(&format!("{name}/plain"));
        let container = |path: &str| {
            engine
                .container(&Rootfs::guests().expect("guests"))
                .runtime(runtime)
                .streams("", path, path)
                .args(BOTH)
        };
        let error = container(&plain).refused()?;
        assert!(error.contains(&plain), "{name}: {error}");
        fs::write(&plain, "before\n")?;
        let running = container(&plain).create()?;
        running.start()?;
        assert_eq!(running.finish()?.status, 0);
        texts.push(fs::read_to_string(&plain)?);
    }
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (appended, plain) = (["err", "err", "out", "out"], ["before", "err", "out"]);
    assert_eq!(lines(&texts[2]), appended);
    assert_eq!(lines(&texts[3]), plain);
    // The runc shim writes there as well, but of two streams with one file it may lose one.
    for (text, whole) in [(&texts[0], &appended[..]), (&texts[1], &plain)] {
        let lines = lines(text);
        assert!(lines.iter().all(|line| whole.contains(&line.as_str())));
        assert!(lines.len() > 1, "not as under runc: {lines:?}");
    }

    let log = format!("file://{}", folder.text("guest"));
    let output = engine
        .container(&Rootfs::guests()?)
        .streams("", &log, &log)
        .args(["/tool.wasm", "args"])
        .run()?;
    assert_eq!(output.status, 0);
    assert_eq!(
        fs::read_to_string(folder.path("guest"))?,
        "/tool.wasm\nargs\n"
    );
    Ok(())
}

/// With the scheme `fifo`, which the runc shim of containerd does not open itself.
fn fifo_uris(engine: &Containerd) -> Result<()> {
    for (args, text) in [
        (["/tool.wasm", "args"], "/tool.wasm\nargs\n"),
        (["/bin/echo", "out"], "out\n"),
    ] {
        let folder = Folder::new(engine)?;
        let (out, err) = (folder.fifo("out")?, folder.fifo("err")?);
        let [out_uri, err_uri] = [&out, &err].map(|path| format!("fifo://{path}"));
        let mut container = engine
            .container(&Rootfs::guests()?)
            .streams("", &out_uri, &err_uri)
            .args(args)
            .create()?;
        let state = container.state()?;
        assert_eq!((state.stdout, state.stderr), (out_uri, err_uri));
        let mut readers = [File::open(&out)?, File::open(&err)?];
        container.start()?;
        let mut texts = [String::new(), String::new()];
        for (reader, text) in readers.iter_mut().zip(&mut texts) {
            reader.read_to_string(text)?;
        }
        assert_eq!(texts, [text, ""]);
        assert_eq!(container.wait()?.status, 0);
        container.delete()?;
        container.remove()?;
    }
    Ok(())
}

/// A guest and a Linux program that write without an end.
const TALKERS: [&[&str]; 2] = [&["/tool.wasm", "read", "/dev/zero"], &["/bin/yes"]];

/// Begins a container, in a pod perhaps, whose output is read by nobody.
fn unread<'a>(builder: Builder<'a>, folder: &Folder, args: &[&str]) -> Result<Container<'a>> {
    let (out, err) = (folder.fifo("out")?, folder.fifo("err")?);
    let container = builder.streams("", &out, &err).args(args).create()?;
    container.start()?;
    let pid = container.pid();
    eventually("the container waits in a write", || {
        let state = fs::read_to_string(format!("/proc/{pid}/wchan")).ok()?;
        state.contains("pipe_w").then_some(())
    })
    .with_context(|| fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default())?;
    Ok(container)
}

/// The others of its pod, which the same daemon serves, do not notice.
fn blocked_alone(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    for args in TALKERS {
        let pod = engine.new_id("pod");
        let folder = Folder::new(engine)?;
        let blocked = unread(engine.container(&rootfs).pod(&pod), &folder, args)?;
        for args in [
            ["/tool.wasm", "args"],
            ["/tool-component.wasm", "args"],
            ["/bin/echo", "out"],
        ] {
            let other = engine.container(&rootfs).pod(&pod).args(args).create()?;
            other.start()?;
            let output = other.finish()?;
            assert_eq!(output.status, 0);
            assert!(!output.stdout.is_empty());
        }
        assert_eq!(blocked.state()?.pid, blocked.pid());
        let exec = blocked.exec(["/bin/echo", "out"])?.run()?;
        assert_eq!(exec.text(), "out\n");
        blocked.kill(Signal::SIGKILL)?;
        assert_eq!(blocked.finish()?.status, 137);
    }
    Ok(())
}

fn killed_and_deleted_unread(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?;
    for args in TALKERS {
        let folder = Folder::new(engine)?;
        let blocked = unread(engine.container(&rootfs), &folder, args)?;
        let id = blocked.id().to_owned();
        let begin = Instant::now();
        blocked.kill(Signal::SIGKILL)?;
        let output = blocked.finish()?;
        assert_eq!(output.status, 137);
        // As the runc shim, this one waits ten seconds for a reader.
        assert!(begin.elapsed() < Duration::from_secs(25));
        engine.ensure_gone(&id)?;
    }
    Ok(())
}

/// Lines that tell of every lost, doubled or misplaced piece.
fn numbers(count: usize) -> String {
    (0..count).map(|number| format!("{number}\n")).collect()
}

/// Reads this many bytes of a FIFO as a client of its own, which then goes away.
fn read_some(fifo: &str, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open(fifo)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Opens a FIFO as a client that is there before the container.
fn both_ways(fifo: &str) -> Result<File> {
    Ok(File::options().read(true).write(true).open(fifo)?)
}

/// Nothing is lost while nobody reads, with any runtime.
fn reader_comes_back(engine: &Containerd) -> Result<()> {
    let text = numbers(100_000);
    let rootfs = Rootfs::guests()?.file("/numbers", &text);
    for (runtime, args) in [
        (RUNC, ["/bin/cat", "/numbers", "/dev/null"]),
        (WASMTIME, ["/bin/cat", "/numbers", "/dev/null"]),
        (WASMTIME, ["/tool.wasm", "read", "/numbers"]),
    ] {
        let folder = Folder::new(engine)?;
        let (out, err) = (folder.fifo("out")?, folder.fifo("err")?);
        // A create of the runc shim waits for readers.
        let clients = [both_ways(&out)?, both_ways(&err)?];
        let mut container = engine
            .container(&rootfs)
            .runtime(runtime)
            .streams("", &out, &err)
            .args(args)
            .create()?;
        drop(clients);
        container.start()?;
        let mut bytes = Vec::new();
        for piece in [10, 5000, 100_000] {
            bytes.extend(read_some(&out, piece)?);
        }
        File::open(&out)?.read_to_end(&mut bytes)?;
        assert!(bytes == text.as_bytes(), "{runtime} {args:?}");
        assert_eq!(container.wait()?.status, 0);
        container.delete()?;
        container.remove()?;
    }
    Ok(())
}

/// Output of a container that has ended waits for a reader for as long as that takes some of it.
fn slow_reader(engine: &Containerd) -> Result<()> {
    // More than a FIFO holds, less than a FIFO and a pipe.
    let text = numbers(20_000);
    let rootfs = Rootfs::guests()?.file("/numbers", &text);
    let folder = Folder::new(engine)?;
    let (out, err) = (folder.fifo("out")?, folder.fifo("err")?);
    let clients = [both_ways(&out)?, both_ways(&err)?];
    let mut container = engine
        .container(&rootfs)
        .streams("", &out, &err)
        .args(["/tool.wasm", "read", "/numbers"])
        .create()?;
    drop(clients);
    container.start()?;
    let pid = container.pid();
    eventually("the container has ended", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })?;
    let mut reader = File::open(&out)?;
    let mut bytes = vec![0; 4096];
    reader.read_exact(&mut bytes)?;
    // Longer than the ten seconds for which no progress is waited for, and never that long at once.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_secs(2));
        let mut piece = [0; 4096];
        reader.read_exact(&mut piece)?;
        bytes.extend(piece);
    }
    reader.read_to_end(&mut bytes)?;
    assert!(bytes == text.as_bytes(), "{} bytes", bytes.len());
    container.wait()?;
    container.delete()?;
    container.remove()
}
