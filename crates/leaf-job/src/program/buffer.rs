//! The end of an output.

use std::collections::VecDeque;

/// The last bytes of one output, and the number of those before them.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: VecDeque<u8>,
    /// The offset of the first byte that is kept.
    first: u64,
    /// The number of bytes that are kept at most.
    limit: usize,
}

impl Buffer {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            first: 0,
            limit,
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Adds bytes, and drops the oldest beyond the limit.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let more = self.bytes.len().saturating_sub(self.limit);
        self.bytes.drain(..more);
        self.first += more as u64;
    }

    /// Returns all that is kept.
    pub(crate) fn all(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gigabyte_leaves_its_end_and_no_more() {
        let mut buffer = Buffer::new(64 * 1024);
        let chunk: Vec<u8> = (0..=255).cycle().take(32 * 1024).collect();
        for _ in 0..32 * 1024 {
            buffer.push(&chunk);
        }
        assert_eq!(
            (buffer.first(), buffer.all().len()),
            ((1 << 30) - 64 * 1024, 64 * 1024)
        );
        assert!(buffer.bytes.capacity() < 1 << 20);
        assert_eq!(buffer.all()[..2], [0, 1]);
    }
}
