//! As much of HTTP/2 (RFC 9113) as the tests speak: frames, and requests without a body.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result};

/// A frame's kinds (section 6).
pub const DATA: u8 = 0;
/// The beginning of a header block.
pub const HEADERS: u8 = 1;
/// The end of a stream that breaks off.
pub const RST_STREAM: u8 = 3;
/// How one side wants to be spoken to.
pub const SETTINGS: u8 = 4;
/// A question whether somebody is there.
pub const PING: u8 = 6;
/// The end of a connection, and why.
pub const GOAWAY: u8 = 7;
/// More room for what the other side sends.
pub const WINDOW_UPDATE: u8 = 8;
/// More of a header block.
pub const CONTINUATION: u8 = 9;
/// The flag of a stream's last frame.
pub const END_STREAM: u8 = 1;

/// How a header block begins of a response with status 200: entry 8 of the static table (RFC 7541,
/// appendix A).
pub const STATUS_200: u8 = 0x88;

/// A frame (section 4.1).
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of these parts.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.to_vec(),
        }
    }

    /// A request for a path: GET, http, the path, and an authority, with nothing compressed but by
    /// the static table.
    pub fn get(stream: u32, path: &str) -> Self {
        let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
        block.extend(path.as_bytes());
        block.extend(b"\x41\x05tests");
        Self::new(HEADERS, 0x5, stream, &block)
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let length = self.payload.len() as u32;
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The next frame that comes.
    ///
    /// # Errors
    /// The connection ended, or nothing came for long.
    pub fn read(stream: &mut TcpStream) -> Result<Self> {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload)?;
        Ok(Self {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The next frame of a kind; others are passed over.
    ///
    /// # Errors
    /// As [`Frame::read`].
    pub fn await_kind(stream: &mut TcpStream, kind: u8) -> Result<Self> {
        loop {
            let frame = Self::read(stream).with_context(|| format!("no frame of kind {kind}"))?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Whether it ends its stream as a whole one.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// Begins to speak HTTP/2 on a connection, without asking (section 3.3).
///
/// # Errors
/// Those of write(2).
pub fn begin(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&Frame::new(SETTINGS, 0, 0, &[]).bytes())?;
    Ok(())
}
