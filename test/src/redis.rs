//! A Redis server of a test's own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{Network, eventually, version::tools};

/// Ends what it has started when its standard input ends, be it because the server was dropped or
/// because the test program died.
const KEEPER: &str = r#""$@" </dev/null >/dev/null 2>&1 & read -r end; kill -KILL $!; wait"#;

/// A server on the loopback interface of a network, with nothing in it. It ends when it is dropped.
pub struct Redis<'a> {
    network: &'a Network,
    port: u16,
    keeper: Child,
}

impl<'a> Redis<'a> {
    /// Starts a server with these options of redis-server beside its port, such as
    /// `["--requirepass", "secret"]`, and waits until it answers.
    ///
    /// # Errors
    /// It was not fetched, or does not answer.
    pub fn start(network: &'a Network, port: u16, options: &[&str]) -> Result<Self> {
        let program = tools().join("redis/bin/redis-server");
        ensure!(
            program.exists(),
            "{} is missing: run `make test`, or `test/setup/engines redis`",
            program.display()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "keeper"])
            .arg(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir", "/"])
            .args(options)
            .stdin(Stdio::piped());
        let spawned = network.spawn(move || Ok(command.spawn()?));
        let keeper = spawned.join().expect("starting does not panic")?;
        let server = Self {
            network,
            port,
            keeper,
        };
        eventually("redis-server answers", || {
            server.ask(&["PING"]).ok().filter(|said| !said.is_empty())
        })?;
        Ok(server)
    }

    /// What the server says to these commands (inline ones of its protocol), one after the other.
    ///
    /// # Errors
    /// Nobody is there.
    pub fn ask(&self, commands: &[&str]) -> Result<String> {
        let port = self.port;
        let text = [commands, &["QUIT", ""]].concat().join("\r\n");
        let asking = self.network.spawn(move || {
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            server.set_read_timeout(Some(Duration::from_secs(20)))?;
            server.write_all(text.as_bytes())?;
            let mut said = String::new();
            server.read_to_string(&mut said)?;
            Ok(said)
        });
        asking.join().expect("asking does not panic")
    }
}

impl Drop for Redis<'_> {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
