//! An interactive shell on a machine.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::{Host, machine};

/// Ctrl-], as in telnet.
const LEAVE: u8 = 0x1d;
/// The period of polling the shell's end and the window's size.
const LOOK: Duration = Duration::from_millis(500);

/// Checks that there is a terminal.
///
/// # Errors
/// If there is none.
pub fn need_terminal() -> Result<()> {
    ensure!(
        std::io::stdin().is_terminal(),
        "a shell needs a terminal; `cargo xtask host run -- 'COMMAND'` runs a command without one"
    );
    Ok(())
}

/// Runs bash on a machine, at the terminal of this process. It ends when bash does, or when the user leaves it.
///
/// # Errors
/// If the machine has no console, or the console or the terminal is closed.
pub fn shell(host: &Host) -> Result<()> {
    let console = Console::open(&machine::shell_socket(host.directory()))?;
    let bash = host.start(&console.bash())?;
    console.attend(
        || Ok(bash.ended()?.is_some()),
        |command| host.ok(command).map(|_| ()),
    )
}

/// A connection to a machine's console, for bash.
pub(crate) struct Console {
    stream: UnixStream,
    /// The rows and columns of the terminal.
    size: (u16, u16),
}

impl Console {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("the machine has no console")?;
        stream
            .set_nonblocking(true)
            .context("the console can't be set up")?;
        let size = window();
        Ok(Self { stream, size })
    }

    /// Returns the command that runs bash on the console.
    pub(crate) fn bash(&self) -> String {
        let term: String = std::env::var("TERM").unwrap_or_default();
        let term: String = term
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "-+.".contains(*c))
            .collect();
        // A terminal loses its size when it is closed: so one process sets it and executes the shell. An interactive bash
        // ignores SIGTERM, and is not in the process group of what started it.
        format!(
            "export TERM={term}; context=/var/lib/cim-leaf/context.json; \
             [ ! -e $context ] || export LEAFCTL_CONTEXT=$context; cd /root; \
             trap 'kill -HUP $!' TERM; \
             setsid --ctty bash -c '{}; exec bash --login -i' </dev/hvc0 >/dev/hvc0 2>&1 & wait",
            set_size(self.size)
        )
    }

    /// Connects the terminal with the console until bash has ended or the user leaves it; `run` runs a command on the
    /// machine.
    pub(crate) fn attend(
        mut self,
        mut has_ended: impl FnMut() -> Result<bool>,
        mut run: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let input = std::io::stdin();
        let raw = Raw::set()?;
        let mut looked = Instant::now();
        let mut bytes = [0; 4096];
        loop {
            let mut ready = [
                PollFd::new(&input, PollFlags::IN),
                PollFd::new(&self.stream, PollFlags::IN),
            ];
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: LOOK.subsec_nanos().into(),
            };
            // A change of the window interrupts it, which is ignored.
            let _ = poll(&mut ready, Some(&wait));
            let [typed, printed] = [&ready[0], &ready[1]].map(|fd| !fd.revents().is_empty());
            if printed {
                match self.stream.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(count) => {
                        let mut screen = std::io::stdout();
                        screen
                            .write_all(&bytes[..count])
                            .and_then(|()| screen.flush())
                            .context("can't print")?;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("the console is gone"),
                }
            }
            if typed {
                let count = rustix::io::read(&input, &mut bytes).context("the terminal is gone")?;
                let keys = &bytes[..count];
                let leave = keys.iter().position(|key| *key == LEAVE);
                send(&mut self.stream, &keys[..leave.unwrap_or(count)])?;
                if count == 0 || leave.is_some() {
                    break;
                }
            }
            if looked.elapsed() > LOOK && !printed {
                looked = Instant::now();
                if has_ended()? {
                    break;
                }
                if window() != self.size {
                    self.size = window();
                    run(&set_size(self.size))?;
                }
            }
        }
        drop(raw);
        Ok(())
    }
}

fn send(console: &mut UnixStream, mut keys: &[u8]) -> Result<()> {
    while !keys.is_empty() {
        match console.write(keys) {
            Ok(count) => keys = &keys[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(&*console, PollFlags::OUT)];
                poll(&mut ready, None).context("the console is gone")?;
            }
            Err(error) => return Err(error).context("the console is gone"),
        }
    }
    Ok(())
}

/// Returns the window's rows and columns.
fn window() -> (u16, u16) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

fn set_size((rows, columns): (u16, u16)) -> String {
    format!("stty -F /dev/hvc0 rows {rows} cols {columns}")
}

/// A terminal in raw mode; its mode is restored when this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn set() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("the terminal can't be asked")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("the terminal can't be set")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
