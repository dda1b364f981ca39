//! What is printed for whoever called.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something for standard output was lost.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output, as `println!` does. What there is to do is done all the same where that fails, as
/// [`check`] notes.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn line(text: Arguments) {
    check(writeln!(io::stdout(), "{text}"), text);
}

/// Notes what became of `text` on standard output. A reader that has gone, as head(1) goes, has had enough: nothing is
/// lost then.
pub(crate) fn check(printed: io::Result<()>, text: impl Display) {
    match printed {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            IS_LOST.store(true, Ordering::Relaxed);
            note(format_args!("printing {text}: {error}"));
        }
        _ => {}
    }
}

/// Whether something for standard output was lost.
pub(crate) fn is_lost() -> bool {
    IS_LOST.load(Ordering::Relaxed)
}

/// Prints a line on standard error, as `eprintln!` does. Where that fails there is nobody to tell.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What an error says with its causes, each once: many tell theirs in their own words.
pub(crate) fn whole(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
