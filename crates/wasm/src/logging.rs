//! `wasi:logging`: what a guest logs, as lines on the container's standard error.
//!
//! Every guest may import it: it can do nothing that writing to standard error could not.

use wasmtime::component::{HasSelf, Linker};

use crate::settings::LogLevel;
use crate::state::State;
use crate::stdio::Output;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/logging.wit",
        world: "wasi:logging/imports",
    });
}

use bindings::wasi::logging::logging::{self, Level};

/// Where a guest's log goes, and how much of it.
pub(crate) struct Log {
    /// The level that a message has at least to be shown.
    pub(crate) least: LogLevel,
    /// The container's standard error.
    pub(crate) output: Output,
}

/// Lets guests import the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    logging::add_to_linker::<_, HasSelf<Log>>(linker, State::log)
}

impl logging::Host for Log {
    fn log(&mut self, level: Level, context: String, message: String) {
        let level = of_guest(level);
        if level >= self.least {
            self.output.say(&line(level, &context, &message));
        }
    }
}

fn of_guest(level: Level) -> LogLevel {
    match level {
        Level::Trace => LogLevel::Trace,
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warn => LogLevel::Warn,
        Level::Error => LogLevel::Error,
        Level::Critical => LogLevel::Critical,
    }
}

/// One line whatever the texts are, in the form (logfmt) of containerd's own log. Without a time,
/// which those who keep a container's output add.
fn line(level: LogLevel, context: &str, message: &str) -> String {
    // A JSON string has no line ends and no quotes that are not escaped.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let context = match context {
        "" => String::new(),
        context => format!(" context={}", quoted(context)),
    };
    format!("level={level}{context} msg={}\n", quoted(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(
            line(LogLevel::Info, "cart", "three items"),
            "level=info context=\"cart\" msg=\"three items\"\n"
        );
        assert_eq!(
            line(LogLevel::Critical, "", "a \"b\"\nlevel=info\u{1b}[2J"),
            "level=critical msg=\"a \\\"b\\\"\\nlevel=info\\u001b[2J\"\n"
        );
    }
}
