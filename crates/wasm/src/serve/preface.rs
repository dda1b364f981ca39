//! Which protocol a client speaks: it is seen by how its connection begins.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::refusal::tell_slow;

/// What a connection of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits until it can be told whether `stream` begins as HTTP/2 does, and takes nothing from it.
///
/// # Errors
/// Those of recv(2).
pub(super) async fn is_sent(stream: &TcpStream) -> io::Result<bool> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let seen = stream.try_io(Interest::READABLE, || {
            let mut beginning = [0; PREFACE.len()];
            let length = recv(stream.as_raw_fd(), &mut beginning, MsgFlags::MSG_PEEK)?;
            match is_preface(&beginning[..length]) {
                Some(is_preface) => Ok(is_preface),
                // What is there is not reported again.
                None => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match seen {
            // Nothing more will come.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready.is_read_closed() => {
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            seen => return seen,
        }
    }
}

/// Whether this is the beginning of HTTP/2, if that is certain. An end before it is none.
fn is_preface(beginning: &[u8]) -> Option<bool> {
    let is_beginning = PREFACE.starts_with(beginning) && !beginning.is_empty();
    (!is_beginning || beginning.len() == PREFACE.len()).then_some(is_beginning)
}

/// Has done with a client that has not said in time which protocol it speaks.
pub(super) fn forget(stream: &TcpStream) {
    // What has not been read when a connection is closed has the answer thrown away. The event loop
    // has been told that there is nothing to read.
    let mut beginning = [0; PREFACE.len()];
    if let Ok(1..) = recv(stream.as_raw_fd(), &mut beginning, MsgFlags::MSG_DONTWAIT) {
        tell_slow(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_known_by_its_beginning() {
        for undecided in ["P", "PR", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            assert_eq!(is_preface(undecided.as_bytes()), None, "{undecided:?}");
        }
        assert_eq!(is_preface(PREFACE), Some(true));
        for first in [
            "",
            "G",
            "PU",
            "PRI * HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX",
        ] {
            assert_eq!(is_preface(first.as_bytes()), Some(false), "{first:?}");
        }
    }
}
