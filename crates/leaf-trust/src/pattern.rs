//! Lists of patterns, as OpenSSH reads them (ssh_config(5), *PATTERNS*).

/// A list of patterns, separated by commas: `ann,ops-*,!ops-old`. `*` stands for any characters, `?` for one, and `!` before a pattern
/// takes out what it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patterns(Vec<(bool, String)>);

impl Patterns {
    pub(crate) fn new(list: &str) -> Self {
        let patterns = list.split(',').map(|pattern| match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern.to_owned()),
            None => (false, pattern.to_owned()),
        });
        Self(patterns.collect())
    }

    /// Returns whether a pattern matches the text, and none that takes it out.
    pub(crate) fn match_text(&self, text: &str) -> bool {
        let mut is_matched = false;
        for (takes_out, pattern) in &self.0 {
            if matches(pattern.as_bytes(), text.as_bytes()) {
                if *takes_out {
                    return false;
                }
                is_matched = true;
            }
        }
        is_matched
    }

    /// Returns whether the text matches and stands in the list itself, not only as what `*` or `?` stand for.
    pub(crate) fn name_text(&self, text: &str) -> bool {
        let is_listed = self
            .0
            .iter()
            .any(|(takes_out, pattern)| !takes_out && pattern == text);
        is_listed && self.match_text(text)
    }
}

/// Matches one pattern, in time that grows with the product of the lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last `*` is, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match &mut star {
                Some((place, until)) => {
                    *until += 1;
                    (at, from) = (*place + 1, *until);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_openssh() {
        for (list, text, matched) in [
            ("ann", "ann", true),
            ("ann", "anna", false),
            ("a*", "ann", true),
            ("*", "", true),
            ("a?n", "ann", true),
            ("a?n", "an", false),
            ("*n*n*", "ann", true),
            ("a*b*c", "axxbxxb", false),
            ("bob,ann", "ann", true),
            ("ops-*,!ops-old", "ops-1", true),
            ("ops-*,!ops-old", "ops-old", false),
            ("!ops-old,ops-*", "ops-old", false),
            ("!ann", "bob", false),
            ("", "ann", false),
        ] {
            assert_eq!(Patterns::new(list).match_text(text), matched, "{list} {text}");
        }
    }

    #[test]
    fn a_list_names_what_stands_in_it_and_not_what_a_pattern_matches() {
        for (list, named) in [
            ("ann", true),
            ("bob,ann", true),
            ("*,ann", true),
            ("*", false),
            ("a?n", false),
            ("an*", false),
            ("ann,!a*", false),
            ("*,!ann", false),
        ] {
            assert_eq!(Patterns::new(list).name_text("ann"), named, "{list}");
        }
    }
}
