//! What SPECIFICATION.md promises, held against what was measured.

use std::fmt::{self, Display, Formatter};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::figures::Figures;
use crate::first::First;
use crate::http::{self, CONNECTIONS, Load, Served};
use crate::kind::MODEL;
use crate::life::{Lives, PHASES};
use crate::memory::Idle;
use crate::python::Starts;
use crate::report::Report;

/// An idle guest whose daemon serves others too takes at most this share of what runc's does.
const GROUPED: f64 = 0.14;

/// A guarantee, and whether it is kept.
#[derive(Serialize)]
pub struct Promise {
    /// Its name in SPECIFICATION.md.
    pub name: String,
    /// What was measured, as a share of what the model took.
    pub ratio: f64,
    /// The most that the ratio may be.
    pub bound: f64,
    /// Whether it is not more.
    pub kept: bool,
}

/// The create call of a wasm container takes at most this share of runc's.
const CREATE: f64 = 0.22;
/// A guest's first byte of output comes at most this share of the time after the start call that it
/// takes under runc.
const FIRST: f64 = 0.25;
/// An idle wasm container has at most so many processes, each with a single digit of threads: no more
/// threads than that in all.
const PROCESSES: f64 = 3.0;
const THREADS: f64 = 9.0;
/// A container's life takes at most this share of runc's.
const LIFE: f64 = 0.23;
/// The same, where several live at a time.
const TOGETHER: f64 = 0.25;
/// The same, where they share a daemon.
const TOGETHER_IN_ONE: f64 = 0.22;
/// An idle wasm container takes less memory than runc's: at most this share.
const MEMORY: f64 = 0.4;

/// A request's share of `wasmtime serve`'s time for one, with an instance of its own.
const REQUEST: f64 = 0.5;
/// The same, where instances are reused and several clients ask.
const REUSE: f64 = 0.25;
/// The same with a single client, which waits for the machine to wake it up, under either server.
const REUSE_ALONE: f64 = 0.27;
/// The slowest of a hundred requests takes no longer than under `wasmtime serve`.
const SLOWEST: f64 = 1.0;
/// CPython's first start, with its compilation, takes at most so many milliseconds on two processors.
const PYTHON_FIRST: f64 = 60_000.0;
/// CPython in a container takes at most so many times as long as under `wasmtime run`.
const PYTHON: f64 = 1.3;
/// Its line is there in at most this share of the time where its initialisation was run beforehand.
const PREINIT: f64 = 0.2;

impl Display for Promise {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Promise {
            name,
            ratio,
            bound,
            kept,
        } = self;
        let verdict = if *kept { "kept" } else { "BROKEN" };
        writeln!(f, "  {name:32} {ratio:6.3}  bound {bound:5.3}  {verdict}")
    }
}

/// Checks every guarantee.
///
/// # Errors
/// A kind that a guarantee speaks of was not measured.
pub fn check(of: &Report) -> Result<Vec<Promise>> {
    let mut promises = Vec::new();
    let mut promise = |name: String, ratio: f64, bound: f64| {
        promises.push(Promise {
            name,
            ratio,
            bound,
            kept: ratio <= bound,
        });
    };
    for kind in ["wasm", "wasm-tiny"] {
        promise(format!("life.alone.{kind}"), life(&of.alone, kind)?, LIFE);
        promise(
            format!("life.together.{kind}"),
            life(&of.together, kind)?,
            TOGETHER,
        );
    }
    promise(
        "life.together.wasm-grouped".to_owned(),
        life(&of.together, "wasm-grouped")?,
        TOGETHER_IN_ONE,
    );
    promise(
        "life.alone.linux".to_owned(),
        life(&of.alone, "linux")?,
        LIFE,
    );
    promise(
        "create.alone.wasm".to_owned(),
        create(&of.alone, "wasm")?,
        CREATE,
    );
    promise("first.wasm".to_owned(), first(&of.first, "wasm")?, FIRST);
    let guest = idle(&of.idle, "wasm")?;
    promise("processes.idle.wasm".to_owned(), guest.processes, PROCESSES);
    promise("threads.idle.wasm".to_owned(), guest.threads, THREADS);
    promise(
        "memory.idle.wasm".to_owned(),
        memory(&of.idle, "wasm")?,
        MEMORY,
    );
    promise(
        "memory.idle.wasm-grouped".to_owned(),
        memory(&of.idle, "wasm-grouped")?,
        GROUPED,
    );
    for (kind, alone, of_several) in [
        ("http", REQUEST, REQUEST),
        ("http-reuse", REUSE_ALONE, REUSE),
    ] {
        for (at, &connections) in CONNECTIONS.iter().enumerate() {
            let bound = if connections > 1 { of_several } else { alone };
            promise(
                format!("{kind}.time.{connections}"),
                served(&of.http, kind, at, |load| 1.0 / load.rate())?,
                bound,
            );
            promise(
                format!("{kind}.p99.{connections}"),
                served(&of.http, kind, at, |load| load.p99)?,
                SLOWEST,
            );
        }
    }
    promise("python.first".to_owned(), python_first(&of.python)?, 1.0);
    promise(
        "python.again".to_owned(),
        python(&of.python, |of| &of.again, "wasm", "wasmtime")?,
        PYTHON,
    );
    promise(
        "python.preinit".to_owned(),
        python(&of.python, |of| &of.printed, "preinit", "wasm")?,
        PREINIT,
    );
    Ok(promises)
}

/// The median, over all turns, of a figure of a kind of server as a share of the model's in the same
/// turn, with the connections that are number `at`.
///
/// # Errors
/// The kind or the model was not measured.
pub fn served(all: &[Served], kind: &str, at: usize, figure: impl Fn(&Load) -> f64) -> Result<f64> {
    let of = |name: &str| {
        let found = all.iter().find(|served| served.kind == name);
        found.with_context(|| format!("no server of the kind {name} was measured"))
    };
    let (kind, model) = (of(kind)?, of(http::MODEL)?);
    let pairs = kind.loads[at].iter().zip(&model.loads[at]);
    Ok(median(
        pairs.map(|(ours, theirs)| figure(ours) / figure(theirs)),
    ))
}

/// The median, over all turns, of a start of CPython of one kind as a share of one of another.
///
/// # Errors
/// One was not measured.
pub fn python(
    starts: &[Starts],
    times: impl Fn(&Starts) -> &[f64],
    kind: &str,
    model: &str,
) -> Result<f64> {
    let of = |name: &str| {
        let found = starts.iter().find(|starts| starts.kind == name);
        found.with_context(|| format!("no start of CPython of the kind {name} was measured"))
    };
    let (kind, model) = (of(kind)?, of(model)?);
    let pairs = times(kind).iter().zip(times(model));
    Ok(median(pairs.map(|(ours, theirs)| ours / theirs)))
}

/// The first start of CPython in a container, as a share of [`PYTHON_FIRST`].
///
/// # Errors
/// It was not measured.
fn python_first(starts: &[Starts]) -> Result<f64> {
    let found = starts.iter().find(|starts| starts.kind == "wasm");
    let first = found.context("no start of CPython was measured")?.first;
    Ok(first / PYTHON_FIRST)
}

fn median(ratios: impl Iterator<Item = f64>) -> f64 {
    Figures::of(ratios.collect()).median
}

/// The median, over all turns, of a kind's time as a share of the model's in the same turn.
pub fn life(lives: &[Lives], kind: &str) -> Result<f64> {
    let of = |name: &str| {
        lives
            .iter()
            .find(|lives| lives.kind == name)
            .with_context(|| format!("no life of the kind {name} was measured"))
    };
    let (kind, model) = (of(kind)?, of(MODEL)?);
    let pairs = kind.turns.iter().zip(&model.turns);
    Ok(median(pairs.map(|(ours, theirs)| ours / theirs)))
}

/// The median of a kind's create call as a share of the model's.
fn create(lives: &[Lives], kind: &str) -> Result<f64> {
    let at = PHASES
        .iter()
        .position(|phase| *phase == "create")
        .context("there is no phase create")?;
    let of = |name: &str| {
        let found = lives.iter().find(|lives| lives.kind == name);
        found.with_context(|| format!("no life of the kind {name} was measured"))
    };
    Ok(of(kind)?.phases[at].median / of(MODEL)?.phases[at].median)
}

/// The median, over all turns, of the time to a kind's first output as a share of the model's in the
/// same turn.
pub fn first(all: &[First], kind: &str) -> Result<f64> {
    let of = |name: &str| {
        let found = all.iter().find(|first| first.kind == name);
        found.with_context(|| format!("no first output of the kind {name} was measured"))
    };
    let (kind, model) = (of(kind)?, of(MODEL)?);
    let pairs = kind.times.iter().zip(&model.times);
    Ok(median(pairs.map(|(ours, theirs)| ours / theirs)))
}

/// What was measured of idle containers of a kind.
fn idle<'a>(all: &'a [Idle], kind: &str) -> Result<&'a Idle> {
    all.iter()
        .find(|idle| idle.kind == kind)
        .with_context(|| format!("no idle container of the kind {kind} was measured"))
}

/// A kind's memory as a share of the model's.
pub fn memory(all: &[Idle], kind: &str) -> Result<f64> {
    Ok(idle(all, kind)?.pss / idle(all, MODEL)?.pss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(kind: &str, turns: &[f64]) -> Lives {
        Lives {
            kind: kind.to_owned(),
            phases: [Figures::of(vec![1.0]); 6],
            rate: 1.0,
            turns: turns.to_vec(),
        }
    }

    #[test]
    fn lives_are_compared_turn_by_turn() {
        // A machine that became ten times slower on the way.
        let all = [
            lives(MODEL, &[10.0, 100.0, 100.0]),
            lives("wasm", &[4.0, 40.0, 45.0]),
        ];
        assert_eq!(life(&all, "wasm").unwrap(), 0.4);
        assert!(life(&all, "linux").is_err());
    }
}
