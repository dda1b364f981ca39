//! Work that blocks, beside the daemon's event loop.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// Does `work` on a thread of its own; returns what it returns. tokio's own threads for this are none of ours: where the
/// kernel gives no thread (a limit of processes, often another container's fault), tokio panics, and the call is never answered.
///
/// # Errors
/// When there is no thread to be had, or the work panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, answer) = oneshot::channel();
    thread::Builder::new()
        .spawn(move || done.send(work()))
        .map_err(|error| io::Error::new(error.kind(), format!("starting a thread: {error}")))?;
    answer
        .await
        .map_err(|_| io::Error::other("a thread of the shim's panicked"))
}
