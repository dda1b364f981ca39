//! A daemon that gives memory back once it has had nothing to do for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// For how long nothing must happen.
const CALM: Duration = Duration::from_secs(1);

/// Sees to it that a daemon at rest takes no more memory than it needs.
#[derive(Clone)]
pub struct Calm(Arc<Notify>);

impl Calm {
    /// Begins in the running tokio runtime.
    pub fn start() -> Self {
        let disturbed = Arc::new(Notify::new());
        let calm = Self(disturbed.clone());
        tokio::spawn(async move {
            loop {
                disturbed.notified().await;
                while timeout(CALM, disturbed.notified()).await.is_ok() {}
                container::trim_memory();
            }
        });
        calm
    }

    /// Something happens that takes memory for a time.
    pub fn disturb(&self) {
        self.0.notify_one();
    }
}
