//! The forms of cgroup files.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::cgroup::{Error, Result};

/// The text of a file; none when the kernel does not have it, when the cgroup was removed (ENOENT
/// at open, ENODEV afterwards) or when the file does not serve this cgroup (EOPNOTSUPP).
pub(in crate::cgroup) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(Error::io("read", path)(error)),
        },
    }
}

/// A file of lines `name value`.
pub(in crate::cgroup) fn table<'a>(path: &Path, text: &'a str) -> Result<HashMap<&'a str, u64>> {
    text.lines()
        .map(|line| {
            let mut fields = line.split_whitespace();
            let entry = match (fields.next(), fields.next(), fields.next()) {
                (Some(name), Some(value), None) => number(value).map(|value| (name, value)),
                _ => None,
            };
            entry.ok_or_else(|| malformed(path, line, "a name and a number"))
        })
        .collect()
}

/// A file of one number; `max` stands for the second argument. None when the file is missing.
pub(super) fn single(path: &Path, max: u64) -> Result<Option<u64>> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(Some(max)),
        value => match number(value) {
            Some(value) => Ok(Some(value)),
            None => Err(malformed(path, value, "a number or \"max\"")),
        },
    }
}

/// A number; the kernel writes negative ones for "none", and counters that are summed up from
/// several processors may show a moment below zero.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix('-') {
        Some(digits) => digits.parse::<u64>().ok().map(|_| 0),
        None => text.parse().ok(),
    }
}

pub(super) fn malformed(path: &Path, line: &str, expected: &'static str) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        line: line.to_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tables_and_their_faults() {
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        assert_eq!(number("-1"), Some(0));
        assert_eq!(number("-x"), None);
        assert_eq!(number("1.5"), None);

        let path = Path::new("memory.stat");
        let good = table(path, "anon 1\nfile -2\n").unwrap();
        assert_eq!(good, HashMap::from([("anon", 1), ("file", 0)]));
        for bad in ["anon", "anon 1 2", "anon x"] {
            let error = table(path, bad).unwrap_err();
            assert!(error.to_string().contains("memory.stat"), "{error}");
        }
    }
}
