//! A terminal with a client in it, such as `ctr run --tty` or `docker run -it`:
//! the test is the person in front of it.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

use crate::eventually;

/// The key that is sent to a terminal's program as its end of input.
pub const CTRL_D: &[u8] = &[4];
/// The key that interrupts what runs in a terminal.
pub const CTRL_C: &[u8] = &[3];
/// The keys that detach `docker` from a container.
pub const DETACH: &[u8] = &[16, 17];

/// A terminal and the command that runs in it; both end when it is dropped.
pub struct Terminal {
    master: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    /// Runs `command` in a new terminal of this size, as its session's leader.
    ///
    /// # Errors
    /// No terminal, or the command cannot be started.
    pub fn run(command: &Command, rows: u16, columns: u16) -> Result<Self> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).context("open a terminal")?;
        // Sets up the session, which Rust can do only between fork and exec.
        let mut leader = Command::new("setsid");
        leader
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(name, value),
                None => leader.env_remove(name),
            };
        }
        let child = leader.spawn().context("start setsid")?;
        // It holds ends of the terminal, whose program's end would go unseen.
        drop(leader);
        let master = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (master.try_clone()?, screen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                to.lock()
                    .expect("no reader panics")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self {
            master,
            screen,
            child,
        })
    }

    /// Types these keys, once the command reads keys and not lines: before, the terminal
    /// itself would show them.
    ///
    /// # Errors
    /// The command never does; write(2)'s.
    pub fn type_keys(&self, keys: &[u8]) -> Result<()> {
        eventually("the client's terminal is raw", || {
            let settings = tcgetattr(&self.master).ok()?;
            (!settings.local_flags.contains(LocalFlags::ICANON)).then_some(())
        })?;
        (&self.master).write_all(keys).context("type")
    }

    /// Types a line and the return key.
    ///
    /// # Errors
    /// As [`Terminal::type_keys`].
    pub fn type_line(&self, line: &str) -> Result<()> {
        self.type_keys(format!("{line}\r").as_bytes())
    }

    /// Changes the size, as a window does that is dragged, until the program in the container has
    /// shown one of the sizes on its screen, as `stty size` does. Clients begin to look at some
    /// time after the container's start, and miss what was before.
    ///
    /// # Errors
    /// What stty(1) says, or no size is ever shown.
    pub fn drag(&self) -> Result<()> {
        let mut columns = 200;
        eventually("the container's terminal gets its client's size", || {
            columns += 1;
            self.resize(50, columns).ok()?;
            self.screen().contains("\n50 2").then_some(())
        })
        .with_context(|| format!("the screen has {:?}", self.screen()))
    }

    /// Changes the size once.
    ///
    /// # Errors
    /// What stty(1) says.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let status = Command::new("stty")
            .args(["rows", &rows.to_string(), "columns", &columns.to_string()])
            .stdin(self.master.try_clone()?)
            .status()
            .context("start stty")?;
        ensure!(status.success(), "stty: {status}");
        Ok(())
    }

    /// All that has appeared on the screen, its lines ending in `\n` alone: `ctr` lets its
    /// terminal add one more return to each, `docker` does not.
    pub fn screen(&self) -> String {
        let bytes = self.screen.lock().expect("no reader panics");
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until the screen has shown this text.
    ///
    /// # Errors
    /// It has not in time; the message shows the screen.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        eventually("the screen", || self.screen().contains(text).then_some(()))
            .with_context(|| format!("{text:?} on a screen with {:?}", self.screen()))
    }

    /// Waits for the command's end.
    ///
    /// # Errors
    /// It does not end in time; the message shows the screen.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        eventually("the command in the terminal ends", || {
            self.child.try_wait().ok().flatten()
        })
        .with_context(|| format!("the screen has {:?}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The leader's group: setsid(1) forks only if it leads one already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
