//! Splits a stream of bytes into lines.

/// Splits a stream of bytes into lines; only the beginning of a line that is too long is kept.
pub(crate) struct Lines {
    held: Vec<u8>,
    max: usize,
}

impl Lines {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            held: Vec::new(),
            max,
        }
    }

    /// Adds bytes, and passes on each complete line, without its end.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if self.held.is_empty() {
                each(&rest[..end.min(self.max)]);
            } else {
                self.hold(&rest[..end]);
                each(&self.held);
                self.held.clear();
            }
            rest = &rest[end + 1..];
        }
        self.hold(rest);
    }

    /// Passes on the last line if it has no end.
    pub(crate) fn finish(&mut self, each: impl FnOnce(&[u8])) {
        if !self.held.is_empty() {
            each(&std::mem::take(&mut self.held));
        }
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = self.max.saturating_sub(self.held.len());
        self.held.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() {
        let mut lines = Lines::new(10);
        let mut seen = Vec::new();
        for bytes in [&b"0123456"[..], b"789abcdef\nshort\n0123456789abc\nla", b"st"] {
            lines.feed(bytes, |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        lines.finish(|line| seen.push(String::from_utf8_lossy(line).into_owned()));
        assert_eq!(seen, ["0123456789", "short", "0123456789", "last"]);
    }
}
