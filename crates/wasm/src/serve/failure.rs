//! Why a guest did not answer a request.

use wasmtime_wasi_http::handler::{ExpirationError, InstantiationError, TrapOrPanicError};

use super::concurrent::Given;

/// What went wrong.
pub(super) enum Failure {
    /// It took too long.
    Late,
    /// It trapped; whoever found that has written what happened.
    Trapped,
    /// There is no instance that could answer.
    NoInstance(wasmtime::Error),
    /// Anything else.
    Other(wasmtime::Error),
}

impl From<wasmtime::Error> for Failure {
    /// What wasmtime-wasi-http's handler says.
    fn from(error: wasmtime::Error) -> Self {
        if error.is::<ExpirationError>() {
            return Self::Late;
        }
        if error.is::<TrapOrPanicError>() {
            return Self::Trapped;
        }
        match error.downcast_ref::<InstantiationError<Given>>() {
            Some(failure) => Self::NoInstance(wasmtime::format_err!("{:#}", failure.error)),
            None => Self::Other(error),
        }
    }
}
