//! The terminal of the person: its modes while a session has it, and what is typed.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode; dropped, it has its modes again.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal, if standard input and output are one.
    pub(crate) fn take() -> io::Result<Option<Self>> {
        if !is_terminal() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Returns whether both sides are a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Returns the size of the terminal: columns and rows, 0 if it has none.
pub(crate) fn size() -> (u32, u32) {
    let size = tcgetwinsize(io::stdout().as_fd());
    size.map_or((0, 0), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// What a person asks leafctl for, after a newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// `~.`: the session ends.
    End,
    /// `~d`: it goes on without this client.
    Detach,
}

/// Tells what is typed for leafctl from what is typed for the program.
#[derive(Debug)]
pub(crate) struct Keys {
    is_at_start: bool,
    has_tilde: bool,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            is_at_start: true,
            has_tilde: false,
        }
    }

    /// Returns the bytes for the program, and a wish, behind which nothing is read.
    pub(crate) fn read(&mut self, typed: &[u8]) -> (Vec<u8>, Option<Wish>) {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.has_tilde {
                self.has_tilde = false;
                match byte {
                    b'.' => return (bytes, Some(Wish::End)),
                    b'd' => return (bytes, Some(Wish::Detach)),
                    b'~' => {}
                    _ => bytes.push(b'~'),
                }
                bytes.push(*byte);
                self.is_at_start = matches!(byte, b'\r' | b'\n');
            } else if self.is_at_start && *byte == b'~' {
                self.has_tilde = true;
            } else {
                bytes.push(*byte);
                self.is_at_start = matches!(byte, b'\r' | b'\n');
            }
        }
        (bytes, None)
    }
}

/// Returns what of output that is shown again commands no terminal: text, ends of lines, tabs, backspaces and colours.
pub(crate) fn harmless(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut at = 0;
    while let Some(byte) = output.get(at) {
        match byte {
            0x1b => {
                let rest = &output[at..];
                let length = escape_length(rest);
                if rest.get(1) == Some(&b'[') && rest.get(length - 1) == Some(&b'm') {
                    kept.extend_from_slice(&rest[..length]);
                }
                at += length;
                continue;
            }
            b'\n' | b'\r' | b'\t' | 0x08 => kept.push(*byte),
            0x20..=0x7e | 0x80.. => kept.push(*byte),
            _ => {}
        }
        at += 1;
    }
    // The control characters of Unicode's second block are two bytes.
    let text = String::from_utf8_lossy(&kept);
    text.chars()
        .filter(|c| !('\u{80}'..='\u{9f}').contains(c))
        .collect::<String>()
        .into_bytes()
}

/// Returns the length of an escape sequence at the beginning (ECMA-48): at least 1.
fn escape_length(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'[') => {
            let last = bytes.iter().skip(2).position(|byte| (0x40..=0x7e).contains(byte));
            last.map_or(bytes.len(), |last| last + 3)
        }
        // A string, which ends with BEL or ESC \.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let ends = bytes
                .iter()
                .skip(2)
                .position(|byte| *byte == 0x07 || *byte == 0x1b);
            ends.map_or(bytes.len(), |ends| {
                let last = ends + 2;
                if bytes[last] == 0x1b {
                    (last + 2).min(bytes.len())
                } else {
                    last + 1
                }
            })
        }
        Some(_) => 2,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_after_a_newline_is_for_leafctl() {
        let mut keys = Keys::new();
        assert_eq!(keys.read(b"a~.\r"), (b"a~.\r".to_vec(), None));
        assert_eq!(keys.read(b"~"), (Vec::new(), None));
        assert_eq!(keys.read(b"~"), (b"~".to_vec(), None));
        assert_eq!(keys.read(b"x\n~x"), (b"x\n~x".to_vec(), None));
        assert_eq!(keys.read(b"\r~dxx"), (b"\r".to_vec(), Some(Wish::Detach)));
        assert_eq!(Keys::new().read(b"~.xx"), (Vec::new(), Some(Wish::End)));
    }

    #[test]
    fn what_is_shown_again_asks_a_terminal_nothing() {
        let shown =
            harmless(b"a\x1b[31mred\x1b[0m\x1b[6n\x1b]0;title\x07b\x1bP$q\x1b\\c\x1b[?1049hd\x05\x07\x1b");
        assert_eq!(String::from_utf8_lossy(&shown), "a\x1b[31mred\x1b[0mbcd");
        assert_eq!(harmless("\u{9b}6né\r\n\t".as_bytes()), "6né\r\n\t".as_bytes());
    }
}
