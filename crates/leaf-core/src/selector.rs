//! Selects leaves by name and by label, as docs/command-line.md describes it.

use std::str::FromStr;

use crate::id::LeafName;
use crate::labels::{Labels, check_key};

/// A name of a leaf, or a pattern of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    /// This leaf.
    Exact(LeafName),
    /// The leaves whose names match: `*` is any text, `?` one character.
    Glob(String),
}

impl NamePattern {
    /// Returns whether a leaf has this name, or one of the pattern.
    #[must_use]
    pub fn matches(&self, leaf: &LeafName) -> bool {
        match self {
            Self::Exact(name) => name == leaf,
            Self::Glob(pattern) => glob(pattern.as_bytes(), leaf.as_str().as_bytes()),
        }
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(['*', '?']) {
            return LeafName::new(text).map(Self::Exact).map_err(|e| e.to_string());
        }
        // What is no wildcard must be possible in a name, so that a misspelt pattern is noticed.
        match LeafName::new(text.replace(['*', '?'], "x")) {
            Ok(_) => Ok(Self::Glob(text.to_owned())),
            Err(error) => Err(format!("{text:?} is not a pattern of leaf names: {}", error.why)),
        }
    }
}

/// Matches a text with a pattern in which `*` is any text and `?` one byte: names of leaves are ASCII.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut position) = (0, 0);
    // Where to go on if the rest does not match: the last `*` takes one byte more.
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, position));
                at += 1;
            }
            Some(b) if *b == b'?' || *b == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (at, position) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|b| *b == b'*')
}

/// A selector of labels: all its terms must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl Selector {
    /// Returns whether a leaf with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|term| match term {
            Term::Is(key, value) => labels.get(key) == Some(value),
            Term::IsNot(key, value) => labels.get(key) != Some(value),
            Term::Has(key) => labels.contains_key(key),
            Term::HasNot(key) => !labels.contains_key(key),
        })
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(term).collect::<Result<_, _>>().map(Self)
    }
}

fn term(text: &str) -> Result<Term, String> {
    let forms = "KEY=VALUE, KEY!=VALUE, KEY and !KEY";
    if text.is_empty() {
        return Err(format!("a term is empty; the terms between commas are {forms}"));
    }
    let (key, term) = match (text.strip_prefix('!'), text.split_once('=')) {
        (Some(key), _) => (key, Term::HasNot(key.to_owned())),
        (None, Some((key, value))) => match key.strip_suffix('!') {
            Some(key) => (key, Term::IsNot(key.to_owned(), value.to_owned())),
            None => (key, Term::Is(key.to_owned(), value.to_owned())),
        },
        (None, None) => (text, Term::Has(text.to_owned())),
    };
    check_key(key).map_err(|error| format!("{text:?} is none of {forms}: {error}"))?;
    Ok(term)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names() {
        for (pattern, yes, no) in [
            ("edge-1", &["edge-1"][..], &["edge-10", "edge", "xedge-1"][..]),
            ("edge-*", &["edge-", "edge-1", "edge-a-b"], &["edge", "xedge-1"]),
            ("*", &["a", "edge-1"], &[]),
            ("edge-?", &["edge-1"], &["edge-", "edge-10"]),
            (
                "*-b*-c",
                &["a-b-c", "a-b-b-c", "-bx-c"],
                &["a-b", "a-c", "a-b-cd"],
            ),
            ("**a?", &["aa", "bab", "aab"], &["a", "b"]),
        ] {
            let pattern: NamePattern = pattern.parse().expect(pattern);
            for (names, is) in [(yes, true), (no, false)] {
                for name in names {
                    // A name that begins with '-' is none.
                    let Ok(leaf) = LeafName::new(*name) else { continue };
                    assert_eq!(pattern.matches(&leaf), is, "{pattern:?} and {name}");
                }
            }
        }
    }

    #[test]
    fn a_pattern_that_no_name_can_match_is_refused() {
        for pattern in ["", "Edge-*", "a.b*", "a b", "-*", "edge[12]*", "*é", "a\u{1b}*"] {
            assert!(pattern.parse::<NamePattern>().is_err(), "{pattern:?}");
        }
        let long = format!("{}*", "a".repeat(32));
        assert!(long.parse::<NamePattern>().is_err());
    }

    #[test]
    fn a_selector_holds_if_all_its_terms_do() {
        let labels: Labels = [("site", "hall-2"), ("gpu", "yes"), ("eq", "a=b")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (selector, holds) in [
            ("site=hall-2", true),
            ("site=hall", false),
            ("site!=hall-2", false),
            ("site!=x", true),
            ("none!=x", true),
            ("none=x", false),
            ("gpu", true),
            ("!gpu", false),
            ("none", false),
            ("!none", true),
            ("site=hall-2,gpu,!none", true),
            ("site=hall-2,gpu=no", false),
            ("eq=a=b", true),
            ("site=", false),
        ] {
            let parsed: Selector = selector.parse().expect(selector);
            assert_eq!(parsed.matches(&labels), holds, "{selector}");
        }
    }

    #[test]
    fn a_selector_that_is_none_is_refused_with_the_forms() {
        for selector in [
            "", "a,", ",a", "=x", "!=x", "!", "!a=b", "A=x", "a b", "!!a", "a\u{1b}",
        ] {
            let error = selector.parse::<Selector>().expect_err(selector);
            assert!(
                error.contains("KEY!=VALUE") && !error.contains('\u{1b}'),
                "{selector:?}: {error:?}"
            );
        }
    }
}
