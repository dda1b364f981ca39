//! What SPECIFICATION.md promises, held against what was measured.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::figures::Figures;
use crate::kind::MODEL;
use crate::life::Lives;
use crate::memory::Idle;

/// A guarantee, and whether it is kept.
#[derive(Serialize)]
pub struct Promise {
    /// Its name in SPECIFICATION.md.
    pub name: String,
    /// What was measured, as a share of the model's.
    pub ratio: f64,
    /// The most that the ratio may be.
    pub bound: f64,
    /// Whether it is not more.
    pub kept: bool,
}

/// A wasm container's life takes at most this share of runc's.
const LIFE: f64 = 0.5;
/// An idle wasm container takes less memory than runc's: at most this share.
const MEMORY: f64 = 1.0;

/// Checks every guarantee.
///
/// # Errors
/// A kind that a guarantee speaks of was not measured.
pub fn check(alone: &[Lives], together: &[Lives], idle: &[Idle]) -> Result<Vec<Promise>> {
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
        promise(format!("life.alone.{kind}"), life(alone, kind)?, LIFE);
        promise(format!("life.together.{kind}"), life(together, kind)?, LIFE);
    }
    promise("memory.idle.wasm".to_owned(), memory(idle, "wasm")?, MEMORY);
    Ok(promises)
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
    Ok(Figures::of(pairs.map(|(ours, theirs)| ours / theirs).collect()).median)
}

/// A kind's memory as a share of the model's.
pub fn memory(idle: &[Idle], kind: &str) -> Result<f64> {
    let of = |name: &str| {
        idle.iter()
            .find(|idle| idle.kind == name)
            .with_context(|| format!("no idle container of the kind {name} was measured"))
    };
    Ok(of(kind)?.pss / of(MODEL)?.pss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(kind: &'static str, turns: &[f64]) -> Lives {
        Lives {
            kind,
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
