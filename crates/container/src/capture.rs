//! libcontainer's errors, with what it only logs.
//!
//! Its error values often name the step that failed and leave the reason to the log. The log of
//! all processes of a container's birth therefore passes through here: while a capture is on,
//! error records are also written to a pipe, which the process that reports the failure reads.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::OnceLock;

use log::{Level, Log, Metadata, Record};

static CAPTURE: OnceLock<PipeWriter> = OnceLock::new();

/// A logger that hands all records on to `L`, and errors to the capture, if one is on.
pub struct Capturing<L>(pub L);

impl<L: Log> Log for Capturing<L> {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if record.level() == Level::Error
            && let Some(mut pipe) = CAPTURE.get()
        {
            // A full pipe loses what came late; the first error is the cause.
            let _ = pipe.write_all(format!("{}\n", record.args()).as_bytes());
        }
        if record.level() == Level::Error || !is_chatter(record.target()) || debugging() {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// libcontainer warns of what is in order here, such as children that the daemon has reaped.
fn is_chatter(target: &str) -> bool {
    target.starts_with("libcontainer") || target.starts_with("libcgroups")
}

fn debugging() -> bool {
    log::max_level() >= log::LevelFilter::Debug
}

/// Errors that this process and the ones it clones log from here on.
pub struct Captured(PipeReader);

/// Turns the capture on, once in the life of a process.
///
/// # Errors
/// When there is no pipe to be had, or a capture is on already.
pub fn start() -> io::Result<Captured> {
    let (reader, writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    CAPTURE
        .set(writer)
        .map_err(|_| io::Error::other("errors are being captured already"))?;
    Ok(Captured(reader))
}

impl Captured {
    /// The first error that was logged: the one nearest to the cause.
    pub fn first(mut self) -> Option<String> {
        let mut text = Vec::new();
        // Ends with WouldBlock, as writers are still open.
        let _ = self.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text)
            .lines()
            .next()
            .map(str::to_owned)
    }
}
