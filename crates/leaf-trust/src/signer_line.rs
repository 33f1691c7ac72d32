//! A line of a file that says who may sign: principals, options, and a key of some kind.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use leaf_core::id::Caller;

use crate::pattern::Patterns;
use crate::ssh_signature::SignerKeyError;

/// What a line says beside its key: for whom, for what and when the key may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    principals: Patterns,
    namespaces: Option<Patterns>,
    valid_after: Option<Timestamp>,
    valid_before: Option<Timestamp>,
}

/// A line that can't be used, which makes the file unusable.
#[derive(Debug, thiserror::Error)]
#[error("line {line} can't be used")]
pub struct LineError {
    /// The line's number, from 1.
    pub line: usize,
    /// The reason.
    #[source]
    pub why: LineProblem,
}

/// Why a line can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// It has no key.
    #[error("it must have principals, options if there are any, and a public key, separated by blanks")]
    Incomplete,
    /// A quotation mark has no other.
    #[error("a quotation mark in it is not closed")]
    Quotation,
    /// A certificate authority.
    #[error("it has the option cert-authority, and certificates are not used here: name the keys themselves")]
    CertAuthority,
    /// An option that is not known, or has no value, or occurs twice.
    #[error(
        "the option {0:?} is not namespaces=\"…\", valid-after=\"…\" or valid-before=\"…\", each at most once"
    )]
    Option(String),
    /// A time that can't be read.
    #[error(
        "the time {0:?} is not YYYYMMDDZ, YYYYMMDDHHMMZ or YYYYMMDDHHMMSSZ; it must be in UTC, with the Z at its end"
    )]
    Time(String),
    /// The key is never valid.
    #[error("valid-before is not after valid-after")]
    NeverValid,
    /// The key can't be used.
    #[error("its key can't be used")]
    Key(#[source] SignerKeyError),
    /// The OpenPGP key can't be used.
    #[cfg(feature = "openpgp")]
    #[error("its key can't be used")]
    OpenPgp(#[source] crate::openpgp::key_error::KeyError),
    /// Neither a key nor a fingerprint.
    #[error(
        "it is neither a public key, nor a fingerprint such as SHA256:… of 43 characters, or pgp:… of 40 hexadecimal digits"
    )]
    Fingerprint,
}

/// Why a key may not sign for a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// The key stands in no line.
    #[error("the key {0} is not among the allowed signers")]
    Unknown(String),
    /// It stands there for others.
    #[error("the key {key} may not sign for {caller}")]
    OtherCaller {
        /// The fingerprint of the key.
        key: String,
        /// The caller.
        caller: Caller,
    },
    /// It stands there for other purposes.
    #[error("the key {key} may not sign commands: its line allows other namespaces than {namespace}")]
    OtherNamespace {
        /// The fingerprint of the key.
        key: String,
        /// The namespace.
        namespace: &'static str,
    },
    /// It is not valid at this time.
    #[error("the key {key} may sign for {caller} {when} {limit} only")]
    NotNow {
        /// The fingerprint of the key.
        key: String,
        /// The caller.
        caller: Caller,
        /// Whether the limit is the beginning or the end.
        when: Limit,
        /// The limit.
        limit: Timestamp,
    },
    /// It ended by itself.
    #[error("the key {key} expired at {at}")]
    Expired {
        /// The fingerprint of the key.
        key: String,
        /// Its end.
        at: Timestamp,
    },
    /// It was revoked.
    #[error("the key {0} is revoked")]
    Revoked(String),
}

/// The time at which a key has to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(Timestamp),
    /// At this time or later: the clock can't be trusted. So `valid-after` is not looked at, and `valid-before` is past once this
    /// time is.
    NotBefore(Timestamp),
}

impl When {
    /// Returns the time that it is at least.
    #[must_use]
    pub fn at_least(self) -> Timestamp {
        match self {
            Self::At(time) | Self::NotBefore(time) => time,
        }
    }
}

/// An end of the time in which a key is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Its beginning.
    After,
    /// Its end.
    Before,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::After => "after",
            Self::Before => "before",
        })
    }
}

/// Returns the lines that are neither empty nor comments, with their numbers.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// How far a line got.
pub(crate) fn rank(reason: &NotAllowed) -> u8 {
    match reason {
        NotAllowed::Unknown(_) => 0,
        NotAllowed::OtherCaller { .. } => 1,
        NotAllowed::OtherNamespace { .. } => 2,
        NotAllowed::NotNow { .. } | NotAllowed::Expired { .. } | NotAllowed::Revoked(_) => 3,
    }
}

impl Terms {
    /// Splits a line into its terms and its key. `is_key` says whether a text is a key, so that no options are before it.
    pub(crate) fn of_line(
        line: &str,
        is_key: impl FnOnce(&str) -> bool,
    ) -> Result<(Self, &str), LineProblem> {
        let (principals, rest) = principals(line)?;
        let mut terms = Self {
            principals: Patterns::new(principals),
            namespaces: None,
            valid_after: None,
            valid_before: None,
        };
        // As OpenSSH does: it is a key, or else options before a key.
        if is_key(rest) {
            return Ok((terms, rest));
        }
        let (options, key) = end_of_options(rest)?;
        terms.take_options(options)?;
        Ok((terms, key))
    }

    /// Returns whether the line names a caller literally: a pattern matches callers that somebody makes up.
    pub(crate) fn name(&self, caller: &Caller) -> bool {
        self.principals.name_text(caller.as_str())
    }

    /// Returns why the line does not allow a key with this fingerprint to sign.
    pub(crate) fn refuse(
        &self,
        key: impl Fn() -> String,
        caller: &Caller,
        namespace: &'static str,
        when: When,
    ) -> Option<NotAllowed> {
        if !self.principals.match_text(caller.as_str()) {
            return Some(NotAllowed::OtherCaller {
                key: key(),
                caller: caller.clone(),
            });
        }
        if self
            .namespaces
            .as_ref()
            .is_some_and(|list| !list.match_text(namespace))
        {
            return Some(NotAllowed::OtherNamespace {
                key: key(),
                namespace,
            });
        }
        let (early, late) = match when {
            When::At(at) => (self.valid_after.filter(|limit| at < *limit), at),
            When::NotBefore(at) => (None, at),
        };
        let late = self.valid_before.filter(|limit| late > *limit);
        let early = early.map(|limit| (Limit::After, limit));
        early
            .or(late.map(|limit| (Limit::Before, limit)))
            .map(|(when, limit)| NotAllowed::NotNow {
                key: key(),
                caller: caller.clone(),
                when,
                limit,
            })
    }
}

/// Splits the principals, which may be quoted, from what follows.
fn principals(line: &str) -> Result<(&str, &str), LineProblem> {
    let split = match line.strip_prefix('"') {
        Some(quoted) => {
            let (principals, rest) = quoted.split_once('"').ok_or(LineProblem::Quotation)?;
            rest.starts_with([' ', '\t']).then_some((principals, rest))
        }
        None => line.split_once([' ', '\t']),
    };
    let (principals, rest) = split.ok_or(LineProblem::Incomplete)?;
    Ok((principals, rest.trim_start()))
}

/// Splits the options from the key: they end at a blank that is not quoted.
fn end_of_options(text: &str) -> Result<(&str, &str), LineProblem> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ' ' | '\t' if !is_quoted => return Ok((&text[..at], text[at..].trim_start())),
            _ => {}
        }
    }
    Err(if is_quoted {
        LineProblem::Quotation
    } else {
        LineProblem::Incomplete
    })
}

impl Terms {
    fn take_options(&mut self, mut options: &str) -> Result<(), LineProblem> {
        loop {
            let end = options.find(['=', ',']).unwrap_or(options.len());
            let name = options[..end].to_ascii_lowercase();
            if name == "cert-authority" {
                return Err(LineProblem::CertAuthority);
            }
            let unknown = || LineProblem::Option(name.clone());
            let quoted = options[end..].strip_prefix("=\"").ok_or_else(unknown)?;
            let (value, rest) = quoted.split_once('"').ok_or(LineProblem::Quotation)?;
            // No value that can be used here has one.
            if value.contains('\\') {
                return Err(unknown());
            }
            let is_new = match name.as_str() {
                "namespaces" => self.namespaces.replace(Patterns::new(value)).is_none(),
                "valid-after" => self.valid_after.replace(time(value)?).is_none(),
                "valid-before" => self.valid_before.replace(time(value)?).is_none(),
                _ => false,
            };
            if !is_new {
                return Err(unknown());
            }
            match rest.strip_prefix(',') {
                Some(more) => options = more,
                None if rest.is_empty() => break,
                None => return Err(LineProblem::Option(rest.to_owned())),
            }
        }
        match (self.valid_after, self.valid_before) {
            (Some(after), Some(before)) if before <= after => Err(LineProblem::NeverValid),
            _ => Ok(()),
        }
    }
}

/// Parses a time: OpenSSH reads one without `Z` in the host's time zone, which no two leaves need share.
fn time(text: &str) -> Result<Timestamp, LineProblem> {
    let unreadable = || LineProblem::Time(text.to_owned());
    let digits = text.strip_suffix('Z').ok_or_else(unreadable)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(unreadable());
    }
    let form = match digits.len() {
        8 => format!("{digits}000000"),
        12 => format!("{digits}00"),
        14 => digits.to_owned(),
        _ => return Err(unreadable()),
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", form).map_err(|_| unreadable())?;
    let time = time.to_zoned(TimeZone::UTC).map_err(|_| unreadable())?;
    Ok(time.timestamp())
}
