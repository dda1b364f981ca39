//! The session keyring of a container (session-keyring(7)), as runc makes it: without one its processes would have that of
//! whoever started containerd, all the keys in there included.

use std::ffi::CString;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys;

/// The name of a keyring for the container `id`: runc's, and something that no other container's process could guess, as
/// whoever has the name can have the keyring, or be there before.
///
/// # Errors
/// getrandom(2)'s.
pub fn keyring_name(id: &str) -> io::Result<String> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("_ses.{id}.{:016x}", u64::from_ne_bytes(random)))
}

/// Gives this process, which is the first of a container or is to clone it, a session keyring of that name, if there is one,
/// which [`join`] finds.
///
/// # Errors
/// The kernel's reason, with what may be done.
pub(crate) fn make(name: Option<&str>) -> Result<(), String> {
    match join(name)? {
        Some(keyring) => sys::let_users_find_keyring(keyring).map_err(told),
        None => Ok(()),
    }
}

/// Gives this process, which is to clone another of a container, the session keyring that [`make`] has made.
///
/// # Errors
/// As of [`make`].
pub(crate) fn join(name: Option<&str>) -> Result<Option<i32>, String> {
    let Some(name) = name else {
        return Ok(None);
    };
    let joined = CString::new(name).map_err(io::Error::from);
    match joined.and_then(|name| sys::join_session_keyring(&name)) {
        Ok(keyring) => Ok(Some(keyring)),
        Err(error) => match error.raw_os_error() {
            // A kernel that has no keys, or a filter that keeps them from containerd and all that it starts.
            Some(libc::ENOSYS | libc::EPERM) => {
                log::info!("joining the session keyring {name}: {error}");
                Ok(None)
            }
            _ => Err(told(error)),
        },
    }
}

fn told(error: io::Error) -> String {
    format!(
        "joining the container's session keyring: {error}; the runtime option NoNewKeyring does without one"
    )
}
