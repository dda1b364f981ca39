//! Moving bytes from one descriptor to another in the daemon's event loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;

/// How much is copied at a time, in bytes: a pipe's default capacity.
const CHUNK: usize = 64 * 1024;

/// Where bytes come from.
pub(super) trait Source: Send + Sync + 'static {
    /// Waits until a read may find something.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Reads what is there; 0 is the end, `WouldBlock` that there is nothing yet.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Source for pipe::Receiver {
    async fn readable(&self) -> io::Result<()> {
        self.readable().await
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }
}

/// Where bytes go.
pub(super) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Copies until the source ends or the sink is closed, counting bytes in `copied`. Holds a buffer
/// only while there is something to copy: most containers are silent most of the time.
pub(super) async fn copy(source: impl Source, mut sink: Sink, copied: Arc<AtomicU64>) {
    while source.readable().await.is_ok() {
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.try_read(&mut buffer) {
                Ok(0) => {
                    // A file's last write may be under way still, and a terminal is to hang up.
                    let _ = sink.shutdown().await;
                    return;
                }
                Ok(length) => {
                    if let Err(error) = sink.write_all(&buffer[..length]).await {
                        // A stdin that its process has closed is no news.
                        if error.kind() != io::ErrorKind::BrokenPipe {
                            log::warn!("copying a container's stream: {error}");
                        }
                        return;
                    }
                    copied.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    log::warn!("reading a container's stream: {error}");
                    return;
                }
            }
        }
    }
}
