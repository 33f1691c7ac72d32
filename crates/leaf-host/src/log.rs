//! The log of a program: each entry is one printable line on standard error, whatever text from outside it contains.

use std::io::{self, Stderr, Write};

use leaf_core::printable::printable_line;

/// A writer of log entries, each of which is written by one call and ends with the end of a line (as `tracing-subscriber`
/// does). Control characters in an entry are written as escapes, also ends of lines: none begins a line of its own.
#[derive(Debug)]
pub struct Entries<W>(W);

/// Returns the writer to standard error.
#[must_use]
pub fn stderr() -> Entries<Stderr> {
    Entries(io::stderr())
}

impl<W: Write> Write for Entries<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        let line = printable_line(text.strip_suffix('\n').unwrap_or(&text));
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_log_is_one_line_without_control_characters() {
        let mut written = Entries(Vec::new());
        for entry in [
            "INFO device name=\"HID \u{1b}]52;c;eA==\u{7}\u{202e}\"\n",
            "WARN it failed: a\r\nINFO forged\n",
            "DEBUG plain\n",
        ] {
            written.write_all(entry.as_bytes()).expect("memory");
        }
        assert_eq!(
            String::from_utf8(written.0).expect("text"),
            concat!(
                r#"INFO device name="HID \u{1b}]52;c;eA==\u{7}\u{202e}""#,
                "\n",
                r"WARN it failed: a\r\nINFO forged",
                "\nDEBUG plain\n"
            )
        );
    }
}
