//! The commands, and the interfaces that they use: those of every version of WASI.
use std::io;

wit_bindgen::generate!({
    path: [
        "../../../crates/wasm/wit/keyvalue.wit",
        "../../../crates/wasm/wit/logging.wit",
        "../tool-wasi/wit",
    ],
    world: "lighter:tool/tool",
    generate_all,
});

use wasi::config::store as config;
use wasi::keyvalue::{
    atomics, batch,
    store::{self, Bucket, Error},
};
use wasi::logging::logging::{self, Level};

/// Does what the first word says; an error is a sentence.
pub fn run(words: impl Iterator<Item = String>) -> Result<(), String> {
    let words: Vec<String> = words.collect();
    command(&mut words.iter().map(String::as_str))
}

fn command<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
    match words.next() {
        Some("config") => match words.next() {
            Some(key) => match config::get(key).map_err(|error| format!("{error:?}"))? {
                Some(value) => println!("{value}"),
                None => println!("none"),
            },
            None => {
                let mut all = config::get_all().map_err(|error| format!("{error:?}"))?;
                all.sort();
                all.iter().for_each(|(key, value)| println!("{key}={value}"));
            }
        },
        Some("log") => {
            let (level, context, message) = (word(words)?, word(words)?, word(words)?);
            logging::log(level_of(level)?, context, message);
        }
        Some("store") => {
            let bucket = store::open(word(words)?).map_err(text)?;
            while let Some(command) = words.next() {
                apply(&bucket, command, words)?;
            }
        }
        other => return Err(format!("unknown command {other:?}")),
    }
    Ok(())
}

fn word<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<&'a str, String> {
    words.next().ok_or_else(|| "a word is missing".into())
}

/// The words up to one that is a dot.
fn list<'a>(words: &mut impl Iterator<Item = &'a str>) -> Vec<String> {
    words
        .take_while(|word| *word != ".")
        .map(str::to_owned)
        .collect()
}

fn apply<'a>(
    bucket: &Bucket,
    command: &str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    match command {
        "get" => println!("{}", shown(bucket.get(word(words)?).map_err(text)?)),
        "set" => {
            let (key, value) = (word(words)?, word(words)?);
            bucket.set(key, value.as_bytes()).map_err(text)?;
        }
        "delete" => bucket.delete(word(words)?).map_err(text)?,
        "exists" => println!("{}", bucket.exists(word(words)?).map_err(text)?),
        "keys" => {
            let (mut keys, mut cursor) = (Vec::new(), None);
            loop {
                let page = bucket.list_keys(cursor).map_err(text)?;
                keys.extend(page.keys);
                cursor = page.cursor;
                if cursor.is_none() {
                    break;
                }
            }
            keys.sort();
            keys.dedup();
            println!("{} keys: {}", keys.len(), keys[..keys.len().min(10)].join(" "));
        }
        "increment" => {
            let (key, delta) = (word(words)?, word(words)?);
            let delta = delta.parse().map_err(|_| "no number".to_owned())?;
            println!("{}", atomics::increment(bucket, key, delta).map_err(text)?);
        }
        "get-many" => {
            for pair in batch::get_many(bucket, &list(words)).map_err(text)? {
                match pair {
                    Some((key, value)) => println!("{key}={}", shown(Some(value))),
                    None => println!("none"),
                }
            }
        }
        "set-many" => {
            let words = list(words);
            let pairs: Vec<_> = words
                .chunks_exact(2)
                .map(|pair| (pair[0].clone(), pair[1].clone().into_bytes()))
                .collect();
            batch::set_many(bucket, &pairs).map_err(text)?;
        }
        "delete-many" => batch::delete_many(bucket, &list(words)).map_err(text)?,
        "fill" => {
            let count: usize = word(words)?.parse().map_err(|_| "no number".to_owned())?;
            let pairs: Vec<_> = (0..count).map(|n| (format!("key{n}"), Vec::new())).collect();
            batch::set_many(bucket, &pairs).map_err(text)?;
        }
        "wait" => {
            println!("waiting");
            let mut line = String::new();
            io::stdin()
                .read_line(&mut line)
                .map_err(|error| error.to_string())?;
        }
        other => return Err(format!("unknown command {other:?}")),
    }
    Ok(())
}

fn shown(value: Option<Vec<u8>>) -> String {
    value.map_or("none".into(), |value| {
        String::from_utf8_lossy(&value).into_owned()
    })
}

fn level_of(name: &str) -> Result<Level, String> {
    Ok(match name {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warn" => Level::Warn,
        "error" => Level::Error,
        "critical" => Level::Critical,
        other => return Err(format!("unknown level {other:?}")),
    })
}

fn text(error: Error) -> String {
    match error {
        Error::NoSuchStore => "no such store".into(),
        Error::AccessDenied => "access denied".into(),
        Error::Other(reason) => reason,
    }
}
