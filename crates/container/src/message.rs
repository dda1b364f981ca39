//! Messages with file descriptors over sequenced-packet sockets (unix(7), `SOCK_SEQPACKET`).
//!
//! One packet is one JSON document; descriptors ride along as `SCM_RIGHTS`. What the daemon asks of its zygote may be
//! larger than a packet: then it is in a file in memory, whose descriptor comes before the others, and the packet is
//! [`IN_A_FILE`]. Of nobody else such a message is taken: to read a file may take as long as its maker wants.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most descriptors that one message carries.
pub const MAX_FDS: usize = 8;

/// The largest packet, in bytes: below the kernel's default socket buffer.
const MAX_PACKET: usize = 128 * 1024;

/// The largest message, in bytes: far above the arguments and the environment of one process, of which the kernel takes 6 MiB
/// (execve(2)) and containerd's protocol 4 MiB.
const MAX_BYTES: u64 = 16 << 20;

/// A packet whose message is in a file. No JSON document begins so.
const IN_A_FILE: &[u8] = b"\0";

/// A connected pair of sequenced-packet sockets, both closed on exec.
///
/// # Errors
/// socketpair(2)'s.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends `message` with `fds` as one packet.
///
/// # Errors
/// `InvalidInput` when the message is too large; sendmsg(2)'s otherwise.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd]) -> io::Result<()> {
    send_packet(socket, &serde_json::to_vec(message)?, fds)
}

/// As [`send`], for who receives it with [`receive_large`].
///
/// # Errors
/// `InvalidInput` when the message is too large; those of making a file in memory and of sendmsg(2).
pub fn send_large(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() <= MAX_PACKET {
        return send_packet(socket, &body, fds);
    }
    if body.len() as u64 > MAX_BYTES {
        return Err(too_large(body.len(), fds.len()));
    }
    let mut file = File::from(memfd_create("message", MemfdFlags::CLOEXEC)?);
    file.write_all(&body)?;
    file.rewind()?;
    send_packet(socket, IN_A_FILE, &[&[file.as_fd()], fds].concat())
}

fn send_packet(socket: impl AsFd, body: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    if body.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(too_large(body.len(), fds.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(body)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

fn too_large(bytes: usize, fds: usize) -> io::Error {
    let text = format!(
        "a message of {bytes} bytes and {fds} descriptors is over the limit of {MAX_FDS} descriptors and of {MAX_PACKET} \
         bytes, or {MAX_BYTES} where more is taken"
    );
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Receives one packet; `None` when the other side is closed.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket with nothing to read; `InvalidData` when the packet is
/// no such message; recvmsg(2)'s otherwise.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match receive_packet(socket)? {
        Some((body, fds)) => Ok(Some((serde_json::from_slice(&body)?, fds))),
        None => Ok(None),
    }
}

/// As [`receive`], from one that is to be trusted and may send with [`send_large`].
///
/// # Errors
/// As of [`receive`], and read(2)'s.
pub fn receive_large<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let Some((mut body, mut fds)) = receive_packet(socket)? else {
        return Ok(None);
    };
    if body == IN_A_FILE && !fds.is_empty() {
        body.clear();
        let file = File::from(fds.remove(0));
        file.take(MAX_BYTES).read_to_end(&mut body)?;
    }
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

fn receive_packet(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    // Asked first, as most messages are small and this runs in every container's processes.
    let (_, length) = loop {
        match recv(&socket, &mut [0; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Err(rustix::io::Errno::INTR) => continue,
            result => break result?,
        }
    };
    let mut body = vec![0; length.min(MAX_PACKET)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut body)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            result => break result?,
        }
    };
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    body.truncate(received.bytes);
    Ok((!body.is_empty()).then_some((body, fds)))
}

/// A socket of [`pair`] in the daemon's event loop.
pub struct AsyncSocket(AsyncFd<OwnedFd>);

impl AsyncSocket {
    /// Puts `socket` into the running tokio runtime.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or watched.
    #[expect(
        deprecated,
        reason = "the safe constructor: an OwnedFd stays open for as long as the AsyncFd has it"
    )]
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        AsyncFd::new(socket).map(Self)
    }

    /// Sends one packet; see [`send`].
    ///
    /// # Errors
    /// Those of [`send`].
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |socket| send(socket, message, fds))
            .await
    }

    /// Sends a message of any size; see [`send_large`].
    ///
    /// # Errors
    /// Those of [`send_large`].
    pub async fn send_large(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |socket| {
                send_large(socket, message, fds)
            })
            .await
    }

    /// Receives one packet; see [`receive`].
    ///
    /// # Errors
    /// Those of [`receive`].
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.0
            .async_io(Interest::READABLE, |socket| receive(socket))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_brings_its_descriptors() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&left, &"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let (text, fds): (String, _) = receive(&right).unwrap().unwrap();
        assert_eq!(text, "hello");
        let mut received = std::fs::File::from(fds.into_iter().next().unwrap());
        received.write_all(b"through").unwrap();
        drop(received);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "through");
    }

    #[test]
    fn the_end_of_the_other_side_is_none() {
        let (left, right) = pair().unwrap();
        drop(left);
        assert!(receive::<String>(&right).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (left, right) = pair().unwrap();
        send(&left, &42, &[]).unwrap();
        assert!(receive::<String>(&right).is_err());
    }

    #[test]
    fn a_large_message_brings_its_descriptors_too() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let large = "x".repeat(2 * MAX_PACKET);
        for message in [&large, "small"] {
            send_large(&left, &message, &[writer.as_fd()]).unwrap();
            let (text, fds): (String, _) = receive_large(&right).unwrap().unwrap();
            assert_eq!((text.as_str(), fds.len()), (message, 1));
        }
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        send_large(&left, &large, &[]).unwrap();
        assert!(receive::<String>(&right).is_err(), "it is not asked for");
    }

    #[test]
    fn an_oversized_message_is_refused() {
        let (left, _right) = pair().unwrap();
        let error = send(&left, &"x".repeat(MAX_PACKET), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
