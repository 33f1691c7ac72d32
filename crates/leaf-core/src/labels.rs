//! The labels of a leaf, by which callers select leaves: their rules, and how those of the settings and those of commands
//! add up. docs/command-line.md is their contract.

use std::collections::BTreeMap;

use serde::{Deserialize as _, Deserializer};
use serde_json::Value;

use crate::json::to_json;
use crate::printable::printable_line;

/// Labels: values by key. What comes from outside may break the [rules](check).
pub type Labels = BTreeMap<String, String>;

/// The maximum number of labels of a leaf.
pub const MAX_LABELS: usize = 32;
/// The maximum length of a key or a value, in bytes.
pub const MAX_LABEL_BYTES: usize = 63;
/// The maximum size of all labels of a leaf as JSON, in bytes: a beat stays well below 4 KiB.
pub const MAX_LABELS_BYTES: usize = 2048;

/// Why labels break the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A key is invalid.
    #[error(
        "{0:?} is not the key of a label: 1 to {MAX_LABEL_BYTES} of the characters a-z, 0-9, '.', '_', '/' and '-', beginning \
         with a letter or digit"
    )]
    Key(String),
    /// A value is invalid.
    #[error("the value {value:?} of the label {key} {why}")]
    Value {
        /// The label's key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There are too many labels.
    #[error("a leaf would have {0} labels, at most {MAX_LABELS} are allowed")]
    Number(usize),
    /// The labels are too large together.
    #[error("the labels of a leaf would have {0} bytes as JSON, at most {MAX_LABELS_BYTES} are allowed")]
    Size(usize),
}

/// Checks a key: `[a-z0-9][a-z0-9._/-]{0,62}`.
///
/// # Errors
/// [`LabelError::Key`].
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_key = key.len() <= MAX_LABEL_BYTES
        && key.bytes().next().is_some_and(letter)
        && key.bytes().all(|b| letter(b) || b"._/-".contains(&b));
    is_key.then_some(()).ok_or_else(|| LabelError::Key(cut(key)))
}

/// Checks a label's key and value.
///
/// # Errors
/// [`LabelError::Key`] or [`LabelError::Value`].
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    check_key(key)?;
    let why = if value.is_empty() {
        "is empty: give it one, such as yes"
    } else if value.len() > MAX_LABEL_BYTES {
        "has more than 63 bytes"
    } else if value.contains(',') {
        "has a comma, which separates the terms of a selector"
    } else if printable_line(value) != value {
        "has characters that do not print"
    } else {
        return Ok(());
    };
    Err(LabelError::Value {
        key: key.to_owned(),
        value: cut(value),
        why,
    })
}

/// Checks labels: each one, their number, and their size together.
///
/// # Errors
/// [`LabelError`] with the first rule that they break.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    for (key, value) in labels {
        check_label(key, value)?;
    }
    check_size(labels)
}

fn check_size(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > MAX_LABELS {
        return Err(LabelError::Number(labels.len()));
    }
    let bytes = to_json(labels).len();
    if bytes > MAX_LABELS_BYTES {
        return Err(LabelError::Size(bytes));
    }
    Ok(())
}

/// Returns the labels of a leaf: those of its settings, then those of commands whose keys the settings don't have, in the
/// order of their keys, as long as there is room.
#[must_use]
pub fn effective(of_settings: &Labels, of_commands: &Labels) -> Labels {
    let mut labels = of_settings.clone();
    for (key, value) in of_commands {
        if labels.contains_key(key) {
            continue;
        }
        labels.insert(key.clone(), value.clone());
        if check_size(&labels).is_err() {
            labels.remove(key);
            break;
        }
    }
    labels
}

/// Reads the labels whose values are texts: other ones are of a newer version.
pub(crate) fn read_texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    let all = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let texts = all.into_iter().filter_map(|(key, value)| match value {
        Value::String(text) => Some((key, text)),
        _ => None,
    });
    Ok(texts.collect())
}

/// Returns labels as a text: `rack=7 site=hall-2`.
#[must_use]
pub fn text(labels: &Labels) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.join(" ")
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn keys_and_values_follow_the_rules() {
        let long = "a".repeat(MAX_LABEL_BYTES);
        for (key, value) in [
            ("site", "hall 2"),
            ("0", "="),
            ("example.org/rack_7-b", "Größe"),
            (&long, &long),
        ] {
            assert_eq!(check_label(key, value), Ok(()), "{key}={value}");
        }
        let too_long = "a".repeat(MAX_LABEL_BYTES + 1);
        for key in [
            "", "-a", ".a", "/", "A", "a b", "a=b", "a!", "ä", "a\u{1b}", &too_long,
        ] {
            assert!(matches!(check_key(key), Err(LabelError::Key(_))), "{key:?}");
        }
        for value in ["", "a,b", "a\nb", "\u{1b}[2J", "\u{202e}x", "\u{200b}", &too_long] {
            let error = check_label("a", value).expect_err(value);
            assert!(matches!(error, LabelError::Value { .. }), "{error}");
        }
    }

    #[test]
    fn labels_are_bounded_in_number_and_size() {
        let many = |count: usize, value: &str| -> Labels {
            (0..count)
                .map(|n| (format!("k{n:02}"), value.to_owned()))
                .collect()
        };
        assert_eq!(check(&many(MAX_LABELS, "x")), Ok(()));
        assert_eq!(
            check(&many(MAX_LABELS + 1, "x")),
            Err(LabelError::Number(MAX_LABELS + 1))
        );
        // A quote takes two bytes in JSON.
        let quotes = "\"".repeat(MAX_LABEL_BYTES);
        assert!(
            matches!(check(&many(16, &quotes)), Err(LabelError::Size(bytes)) if bytes > MAX_LABELS_BYTES)
        );
        assert_eq!(check(&many(15, &quotes)), Ok(()));
    }

    #[test]
    fn labels_of_the_settings_come_first_and_those_of_commands_while_there_is_room() {
        let settings = labels(&[("site", "a")]);
        let commands = labels(&[("rack", "7"), ("site", "b")]);
        assert_eq!(
            effective(&settings, &commands),
            labels(&[("rack", "7"), ("site", "a")])
        );
        let value = "x".repeat(MAX_LABEL_BYTES);
        let full: Labels = (0..27).map(|n| (format!("k{n:02}"), value.clone())).collect();
        assert_eq!(check(&full), Ok(()));
        let more = labels(&[("a", &value), ("b", &value), ("c", "x")]);
        let all = effective(&full, &more);
        assert_eq!(check(&all), Ok(()), "{} bytes", to_json(&all).len());
        assert!(full.keys().all(|key| all.contains_key(key)));
        assert!(all.contains_key("a") && !all.contains_key("b"));
    }
}
