//! A guest that handles requests over HTTP, in a network of its own.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{Builder, Container, Containerd, Network, Rootfs, http2, options::RuntimeOptions};

/// How long a client waits for bytes of an answer before its test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// The port that guests are told to listen on.
const PORT: u16 = 8000;

/// A started container whose guest handles requests, and a client of it.
pub struct Served<'a> {
    /// Where it is served, on loopback.
    pub network: Network,
    /// The guest's.
    pub container: Container<'a>,
}

impl<'a> Served<'a> {
    /// Starts `program`, one of the guests in `/`, with what `more` adds to its container.
    ///
    /// # Errors
    /// What the create or the start says.
    pub fn start(
        engine: &'a Containerd,
        program: &str,
        more: impl FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> Result<Self> {
        Self::start_in(engine, &Rootfs::guests()?, program, more)
    }

    /// As [`Served::start`] with these settings, in TOML.
    ///
    /// # Errors
    /// What the create or the start says.
    pub fn with(engine: &'a Containerd, program: &str, settings: &str) -> Result<Self> {
        let options = RuntimeOptions::body(settings);
        Self::start(engine, program, |builder| builder.options(options))
    }

    /// As [`Served::start`] with other files.
    ///
    /// # Errors
    /// What the create or the start says.
    pub fn start_in(
        engine: &'a Containerd,
        rootfs: &Rootfs,
        program: &str,
        more: impl FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> Result<Self> {
        let network = Network::new(&format!("{}-{}", engine.namespace(), engine.new_id("n")))?;
        let builder = engine
            .container(rootfs)
            .args([program])
            .env("PORT", &PORT.to_string())
            .network(&network.path());
        let container = more(builder).create()?;
        container.start()?;
        Ok(Self { network, container })
    }

    /// A connection to the guest's port, which is open as soon as the container is started.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self) -> Result<TcpStream> {
        self.connect_to(PORT)
    }

    /// A connection to the guest's port on which HTTP/2 has been begun.
    ///
    /// # Errors
    /// Those of connect(2) and write(2).
    pub fn connect_2(&self) -> Result<TcpStream> {
        let mut stream = self.connect()?;
        http2::begin(&mut stream)?;
        Ok(stream)
    }

    /// A connection to another port beside it.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect_to(&self, port: u16) -> Result<TcpStream> {
        let connect = move || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        self.network
            .spawn(connect)
            .join()
            .expect("the client does not panic")
    }

    /// Sends `request` and gives all that comes until the connection's end.
    ///
    /// # Errors
    /// Nothing came.
    pub fn exchange(&self, request: &[u8]) -> Result<String> {
        let stream = self.connect()?;
        let mut writer = stream.try_clone()?;
        let request = request.to_vec();
        // A refusal may come before all has been sent.
        let writing = std::thread::spawn(move || writer.write_all(&request));
        let mut answer = Vec::new();
        let read = (&stream).read_to_end(&mut answer);
        drop(stream);
        let _ = writing.join().expect("the writer does not panic");
        ensure!(read.is_ok() || !answer.is_empty(), "{read:?}");
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Asks for a path, without its first slash; gives the whole answer.
    ///
    /// # Errors
    /// Nothing came.
    pub fn get(&self, path: &str) -> Result<String> {
        self.exchange(
            format!("GET /{path} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    }

    /// Asks for a path and ensures the answer's status.
    ///
    /// # Errors
    /// It is another.
    pub fn ensure_status(&self, path: &str, status: u16) -> Result<String> {
        let answer = self.get(path)?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "/{path}: {answer}; {}",
            self.container.stderr()
        );
        Ok(answer)
    }
}

/// A client that keeps its connection, and asks before and after what others do.
pub struct Bystander(BufReader<TcpStream>);

impl Bystander {
    /// One that has asked once.
    ///
    /// # Errors
    /// As [`Bystander::ask`].
    pub fn of(served: &Served) -> Result<Self> {
        let mut this = Self(BufReader::new(served.connect()?));
        this.ask()?;
        Ok(this)
    }

    /// Asks for `/hello` and ensures the answer.
    ///
    /// # Errors
    /// There is none, or another.
    pub fn ask(&mut self) -> Result<()> {
        let get = b"GET /hello HTTP/1.1\r\nHost: tests\r\n\r\n";
        self.0.get_mut().write_all(get)?;
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\nhello\n") {
            ensure!(self.0.read_line(&mut answer)? > 0, "cut off: {answer}");
        }
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        ensure!(answer.contains("\r\ncontent-length: 6\r\n"), "{answer}");
        Ok(())
    }
}
