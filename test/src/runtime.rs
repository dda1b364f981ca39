//! One asynchronous runtime for the whole test program, so that tests are plain
//! functions and many of them can share a connection.

use std::{future::Future, sync::OnceLock, thread, time::Duration};

use containerd_client::tonic::{Code, Status};
use tokio::runtime::{Builder, Handle};

/// How long one call to a daemon may take before it counts as hung.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(400);

/// The runtime's handle; its thread starts with the first call.
pub fn handle() -> &'static Handle {
    static HANDLE: OnceLock<Handle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("an asynchronous runtime starts");
        let handle = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

/// Waits for one call to a daemon.
///
/// # Errors
/// The call's own error, or `DeadlineExceeded` after [`CALL_TIMEOUT`].
pub fn call<T, E: Into<Status>>(
    future: impl Future<Output = std::result::Result<T, E>>,
) -> std::result::Result<T, Status> {
    handle().block_on(async {
        match tokio::time::timeout(CALL_TIMEOUT, future).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(Status::new(
                Code::DeadlineExceeded,
                format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
            )),
        }
    })
}
