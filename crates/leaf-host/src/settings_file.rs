//! Settings files, in TOML. Their errors name the place and quote nothing of the file, which may hold a password or token.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// An error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("can't read the settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("invalid settings file {}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The place and the error.
        source: ShapeError,
    },
    /// A value is invalid, or conflicts with another.
    #[error("{place}: {why}")]
    Value {
        /// The setting.
        place: &'static str,
        /// The reason, and which values are valid.
        why: String,
    },
}

impl SettingsError {
    /// Returns the error of an invalid value: the setting, and why it is invalid and which values are valid.
    #[must_use]
    pub fn value(place: &'static str, why: impl Into<String>) -> Self {
        Self::Value {
            place,
            why: why.into(),
        }
    }
}

/// Where a settings file is not valid TOML, or has an unknown key or a value of the wrong type, and how. It quotes neither
/// lines nor values of the file, which may hold a password or token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}{}: {problem}", key.as_ref().map_or(String::new(), |key| format!(" ({key})")))]
pub struct ShapeError {
    line: usize,
    column: usize,
    /// The key of the line, if it begins with one.
    key: Option<String>,
    problem: String,
}

impl ShapeError {
    fn new(error: &toml::de::Error, text: &str) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key_of(text.get(line_start..).unwrap_or_default()),
            problem: without_values(error.message()),
        }
    }
}

/// Returns the bare key with which a line begins: `port` of `port = 4222`.
fn key_of(text: &str) -> Option<String> {
    let (key, _) = text.lines().next()?.split_once('=')?;
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let key = key.trim();
    (!key.is_empty() && key.chars().all(is_bare)).then(|| key.to_owned())
}

/// Returns a parser's message without the values of the file that it quotes: those of a wrong type, as serde's
/// `Unexpected` prints them (`invalid type: string "…", expected a map`), and users in addresses.
fn without_values(message: &str) -> String {
    let mut message = message.to_owned();
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some(value) = message.find(kind).map(|at| at + kind.len())
            && let Some(expected) = message.rfind(", expected ").filter(|end| *end > value)
            && let Some(quote) = message[value..expected].find(['"', '`'])
        {
            let kept = message[..value + quote].trim_end().to_owned();
            message = kept + &message[expected..];
        }
    }
    let is_address = |word: &str| word.contains("://") && word.contains('@');
    let words = message.split(' ').map(|word| {
        if is_address(word) {
            "<an address with a user>"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Reads a settings file.
///
/// # Errors
/// [`SettingsError::Read`], [`SettingsError::Shape`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|source| SettingsError::Shape {
        path: path.to_owned(),
        source,
    })
}

/// Parses the text of a settings file.
///
/// # Errors
/// The place and the parser's error.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ShapeError> {
    toml::from_str(text).map_err(|error| ShapeError::new(&error, text))
}
