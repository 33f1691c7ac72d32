//! Public keys (RFC 9580, *Transferable Public Keys*), and which of their parts sign, until when.

use std::cmp::Reverse;

use jiff::Timestamp;
use pgp::packet::{Packet, PublicKey, PublicSubkey, Signature, SignatureType, SubpacketData, UserId};
use pgp::types::{KeyDetails, PublicParams, Tag};

use super::key_error::KeyError;
use super::packets::{is_ed25519, packets, shown, unusable};
use crate::signer_line::{NotAllowed, When};

/// A public key with the parts of it that sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPgpKey {
    fingerprint: String,
    parts: Vec<Part>,
}

/// The primary key or a subkey, which may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    fingerprint: String,
    key: Key,
    /// Its end, which is not later than that of the primary key.
    until: Option<Timestamp>,
    /// Whether it, or the primary key, is revoked.
    is_revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Primary(PublicKey),
    Subkey(PublicSubkey),
}

/// What the key's owner says of a part of it: the latest signature about it counts.
#[derive(Debug, Clone, Copy)]
struct Statement {
    made: pgp::types::Timestamp,
    signs: bool,
    until: Option<Timestamp>,
}

impl OpenPgpKey {
    /// Reads what `gpg --export` writes of one key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let packets = packets(bytes).map_err(KeyError::Malformed)?;
        let mut packets = packets.into_iter().peekable();
        let primary = match packets.next() {
            Some(Packet::PublicKey(primary)) => primary,
            Some(Packet::SecretKey(_)) => return Err(KeyError::Private),
            _ => return Err(KeyError::Structure),
        };
        let fingerprint = shown(&primary.fingerprint()).filter(|_| is_usable(&primary));
        let fingerprint = fingerprint.ok_or_else(|| {
            KeyError::Algorithm(format!(
                "version {:?}, {:?}",
                primary.version(),
                primary.algorithm()
            ))
        })?;
        let mut signatures = || {
            let mut found = Vec::new();
            while let Some(Packet::Signature(signature)) =
                packets.next_if(|packet| matches!(packet, Packet::Signature(_)))
            {
                found.push(signature);
            }
            let next = packets.next();
            (found, next)
        };
        let (about_it, mut next) = signatures();
        // A revocation counts as it is there: also one that another key was allowed to make, or that can't be verified.
        let is_revoked = has(&about_it, SignatureType::KeyRevocation);
        let of_primary =
            |it: &&Signature| it.typ() == Some(SignatureType::Key) && it.verify_key(&primary).is_ok();
        let mut latest = latest(about_it.iter().filter(of_primary), &primary);
        let mut subkeys = Vec::new();
        while let Some(packet) = next {
            let (found, after) = signatures();
            next = after;
            match packet {
                Packet::UserId(id) if !has(&found, SignatureType::CertRevocation) => {
                    let own = found.iter().filter(|it| is_self_signature(it, &primary, &id));
                    latest = later(latest, super::key::latest(own, &primary));
                }
                Packet::UserId(_) | Packet::UserAttribute(_) => {}
                Packet::PublicSubkey(subkey) => subkeys.push((subkey, found)),
                Packet::SecretKey(_) | Packet::SecretSubkey(_) => return Err(KeyError::Private),
                _ => return Err(KeyError::Structure),
            }
        }
        let Some(own) = latest else {
            return Err(KeyError::Unsigned(fingerprint));
        };
        let mut parts: Vec<Part> = subkeys
            .into_iter()
            .filter_map(|(subkey, about)| part(subkey, &about, &primary, own, is_revoked))
            .collect();
        if own.signs {
            parts.insert(
                0,
                Part {
                    fingerprint: fingerprint.clone(),
                    key: Key::Primary(primary),
                    until: own.until,
                    is_revoked,
                },
            );
        }
        if parts.is_empty() {
            return Err(KeyError::DoesNotSign(fingerprint));
        }
        Ok(Self { fingerprint, parts })
    }

    /// Returns the fingerprint of the primary key: `pgp:` and 40 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the fingerprints of the parts that sign, or once did.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.fingerprint.as_str())
    }

    /// Returns whether the part with this fingerprint is one that signs.
    pub(super) fn signs_with(&self, part: &str) -> bool {
        self.part(part).is_some()
    }

    /// Returns why a part of the key does not sign at this time.
    pub(super) fn refuses(&self, part: &str, when: When) -> Option<NotAllowed> {
        let key = part.to_owned();
        let Some(part) = self.part(part) else {
            return Some(NotAllowed::Unknown(key));
        };
        if part.is_revoked {
            return Some(NotAllowed::Revoked(key));
        }
        let end = part.until.filter(|end| when.at_least() >= *end);
        end.map(|at| NotAllowed::Expired { key, at })
    }

    /// Returns whether a signature over a text is by this part.
    pub(super) fn verify(&self, part: &str, signature: &Signature, text: &[u8]) -> bool {
        self.part(part).is_some_and(|part| match &part.key {
            Key::Primary(key) => signature.verify(key, text).is_ok(),
            Key::Subkey(key) => signature.verify(key, text).is_ok(),
        })
    }

    fn part(&self, fingerprint: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.fingerprint == fingerprint)
    }
}

/// Returns a subkey that signs: the primary key says so, and the subkey that it belongs to that key (the *back signature*).
fn part(
    subkey: PublicSubkey,
    about: &[Signature],
    primary: &PublicKey,
    own: Statement,
    is_revoked: bool,
) -> Option<Part> {
    let fingerprint = shown(&subkey.fingerprint()).filter(|_| is_usable(&subkey))?;
    let binds = |it: &&Signature| {
        it.typ() == Some(SignatureType::SubkeyBinding) && it.verify_subkey_binding(primary, &subkey).is_ok()
    };
    let bound = about.iter().filter(binds);
    let newest = bound
        .filter_map(|it| Some((statement(it, &subkey)?, it)))
        .max_by_key(|(said, _)| said.rank());
    let (said, binding) = newest?;
    let back = binding.embedded_signature()?;
    let is_accepted = said.signs && usable(back) && back.verify_primary_key_binding(&subkey, primary).is_ok();
    is_accepted.then(|| Part {
        fingerprint,
        until: earlier(said.until, own.until),
        is_revoked: is_revoked || has(about, SignatureType::SubkeyRevocation),
        key: Key::Subkey(subkey),
    })
}

/// Returns whether a key is one of version 4 with Ed25519.
fn is_usable(key: &impl KeyDetails) -> bool {
    let is_ed25519_curve = match key.public_params() {
        PublicParams::EdDSALegacy(params) => {
            matches!(params, pgp::types::EddsaLegacyPublicParams::Ed25519 { .. })
        }
        PublicParams::Ed25519(_) => true,
        _ => false,
    };
    is_ed25519(key.algorithm()) && is_ed25519_curve
}

/// Returns whether a signature of the key's owner is looked at.
fn usable(signature: &Signature) -> bool {
    let is_known = |part: &SubpacketData| {
        !matches!(
            part,
            SubpacketData::Notation(_) | SubpacketData::Experimental(..) | SubpacketData::Other(..)
        )
    };
    unusable(signature, is_known).is_none()
}

fn has(signatures: &[Signature], kind: SignatureType) -> bool {
    signatures.iter().any(|it| it.typ() == Some(kind))
}

fn is_self_signature(signature: &Signature, primary: &PublicKey, id: &UserId) -> bool {
    signature.typ() != Some(SignatureType::CertRevocation)
        && signature.verify_certification(primary, Tag::UserId, id).is_ok()
}

/// Returns the latest statement about a key.
fn latest<'a>(signatures: impl Iterator<Item = &'a Signature>, key: &impl KeyDetails) -> Option<Statement> {
    signatures
        .filter_map(|it| statement(it, key))
        .max_by_key(|said| said.rank())
}

/// Returns what a signature says about a key, whose signature was verified.
fn statement(signature: &Signature, key: &impl KeyDetails) -> Option<Statement> {
    if !usable(signature) {
        return None;
    }
    let made = signature.created()?;
    let life = |from: pgp::types::Timestamp, life: Option<pgp::types::Duration>| {
        life.filter(|life| life.as_secs() != 0)
            .and_then(|life| after(from, life))
    };
    Some(Statement {
        made,
        signs: signature.key_flags().sign(),
        until: earlier(
            life(key.created_at(), signature.key_expiration_time()),
            life(made, signature.signature_expiration_time()),
        ),
    })
}

impl Statement {
    /// What comes later; of the same second, what allows less.
    fn rank(&self) -> (u32, bool, Option<Reverse<Timestamp>>) {
        (self.made.as_secs(), !self.signs, self.until.map(Reverse))
    }
}

fn later(one: Option<Statement>, other: Option<Statement>) -> Option<Statement> {
    one.into_iter().chain(other).max_by_key(Statement::rank)
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// Returns the time that is so long after another.
pub(super) fn after(time: pgp::types::Timestamp, life: pgp::types::Duration) -> Option<Timestamp> {
    let second = u64::from(time.as_secs()) + u64::from(life.as_secs());
    Timestamp::from_second(i64::try_from(second).ok()?).ok()
}
