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
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Copies until the source ends or the sink is closed, counting bytes in `copied`. Holds a buffer
/// only while there is something to copy: most containers are silent most of the time.
pub(super) async fn copy(source: impl Source, mut sink: Writer, copied: Arc<AtomicU64>) {
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
                    if let Err(error) = pass_on(&buffer[..length], &mut sink, &copied).await {
                        // A stdin that its process has closed is no news.
                        if error.kind() != io::ErrorKind::BrokenPipe {
                            log::warn!("copying a container's stream: {error}");
                        }
                        return;
                    }
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

/// Writes all of `bytes`, counting what has been taken as it is: a slow reader is not one that has
/// gone.
async fn pass_on(mut bytes: &[u8], sink: &mut Writer, copied: &AtomicU64) -> io::Result<()> {
    while !bytes.is_empty() {
        let taken = sink.write(bytes).await?;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        copied.fetch_add(taken as u64, Ordering::Relaxed);
        bytes = &bytes[taken..];
    }
    Ok(())
}
