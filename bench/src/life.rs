//! The life of a container, phase by phase, as a client of containerd's API sees it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use lighter_test::{Containerd, Rootfs};
use serde::Serialize;

use crate::figures::Figures;
use crate::kind::Kind;

/// How many lives there are at once in [`together`].
pub const TOGETHER: usize = 4;
/// How many lives of a kind are one turn of [`together`]: so many that its end, when fewer than
/// [`TOGETHER`] are on their way, does not count for much, and so few that the machine is the same
/// throughout a round of turns.
const TURN: u32 = 16;

/// The phases in order, and the total.
pub const PHASES: [&str; 6] = ["prepare", "create", "start", "exit", "delete", "total"];

/// Milliseconds of each of [`PHASES`].
type Life = [f64; PHASES.len()];

/// What lives of one kind took.
#[derive(Serialize)]
pub struct Lives {
    /// The kind's name.
    pub kind: String,
    /// Milliseconds of each of [`PHASES`].
    pub phases: [Figures; PHASES.len()],
    /// Containers a second, one turn after another.
    pub rate: f64,
    /// Milliseconds that each turn took, a container: what turns are compared by.
    pub turns: Vec<f64>,
}

/// Lives of one kind while they are being measured.
#[derive(Default)]
struct Record {
    lives: Vec<Life>,
    turns: Vec<f64>,
}

impl Record {
    fn sum_up(self, kind: &Kind) -> Lives {
        let per_container = self.turns.iter().sum::<f64>() / self.turns.len() as f64;
        Lives {
            kind: kind.name.clone(),
            phases: std::array::from_fn(|phase| {
                Figures::of(self.lives.iter().map(|life| life[phase]).collect())
            }),
            rate: 1000.0 / per_container,
            turns: self.turns,
        }
    }
}

/// Lives one container of each kind, so that nothing is compiled, loaded from disk or made for
/// the first time later on.
///
/// # Errors
/// The first thing that fails.
pub fn warm_up(engine: &Containerd, rootfs: &Rootfs, kinds: &[Kind]) -> Result<()> {
    kinds
        .iter()
        .try_for_each(|kind| live(engine, rootfs, kind).map(drop))
}

/// `rounds` lives of each kind, one at a time, the kinds in turn.
///
/// # Errors
/// The first container that fails.
pub fn alone(
    engine: &Containerd,
    rootfs: &Rootfs,
    kinds: &[Kind],
    rounds: u32,
) -> Result<Vec<Lives>> {
    let mut records: Vec<Record> = kinds.iter().map(|_| Record::default()).collect();
    for _ in 0..rounds {
        for (kind, record) in kinds.iter().zip(&mut records) {
            let life = live(engine, rootfs, kind)?;
            record.lives.push(life);
            record.turns.push(life[PHASES.len() - 1]);
        }
    }
    Ok(sum_up(kinds, records))
}

/// At least `rounds` lives of each kind, [`TOGETHER`] at a time and all of one kind, the kinds in
/// turn.
///
/// # Errors
/// The first container that fails.
pub fn together(
    engine: &Containerd,
    rootfs: &Rootfs,
    kinds: &[Kind],
    rounds: u32,
) -> Result<Vec<Lives>> {
    let mut records: Vec<Record> = kinds.iter().map(|_| Record::default()).collect();
    for _ in 0..rounds.div_ceil(TURN) {
        for (kind, record) in kinds.iter().zip(&mut records) {
            let begin = Instant::now();
            record.lives.extend(turn(engine, rootfs, kind)?);
            record.turns.push(milliseconds(begin) / f64::from(TURN));
        }
    }
    Ok(sum_up(kinds, records))
}

fn sum_up(kinds: &[Kind], records: Vec<Record>) -> Vec<Lives> {
    let pairs = kinds.iter().zip(records);
    pairs.map(|(kind, record)| record.sum_up(kind)).collect()
}

fn turn(engine: &Containerd, rootfs: &Rootfs, kind: &Kind) -> Result<Vec<Life>> {
    let begun = AtomicUsize::new(0);
    let worker = || -> Result<Vec<Life>> {
        let mut lives = Vec::new();
        while begun.fetch_add(1, Ordering::Relaxed) < TURN as usize {
            lives.push(live(engine, rootfs, kind)?);
        }
        Ok(lives)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(worker)).collect();
        let mut lives = Vec::new();
        for worker in workers {
            lives.extend(worker.join().expect("no worker panics")?);
        }
        Ok(lives)
    })
}

/// One life: the snapshot and the container's record; the task's create; its start; the wait for
/// its exit; the deletion of task, record and snapshot.
fn live(engine: &Containerd, rootfs: &Rootfs, kind: &Kind) -> Result<Life> {
    let builder = kind.container(engine, rootfs);
    let begin = Instant::now();
    let mut container = builder.record()?;
    let prepared = milliseconds(begin);
    container.create_task()?;
    let created = milliseconds(begin);
    container.start()?;
    let started = milliseconds(begin);
    let exit = container.wait()?;
    let exited = milliseconds(begin);
    container.delete()?;
    container.remove()?;
    let total = milliseconds(begin);
    ensure!(
        exit.status == 0,
        "{}: exit status {}",
        kind.name,
        exit.status
    );
    Ok([
        prepared,
        created - prepared,
        started - created,
        exited - started,
        total - exited,
        total,
    ])
}

/// The milliseconds that have gone by since a moment.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
