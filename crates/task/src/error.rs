//! Errors as containerd's clients get them: a gRPC status with the codes and words that the runc shim
//! uses.

use containerd_shim::protos::ttrpc::{self, Code, get_status};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such container, process or cgroup.
    #[error("{0}: not found")]
    NotFound(String),
    /// The container or process is there already.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The call needs another state than the process or container is in.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// The request asks for something that does not make sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The call, or what it asks for, is not served.
    #[error("{0}")]
    Unimplemented(String),
    /// Everything else; the runc shim gives it no code of its own either.
    #[error("{0}")]
    Unknown(String),
}

impl Error {
    /// Whoever called has gone away, or the call's deadline has passed.
    pub fn given_up() -> Self {
        Self::Unknown("the call was given up by its caller, or its deadline has passed".into())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::Unknown(_) => Code::UNKNOWN,
        };
        Self::RpcStatus(get_status(code, error.to_string()))
    }
}
