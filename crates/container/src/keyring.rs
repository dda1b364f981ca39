//! The session keyring of a container (session-keyring(7)), as runc makes it: without one its processes would have that of
//! whoever started containerd, all the keys in there included.

use std::ffi::CString;
use std::io;

use crate::sys;

/// Gives this process, which is to clone the first of the container `id`, a session keyring of a name that [`join`] finds.
///
/// # Errors
/// The kernel's reason, with what may be done.
pub(crate) fn make(id: &str) -> Result<(), String> {
    told(named(id).and_then(|name| {
        let keyring = sys::join_session_keyring(&name)?;
        sys::let_users_find_keyring(keyring)
    }))
}

/// Gives this process, which is to clone another of the container `id`, the session keyring of the container's first.
///
/// # Errors
/// As of [`make`].
pub(crate) fn join(id: &str) -> Result<(), String> {
    told(named(id).and_then(|name| sys::join_session_keyring(&name).map(drop)))
}

fn named(id: &str) -> io::Result<CString> {
    Ok(CString::new(format!("_ses.{id}"))?)
}

/// A kernel that has no keys has none that could be seen.
fn told(made: io::Result<()>) -> Result<(), String> {
    match made {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(format!(
            "joining the container's session keyring: {error}; the runtime option NoNewKeyring does without one"
        )),
        _ => Ok(()),
    }
}
