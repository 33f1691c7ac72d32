//! Detached signatures.

use jiff::Timestamp;
use leaf_core::signed::NAMESPACE;
use pgp::packet::{Packet, Signature, SignatureType, SubpacketData};

use super::key::OpenPgpKey;
use super::packets::{packets, shown, unusable};
use crate::signer_line::When;

/// The value of the notation that says what a signature is for.
const PURPOSE: &[u8] = b"1";

/// A signature, which says by whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPgpSignature {
    signature: Signature,
    fingerprint: String,
}

/// Why a signature is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// It is no OpenPGP signature.
    #[error("this is not an OpenPGP signature as `gpg --detach-sign` makes it, in binary")]
    Malformed(#[source] pgp::errors::Error),
    /// It is something else, or more than one.
    #[error("this is not one OpenPGP signature over a file (type 0x00)")]
    Kind,
    /// It is not one that is looked at.
    #[error("the OpenPGP signature can't be used: {0}")]
    Unusable(String),
    /// It does not say whose it is.
    #[error(
        "the OpenPGP signature does not say by which key it is (issuer fingerprint, of a key of version 4)"
    )]
    Anonymous,
    /// It is for another purpose.
    #[error(
        "the OpenPGP signature is not for a command: it has no notation {NAMESPACE}=1 (`gpg --sig-notation`)"
    )]
    Purpose,
    /// It has ended by itself.
    #[error("the OpenPGP signature expired at {0}")]
    Expired(Timestamp),
    /// It does not fit the text and the key.
    #[error("the signature is not by its key over this text: one of them was altered")]
    Wrong,
}

impl OpenPgpSignature {
    /// Reads the bytes of a detached signature.
    ///
    /// # Errors
    /// [`SignatureError`], but neither `Expired` nor `Wrong`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        let packets = packets(bytes).map_err(SignatureError::Malformed)?;
        let Ok([Packet::Signature(signature)]) = <[Packet; 1]>::try_from(packets) else {
            return Err(SignatureError::Kind);
        };
        if signature.typ().is_some_and(|kind| kind != SignatureType::Binary) {
            return Err(SignatureError::Kind);
        }
        let is_known = |part: &SubpacketData| match part {
            SubpacketData::SignatureCreationTime(_)
            | SubpacketData::SignatureExpirationTime(_)
            | SubpacketData::IssuerKeyId(_)
            | SubpacketData::IssuerFingerprint(_)
            | SubpacketData::SignersUserID(_)
            | SubpacketData::PolicyURI(_) => true,
            SubpacketData::Notation(notation) => notation.name == NAMESPACE.as_bytes(),
            _ => false,
        };
        if let Some(why) = unusable(&signature, is_known) {
            return Err(SignatureError::Unusable(why));
        }
        let hashed = || {
            signature
                .config()
                .into_iter()
                .flat_map(|config| config.hashed_subpackets())
        };
        let mut issuers = hashed().filter_map(|part| match &part.data {
            SubpacketData::IssuerFingerprint(fingerprint) => Some(shown(fingerprint)),
            _ => None,
        });
        let (Some(Some(fingerprint)), None) = (issuers.next(), issuers.next()) else {
            return Err(SignatureError::Anonymous);
        };
        let mut purposes = hashed().filter_map(|part| match &part.data {
            SubpacketData::Notation(notation) if notation.name == NAMESPACE.as_bytes() => {
                Some(&notation.value)
            }
            _ => None,
        });
        if purposes.next().is_none_or(|purpose| purpose != PURPOSE) || purposes.next().is_some() {
            return Err(SignatureError::Purpose);
        }
        drop((issuers, purposes));
        Ok(Self {
            signature,
            fingerprint,
        })
    }

    /// Returns the fingerprint of the key or subkey that it says it is by: `pgp:` and 40 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Checks that the signature is by a key, or one of its subkeys, over this text, and has not ended.
    ///
    /// # Errors
    /// [`SignatureError::Expired`] or [`SignatureError::Wrong`].
    pub fn verify(&self, key: &OpenPgpKey, text: &[u8], when: When) -> Result<(), SignatureError> {
        let end = self
            .signature
            .created()
            .zip(self.signature.signature_expiration_time());
        let end = end.filter(|(_, life)| life.as_secs() != 0);
        let end = end.and_then(|(made, life)| super::key::after(made, life));
        if let Some(end) = end.filter(|end| when.at_least() >= *end) {
            return Err(SignatureError::Expired(end));
        }
        key.verify(&self.fingerprint, &self.signature, text)
            .then_some(())
            .ok_or(SignatureError::Wrong)
    }
}
