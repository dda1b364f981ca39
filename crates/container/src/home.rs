//! A user's home folder, from the container's own /etc/passwd.
//!
//! Not through getpwuid(3): the C library may load what /etc/nsswitch.conf names, out of the image.

use std::io::{self, Read};

use oci_spec::runtime::Process;

/// Where runc puts users that /etc/passwd does not know.
const NOWHERE: &str = "/";

/// The most that is read of /etc/passwd, in bytes.
const MAX_PASSWD: u64 = 10 << 20;

/// Adds HOME to the environment of `process` where it is missing or empty, as runc does. `open`
/// opens the container's /etc/passwd. Returns whether its user has a home: one was given, or the file
/// has one.
pub(crate) fn add<R: Read>(process: &mut Process, open: impl FnOnce() -> io::Result<R>) -> bool {
    let mut env = process.env().clone().unwrap_or_default();
    let given = |entry: &String| {
        entry
            .strip_prefix("HOME=")
            .is_some_and(|home| !home.is_empty())
    };
    if env.iter().any(given) {
        return true;
    }
    let mut passwd = Vec::new();
    // Without the file, or with a broken one, nobody is known.
    let _ = open().and_then(|file| file.take(MAX_PASSWD).read_to_end(&mut passwd));
    let passwd = String::from_utf8_lossy(&passwd);
    let home = of(&passwd, process.user().uid());
    remove(&mut env);
    env.push(format!("HOME={}", home.unwrap_or(NOWHERE)));
    process.set_env(Some(env));
    home.is_some()
}

/// Takes HOME out of `env`.
pub(crate) fn remove(env: &mut Vec<String>) {
    env.retain(|entry| !entry.starts_with("HOME="));
}

/// The sixth field of the line of `uid` (passwd(5)).
fn of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|home| found && !home.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:5::/home/ann:\nx:x:7:7:::\n";

    fn env_of(uid: u32, env: &[&str]) -> (Vec<String>, bool) {
        let mut process = Process::default();
        process.user_mut().set_uid(uid);
        process.set_env(Some(env.iter().map(|entry| entry.to_string()).collect()));
        let known = add(&mut process, || Ok(PASSWD.as_bytes()));
        (process.env().clone().unwrap_or_default(), known)
    }

    #[test]
    fn homes_are_those_of_passwd() {
        let is = |uid, env: &[&str], expected: &[&str], known| {
            assert_eq!(
                env_of(uid, env),
                (
                    expected.iter().map(|entry| entry.to_string()).collect(),
                    known
                )
            );
        };
        is(0, &[], &["HOME=/root"], true);
        is(1000, &["A=b", "HOME="], &["A=b", "HOME=/home/ann"], true);
        is(7, &[], &["HOME=/"], false);
        is(8, &[], &["HOME=/"], false);
        is(0, &["HOME=/x"], &["HOME=/x"], true);
        is(8, &["HOME=/"], &["HOME=/"], true);
    }

    #[test]
    fn without_a_file_there_is_a_home() {
        let mut process = Process::default();
        process.set_env(None);
        let known = add(&mut process, || {
            Err::<&[u8], _>(io::Error::from(io::ErrorKind::NotFound))
        });
        assert!(!known);
        assert_eq!(process.env().as_deref(), Some(&["HOME=/".to_owned()][..]));
    }
}
