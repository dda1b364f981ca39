//! Streams into pods: exec, attach and port forwarding.
//!
//! CRI answers such a request with an address of containerd's streaming server. It speaks SPDY, and
//! WebSocket with Kubernetes' channels: each message begins with a byte that says which stream it
//! belongs to (k8s.io/apimachinery, util/httpstream/wsstream). A stream's end has no word in it:
//! the connection's end is that of all.

use std::{
    collections::HashMap,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tungstenite::{
    ClientRequestBuilder, Message, WebSocket,
    error::{Error, ProtocolError},
    http::Uri,
};

use super::{Cri, container::Ended};
use crate::poll::PATIENCE;

/// The version of the channels that every streaming server knows.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// The channels of exec and attach (k8s.io/kubelet, pkg/cri/streaming/remotecommand).
mod channel {
    pub const INPUT: u8 = 0;
    pub const OUTPUT: u8 = 1;
    pub const ERRORS: u8 = 2;
    pub const STATUS: u8 = 3;
    pub const SIZE: u8 = 4;
}

/// A connection with channels.
struct Channels {
    socket: WebSocket<TcpStream>,
    received: HashMap<u8, Vec<u8>>,
    ended: bool,
}

impl Channels {
    /// Connects to an address that CRI gave, in the node's network.
    fn open(cri: &Cri, url: &str) -> Result<Self> {
        let uri: Uri = url
            .replacen("http:", "ws:", 1)
            .parse()
            .with_context(|| url.to_owned())?;
        let server = uri.authority().context("no server")?.to_string();
        let connection = cri
            .network()
            .spawn(move || Ok(TcpStream::connect(server)?))
            .join()
            .expect("a thread that connects")
            .with_context(|| format!("connect to {url}"))?;
        connection.set_read_timeout(Some(Duration::from_millis(100)))?;
        connection.set_nodelay(true)?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(PROTOCOL);
        let mut attempt = tungstenite::client(request, connection);
        let end = Instant::now() + PATIENCE;
        let (socket, answer) = loop {
            use tungstenite::HandshakeError::{Failure, Interrupted};
            match attempt {
                Ok(done) => break done,
                Err(Interrupted(half)) if Instant::now() < end => attempt = half.handshake(),
                Err(Interrupted(_)) => bail!("{url} does not answer"),
                Err(Failure(Error::Http(answer))) => {
                    let text = answer.body().as_deref().map(String::from_utf8_lossy);
                    bail!("{url}: {} {text:?}", answer.status())
                }
                Err(Failure(error)) => return Err(error).with_context(|| url.to_owned()),
            }
        };
        ensure!(
            answer.headers().get("sec-websocket-protocol")
                == Some(&tungstenite::http::HeaderValue::from_static(PROTOCOL)),
            "{answer:?}"
        );
        Ok(Self {
            socket,
            received: HashMap::new(),
            ended: false,
        })
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message))?;
        Ok(())
    }

    fn received(&self, channel: u8) -> &[u8] {
        self.received.get(&channel).map_or(&[], Vec::as_slice)
    }

    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.received(channel)).into_owned()
    }

    /// Reads what comes until `enough` is content or the server closes.
    fn read_until(&mut self, mut enough: impl FnMut(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self.ended && !enough(self) {
            ensure!(
                Instant::now() < end,
                "not within {} s; received: {:?}",
                PATIENCE.as_secs(),
                self.received
                    .iter()
                    .map(|(channel, bytes)| (channel, String::from_utf8_lossy(bytes)))
                    .collect::<Vec<_>>()
            );
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    if let Some((channel, bytes)) = bytes.split_first() {
                        self.received.entry(*channel).or_default().extend(bytes);
                    }
                }
                Ok(Message::Close(_)) => {}
                Ok(other) => bail!("an unexpected message: {other:?}"),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // containerd 1.6 and 1.7 close without a word.
                Err(
                    Error::ConnectionClosed
                    | Error::Io(_)
                    | Error::Protocol(
                        // containerd may say twice that it closes.
                        ProtocolError::ReceivedAfterClosing
                        | ProtocolError::ResetWithoutClosingHandshake,
                    ),
                ) => self.ended = true,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, channel: u8, text: &str) -> Result<()> {
        self.read_until(|channels| channels.text(channel).contains(text))?;
        ensure!(
            self.text(channel).contains(text),
            "the connection ended without {text:?}: {:?}",
            self.text(channel)
        );
        Ok(())
    }
}

/// The streams of a process: what exec and attach give.
pub struct Streams(Channels);

impl Streams {
    pub(super) fn open(cri: &Cri, url: &str) -> Result<Self> {
        Channels::open(cri, url).map(Self)
    }

    /// Writes to the process's input.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.0.send(channel::INPUT, text.as_bytes())
    }

    /// Gives the terminal a size, in characters.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let size = serde_json::json!({"Width": width, "Height": height});
        self.0.send(channel::SIZE, size.to_string().as_bytes())
    }

    /// Waits until the output contains `text`.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.0.wait_for(channel::OUTPUT, text)
    }

    /// Waits until the process has ended, and says how. The reason is that of the
    /// `Status` that a client of Kubernetes gets.
    ///
    /// # Errors
    /// It does not end; a status that says something else than a process's end.
    pub fn finish(mut self) -> Result<Ended> {
        self.0
            .read_until(|channels| !channels.received(channel::STATUS).is_empty())?;
        let status: Value = serde_json::from_slice(self.0.received(channel::STATUS))
            .with_context(|| format!("no status: {:?}", self.0.text(channel::STATUS)))?;
        // The streams' rest may come after it.
        self.0.read_until(|_| false)?;
        let code = match (status["status"].as_str(), status["reason"].as_str()) {
            (Some("Success"), _) => 0,
            (_, Some("NonZeroExitCode")) => status["details"]["causes"][0]["message"]
                .as_str()
                .and_then(|code| code.parse().ok())
                .with_context(|| status.to_string())?,
            _ => bail!("{status}"),
        };
        Ok(Ended {
            code,
            reason: status["reason"].as_str().unwrap_or_default().to_owned(),
            output: self.0.text(channel::OUTPUT),
            errors: self.0.text(channel::ERRORS),
        })
    }
}

/// Connections to ports of a pod.
pub struct Forward(Channels);

/// What comes first on each channel of a port: its number.
const PORT: usize = 2;

impl Forward {
    pub(super) fn open(cri: &Cri, url: &str, ports: &[u16]) -> Result<Self> {
        let mut channels = Channels::open(cri, url)?;
        let all = 2 * u8::try_from(ports.len())?;
        channels.read_until(|channels| (0..all).all(|c| channels.received(c).len() >= PORT))?;
        for (at, port) in ports.iter().enumerate() {
            let named = channels.received(2 * at as u8);
            ensure!(named.starts_with(&port.to_le_bytes()), "{named:?}");
        }
        Ok(Self(channels))
    }

    /// Writes to the port that was asked for as number `at`.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn write(&mut self, at: u8, text: &str) -> Result<()> {
        self.0.send(2 * at, text.as_bytes())
    }

    /// Waits until `text` has come from the port that was asked for as number `at`.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_for(&mut self, at: u8, text: &str) -> Result<()> {
        self.0.wait_for(2 * at, text)
    }

    /// Waits until the server says why a port cannot be reached.
    ///
    /// # Errors
    /// It does not.
    pub fn failure(&mut self, at: u8) -> Result<String> {
        let errors = 2 * at + 1;
        self.0
            .read_until(|channels| channels.received(errors).len() > PORT)?;
        Ok(self.0.text(errors).split_off(PORT))
    }
}
