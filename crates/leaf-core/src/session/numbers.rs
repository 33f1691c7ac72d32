//! The numbers of requests: each is taken once.

use std::collections::BTreeSet;

/// How far below the highest number one may be.
const WINDOW: u64 = 1024;
/// The largest number: what JSON readers take exactly.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// The numbers that were taken.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    highest: u64,
    taken: BTreeSet<u64>,
}

impl Numbers {
    /// Returns whether a number can be taken.
    #[must_use]
    pub fn is_free(&self, number: u64) -> bool {
        (1..=MAX_NUMBER).contains(&number)
            && number.saturating_add(WINDOW) > self.highest
            && !self.taken.contains(&number)
    }

    /// Takes a number, and returns whether it was free.
    pub fn take(&mut self, number: u64) -> bool {
        if !self.is_free(number) {
            return false;
        }
        self.highest = self.highest.max(number);
        self.taken.insert(number);
        let low = self.highest.saturating_sub(WINDOW);
        self.taken = self.taken.split_off(&(low + 1));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_taken_once_and_an_old_one_never() {
        let mut numbers = Numbers::default();
        assert!(!numbers.take(0) && numbers.take(1) && !numbers.take(1));
        assert!(numbers.take(2000) && !numbers.is_free(976) && numbers.take(977) && !numbers.take(977));
        assert!(numbers.take(1999) && !numbers.take(2000) && !numbers.take(MAX_NUMBER + 1));
        assert!(numbers.take(MAX_NUMBER) && !numbers.take(2001) && numbers.taken.len() == 1);
    }
}
