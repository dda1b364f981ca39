//! What has been counted since a server's start, where its figures are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::gate::Outgoing;

/// A number that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a [`Histogram`]'s buckets, in microseconds: an instance takes tens of
/// these, and a request may take a minute unless something else is set.
const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000, 60_000_000,
];

/// How many times were how long.
#[derive(Default)]
pub(super) struct Histogram {
    /// Each without those before; the last has no bound.
    buckets: [Counter; BOUNDS.len() + 1],
    /// In microseconds.
    sum: Counter,
}

impl Histogram {
    pub(super) fn observe(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| time <= *bound);
        self.buckets[bucket.unwrap_or(BOUNDS.len())].add(1);
        self.sum.add(time);
    }

    /// The bounds in seconds, none for the last, each with how many times were not longer.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Some(seconds(*bound)));
        let counts = self.buckets.iter().scan(0, |sum, bucket| {
            *sum += bucket.get();
            Some(*sum)
        });
        bounds.chain([None]).zip(counts)
    }

    /// All times together, in seconds.
    pub(super) fn sum(&self) -> f64 {
        seconds(self.sum.get())
    }
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// Why a request or a connection was refused before a guest had it, or its body while.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// `http.max_requests`.
    Requests,
    /// `http.max_connections`.
    Connections,
    /// `http.max_body`.
    Body,
    /// No instance could be made.
    Instances,
}

/// Why an instance was ended.
#[derive(Clone, Copy)]
pub(super) enum Failure {
    /// It trapped.
    Trap,
    /// It called `exit`.
    Exit,
    /// Its time was over.
    Time,
}

impl Failure {
    /// What it is that ended an instance.
    pub(super) fn of(error: &wasmtime::Error) -> Self {
        if error.is::<I32Exit>() {
            Self::Exit
        } else if error.is::<Trap>() || error.is::<WasmBacktrace>() {
            Self::Trap
        } else {
            Self::Time
        }
    }
}

/// The statuses that there can be are from 100 to 999.
const STATUSES: usize = 900;

/// Everything that is counted.
pub(super) struct Figures {
    /// When the server was started.
    pub(super) since: SystemTime,
    by_status: [Counter; STATUSES],
    /// Requests whose clients left before there was a response.
    pub(super) abandoned: Counter,
    /// From a request's headers to the end of its response.
    pub(super) durations: Histogram,
    /// Of requests' bodies.
    pub(super) received: Counter,
    /// Of responses' bodies.
    pub(super) sent: Counter,
    refusals: [Counter; 4],
    failures: [Counter; 3],
    /// Connections that were accepted.
    pub(super) connections: Counter,
    /// Instances that were made.
    pub(super) instances: Counter,
    /// The guest's own requests.
    pub(super) outgoing: Arc<Outgoing>,
}

impl Figures {
    /// Nothing, from now on.
    pub(super) fn new() -> Self {
        Self {
            since: SystemTime::now(),
            by_status: std::array::from_fn(|_| Counter::default()),
            abandoned: Counter::default(),
            durations: Histogram::default(),
            received: Counter::default(),
            sent: Counter::default(),
            refusals: Default::default(),
            failures: Default::default(),
            connections: Counter::default(),
            instances: Counter::default(),
            outgoing: Arc::default(),
        }
    }

    /// Counts a request that is over: its status, if it came to that, and how long it took.
    pub(super) fn request(&self, status: Option<StatusCode>, took: Duration) {
        let status = status.and_then(|status| usize::from(status.as_u16()).checked_sub(100));
        match status.and_then(|status| self.by_status.get(status)) {
            Some(counter) => counter.add(1),
            None => self.abandoned.add(1),
        }
        self.durations.observe(took);
    }

    /// The statuses that there were, and how often.
    pub(super) fn by_status(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.by_status.iter().map(Counter::get).enumerate();
        counts.filter_map(|(status, count)| (count > 0).then_some((status + 100, count)))
    }

    /// The counter of what was refused.
    pub(super) fn refusals(&self, refusal: Refusal) -> &Counter {
        &self.refusals[refusal as usize]
    }

    /// The counter of instances that were ended.
    pub(super) fn failures(&self, failure: Failure) -> &Counter {
        &self.failures[failure as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_with_all_that_are_shorter() {
        let histogram = Histogram::default();
        for microseconds in [1, 100, 101, 5_000, 61_000_000] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets[0], (Some(0.0001), 2));
        assert_eq!(buckets[1], (Some(0.00025), 3));
        assert_eq!(buckets[5], (Some(0.005), 4));
        assert_eq!(buckets[15], (Some(60.0), 4));
        assert_eq!(buckets[16], (None, 5));
        assert_eq!(histogram.sum(), 61.005202);
    }

    #[test]
    fn statuses_are_told_apart() {
        let figures = Figures::new();
        for status in [200, 999, 200, 100] {
            figures.request(StatusCode::from_u16(status).ok(), Duration::ZERO);
        }
        figures.request(None, Duration::ZERO);
        let statuses: Vec<_> = figures.by_status().collect();
        assert_eq!(statuses, [(100, 1), (200, 2), (999, 1)]);
        assert_eq!(figures.abandoned.get(), 1);
    }
}
