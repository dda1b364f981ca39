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

/// How late a thread that looks notices that its time is over when it has not had the processor
/// meanwhile: others need it, or the container has used up what it may (cpu.max, cpu.cfs_quota_us).
const AWAY: Duration = Duration::from_millis(1);

/// How long it does not look then, so that what it may use is left for answers.
const REST: Duration = Duration::from_secs(1);

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
    /// Until when it does not look, in nanoseconds after `since`.
    resting: AtomicU64,
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
            resting: AtomicU64::new(0),
            begun: Notify::new(),
        }
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long ago the last answer was there.
    fn pause(&self) -> Duration {
        let answered = Duration::from_nanos(self.answered.load(Ordering::Relaxed));
        self.now().saturating_sub(answered)
    }

    /// Looks no more, for a longer time if it has been `away` meanwhile.
    fn end(&self, away: bool) {
        if self.is_looking.swap(false, Ordering::Relaxed) && away {
            let until = self.now() + REST;
            let until = until.as_nanos() as u64;
            self.resting.store(until, Ordering::Relaxed);
        }
    }

    fn is_resting(&self) -> bool {
        self.now() < Duration::from_nanos(self.resting.load(Ordering::Relaxed))
    }

    /// A request has come.
    pub(super) fn asked(&self) {
        let pause = self.pause();
        self.end(pause > AWAY);
        self.was_soon.store(pause < MOMENT, Ordering::Relaxed);
    }

    /// There is an answer.
    pub(super) fn answered(&self) {
        let now = self.now().as_nanos() as u64;
        self.answered.store(now, Ordering::Relaxed);
        let was_soon = self.was_soon.load(Ordering::Relaxed);
        if was_soon && self.connections.now() == 1 && !self.is_resting() {
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
                let pause = self.pause();
                if !self.is_looking.load(Ordering::Relaxed) || pause >= MOMENT {
                    self.end(pause > AWAY);
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

    /// Whether it looks after a request that came soon. As slow as this thread may be, one does.
    fn looks_at_all(awake: &Awake) -> bool {
        (0..1000).any(|_| {
            awake.answered();
            awake.asked();
            awake.answered();
            looks(awake)
        })
    }

    #[test]
    fn only_after_a_request_that_came_soon() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        thread::sleep(2 * MOMENT);
        awake.asked();
        awake.answered();
        assert!(!looks(&awake));
        assert!(looks_at_all(&awake));
        awake.asked();
        assert!(!looks(&awake));
    }

    #[test]
    fn only_with_one_connection() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        let another = awake.connections.take(usize::MAX);
        assert!(!looks_at_all(&awake));
        drop(another);
        assert!(looks_at_all(&awake));
    }

    #[test]
    fn not_after_it_was_kept_from_it() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        assert!(looks_at_all(&awake));
        thread::sleep(2 * AWAY);
        awake.asked();
        assert!(!looks_at_all(&awake));
    }
}
