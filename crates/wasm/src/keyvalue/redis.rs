//! A store in Redis: a key there is a key here, a value a string.
//!
//! The connection is made when the guest first asks for something, by the guest's own process: in
//! the container's network, with its hosts file and name servers.

use std::fs::File;
use std::io::Read as _;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, cmd,
};
use tokio::sync::Mutex;
use wasmtime_wasi::async_trait;

use super::{Bytes, Store};
use crate::settings;

/// How many keys Redis is asked to look at for a page of them.
const PAGE: u64 = 1000;

/// The longest password that a file may hold, in bytes.
const LONGEST_PASSWORD: u64 = 64 << 10;

/// One server, and the connection to it.
pub(super) struct Redis {
    host: String,
    set: settings::Redis,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Whether a command may be given once more when nobody knows what became of it.
#[derive(PartialEq, Eq)]
enum Again {
    May,
    MustNot,
}

impl Redis {
    /// Not connected yet.
    pub(super) fn new(host: String, set: settings::Redis) -> Self {
        Self {
            host,
            set,
            connection: Mutex::new(None),
        }
    }

    /// Gives a command and waits for its answer.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd, again: Again) -> Result<T, String> {
        loop {
            let (mut connection, is_new) = self.connected().await?;
            let error = match command.query_async(&mut connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.is_io_error() || error.is_unrecoverable_error() {
                self.connection.lock().await.take();
            }
            // A server that was started anew is noticed by the first command after that.
            if is_new || again == Again::MustNot || !error.is_connection_dropped() {
                return Err(self.failed(&reason(&error)));
            }
        }
    }

    /// The connection, and whether it was made just now.
    async fn connected(&self) -> Result<(MultiplexedConnection, bool), String> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok((connection.clone(), false));
        }
        let client = self.client()?;
        let time = Some(self.set.time.0);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(time)
            .set_response_timeout(time);
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| self.failed(&format!("cannot connect: {}", reason(&error))))?;
        *kept = Some(connection.clone());
        Ok((connection, true))
    }

    fn client(&self) -> Result<Client, String> {
        let mut there = RedisConnectionInfo::default()
            .set_db(self.set.database.into())
            .set_skip_set_lib_name();
        if let Some(user) = &self.set.user {
            there = there.set_username(user);
        }
        if let Some(password) = self.password()? {
            there = there.set_password(password);
        }
        let address = ConnectionAddr::Tcp(self.host.clone(), self.set.port.0 as u16);
        address
            .into_connection_info()
            .and_then(|server| Client::open(server.set_redis_settings(there)))
            .map_err(|error| self.failed(&reason(&error)))
    }

    fn password(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.set.password_file else {
            return Ok(self.set.password.as_ref().map(|secret| secret.0.clone()));
        };
        let mut password = String::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST_PASSWORD).read_to_string(&mut password))
            .map_err(|error| {
                self.failed(&format!(
                    "cannot read {path} (keyvalue.redis.password_file): {error}"
                ))
            })?;
        // Editors end a file with a line's end.
        Ok(Some(password.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// A failure with the server's name.
    fn failed(&self, reason: &str) -> String {
        format!("redis at {}:{}: {reason}", self.host, self.set.port)
    }
}

/// What the server or the system says.
fn reason(error: &RedisError) -> String {
    match error.is_timeout() {
        true => "no answer in time (keyvalue.redis.time)".into(),
        false => error.to_string(),
    }
}

#[async_trait]
impl Store for Redis {
    async fn get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, String> {
        match keys {
            [] => Ok(Vec::new()),
            keys => self.ask(cmd("MGET").arg(keys), Again::May).await,
        }
    }

    async fn set(&self, pairs: Vec<(String, Bytes)>) -> Result<(), String> {
        match &pairs[..] {
            [] => Ok(()),
            pairs => self.ask(cmd("MSET").arg(pairs), Again::May).await,
        }
    }

    async fn delete(&self, keys: &[String]) -> Result<(), String> {
        match keys {
            [] => Ok(()),
            keys => self.ask(cmd("DEL").arg(keys), Again::May).await,
        }
    }

    async fn exists(&self, key: &str) -> Result<bool, String> {
        self.ask(cmd("EXISTS").arg(key), Again::May).await
    }

    async fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), String> {
        let mut scan = cmd("SCAN");
        scan.arg(cursor.unwrap_or(0)).arg("COUNT").arg(PAGE);
        let (next, keys): (u64, Vec<Bytes>) = self.ask(&scan, Again::May).await?;
        // A guest's keys are texts; it has no word for others' that are not.
        let keys = keys.into_iter().flat_map(String::from_utf8).collect();
        Ok((keys, (next != 0).then_some(next)))
    }

    async fn increment(&self, key: &str, delta: u64) -> Result<u64, String> {
        let delta = i64::try_from(delta)
            .map_err(|_| self.failed(&format!("{delta} is more than it can add")))?;
        let sum: i64 = self
            .ask(cmd("INCRBY").arg(key).arg(delta), Again::MustNot)
            .await?;
        u64::try_from(sum).map_err(|_| self.failed(&format!("{key:?} is {sum}, less than 0")))
    }
}
