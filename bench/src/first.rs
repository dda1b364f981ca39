//! From the start call to the first byte of a container's output.

use std::time::Instant;

use anyhow::{Context, Result};
use lighter_test::{Containerd, Rootfs, eventually};
use serde::Serialize;

use crate::kind::Kind;

/// When containers of one kind said something.
#[derive(Serialize)]
pub struct First {
    /// The kind's name.
    pub kind: String,
    /// Milliseconds from the start call.
    pub times: Vec<f64>,
}

/// `rounds` containers of each kind, the kinds in turn.
///
/// # Errors
/// The first container that fails.
pub fn measure(
    engine: &Containerd,
    rootfs: &Rootfs,
    kinds: &[Kind],
    rounds: u32,
) -> Result<Vec<First>> {
    let mut all: Vec<First> = kinds
        .iter()
        .map(|kind| First {
            kind: kind.name.clone(),
            times: Vec::new(),
        })
        .collect();
    for _ in 0..rounds {
        for (kind, first) in kinds.iter().zip(&mut all) {
            first.times.push(time(engine, rootfs, kind)?);
        }
    }
    Ok(all)
}

fn time(engine: &Containerd, rootfs: &Rootfs, kind: &Kind) -> Result<f64> {
    let container = kind.container(engine, rootfs).create()?;
    let begin = Instant::now();
    container.start()?;
    // Looked at afterwards; the moment itself is noted by whoever reads.
    let said = eventually("it says something", || container.first_output())
        .with_context(|| format!("a container of the kind {}", kind.name))?;
    container.finish()?;
    Ok(said.duration_since(begin).as_secs_f64() * 1000.0)
}
