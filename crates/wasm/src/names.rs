//! Name look-up that loads no code out of the image.
//!
//! A guest's look-ups go through glibc's getaddrinfo. Left alone it reads the container's
//! /etc/nsswitch.conf and loads the modules named there as shared libraries from the container's
//! file system: native code out of an image, which must never run.

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// glibc (nss.h): sets the sources of a database, before and instead of /etc/nsswitch.conf.
    fn __nss_configure_lookup(database: *const c_char, service_line: *const c_char) -> c_int;
}

/// Where host names are found: the container's /etc/hosts, then the servers of its
/// /etc/resolv.conf. Both are parts of libc itself since glibc 2.34, so nothing is loaded.
const HOSTS: &CStr = c"files dns";

/// Fixes the sources of host names for this process and those cloned from it.
///
/// glibc reads /etc/nsswitch.conf once more while it does this and never again, so this belongs
/// before the root changes to a container's.
///
/// # Errors
/// ENOMEM or EINVAL, as glibc reports them.
pub(crate) fn use_builtin_sources() -> std::io::Result<()> {
    // SAFETY: both strings end in NUL and glibc copies what it keeps. It takes a lock of its own.
    match unsafe { __nss_configure_lookup(c"hosts".as_ptr(), HOSTS.as_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Has all lines of /etc/hosts count that have a name, not the first alone: `localhost` is mostly two. It is what /etc/host.conf
/// says on hosts (`multi on`, host.conf(5)), and images have none.
///
/// To be called while the process has one thread, and before the first look-up.
pub(crate) fn use_all_lines() {
    // SAFETY: nobody reads the environment meanwhile, as there is one thread.
    unsafe { std::env::set_var("RESOLV_MULTI", "on") };
}
