//! What a build hook tells Nix: messages on standard error, and the log of the builder on file descriptor 4.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

use leaf_core::printable::printable_line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

/// What is about errors, what is usual, and what only `-v` shows, in Nix's numbers.
const ERROR: u8 = 0;
const WARNING: u8 = 1;
const TALKATIVE: u8 = 4;

pub(super) fn error(text: &str) {
    message(ERROR, text);
}

pub(super) fn warning(text: &str) {
    message(WARNING, text);
}

pub(super) fn detail(text: &str) {
    message(TALKATIVE, text);
}

/// Nix reads lines that begin so, and no text can begin another one.
fn message(level: u8, text: &str) {
    let lines: Vec<String> = text
        .lines()
        .map(|line| printable_line(line).into_owned())
        .collect();
    let message = json!({"action": "msg", "level": level, "msg": lines.join("\n")});
    line(&format!("@nix {message}"));
}

/// Writes a line of the protocol.
pub(super) fn line(text: &str) {
    // Nobody reads it any more: that is found out elsewhere.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Returns whether the Nix that has started the hook is gone.
pub(super) fn nix_is_gone() -> bool {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(&stderr, PollFlags::empty())];
    let ready = poll(&mut polled, Some(&Timespec::default()));
    ready.is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// The log of the builder.
pub(super) struct BuilderLog {
    output: File,
    /// What begins a line of this derivation in the job's log.
    prefix: String,
    /// The beginning of a line whose end has not come yet.
    rest: String,
}

impl BuilderLog {
    /// Opens it for a derivation with this name.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            output: OpenOptions::new().append(true).open("/proc/self/fd/4")?,
            prefix: format!("{name}> "),
            rest: String::new(),
        })
    }

    /// Takes what the job's log has next, and passes on what the builder of this derivation has printed.
    pub(super) fn take(&mut self, text: &str) -> io::Result<()> {
        self.rest.push_str(text);
        let Some(end) = self.rest.rfind('\n') else {
            return Ok(());
        };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        let of_builder = builder_lines(&self.prefix, &lines);
        self.output.write_all(of_builder.as_bytes())
    }

    /// Passes on the last line, which may have no end.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        self.take("\n")
    }
}

/// Returns the lines that begin so, without that.
fn builder_lines(prefix: &str, lines: &str) -> String {
    let own = lines
        .split_inclusive('\n')
        .filter_map(|line| line.strip_prefix(prefix));
    own.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_lines_of_the_derivation_are_the_builders() {
        let log = "building '/nix/store/x-a.drv'...\na> one\nb> of another\na> @nix {}\na> \n";
        assert_eq!(builder_lines("a> ", log), "one\n@nix {}\n\n");
    }
}
