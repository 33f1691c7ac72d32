//! Who may sign: the file of `ssh-keygen -Y verify` (ssh-keygen(1), *ALLOWED SIGNERS*), and the list of revoked keys.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use leaf_core::id::Caller;

use crate::pattern::Patterns;
use crate::ssh_signature::{SignerKey, SignerKeyError};

/// The keys that may sign, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedSigners(Vec<Signer>);

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signer {
    principals: Patterns,
    namespaces: Option<Patterns>,
    valid_after: Option<Timestamp>,
    valid_before: Option<Timestamp>,
    key: SignerKey,
}

/// The keys that may not sign any more, by fingerprint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevokedSigners(BTreeSet<String>);

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
    /// Neither a key nor a fingerprint.
    #[error("it is neither a public key nor a fingerprint such as SHA256:… of 43 characters")]
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
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

impl FromStr for AllowedSigners {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let signers = lines(text).map(|(line, text)| signer(text).map_err(|why| LineError { line, why }));
        signers.collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for RevokedSigners {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let revoked = lines(text).map(|(line, text)| {
            let found = match text.strip_prefix("SHA256:") {
                Some(digits) => {
                    let digits = digits.split_ascii_whitespace().next().unwrap_or_default();
                    let fingerprint: Result<ssh_key::Fingerprint, _> = format!("SHA256:{digits}").parse();
                    fingerprint
                        .map(|it| it.to_string())
                        .map_err(|_| LineProblem::Fingerprint)
                }
                None => match text.parse::<SignerKey>() {
                    Ok(key) => Ok(key.fingerprint()),
                    Err(SignerKeyError::Malformed(_)) => Err(LineProblem::Fingerprint),
                    Err(error) => Err(LineProblem::Key(error)),
                },
            };
            found.map_err(|why| LineError { line, why })
        });
        revoked.collect::<Result<_, _>>().map(Self)
    }
}

impl RevokedSigners {
    /// Checks that a key is not revoked.
    ///
    /// # Errors
    /// [`NotAllowed::Revoked`].
    pub fn check(&self, key: &SignerKey) -> Result<(), NotAllowed> {
        let fingerprint = key.fingerprint();
        if self.0.contains(&fingerprint) {
            return Err(NotAllowed::Revoked(fingerprint));
        }
        Ok(())
    }
}

impl AllowedSigners {
    /// Checks that a key may sign for a caller, for this purpose, at this time.
    ///
    /// # Errors
    /// [`NotAllowed`], with the reason of the line that comes closest.
    pub fn check(
        &self,
        key: &SignerKey,
        caller: &Caller,
        namespace: &'static str,
        when: When,
    ) -> Result<(), NotAllowed> {
        let mut closest = NotAllowed::Unknown(key.fingerprint());
        for signer in self.0.iter().filter(|signer| signer.key == *key) {
            match signer.refuses(caller, namespace, when) {
                None => return Ok(()),
                Some(reason) if rank(&reason) > rank(&closest) => closest = reason,
                Some(_) => {}
            }
        }
        Err(closest)
    }

    /// Returns whether a line names a caller literally: a pattern matches callers that somebody makes up.
    #[must_use]
    pub fn name(&self, caller: &Caller) -> bool {
        self.0
            .iter()
            .any(|signer| signer.principals.name_text(caller.as_str()))
    }

    /// Returns the keys that may sign for a caller, for this purpose, at this time, each once.
    #[must_use]
    pub fn keys_of(&self, caller: &Caller, namespace: &'static str, when: When) -> Vec<&SignerKey> {
        let signers = self.0.iter();
        let fitting = signers.filter(|signer| signer.refuses(caller, namespace, when).is_none());
        let mut keys: Vec<&SignerKey> = Vec::new();
        for Signer { key, .. } in fitting {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

/// How far a line got.
fn rank(reason: &NotAllowed) -> u8 {
    match reason {
        NotAllowed::Unknown(_) => 0,
        NotAllowed::OtherCaller { .. } => 1,
        NotAllowed::OtherNamespace { .. } => 2,
        NotAllowed::NotNow { .. } | NotAllowed::Revoked(_) => 3,
    }
}

impl Signer {
    /// Returns why this line does not allow it.
    fn refuses(&self, caller: &Caller, namespace: &'static str, when: When) -> Option<NotAllowed> {
        let key = || self.key.fingerprint();
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

/// Parses a line.
fn signer(line: &str) -> Result<Signer, LineProblem> {
    let (principals, rest) = principals(line)?;
    let signer = |options: &str, key: &str| -> Result<Signer, LineProblem> {
        let mut signer = Signer {
            principals: Patterns::new(principals),
            namespaces: None,
            valid_after: None,
            valid_before: None,
            key: key.parse().map_err(LineProblem::Key)?,
        };
        if !options.is_empty() {
            signer.take_options(options)?;
        }
        Ok(signer)
    };
    // As OpenSSH does: it is a key, or else options before a key.
    match signer("", rest) {
        Err(LineProblem::Key(SignerKeyError::Malformed(_))) => {
            let (options, key) = end_of_options(rest)?;
            signer(options, key)
        }
        other => other,
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

impl Signer {
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJo1s1ZhVJTGBQVSfKHLAd4c8hXzGEOwkaFjQ9D0eR6L";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    const NAMESPACE: &str = "command@cim-leaf";

    fn caller(name: &str) -> Caller {
        Caller::new(name).expect("a caller")
    }

    fn key(line: &str) -> SignerKey {
        line.parse().expect("a key")
    }

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    fn check(file: &str, name: &str, time: &str) -> Result<(), NotAllowed> {
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        allowed.check(&key(KEY), &caller(name), NAMESPACE, When::At(at(time)))
    }

    const NOW: &str = "2026-11-30T08:00:00Z";

    #[test]
    fn a_line_allows_its_key_for_its_principals() {
        let file = format!("# people\n\n  ann,ops-*,!ops-old {KEY} a comment\n\"bob\"\t{KEY}\nzoe {OTHER}\n");
        for (name, is_allowed) in [
            ("ann", true),
            ("ops-1", true),
            ("ops-old", false),
            ("bob", true),
            ("zoe", false),
        ] {
            assert_eq!(check(&file, name, NOW).is_ok(), is_allowed, "{name}");
        }
        assert!(matches!(
            check(&file, "zoe", NOW),
            Err(NotAllowed::OtherCaller { .. })
        ));
        assert!(matches!(
            check(&format!("* {OTHER}"), "ann", NOW),
            Err(NotAllowed::Unknown(_))
        ));
    }

    #[test]
    fn options_hold() {
        let namespaces = |list: &str| check(&format!("ann namespaces=\"{list}\" {KEY}"), "ann", NOW);
        assert_eq!(namespaces("file,command@*"), Ok(()));
        assert!(matches!(
            namespaces("file,git"),
            Err(NotAllowed::OtherNamespace { .. })
        ));
        let valid = |from: &str, until: &str, time: &str| {
            let file = format!("ann Valid-After=\"{from}\",namespaces=\"*\",valid-before=\"{until}\" {KEY}");
            check(&file, "ann", time)
        };
        assert_eq!(valid("20261130Z", "20261201Z", NOW), Ok(()));
        assert_eq!(valid("202611300800Z", "20261130080001Z", NOW), Ok(()));
        let refused = valid("202611300801Z", "20261201Z", NOW).expect_err("early");
        assert!(
            refused
                .to_string()
                .ends_with("may sign for ann after 2026-11-30T08:01:00Z only")
        );
        let refused = valid("20261129Z", "20261130075959Z", NOW).expect_err("late");
        assert!(
            refused
                .to_string()
                .ends_with("may sign for ann before 2026-11-30T07:59:59Z only")
        );
        // By a clock that can't be trusted, it is not early, and late once even that clock says so.
        let file = format!("ann valid-after=\"20261201Z\",valid-before=\"20261202Z\" {KEY}");
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        for (time, is_allowed) in [(NOW, true), ("2026-12-02T00:00:01Z", false)] {
            let checked = allowed.check(&key(KEY), &caller("ann"), NAMESPACE, When::NotBefore(at(time)));
            assert_eq!(checked.is_ok(), is_allowed, "{time}");
        }
        // One line has expired, and another holds.
        let file = format!("ann valid-before=\"20200101Z\" {KEY}\nann {KEY}\n");
        assert_eq!(check(&file, "ann", NOW), Ok(()));
    }

    #[test]
    fn a_line_that_cannot_be_used_is_an_error_with_its_number() {
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7";
        for (line, says) in [
            ("ann", "must have principals"),
            ("ann ssh-ed25519", "must have principals"),
            (&format!("ann cert-authority {KEY}"), "cert-authority"),
            (
                &format!("ann cert-authority,namespaces=\"x\" {KEY}"),
                "cert-authority",
            ),
            (&format!("ann {rsa}"), "only ssh-ed25519"),
            ("ann ecdsa-sha2-nistp256 AAAA", "only ssh-ed25519"),
            (&format!("ann namespaces=x {KEY}"), "\"namespaces\""),
            (&format!("ann namespaces=\"x {KEY}"), "not closed"),
            (&format!("\"ann {KEY}"), "not closed"),
            (&format!("ann verify-required {KEY}"), "\"verify-required\""),
            (
                &format!("ann namespaces=\"x\",namespaces=\"y\" {KEY}"),
                "at most once",
            ),
            (&format!("ann valid-after=\"20261130\" {KEY}"), "with the Z"),
            (&format!("ann valid-after=\"20261330Z\" {KEY}"), "20261330Z"),
            (&format!("ann valid-after=\"2026113008Z\" {KEY}"), "2026113008Z"),
            (
                &format!("ann valid-after=\"20261130Z\",valid-before=\"20261130Z\" {KEY}"),
                "not after",
            ),
        ] {
            let error = format!("# first\n{line}\n")
                .parse::<AllowedSigners>()
                .expect_err(line);
            let text = leaf_core::error::chain(&error);
            assert!(
                text.starts_with("line 2 can't be used: ") && text.contains(says),
                "{line}: {text}"
            );
        }
    }

    #[test]
    fn revoked_keys_are_named_by_key_or_fingerprint() {
        let fingerprint = key(KEY).fingerprint();
        for file in [
            format!("# lost\n{KEY} ann"),
            format!("{fingerprint} ann's laptop\n"),
        ] {
            let revoked: RevokedSigners = file.parse().expect("revoked signers");
            assert_eq!(
                revoked.check(&key(KEY)),
                Err(NotAllowed::Revoked(fingerprint.clone()))
            );
            assert_eq!(revoked.check(&key(OTHER)), Ok(()));
        }
        for line in ["SHA256:short", "MD5:aa", "ann"] {
            let error = line.parse::<RevokedSigners>().expect_err(line);
            assert!(
                matches!(
                    error,
                    LineError {
                        line: 1,
                        why: LineProblem::Fingerprint
                    }
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn the_keys_of_a_caller_are_those_that_may_sign_now() {
        let file = format!("ann {KEY}\nann {KEY}\n* valid-before=\"20200101Z\" {OTHER}\nbob {OTHER}\n");
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        let of = |name: &str| allowed.keys_of(&caller(name), NAMESPACE, When::At(at(NOW))).len();
        assert_eq!((of("ann"), of("bob"), of("zoe")), (1, 1, 0));
    }
}
