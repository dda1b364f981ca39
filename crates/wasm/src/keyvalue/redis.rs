//! A store in Redis: a key there is a key here, a value a string.
//!
//! The connection is made when the guest first asks for something, by the guest's own process: in
//! the container's network, with its hosts file and name servers, and over TLS with its authorities.

use std::fs::File;
use std::io::Read as _;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, cmd};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use wasmtime_wasi::async_trait;

use super::{Bytes, Store};
use crate::settings;
use crate::trust;

/// How many keys Redis is asked to look at for a page of them.
const PAGE: u64 = 1000;

/// The longest password that a file may hold, in bytes.
const LONGEST_PASSWORD: u64 = 64 << 10;

/// One server, and the connection to it.
pub(super) struct Redis {
    host: String,
    set: settings::Redis,
    /// The bundle of authorities that the guest's environment names.
    authorities: Option<String>,
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
    pub(super) fn new(host: String, set: settings::Redis, authorities: Option<String>) -> Self {
        Self {
            host,
            set,
            authorities,
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
        let identity = self.identity()?;
        let connection = timeout(self.set.time.0, self.connect(&identity)).await;
        let connection = connection
            .unwrap_or_else(|_| Err(LATE.into()))
            .map_err(|reason| self.failed(&format!("cannot connect: {reason}")))?;
        *kept = Some(connection.clone());
        Ok((connection, true))
    }

    async fn connect(
        &self,
        identity: &RedisConnectionInfo,
    ) -> Result<MultiplexedConnection, String> {
        let text = |error: std::io::Error| error.to_string();
        let place = (self.host.as_str(), self.set.port.0 as u16);
        let stream = TcpStream::connect(place).await.map_err(text)?;
        // Commands are small, and are waited for.
        stream.set_nodelay(true).map_err(text)?;
        if !self.set.tls {
            return self.begin(identity, stream).await;
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let connector = trust::connector(self.authorities.as_deref())?;
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|error| format!("TLS (keyvalue.redis.tls): {error}"))?;
        self.begin(identity, stream).await
    }

    /// Makes itself known to the server.
    async fn begin(
        &self,
        identity: &RedisConnectionInfo,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.set.time.0));
        let begun = MultiplexedConnection::new_with_config(identity, stream, config).await;
        let (connection, driver) = begun.map_err(|error| reason(&error))?;
        // It ends with the connection.
        tokio::spawn(driver);
        Ok(connection)
    }

    /// Whom to be there, and in which database.
    fn identity(&self) -> Result<RedisConnectionInfo, String> {
        let mut there = RedisConnectionInfo::default()
            .set_db(self.set.database.into())
            .set_skip_set_lib_name();
        if let Some(user) = &self.set.user {
            there = there.set_username(user);
        }
        if let Some(password) = self.password()? {
            there = there.set_password(password);
        }
        Ok(there)
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

const LATE: &str = "no answer in time (keyvalue.redis.time)";

/// What the server or the system says.
fn reason(error: &RedisError) -> String {
    match error.is_timeout() {
        true => LATE.into(),
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
