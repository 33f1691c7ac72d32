//! The end of an output, with the offsets of its bytes.

use std::collections::VecDeque;

/// The bytes of one output that are kept: those that were not received, and some that were.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: VecDeque<u8>,
    /// The offset of the first byte that is kept.
    first: u64,
    /// The offset before which all has been received.
    received: u64,
    /// The number of bytes that are kept at most before they are received.
    limit: usize,
    /// The number of received bytes that are kept.
    keep: usize,
}

impl Buffer {
    pub(crate) fn new(limit: usize, keep: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            first: 0,
            received: 0,
            limit,
            keep,
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }

    /// Returns how many bytes can be added before the oldest that was not received is dropped.
    pub(crate) fn room(&self) -> usize {
        let waiting = self.end() - self.received.max(self.first);
        self.limit
            .saturating_sub(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    /// Adds bytes, and drops the oldest beyond the limits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.drop_oldest();
    }

    /// Notes that all before this offset has been received.
    pub(crate) fn free(&mut self, received: u64) {
        self.received = self.received.max(received.min(self.end()));
        self.drop_oldest();
    }

    /// Returns up to so many bytes from an offset on, and the offset of the first of them.
    pub(crate) fn read(&self, from: u64, max: usize) -> (u64, Vec<u8>) {
        let from = from.clamp(self.first, self.end());
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let (front, back) = self.bytes.as_slices();
        let front_part = front.get(skip..).unwrap_or_default();
        let back_part = &back[skip.saturating_sub(front.len()).min(back.len())..];
        let mut bytes = front_part[..front_part.len().min(max)].to_vec();
        let more = back_part.len().min(max - bytes.len());
        bytes.extend_from_slice(&back_part[..more]);
        (from, bytes)
    }

    /// Returns all that is kept.
    pub(crate) fn all(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    fn drop_oldest(&mut self) {
        let end = self.end();
        // What was received is kept up to `keep`, and what was not up to `limit`.
        let received = self.received.max(self.first);
        let oldest = received
            .saturating_sub(self.keep as u64)
            .max(end.saturating_sub((self.limit + self.keep) as u64))
            .max(if end - received > self.limit as u64 {
                end - self.limit as u64
            } else {
                0
            });
        if oldest > self.first {
            let count = usize::try_from(oldest - self.first).unwrap_or(usize::MAX);
            self.bytes.drain(..count.min(self.bytes.len()));
            self.first = oldest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_received_is_kept_up_to_the_limit_and_offsets_never_change() {
        let mut buffer = Buffer::new(8, 4);
        buffer.push(b"01234567");
        assert_eq!((buffer.first(), buffer.end(), buffer.room()), (0, 8, 0));
        assert_eq!(buffer.read(3, 3), (3, b"345".to_vec()));
        buffer.push(b"89");
        assert_eq!((buffer.first(), buffer.end(), buffer.room()), (2, 10, 0));
        assert_eq!(buffer.read(0, 100), (2, b"23456789".to_vec()));
        buffer.free(8);
        assert_eq!((buffer.first(), buffer.room()), (4, 6));
        buffer.free(3);
        assert_eq!(
            (buffer.first(), buffer.room()),
            (4, 6),
            "what was received stays received"
        );
        buffer.free(u64::MAX);
        assert_eq!((buffer.first(), buffer.end(), buffer.room()), (6, 10, 8));
        assert_eq!(buffer.read(u64::MAX, 9), (10, Vec::new()));
        assert_eq!(buffer.all(), b"6789");
    }

    #[test]
    fn a_gigabyte_leaves_its_end_and_no_more() {
        let mut buffer = Buffer::new(64 * 1024, 0);
        let chunk: Vec<u8> = (0..=255).cycle().take(32 * 1024).collect();
        for _ in 0..32 * 1024 {
            buffer.push(&chunk);
        }
        assert_eq!((buffer.end(), buffer.all().len()), (1 << 30, 64 * 1024));
        assert!(buffer.bytes.capacity() < 1 << 20);
        assert_eq!(buffer.read(0, 2).1, [0, 1]);
    }
}
