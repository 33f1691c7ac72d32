//! One output of a program, as it arrives: its pieces in order.

use std::collections::BTreeMap;

/// An output.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    /// All before this offset has arrived.
    position: u64,
    /// Pieces behind a gap.
    early: BTreeMap<u64, Vec<u8>>,
}

impl Arriving {
    pub(crate) fn at(position: u64) -> Self {
        Self {
            position,
            early: BTreeMap::new(),
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns whether something has arrived behind a gap.
    pub(crate) fn has_gap(&self) -> bool {
        !self.early.is_empty()
    }

    /// Takes a piece, and returns what can be passed on.
    pub(crate) fn take(&mut self, offset: u64, bytes: Vec<u8>) -> Vec<u8> {
        if offset + bytes.len() as u64 > self.position {
            self.early.insert(offset, bytes);
        }
        self.in_order()
    }

    /// Goes on behind the gap: the leaf has nothing of it any more.
    pub(crate) fn skip_gap(&mut self) -> Vec<u8> {
        if let Some(first) = self.early.keys().next() {
            self.position = self.position.max(*first);
        }
        self.in_order()
    }

    fn in_order(&mut self) -> Vec<u8> {
        let mut ready = Vec::new();
        while let Some((offset, bytes)) = self.early.pop_first() {
            if offset > self.position {
                self.early.insert(offset, bytes);
                break;
            }
            let known = usize::try_from(self.position - offset).unwrap_or(usize::MAX);
            if let Some(new) = bytes.get(known..) {
                ready.extend_from_slice(new);
                self.position += new.len() as u64;
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_once_and_in_order() {
        let mut stream = Arriving::at(2);
        assert_eq!(stream.take(5, b"56".to_vec()), b"");
        assert!(stream.has_gap());
        assert_eq!(stream.take(0, b"01234".to_vec()), b"23456");
        assert_eq!(stream.take(3, b"34567".to_vec()), b"7");
        assert_eq!(stream.take(3, b"34".to_vec()), b"");
        assert_eq!((stream.position(), stream.has_gap()), (8, false));
        assert_eq!(stream.take(10, b"ab".to_vec()), b"");
        assert_eq!((stream.skip_gap(), stream.position()), (b"ab".to_vec(), 12));
    }
}
