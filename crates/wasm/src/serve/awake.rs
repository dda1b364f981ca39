//! A thread that looks for the next request for a moment before it goes to sleep: to be woken takes
//! longer than many an answer. One with several clients is woken for the one or the other anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task;

use super::shared::Count;

/// How long it looks, and how soon after the last answer the request before must have come for it
/// to look at all. Whoever asks in turns from the same machine or from the next one is as quick.
const MOMENT: Duration = Duration::from_micros(100);

/// What one thread knows of its last requests.
pub(super) struct Awake {
    /// The thread's connections.
    pub(super) connections: Arc<Count>,
    since: Instant,
    /// When the last answer was there, in nanoseconds after `since`.
    answered: AtomicU64,
    /// Whether the last request came within a [`MOMENT`].
    was_soon: AtomicBool,
    /// Whether the next one is looked for.
    is_looking: AtomicBool,
    begun: Notify,
}

impl Awake {
    pub(super) fn new() -> Self {
        Self {
            connections: Arc::default(),
            since: Instant::now(),
            answered: AtomicU64::new(0),
            was_soon: AtomicBool::new(false),
            is_looking: AtomicBool::new(false),
            begun: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_nanos() as u64
    }

    fn is_soon(&self) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        u128::from(self.now() - answered) < MOMENT.as_nanos()
    }

    /// A request has come.
    pub(super) fn asked(&self) {
        self.is_looking.store(false, Ordering::Relaxed);
        self.was_soon.store(self.is_soon(), Ordering::Relaxed);
    }

    /// There is an answer.
    pub(super) fn answered(&self) {
        self.answered.store(self.now(), Ordering::Relaxed);
        if self.was_soon.load(Ordering::Relaxed) && self.connections.now() == 1 {
            self.is_looking.store(true, Ordering::Relaxed);
            self.begun.notify_one();
        }
    }

    /// Looks for requests when it is time to. Never ends. Whoever else wants the processor gets it.
    pub(super) async fn look(&self) {
        loop {
            self.begun.notified().await;
            loop {
                // First whatever else there is to be done.
                task::yield_now().await;
                if !self.is_looking.load(Ordering::Relaxed) || !self.is_soon() {
                    break;
                }
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Whether it looks at once: the event loop is asked to come back without a wait.
    fn looks(awake: &Awake) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut looking = pin!(awake.look());
            let polled = looking
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Pending);
            awake.is_looking.load(Ordering::Relaxed)
        })
    }

    #[test]
    fn only_after_a_request_that_came_soon() {
        let awake = Awake::new();
        let one = awake.connections.take(usize::MAX);
        thread::sleep(2 * MOMENT);
        awake.asked();
        awake.answered();
        assert!(!looks(&awake));
        // As slow as this thread may be, one of these comes soon.
        let soon = (0..1000).any(|_| {
            awake.answered();
            awake.asked();
            awake.answered();
            looks(&awake)
        });
        assert!(soon);
        let another = awake.connections.take(usize::MAX);
        assert!((0..1000).all(|_| {
            awake.answered();
            awake.asked();
            awake.answered();
            !looks(&awake)
        }));
        drop((one, another));
        awake.asked();
        assert!(!looks(&awake));
        thread::sleep(2 * MOMENT);
        awake.asked();
        awake.answered();
        assert!(!looks(&awake));
    }
}
