//! How costs grow: a container's with the number of those that are there, a request's with that of
//! connections, a create's with the module's size.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lighter_test::{Container, Containerd, Rootfs, leaks::open_files};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::figures::Figures;
use crate::http::{self, Served};
use crate::kind::Kind;
use crate::memory::{REST, field};
use crate::modules::{self, Module};
use crate::promise::Promise;
use crate::wasmtime::Wasmtime;

/// How many containers there are when costs are looked at.
const STEPS: [u32; 4] = [1, 10, 100, 1000];

/// Numbers of connections that servers are asked over.
const CONNECTIONS: [u32; 5] = [1, 4, 16, 64, 128];

/// Containers before a step whose starts are its figure: a tenth of them, and at least nine.
fn window(step: u32) -> usize {
    (step / 10).clamp(9, 100) as usize
}

/// What one container costs among so many.
#[derive(Serialize)]
pub struct Step {
    /// How many there are.
    pub containers: u32,
    /// Milliseconds from the create call to the end of the start call, of the last ones.
    pub start: Figures,
    /// Milliseconds of a call for the state of each.
    pub state: Figures,
    /// Kilobytes of memory, everything counted (PSS).
    pub pss: f64,
    /// Kilobytes that no other process shares.
    pub private: f64,
    /// Processes of the shim's and the containers' own.
    pub processes: f64,
    /// Their threads.
    pub threads: f64,
    /// Most threads of one of them.
    pub most_threads: f64,
    /// Their open descriptors.
    pub descriptors: f64,
}

/// The costs of one kind of container, step by step.
#[derive(Serialize)]
pub struct Curve {
    /// The kind's name.
    pub kind: String,
    /// From one container to many.
    pub steps: Vec<Step>,
    /// Milliseconds from a SIGTERM to the end of a deletion, among all of them and fewer and fewer.
    pub stop: Figures,
}

/// Everything that was measured.
#[derive(Serialize)]
pub struct Scale {
    /// On what, one fact a line.
    pub machine: Vec<String>,
    /// Each kind.
    pub curves: Vec<Curve>,
    /// Servers of requests over HTTP, under [`CONNECTIONS`].
    pub http: Vec<Served>,
    /// Modules, small ones first.
    pub modules: Vec<Module>,
    /// The guarantees.
    pub promises: Vec<Promise>,
}

/// Among a thousand, starting a container takes at most this many times what it takes among ten.
const START: f64 = 1.5;
/// The same for a container's memory, threads and descriptors.
const COST: f64 = 1.1;

/// Measures both kinds of container, up to `most`, then the rest.
///
/// # Errors
/// The first thing that fails.
pub fn measure(
    engine: &Containerd,
    rootfs: &Rootfs,
    wasmtime: &Wasmtime,
    machine: Vec<String>,
    most: u32,
) -> Result<Scale> {
    let mut curves = Vec::new();
    for kind in [Kind::grouped(), Kind::alone()] {
        eprintln!("up to {most} idle containers: {}", kind.name);
        curves.push(curve(engine, rootfs, &kind, most)?);
        engine.ensure_clean()?;
    }
    eprintln!("requests over HTTP");
    let http = http::measure(engine, rootfs, wasmtime, &CONNECTIONS)?;
    let modules = modules::measure(engine)?;
    engine.ensure_clean()?;
    let promises = curves.iter().flat_map(promises).collect();
    Ok(Scale {
        machine,
        curves,
        http,
        modules,
        promises,
    })
}

fn curve(engine: &Containerd, rootfs: &Rootfs, kind: &Kind, most: u32) -> Result<Curve> {
    let mut held = Vec::new();
    let mut starts = Vec::new();
    let mut steps = Vec::new();
    for step in STEPS.into_iter().filter(|step| *step <= most) {
        while held.len() < step as usize {
            let mut container = kind.container(engine, rootfs).record()?;
            let begin = Instant::now();
            container.create_task()?;
            container.start()?;
            starts.push(milliseconds(begin));
            held.push(container);
        }
        thread::sleep(REST);
        let last = starts.len().saturating_sub(window(step));
        steps.push(look(engine, &held, starts[last..].to_vec()).context("look at the processes")?);
        eprintln!("  {step}");
    }
    let stop = held.into_iter().map(stop).collect::<Result<Vec<_>>>()?;
    Ok(Curve {
        kind: kind.name.clone(),
        steps,
        stop: Figures::of(stop),
    })
}

fn look(engine: &Containerd, held: &[Container], starts: Vec<f64>) -> Result<Step> {
    let state = |container: &Container| -> Result<f64> {
        let begin = Instant::now();
        let state = container.state()?;
        ensure!(state.pid == container.pid(), "{state:?}");
        Ok(milliseconds(begin))
    };
    let states = held.iter().map(state).collect::<Result<Vec<_>>>()?;
    let mut step = Step {
        containers: held.len() as u32,
        start: Figures::of(starts),
        state: Figures::of(states),
        pss: 0.0,
        private: 0.0,
        processes: 0.0,
        threads: 0.0,
        most_threads: 0.0,
        descriptors: 0.0,
    };
    let share = 1.0 / held.len() as f64;
    let inits = held.iter().map(Container::pid);
    for pid in engine.shim_processes().into_iter().chain(inits) {
        let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (rollup, status) = (of("smaps_rollup")?, of("status")?);
        let private = field(&rollup, "Private_Clean")? + field(&rollup, "Private_Dirty")?;
        let threads = field(&status, "Threads")?;
        step.pss += field(&rollup, "Pss")? * share;
        step.private += private * share;
        step.processes += share;
        step.threads += threads * share;
        step.most_threads = step.most_threads.max(threads);
        step.descriptors += open_files(pid)? as f64 * share;
    }
    Ok(step)
}

/// Ends a container and removes it; milliseconds until its task is deleted.
fn stop(mut container: Container) -> Result<f64> {
    let begin = Instant::now();
    container.kill(Signal::SIGTERM)?;
    let exit = container.wait()?;
    ensure!(exit.status == 143, "{}: {exit:?}", container.id());
    container.delete()?;
    let took = milliseconds(begin);
    container.remove()?;
    Ok(took)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// That costs are as flat as SPECIFICATION.md has them.
fn promises(curve: &Curve) -> Vec<Promise> {
    let (Some(few), Some(many)) = (curve.steps.get(1), curve.steps.last()) else {
        return Vec::new();
    };
    let ratios = [
        ("start", many.start.median / few.start.median, START),
        ("memory", many.pss / few.pss, COST),
        ("threads", many.threads / few.threads, COST),
        ("descriptors", many.descriptors / few.descriptors, COST),
    ];
    let promise = |(name, ratio, bound): (&str, f64, f64)| Promise {
        name: format!("scale.{}.{name}", curve.kind),
        ratio,
        bound,
        kept: ratio <= bound,
    };
    ratios.into_iter().map(promise).collect()
}

impl Display for Scale {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "measured on: {}", self.machine.join("; "))?;
        for curve in &self.curves {
            writeln!(f, "\n{}: one of so many idle containers", curve.kind)?;
            let columns = [
                "start ms",
                "p99",
                "state ms",
                "PSS kB",
                "private",
                "processes",
                "threads",
                "most",
                "files",
            ];
            write!(f, "  {:>10}", "containers")?;
            for column in columns {
                write!(f, "{column:>11}")?;
            }
            writeln!(f)?;
            for of in &curve.steps {
                writeln!(
                    f,
                    "  {:>10}{:>11.1}{:>11.1}{:>11.2}{:>11.0}{:>11.0}{:>11.2}{:>11.2}{:>11.0}{:>11.1}",
                    of.containers,
                    of.start.median,
                    of.start.p99,
                    of.state.median,
                    of.pss,
                    of.private,
                    of.processes,
                    of.threads,
                    of.most_threads,
                    of.descriptors,
                )?;
            }
            let Figures { median, p99, .. } = curve.stop;
            writeln!(f, "  stopped and deleted in {median:.1} ms, p99 {p99:.1}")?;
        }
        requests(f, &self.http)?;
        sizes(f, &self.modules)?;
        writeln!(
            f,
            "\nguarantees (SPECIFICATION.md): the last row of containers as a share of the second"
        )?;
        self.promises
            .iter()
            .try_for_each(|promise| write!(f, "{promise}"))
    }
}

/// A column for each number of connections.
fn requests(f: &mut Formatter<'_>, http: &[Served]) -> fmt::Result {
    write!(f, "\nrequests/s over so many connections\n  {:20}", "")?;
    for connections in CONNECTIONS {
        write!(f, "{connections:>10}")?;
    }
    for of in http {
        write!(f, "\n  {:20}", of.kind)?;
        for at in 0..CONNECTIONS.len() {
            write!(f, "{:>10.0}", of.figures(at, |load| load.rate()).median)?;
        }
        write!(f, "\n  {:20}", "  p99, ms")?;
        for at in 0..CONNECTIONS.len() {
            write!(f, "{:>10.2}", of.figures(at, |load| load.p99).median)?;
        }
    }
    writeln!(f)
}

fn sizes(f: &mut Formatter<'_>, modules: &[Module]) -> fmt::Result {
    writeln!(f, "\na create, in ms, by the size of the module")?;
    write!(f, "  {:24}", "")?;
    for column in ["module kB", "code kB", "compiled", "hashed", "mapped"] {
        write!(f, "{column:>12}")?;
    }
    writeln!(f)?;
    for of in modules {
        writeln!(
            f,
            "  {:24}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>12.1}",
            of.name, of.size, of.code, of.compiled, of.hashed.median, of.mapped.median
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::window;

    #[test]
    fn a_step_is_told_by_its_last_starts() {
        assert_eq!([1, 10, 100, 1000].map(window), [9, 9, 10, 100]);
    }
}
