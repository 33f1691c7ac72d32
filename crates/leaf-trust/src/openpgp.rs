//! OpenPGP signatures of commands (RFC 9580, version 4 with Ed25519), as `gpg --detach-sign` makes them, and who may make them.
//!
//! [`AllowedOpenPgp`] is the file with the keys, [`OpenPgpSignature`] a signature. Packets are parsed one by one and what is not
//! understood is refused: a library that passes over a packet would pass over a revocation.

mod key;
pub(crate) mod key_error;
mod packets;
mod signature;

use std::str::FromStr;

use crate::signer_line::{LineError, LineProblem, NotAllowed, Terms, When, lines, rank};
use data_encoding::BASE64;
use leaf_core::id::Caller;
use leaf_core::signed::NAMESPACE;

pub use key::OpenPgpKey;
pub use key_error::KeyError;
pub use signature::{OpenPgpSignature, SignatureError};

/// What a line has before its key.
const KIND: &str = "pgp";

/// The keys that may sign, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedOpenPgp(Vec<Line>);

/// A line of the file: `PRINCIPALS [OPTIONS] pgp KEY`, where KEY is what `gpg --export` writes, in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    terms: Terms,
    key: OpenPgpKey,
}

impl FromStr for AllowedOpenPgp {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let signers =
            lines(text).map(|(line, text)| Line::parse(text).map_err(|why| LineError { line, why }));
        signers.collect::<Result<_, _>>().map(Self)
    }
}

impl Line {
    fn parse(line: &str) -> Result<Self, LineProblem> {
        let (terms, key) = Terms::of_line(line, |text| key_of(text).is_some())?;
        let key = key_of(key).ok_or(LineProblem::OpenPgp(KeyError::Base64))?;
        let mut words = key.split_ascii_whitespace();
        let key = BASE64.decode(words.next().unwrap_or_default().as_bytes());
        let key = key.map_err(|_| LineProblem::OpenPgp(KeyError::Base64))?;
        let key = OpenPgpKey::from_bytes(&key).map_err(LineProblem::OpenPgp)?;
        Ok(Self { terms, key })
    }

    /// Returns why this line does not let a part of its key sign.
    fn refuses(&self, part: &str, caller: &Caller, when: When) -> Option<NotAllowed> {
        let terms = self.terms.refuse(|| part.to_owned(), caller, NAMESPACE, when);
        terms.or_else(|| self.key.refuses(part, when))
    }
}

/// Returns what follows the kind of a key.
fn key_of(text: &str) -> Option<&str> {
    text.strip_prefix(KIND)?.strip_prefix([' ', '\t'])
}

impl AllowedOpenPgp {
    /// Returns the key by which a signature says that it is, if that may sign for a caller at this time.
    ///
    /// # Errors
    /// [`NotAllowed`], with the reason of the line that comes closest.
    pub fn check(
        &self,
        signature: &OpenPgpSignature,
        caller: &Caller,
        when: When,
    ) -> Result<&OpenPgpKey, NotAllowed> {
        let part = signature.fingerprint();
        let mut closest = NotAllowed::Unknown(part.to_owned());
        for line in self.0.iter().filter(|line| line.key.signs_with(part)) {
            match line.refuses(part, caller, when) {
                None => return Ok(&line.key),
                Some(reason) if rank(&reason) > rank(&closest) => closest = reason,
                Some(_) => {}
            }
        }
        Err(closest)
    }

    /// Returns whether a line names a caller literally: a pattern matches callers that somebody makes up.
    #[must_use]
    pub fn name(&self, caller: &Caller) -> bool {
        self.0.iter().any(|line| line.terms.name(caller))
    }

    /// Returns the fingerprints of the keys that may sign for a caller at this time: of each primary key, with those of its subkeys.
    #[must_use]
    pub fn keys_of(&self, caller: &Caller, when: When) -> Vec<(&str, Vec<&str>)> {
        let keys = self.0.iter().map(|line| {
            let parts = line.key.parts();
            let parts = parts.filter(|part| line.refuses(part, caller, when).is_none());
            (line.key.fingerprint(), parts.collect())
        });
        keys.filter(|(_, parts): &(_, Vec<_>)| !parts.is_empty())
            .collect()
    }
}
