//! A store in memory: of one process, and gone with it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wasmtime_wasi::async_trait;

use super::{Bytes, Store};
use crate::settings::Size;

/// What an entry takes beside its key and value, roughly.
const ENTRY: usize = 64;

/// The most keys that are told at a time.
const PAGE: usize = 1000;

/// Keys and values, up to a size.
pub(super) struct Memory {
    most: Size,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    values: HashMap<String, Entry>,
    /// The keys in the order in which they have come: whoever lists them goes on where he was, whatever has gone meanwhile.
    keys: BTreeMap<u64, String>,
    /// How many have ever come.
    come: u64,
    size: usize,
}

struct Entry {
    /// Its place in that order.
    number: u64,
    value: Bytes,
}

impl Memory {
    /// An empty one, which holds `most` at most.
    pub(super) fn new(most: Size) -> Self {
        Self {
            most,
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn set(&mut self, key: String, value: Bytes, most: Size) -> Result<(), String> {
        let taken = |value: &Bytes| ENTRY + key.len() + value.len();
        let before = self.values.get(&key).map_or(0, |entry| taken(&entry.value));
        let size = self.size - before + taken(&value);
        if size as u64 > most.0 {
            return Err(format!(
                "the store in memory is full: it may hold {most} (keyvalue.memory)"
            ));
        }
        self.size = size;
        match self.values.get_mut(&key) {
            Some(entry) => entry.value = value,
            None => {
                self.come += 1;
                let number = self.come;
                self.keys.insert(number, key.clone());
                self.values.insert(key, Entry { number, value });
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.values.remove(key) {
            self.keys.remove(&entry.number);
            self.size -= ENTRY + key.len() + entry.value.len();
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, String> {
        let kept = self.kept();
        Ok(keys
            .iter()
            .map(|key| kept.values.get(key).map(|entry| entry.value.clone()))
            .collect())
    }

    async fn set(&self, pairs: Vec<(String, Bytes)>) -> Result<(), String> {
        let mut kept = self.kept();
        pairs
            .into_iter()
            .try_for_each(|(key, value)| kept.set(key, value, self.most))
    }

    async fn delete(&self, keys: &[String]) -> Result<(), String> {
        let mut kept = self.kept();
        keys.iter().for_each(|key| kept.remove(key));
        Ok(())
    }

    async fn exists(&self, key: &str) -> Result<bool, String> {
        Ok(self.kept().values.contains_key(key))
    }

    async fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), String> {
        let kept = self.kept();
        // The cursor is the number of the last that was told.
        let after = (Bound::Excluded(cursor.unwrap_or(0)), Bound::Unbounded);
        let mut rest = kept.keys.range(after);
        let page: Vec<(&u64, &String)> = rest.by_ref().take(PAGE).collect();
        let more = rest.next().and_then(|_| page.last());
        let cursor = more.map(|(number, _)| **number);
        Ok((
            page.into_iter().map(|(_, key)| key.clone()).collect(),
            cursor,
        ))
    }

    async fn increment(&self, key: &str, delta: u64) -> Result<u64, String> {
        let mut kept = self.kept();
        let before = match kept.values.get(key) {
            None => 0,
            Some(entry) => std::str::from_utf8(&entry.value)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| format!("the value of {key:?} is no number from 0 to 2^64"))?,
        };
        let sum: u64 = delta
            .checked_add(before)
            .ok_or_else(|| format!("the value of {key:?} would be 2^64 or more"))?;
        kept.set(key.to_owned(), sum.to_string().into_bytes(), self.most)?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of what does not wait.
    fn now<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    fn pair(key: &str, value: &str) -> (String, Bytes) {
        (key.to_owned(), value.as_bytes().to_vec())
    }

    #[test]
    fn it_holds_so_much_and_no_more() {
        let store = Memory::new(Size(200));
        now(store.set(vec![pair("a", "1234567890")])).unwrap();
        now(store.set(vec![pair("b", "")])).unwrap();
        let full = now(store.set(vec![pair("c", ""), pair("d", "")])).unwrap_err();
        assert!(full.contains("200B (keyvalue.memory)"), "{full}");
        now(store.set(vec![pair("a", "")])).unwrap();
        now(store.delete(&["a".into(), "missing".into()])).unwrap();
        now(store.set(vec![pair("c", "")])).unwrap();
    }

    #[test]
    fn keys_come_in_pages() {
        let store = Memory::new(Size(1 << 20));
        let pairs = (0..PAGE + 1).map(|number| pair(&number.to_string(), "x"));
        now(store.set(pairs.collect())).unwrap();
        let (first, cursor) = now(store.keys(None)).unwrap();
        assert_eq!((first.len(), cursor), (PAGE, Some(PAGE as u64)));
        let (second, cursor) = now(store.keys(cursor)).unwrap();
        assert_eq!((second.len(), cursor), (1, None));
        assert_eq!(now(store.keys(Some(u64::MAX))).unwrap(), (vec![], None));
        // Who deletes what he is told comes to the end of all.
        let (mut cursor, mut deleted) = (None, 0);
        loop {
            let (keys, next) = now(store.keys(cursor)).unwrap();
            now(store.delete(&keys)).unwrap();
            deleted += keys.len();
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(deleted, PAGE + 1);
        now(store.set(vec![pair("again", "x"), pair("again", "y")])).unwrap();
        assert_eq!(
            now(store.keys(None)).unwrap(),
            (vec!["again".to_owned()], None)
        );
    }

    #[test]
    fn numbers_are_counted_up() {
        let store = Memory::new(Size(1 << 20));
        assert_eq!(now(store.increment("n", 5)), Ok(5));
        assert_eq!(now(store.increment("n", 2)), Ok(7));
        assert_eq!(
            now(store.get(&["n".into(), "m".into()])),
            Ok(vec![Some(b"7".to_vec()), None])
        );
        assert!(now(store.increment("n", u64::MAX)).is_err());
        now(store.set(vec![pair("n", "seven")])).unwrap();
        let wrong = now(store.increment("n", 1)).unwrap_err();
        assert!(wrong.contains("\"n\""), "{wrong}");
    }
}
