//! What the threads of a server know of each other: how much there is of what is limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::figures::Figures;

/// A number of things that are there now.
#[derive(Default)]
pub(super) struct Count {
    now: AtomicUsize,
    changed: Notify,
}

/// One of the things that are counted, until it is dropped.
pub(super) struct Counted(Arc<Count>);

impl Count {
    /// One more, unless there are `most` already.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Option<Counted> {
        let before = self.now.fetch_add(1, Ordering::AcqRel);
        let taken = Counted(self.clone());
        if before == 0 {
            self.changed.notify_one();
        }
        (before < most).then_some(taken)
    }

    /// How many there are.
    pub(super) fn now(&self) -> usize {
        self.now.load(Ordering::Acquire)
    }

    /// Waits until there are some, or until one has come that may have gone since. For one who waits at a time, and need
    /// not be woken once more where what comes goes sooner than he wakes.
    pub(super) async fn wait_for_next(&self) {
        if self.now() == 0 {
            self.changed.notified().await;
        }
    }

    /// Waits until there are none, or some. For one who waits at a time.
    pub(super) async fn wait_for(&self, some: bool) {
        while (self.now() > 0) != some {
            self.changed.notified().await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.now.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_one();
        }
    }
}

/// What is counted.
#[derive(Default)]
pub(super) struct Shared {
    /// Requests that are being handled.
    pub(super) requests: Arc<Count>,
    /// Instances of the guest.
    pub(super) instances: Arc<Count>,
    /// Clients' connections.
    pub(super) connections: Arc<Count>,
    /// What has been counted since the start, if that is asked for.
    pub(super) figures: Option<Figures>,
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn next_is_also_who_has_gone() {
        let count = Arc::new(Count::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut is_there = |count: &Count| pin!(count.wait_for_next()).poll(&mut context);
        assert_eq!(is_there(&count), Poll::Pending);
        drop(count.take(usize::MAX));
        assert_eq!(is_there(&count), Poll::Ready(()));
        assert_eq!(is_there(&count), Poll::Pending);
        let one = count.take(usize::MAX);
        assert_eq!(is_there(&count), Poll::Ready(()));
        assert_eq!(is_there(&count), Poll::Ready(()));
        drop(one);
    }
}
