//! The errors of one run of Nix, in bounded space. The first one is most often the cause, and the last one is what Nix
//! ended with: both are kept, however many are between them.

/// The length of all errors together, in bytes.
const ERROR_BYTES: usize = 4096;

/// The errors in order, without repetitions.
#[derive(Debug, Default)]
pub(super) struct Errors {
    first: Option<String>,
    between: Vec<String>,
    /// The number of errors after those in `between` that are not kept.
    left_out: usize,
    last: Option<String>,
}

impl Errors {
    /// Returns whether an error that is kept begins with this text.
    pub(super) fn has(&self, error: &str) -> bool {
        let ends = self.first.iter().chain(&self.last);
        ends.chain(&self.between).any(|known| known.starts_with(error))
    }

    /// Adds an error.
    pub(super) fn push(&mut self, mut error: String) {
        cut(&mut error, ERROR_BYTES);
        if self.first.is_none() {
            self.first = Some(error);
        } else if let Some(before) = self.last.replace(error) {
            if self.left_out == 0 && self.between.iter().map(String::len).sum::<usize>() < ERROR_BYTES {
                self.between.push(before);
            } else {
                self.left_out += 1;
            }
        }
    }

    /// Returns the errors, one per line or more, in at most 4 KiB; `None` if there are none.
    pub(super) fn text(&self) -> Option<String> {
        let mut first = self.first.clone()?;
        let Some(mut last) = self.last.clone() else {
            return Some(first);
        };
        // Each may have half, and what the other leaves of its half.
        let half = (ERROR_BYTES - 1) / 2;
        let of_first = half.max(ERROR_BYTES - 1 - last.len().min(half));
        cut(&mut first, of_first);
        cut(&mut last, ERROR_BYTES - 1 - first.len());
        let mut text = first;
        let note = |count: usize| format!("\n({count} more errors are in the log)");
        let mut room = ERROR_BYTES - text.len() - 1 - last.len();
        let mut kept = 0;
        for (error, after) in self.between.iter().zip((0..self.between.len()).rev()) {
            let rest = after + self.left_out;
            let reserved = if rest == 0 { 0 } else { note(rest).len() };
            if error.len() + 1 + reserved > room {
                break;
            }
            room -= error.len() + 1;
            text.push('\n');
            text.push_str(error);
            kept += 1;
        }
        let rest = self.between.len() - kept + self.left_out;
        if rest > 0 && note(rest).len() <= room {
            text.push_str(&note(rest));
        }
        text.push('\n');
        text.push_str(&last);
        Some(text)
    }
}

/// Shortens a text to so many bytes; `…` at its end says so.
pub(crate) fn cut(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let mut end = max_bytes - "…".len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(errors: impl IntoIterator<Item = String>) -> String {
        let mut kept = Errors::default();
        for error in errors {
            kept.push(error);
        }
        let text = kept.text().expect("errors");
        assert!(text.len() <= ERROR_BYTES, "{}", text.len());
        text
    }

    #[test]
    fn few_errors_are_kept_in_order() {
        assert_eq!(text_of(["a", "b", "c"].map(str::to_owned)), "a\nb\nc");
        assert_eq!(text_of(["a".to_owned()]), "a");
        assert_eq!(Errors::default().text(), None);
    }

    #[test]
    fn the_first_error_and_the_last_are_kept_however_many_are_between() {
        let text = text_of((0..100_000).map(|n| format!("error {n} {}", "€".repeat(n % 90))));
        assert!(text.starts_with("error 0 \nerror 1 €\n"), "{text}");
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(last[0].starts_with("error 99999 "), "{last:?}");
        assert!(last[1].ends_with(" more errors are in the log)"), "{last:?}");
        let listed = text.lines().count() - 1;
        assert_eq!(
            last[1],
            format!("({} more errors are in the log)", 100_000 - listed)
        );
    }

    #[test]
    fn of_two_long_errors_each_has_half_and_a_short_one_leaves_its_half() {
        let long = |name: &str| format!("{name} {}", "x".repeat(9000));
        let text = text_of([long("first"), "lost".to_owned(), long("last")]);
        assert!(
            text.starts_with("first x") && text.contains("…\nlast x"),
            "{text}"
        );
        let text = text_of([long("first"), "the last".to_owned()]);
        assert!(text.len() > 4000 && text.ends_with("…\nthe last"), "{text}");
        let text = text_of(["the first".to_owned(), long("last")]);
        assert!(
            text.len() > 4000 && text.starts_with("the first\nlast x"),
            "{text}"
        );
        assert!(text_of([long("only")]).ends_with("x…"));
    }
}
