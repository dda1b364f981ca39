//! Tests on cgroups of the machine, of the version that the machine has. They need root.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use container::OomKills;
use container::cgroup::{Cgroup, Error, OomWatch, Stats};
use nix::sys::signal::Signal;
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cgroup of the machine, made for one test and removed after it.
struct Fixture {
    path: PathBuf,
    cgroup: Cgroup,
}

impl Fixture {
    fn new(name: &str) -> Fixture {
        Fixture::at(PathBuf::from(format!(
            "/lighter-test-{}-{name}",
            std::process::id()
        )))
    }

    fn at(path: PathBuf) -> Fixture {
        let cgroup = Cgroup::at(&path, false).unwrap();
        for folder in cgroup.folders() {
            make(folder);
        }
        Fixture { path, cgroup }
    }

    /// Makes a cgroup below this one.
    fn below(&self, name: &str) -> Fixture {
        Fixture::at(self.path.join(name))
    }

    /// The folder that has a file.
    fn folder_of(&self, file: &str) -> Option<&Path> {
        let folders = self.cgroup.folders();
        folders
            .into_iter()
            .find(|folder| folder.join(file).exists())
    }

    fn v2(&self) -> bool {
        self.folder_of("cgroup.controllers").is_some()
    }

    /// Writes a control file: the first one and its value on v1, the second ones on v2.
    fn set(&self, v1: (&str, &str), v2: (&str, &str)) {
        let (file, value) = if self.v2() { v2 } else { v1 };
        let folder = self.folder_of(file);
        let path = folder
            .unwrap_or_else(|| panic!("no folder has {file}"))
            .join(file);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }

    /// Runs a shell script in the cgroup; it starts once it is in.
    fn run(&self, script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        for folder in self.cgroup.folders() {
            let procs = folder.join("cgroup.procs");
            fs::write(&procs, child.id().to_string())
                .unwrap_or_else(|error| panic!("{procs:?}: {error}"));
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child
    }

    /// Without swap, so that the limit ends a process instead of slowing it down.
    fn limit_memory(&self, bytes: u64) {
        let bytes = bytes.to_string();
        self.set(("memory.limit_in_bytes", &bytes), ("memory.max", &bytes));
        // Kernels that do not account for swap have neither file.
        let (together, swap) = ("memory.memsw.limit_in_bytes", "memory.swap.max");
        if self.folder_of(together).or(self.folder_of(swap)).is_some() {
            self.set((together, &bytes), (swap, "0"));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.remove() {
            eprintln!("left behind: {error}");
        }
    }
}

fn make(folder: &Path) {
    let above = folder.parent().unwrap();
    if above.join("cgroup.controllers").exists() && above == Path::new("/sys/fs/cgroup") {
        delegate(above);
    }
    fs::create_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    // Nobody can enter a v1 cpuset before it has processors and memory nodes.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if folder.join(file).exists() && !folder.join("cgroup.controllers").exists() {
            fs::write(
                folder.join(file),
                fs::read_to_string(above.join(file)).unwrap(),
            )
            .unwrap();
        }
    }
}

/// Gives the controllers of a v2 cgroup to those below.
fn delegate(folder: &Path) {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap();
    for controller in ["cpu", "memory", "pids"] {
        assert!(
            controllers.contains(controller),
            "{folder:?} lacks {controller}: {controllers}"
        );
        fs::write(
            folder.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .unwrap();
    }
}

/// Waits until something is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn killed_by(child: &mut Child) -> Option<i32> {
    child.wait().unwrap().signal()
}

#[test]
fn the_figures_are_those_of_the_cgroup() {
    let fixture = Fixture::new("stats");
    fixture.limit_memory(64 << 20);
    fixture.set(("pids.max", "17"), ("pids.max", "17"));
    // Some memory of its own, then processor time.
    let mut child = fixture.run("x=$(head -c 4000000 /dev/zero | tr '\\0' x); while :; do :; done");

    let found = Cgroup::of(child.id()).unwrap();
    assert_eq!(found.folders(), fixture.cgroup.folders());

    // The kernel sums up memory.stat every two seconds, and counts the programs that filled the
    // shell's memory until the shell has reaped them.
    until(
        "the shell alone, its memory and 10 ms of its time counted",
        || match found.stats().unwrap() {
            Stats::V1(metrics) => {
                let usage = metrics.cpu.usage;
                let each = usage.per_cpu.iter().sum::<u64>();
                let timed = usage.user >= 10_000_000 && each >= 10_000_000;
                let memory = metrics.memory.unwrap();
                let touched = memory.own.rss.min(memory.total.rss);
                timed && touched >= 4_000_000 && metrics.pids.unwrap().current == 1
            }
            Stats::V2(metrics) => {
                let timed = metrics.cpu.user_usec >= 10_000;
                timed && metrics.memory.anon >= 4_000_000 && metrics.pids.current == 1
            }
        },
    );
    match found.stats().unwrap() {
        Stats::V1(metrics) => {
            assert!(!fixture.v2());
            let pids = metrics.pids.unwrap();
            assert_eq!((pids.current, pids.limit), (1, 17));
            let memory = metrics.memory.unwrap();
            assert_eq!(memory.usage.limit, 64 << 20);
            assert_eq!(memory.hierarchical_memory_limit, 64 << 20);
            assert!(
                (4_000_000..64 << 20).contains(&memory.usage.usage),
                "{memory:?}"
            );
            assert!(memory.usage.max >= memory.usage.usage);
            assert!(
                memory.total.pgfault > 0 && memory.own.pgfault > 0,
                "{memory:?}"
            );
            assert_eq!(metrics.memory_oom_control, Some(Default::default()));
            assert!(metrics.blkio.is_some());
        }
        Stats::V2(metrics) => {
            assert!(fixture.v2());
            assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 17));
            assert_eq!(metrics.memory.usage_limit, 64 << 20);
            assert!(
                (4_000_000..64 << 20).contains(&metrics.memory.usage),
                "{:?}",
                metrics.memory
            );
            assert!(metrics.memory.pgfault > 0);
            assert_eq!(metrics.memory_events, Some(Default::default()));
            assert!(metrics.cpu.usage_usec >= metrics.cpu.user_usec);
        }
    }
    found.remove().unwrap();
    assert_eq!(killed_by(&mut child), Some(9));
    assert!(matches!(found.stats(), Err(Error::Io { .. })));
}

#[test]
fn signals_reach_the_processes_of_cgroups_below() {
    let fixture = Fixture::new("signal");
    let below = fixture.below("inner");
    // On v2 a cgroup may hold both, as long as it hands no controller down.
    let mut children = [fixture.run("exec sleep 1000"), below.run("exec sleep 1000")];
    let mut pids = children.each_ref().map(Child::id);
    pids.sort_unstable();
    assert_eq!(fixture.cgroup.processes().unwrap(), pids);
    assert_eq!(below.cgroup.processes().unwrap(), [children[1].id()]);

    below.cgroup.kill_all(Signal::SIGUSR1 as i32).unwrap();
    assert_eq!(killed_by(&mut children[1]), Some(10));
    assert_eq!(fixture.cgroup.processes().unwrap(), [children[0].id()]);
    fixture.cgroup.kill_all(Signal::SIGKILL as i32).unwrap();
    assert_eq!(killed_by(&mut children[0]), Some(9));
    assert!(fixture.cgroup.processes().unwrap().is_empty());
    fixture.cgroup.kill_all(Signal::SIGKILL as i32).unwrap();
}

#[test]
fn removal_ends_all_processes_also_frozen_ones() {
    let fixture = Fixture::new("remove");
    let below = fixture.below("inner");
    let mut forking = below.run("while :; do sleep 0 & done");
    let mut frozen = fixture.run("exec sleep 1000");
    fixture.set(("freezer.state", "FROZEN"), ("cgroup.freeze", "1"));

    fixture.cgroup.remove().unwrap();
    assert_eq!(killed_by(&mut forking), Some(9));
    assert_eq!(killed_by(&mut frozen), Some(9));
    for folder in fixture.cgroup.folders() {
        assert!(!folder.exists(), "{folder:?} is still there");
    }
    assert!(fixture.cgroup.processes().unwrap().is_empty());
    fixture.cgroup.remove().unwrap();
}

#[test]
fn the_cgroup_of_the_caller_is_spared() {
    let own = Cgroup::of(std::process::id()).unwrap();
    let answer = own.kill_all(Signal::SIGCONT as i32);
    assert!(
        matches!(answer, Err(Error::HoldsCaller { .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn every_out_of_memory_kill_is_reported_until_the_cgroup_is_gone() {
    let fixture = Fixture::new("oom");
    fixture.limit_memory(16 << 20);
    let mut watch = OomWatch::new(&fixture.cgroup, OomKills::now()).unwrap();
    assert!(!watch.take(true));
    for round in 0..2 {
        // A line without an end does not fit into memory.
        let mut child = fixture.run("exec tail /dev/zero");
        let report = timeout(PATIENCE, watch.next()).await;
        assert_eq!(report, Ok(Some(())), "round {round}");
        assert_eq!(killed_by(&mut child), Some(9));
        assert!(!watch.take(true), "a kill was counted twice");
    }
    // An exit of another kind is no report, and a kill can be asked for without waiting.
    assert!(fixture.run("exit 0").wait().unwrap().success());
    assert!(!watch.take(true));
    assert_eq!(killed_by(&mut fixture.run("exec tail /dev/zero")), Some(9));
    assert!(watch.take(true));

    let (report, removed) = tokio::join!(timeout(PATIENCE, watch.next()), async {
        fixture.cgroup.remove()
    });
    removed.unwrap();
    assert_eq!(report, Ok(None));
    assert!(!watch.take(true), "the last kill was counted twice");
    assert!(matches!(
        OomWatch::new(&fixture.cgroup, OomKills::now()),
        Err(Error::Io { .. })
    ));
}

#[tokio::test]
async fn watches_hold_nothing_open_afterwards() {
    let fixture = Fixture::new("descriptors");
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..300 {
        drop(OomWatch::new(&fixture.cgroup, OomKills::now()).unwrap());
    }
    // Tests that run at the same time open some too, but not that many.
    assert!(
        open() < before + 100,
        "{before} descriptors became {}",
        open()
    );
}

/// Processor time that a process has used, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Fields 14 and 15, of which the second, the name, may hold anything up to a parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

#[test]
fn a_frozen_cgroup_stands_still_until_it_is_thawed() {
    let fixture = Fixture::new("freeze");
    // One that forks all the time is the hardest to stop.
    let mut child = fixture.run("while :; do (:); done");
    let pid = child.id();
    until("it runs", || ticks(pid) > 2);
    for _ in 0..20 {
        fixture.cgroup.freeze().unwrap();
        let stopped = ticks(pid);
        let members = fixture.cgroup.processes().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(ticks(pid), stopped);
        assert_eq!(fixture.cgroup.processes().unwrap(), members);
        fixture.cgroup.thaw().unwrap();
        until("it goes on", || ticks(pid) > stopped);
    }
    fixture.cgroup.freeze().unwrap();
    fixture.cgroup.kill_all(Signal::SIGKILL as i32).unwrap();
    assert_eq!(killed_by(&mut child), Some(9));
}

#[test]
fn a_cgroup_that_is_gone_is_not_frozen_and_can_be_thawed() {
    let fixture = Fixture::new("freeze-gone");
    fixture.cgroup.remove().unwrap();
    assert!(fixture.cgroup.freeze().is_err());
    fixture.cgroup.thaw().unwrap();
}
