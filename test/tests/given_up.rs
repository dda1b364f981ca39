//! Creates that are given up while a guest is being compiled: by a deadline, as a kubelet's, or by a
//! client that goes away. Calls that the shim has no thread for.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use containerd_client::tonic::Code;
use lighter_test::{
    Builder, Containerd, Rootfs,
    artifact::unique,
    code,
    cri::{self, Cri},
    each_containerd, each_cri, eventually, module,
    options::RuntimeOptions,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::sync::oneshot;

each_containerd!(
    the_next_attempt_finds_it_compiled,
    a_caller_that_goes_away,
    an_end_while_an_exec_is_compiled,
    without_a_thread,
);

mod pods {
    use super::*;
    each_cri!(a_kubelets_next_attempt);
}

/// A cache of its own, and a guest that takes long to compile.
struct Workshop<'a> {
    engine: &'a Containerd,
    folder: tempfile::TempDir,
    rootfs: Rootfs,
    program: String,
}

impl<'a> Workshop<'a> {
    fn new(engine: &'a Containerd) -> Result<Self> {
        let program = format!("/{}.wasm", engine.new_id("laborious"));
        let wasm = unique(&module::laborious(300)?);
        Ok(Self {
            engine,
            folder: tempfile::tempdir_in("/var/tmp")?,
            rootfs: Rootfs::guests()?.file(&program, wasm),
            program,
        })
    }

    fn container(&self, args: &[&str]) -> Builder<'a> {
        let cache = self.folder.path().join("cache");
        let options = RuntimeOptions::body(&format!("cache_dir = {cache:?}"));
        let container = self.engine.container(&self.rootfs);
        container.args(args.iter().copied()).options(options)
    }

    /// How often the log says this of the guest.
    fn told(&self, text: &str) -> usize {
        let line = format!("{}: {text}", self.program);
        self.engine.log().matches(&line).count()
    }
}

/// A compile worker that stands still.
struct Worker(Pid);

impl Worker {
    /// The one that a shim of the container or pod `id` runs now, isolated and tied to the shim.
    fn find(engine: &Containerd, id: &str) -> Option<Self> {
        let shims = engine.shims_of(id);
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        pids.find(|pid: &i32| {
            let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
            let status = read("status").unwrap_or_default();
            let parent = status.lines().find_map(|it| it.strip_prefix("PPid:"));
            let parent = parent.and_then(|it| it.trim().parse().ok());
            parent.is_some_and(|parent| shims.contains(&parent))
                && status.contains("\nSeccomp:\t2\n")
                && read("cmdline").is_ok_and(|it| it.contains("compile-worker"))
        })
        .map(|pid| Self(Pid::from_raw(pid)))
    }

    /// Waits for one and stops it.
    fn catch(engine: &Containerd, id: &str) -> Result<Self> {
        let caught = || Self::find(engine, id).filter(|it| kill(it.0, Signal::SIGSTOP).is_ok());
        eventually("something is being compiled", caught)
    }

    fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.0)).exists()
    }

    fn go_on(&self) -> Result<()> {
        kill(self.0, Signal::SIGCONT).context("the worker has ended")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing may stand still for ever; mostly it has ended.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A container's end does not wait for the guest of a process that was to be added.
fn an_end_while_an_exec_is_compiled(engine: &Containerd) -> Result<()> {
    let workshop = Workshop::new(engine)?;
    let container = workshop.container(&["/bin/sleep", "1000"]).create()?;
    container.start()?;
    let added = container.exec([&workshop.program])?.add()?;
    thread::scope(|scope| {
        let starting = scope.spawn(|| added.start());
        let worker = Worker::catch(engine, container.id())?;
        container.kill(Signal::SIGKILL)?;
        let told = container.wait_for_event("exit");
        // It has stood still until now.
        drop(worker);
        // Whether it is said to have been started does not matter.
        let _ = starting.join();
        told.map(drop)
    })?;
    drop(added);
    let id = container.id().to_owned();
    ensure!(container.finish()?.status == 137);
    engine.ensure_gone(&id)
}

/// In a pod, whose daemon lives on, the compilation does too.
fn the_next_attempt_finds_it_compiled(engine: &Containerd) -> Result<()> {
    let workshop = Workshop::new(engine)?;
    let pod = engine.new_id("pod");
    let pause = workshop.container(&["/bin/sleep", "1000"]);
    let pause = pause.id(&pod).pod(&pod).create()?;
    pause.start()?;
    let attempt = || workshop.container(&[&workshop.program]).pod(&pod).record();

    let worker = std::thread::scope(|scope| {
        let worker = scope.spawn(|| Worker::catch(engine, &pod));
        // A machine may be so busy that nothing is compiled before the first deadlines.
        for seconds in [3, 10, 25] {
            let mut container = attempt()?;
            // Which error depends on whether client or daemon notices first.
            container
                .create_task_within(Duration::from_secs(seconds))
                .expect_err("it cannot be compiled in time");
            let id = container.id().to_owned();
            drop(container);
            engine.ensure_gone(&id)?;
            if worker.is_finished() {
                break;
            }
        }
        worker.join().expect("it does not panic")
    })?;
    assert!(worker.is_there(), "it goes on without the container");
    worker.go_on()?;
    let mut container = attempt()?;
    container.create_task()?;
    container.start()?;
    container.finish()?.success()?;
    eventually("the log tells its end", || {
        (workshop.told("that took ") > 0).then_some(())
    })?;
    assert_eq!(workshop.told("compiling it"), 1);

    pause.kill(Signal::SIGKILL)?;
    pause.finish()?;
    engine.ensure_gone(&pod)
}

/// The same through CRI, whose clients have one deadline for create and start.
fn a_kubelets_next_attempt(cri: &Cri) -> Result<()> {
    let engine = cri.engine();
    let name = format!("example.com/{}:1", cri.new_name("laborious"));
    let program = format!("/{}.wasm", cri.new_name("laborious"));
    let mut layer = image::Layer::default();
    let wasm = unique(&module::laborious(300)?);
    layer.add(&program, image::Entry::bytes(wasm))?;
    let image = image::Image {
        // CRI looks for images of its own platform.
        platform: "linux/amd64".parse()?,
        layers: vec![layer],
        ..image::Image::default()
    };
    cri.import(&name, &image)?;
    let spec = cri::v1::ImageSpec {
        image: name,
        ..Default::default()
    };
    let pod = cri.pod(cri::WASMTIME).run()?;
    let attempt = || {
        let container = pod.container([&program]);
        let container = container.with(|config| config.image = Some(spec.clone()));
        container.create()
    };
    let id = pod.id();
    let worker = std::thread::scope(|scope| {
        let worker = scope.spawn(|| Worker::catch(engine, id));
        for seconds in [3, 10, 25] {
            let container = attempt()?;
            container
                .start_within(Duration::from_secs(seconds))
                .expect_err("it cannot be compiled in time");
            // What containerd still does with it takes as long as it does.
            eventually("the container can be removed", || container.remove().ok())?;
            if worker.is_finished() {
                break;
            }
        }
        worker.join().expect("it does not panic")
    })?;
    ensure!(worker.is_there(), "it goes on without the container");
    worker.go_on()?;
    let container = attempt()?;
    container.start()?;
    container.wait()?.success()?;
    eventually("the log tells its end", || {
        engine
            .log()
            .contains(&format!("{program}: that took "))
            .then_some(())
    })?;
    let compiled = engine
        .log()
        .matches(&format!("{program}: compiling it"))
        .count();
    assert_eq!(compiled, 1);
    pod.end()
}

/// With the container's own daemon all of it goes.
fn a_caller_that_goes_away(engine: &Containerd) -> Result<()> {
    let workshop = Workshop::new(engine)?;
    let mut container = workshop.container(&[&workshop.program]).record()?;
    let id = container.id().to_owned();
    let (gone, is_gone) = oneshot::channel();
    let worker = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let worker = Worker::catch(engine, &id);
            drop(gone);
            worker
        });
        let error = container
            .create_task_unless(is_gone)
            .expect_err("it is given up");
        assert_eq!(code(&error), Code::Cancelled, "{error:#}");
        worker.join().expect("it does not panic")
    })?;
    drop(container);
    engine.ensure_gone(&id)?;
    eventually("the worker ends with the daemon", || {
        (!worker.is_there()).then_some(())
    })?;
    workshop.container(&[&workshop.program]).run()?.success()?;
    assert_eq!(workshop.told("compiling it"), 2);
    Ok(())
}

/// A cgroup for the shim itself, in which there may be no more threads than there are.
struct Narrow(PathBuf);

impl Narrow {
    fn around(engine: &Containerd, id: &str) -> Result<Self> {
        let place = Path::new("/sys/fs/cgroup/pids").join(format!(
            "{}-{}",
            engine.namespace(),
            engine.new_id("shim")
        ));
        fs::create_dir(&place)?;
        let narrow = Self(place);
        for shim in engine.shims_of(id) {
            fs::write(narrow.0.join("cgroup.procs"), shim.to_string())?;
        }
        narrow.allow("0")?;
        Ok(narrow)
    }

    fn allow(&self, most: &str) -> Result<()> {
        Ok(fs::write(self.0.join("pids.max"), most)?)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = fs::write("/sys/fs/cgroup/pids/cgroup.procs", pid);
        }
        // Who is ending holds it for a moment.
        let _ = eventually("the cgroup is free", || fs::remove_dir(&self.0).ok());
    }
}

/// Where no thread can be had for it, a call fails and says so, and does its work when it is made again.
fn without_a_thread(engine: &Containerd) -> Result<()> {
    let container = engine
        .container(&Rootfs::guests()?)
        .args(["/bin/sleep", "1000"])
        .create()?;
    container.start()?;
    let narrow = Narrow::around(engine, container.id())?;
    let error = container.pause().expect_err("there is no thread");
    assert!(
        format!("{error:#}").contains("starting a thread"),
        "{error:#}"
    );
    let update = json!({"pids": {"limit": 20}});
    let error = container.update(update.clone()).expect_err("likewise");
    assert!(
        format!("{error:#}").contains("starting a thread"),
        "{error:#}"
    );
    narrow.allow("max")?;
    container.pause()?;
    container.resume()?;
    container.update(update)?;
    container.kill(Signal::SIGKILL)?;
    container.finish().map(drop)
}
