//! What is printed for whoever called.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};

/// Prints a line on standard output, as `println!` does. A reader that has gone, as head(1) goes, has had enough:
/// what there is to do is done all the same.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn line(text: Arguments) {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("printing {text}: {error}");
        }
        _ => {}
    }
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
