//! What this crate asks of whoever runs wasm.

use std::fs::File;

/// Runs guests; made once in the zygote, used in every container's init.
pub trait Guests {
    /// Tells a guest by its file's first bytes, at most eight, and says what any other file is.
    fn recognizes(&self) -> fn(&[u8]) -> Result<(), String>;

    /// The files and folders of the container that native code is made with, as `settings` say.
    ///
    /// # Errors
    /// What is wrong with the settings.
    fn files(&self, settings: &str) -> Result<Vec<String>, String>;

    /// Makes what guests to come may need; called in the zygote once nothing has been asked of it for a
    /// while. What it could not make then they make themselves, each for itself.
    fn settle(&self);

    /// Readies the guest whose native code is `artifact`, to be entered at `function` or at its
    /// default. `settings` are those of [`Create::guest`](crate::Create::guest). Called in the
    /// container's init with the container's privileges, before Start.
    ///
    /// # Errors
    /// What is wrong with the guest, for the caller of create to read.
    fn load(
        &self,
        artifact: File,
        function: Option<&str>,
        settings: &str,
    ) -> Result<Box<dyn Guest>, String>;
}

/// A guest that is ready to run.
pub trait Guest {
    /// Runs the guest to its end in this process and returns its exit code.
    ///
    /// Calls `started` once, when the guest has been instantiated, or with the reason why that
    /// was not possible.
    fn run(
        self: Box<Self>,
        invocation: Invocation,
        started: &mut dyn FnMut(Result<(), String>),
    ) -> i32;
}

/// How a process is called, after the OCI spec's `process`.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The arguments, the program's name as given first.
    pub args: Vec<String>,
    /// The environment, `NAME=value` each.
    pub env: Vec<String>,
    /// The working directory, absolute.
    pub cwd: String,
}
