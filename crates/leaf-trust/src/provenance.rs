//! Signs and verifies a leaf's statements about what it built: DSSE envelopes with an Ed25519 key. docs/provenance.md is the contract.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use leaf_core::provenance::envelope::{Envelope, EnvelopeSignature, PAYLOAD_TYPE, signed_text};
use leaf_core::provenance::statement::Statement;
use ssh_encoding::LineEnding;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey, Signature};
use zeroize::Zeroizing;

/// The length of an Ed25519 seed, in bytes.
pub const SEED_BYTES: usize = 32;

/// The private key of a leaf's statements.
pub struct ProvenanceKey(PrivateKey);

/// The public key of a leaf's statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenancePublicKey(PublicKey);

/// Why a text is no key of statements.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceKeyError {
    /// It is not an OpenSSH private key.
    #[error("it is not an OpenSSH private key")]
    Private(#[source] ssh_key::Error),
    /// It is not a line of a `.pub` file.
    #[error(
        "it is not an SSH public key: one is a line such as `ssh-ed25519 AAAA…`, as in provenance_ed25519.pub of the leaf"
    )]
    Public(#[source] ssh_key::Error),
    /// It is a key of another type.
    #[error("it is a key of the type {0}, and statements are signed by ssh-ed25519 keys")]
    Algorithm(String),
}

/// Why an envelope is not what it says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It holds something else.
    #[error("it is no in-toto statement, but of the type {0:?}")]
    PayloadType(String),
    /// A part is no base64.
    #[error("its {0} is no base64")]
    Base64(&'static str),
    /// No signature is of the key.
    #[error("it is not signed by the key {wanted}, but by {found}")]
    OtherKey {
        /// The fingerprint of the key.
        wanted: String,
        /// The key ids of the signatures.
        found: String,
    },
    /// The signature is wrong.
    #[error("the signature of the key {0} is wrong: the statement was changed, or somebody else made it")]
    Wrong(String),
    /// What is signed is no statement of provenance.
    #[error("what is signed is no statement of provenance: {0}")]
    Statement(String),
}

impl ProvenanceKey {
    /// Returns the key of a random seed.
    #[must_use]
    pub fn from_seed(seed: &Zeroizing<[u8; SEED_BYTES]>) -> Self {
        Self(PrivateKey::from(Ed25519Keypair::from_seed(seed)))
    }

    /// Reads an OpenSSH private key without a passphrase.
    ///
    /// # Errors
    /// [`ProvenanceKeyError`] if it is no Ed25519 key.
    pub fn from_openssh(text: &[u8]) -> Result<Self, ProvenanceKeyError> {
        let key = PrivateKey::from_openssh(text).map_err(ProvenanceKeyError::Private)?;
        match key.algorithm() {
            Algorithm::Ed25519 => Ok(Self(key)),
            other => Err(ProvenanceKeyError::Algorithm(other.to_string())),
        }
    }

    /// Returns it as an OpenSSH private key.
    ///
    /// # Errors
    /// [`ProvenanceKeyError::Private`], which a key in memory has no reason for.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, ProvenanceKeyError> {
        self.0
            .to_openssh(LineEnding::LF)
            .map_err(ProvenanceKeyError::Private)
    }

    /// Returns its public key.
    #[must_use]
    pub fn public(&self) -> ProvenancePublicKey {
        ProvenancePublicKey(self.0.public_key().clone())
    }

    /// Signs a statement: its JSON.
    ///
    /// # Errors
    /// [`ProvenanceKeyError::Private`] if the key can't sign.
    pub fn sign(&self, statement: &[u8]) -> Result<Envelope, ProvenanceKeyError> {
        use ssh_key::private::KeypairData;

        let text = signed_text(PAYLOAD_TYPE, statement);
        let KeypairData::Ed25519(pair) = self.0.key_data() else {
            return Err(ProvenanceKeyError::Algorithm(self.0.algorithm().to_string()));
        };
        let signature: Signature = signature::Signer::try_sign(pair, &text)
            .map_err(|_| ProvenanceKeyError::Private(ssh_key::Error::Crypto))?;
        Ok(Envelope {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: BASE64.encode(statement),
            signatures: vec![EnvelopeSignature {
                keyid: self.public().fingerprint(),
                sig: BASE64.encode(signature.as_bytes()),
            }],
        })
    }
}

impl fmt::Debug for ProvenanceKey {
    /// Shows the public key only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProvenanceKey").field(&self.public()).finish()
    }
}

impl ProvenancePublicKey {
    /// Returns the fingerprint as `ssh-keygen -l` shows it: `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Returns the statement of an envelope that this key has signed.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify(&self, envelope: &Envelope) -> Result<Statement, EnvelopeError> {
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::PayloadType(envelope.payload_type.clone()));
        }
        let decode = |text: &str, what| {
            BASE64
                .decode(text.as_bytes())
                .map_err(|_| EnvelopeError::Base64(what))
        };
        let payload = decode(&envelope.payload, "payload")?;
        let own = self.fingerprint();
        let signature = envelope
            .signatures
            .iter()
            .find(|signature| signature.keyid == own);
        let Some(signature) = signature else {
            let found: Vec<&str> = envelope.signatures.iter().map(|s| s.keyid.as_str()).collect();
            return Err(EnvelopeError::OtherKey {
                wanted: own,
                found: found.join(", "),
            });
        };
        let bytes = decode(&signature.sig, "signature")?;
        let text = signed_text(PAYLOAD_TYPE, &payload);
        let is_right = Signature::new(Algorithm::Ed25519, bytes)
            .is_ok_and(|signature| signature::Verifier::verify(self.0.key_data(), &text, &signature).is_ok());
        if !is_right {
            return Err(EnvelopeError::Wrong(own));
        }
        Statement::parse(&payload).map_err(EnvelopeError::Statement)
    }
}

impl FromStr for ProvenancePublicKey {
    type Err = ProvenanceKeyError;

    /// Parses a line of a `.pub` file. Its comment is dropped.
    fn from_str(line: &str) -> Result<Self, ProvenanceKeyError> {
        let mut key = PublicKey::from_openssh(line.trim()).map_err(ProvenanceKeyError::Public)?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(ProvenanceKeyError::Algorithm(key.algorithm().to_string()));
        }
        key.set_comment("");
        Ok(Self(key))
    }
}

impl fmt::Display for ProvenancePublicKey {
    /// Writes it as a line of a `.pub` file, without a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(first: u8) -> ProvenanceKey {
        let mut seed = Zeroizing::new([7; SEED_BYTES]);
        seed[0] = first;
        ProvenanceKey::from_seed(&seed)
    }

    fn text_of(statement: &Value) -> Vec<u8> {
        statement.to_string().into_bytes()
    }

    fn statement() -> Value {
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "name": "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a", "digest": { "sha256": "00" } }],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {},
        })
    }

    #[test]
    fn a_signed_statement_is_verified_by_its_key_alone() {
        let envelope = key(1).sign(&text_of(&statement())).expect("signed");
        let verified = key(1).public().verify(&envelope).expect("verified");
        assert_eq!(verified.subject.len(), 1);
        let other = key(2).public().verify(&envelope);
        assert!(matches!(other, Err(EnvelopeError::OtherKey { .. })), "{other:?}");
        // Somebody else's signature under this key's id.
        let forged = Envelope {
            signatures: vec![EnvelopeSignature {
                keyid: key(1).public().fingerprint(),
                ..key(2).sign(&text_of(&statement())).expect("signed").signatures[0].clone()
            }],
            ..envelope
        };
        assert!(matches!(
            key(1).public().verify(&forged),
            Err(EnvelopeError::Wrong(_))
        ));
    }

    #[test]
    fn whatever_is_changed_in_an_envelope_is_noticed() {
        let envelope = key(1).sign(&text_of(&statement())).expect("signed");
        let with = |change: &dyn Fn(&mut Envelope)| {
            let mut changed = envelope.clone();
            change(&mut changed);
            key(1).public().verify(&changed).expect_err("it was changed")
        };
        let mut other = statement();
        other["subject"][0]["digest"]["sha256"] = "01".into();
        let payload = BASE64.encode(other.to_string().as_bytes());
        assert!(matches!(
            with(&|e| e.payload = payload.clone()),
            EnvelopeError::Wrong(_)
        ));
        assert!(matches!(
            with(&|e| e.payload = "?".to_owned()),
            EnvelopeError::Base64("payload")
        ));
        assert!(matches!(
            with(&|e| e.payload_type = "text/plain".to_owned()),
            EnvelopeError::PayloadType(_)
        ));
        assert!(matches!(
            with(&|e| e.signatures.clear()),
            EnvelopeError::OtherKey { .. }
        ));
        assert!(matches!(
            with(&|e| e.signatures[0].sig = "AA==".to_owned()),
            EnvelopeError::Wrong(_)
        ));
        // A signature of the key over another type of statement proves nothing about builds.
        let mut other = statement();
        other["predicateType"] = "https://example.org/other".into();
        let signed = key(1).sign(&text_of(&other)).expect("signed");
        assert!(matches!(
            key(1).public().verify(&signed),
            Err(EnvelopeError::Statement(_))
        ));
    }

    #[test]
    fn keys_are_written_and_read_as_ssh_keygen_does() {
        let text = key(1).to_openssh().expect("a text");
        assert_eq!(
            ProvenanceKey::from_openssh(text.as_bytes())
                .expect("a key")
                .public(),
            key(1).public()
        );
        let line = format!("{} a comment", key(1).public());
        assert_eq!(
            line.parse::<ProvenancePublicKey>().expect("a key"),
            key(1).public()
        );
        for bad in ["", "ssh-ed25519", "ssh-rsa AAAA", "garbage"] {
            assert!(bad.parse::<ProvenancePublicKey>().is_err(), "{bad}");
        }
    }
}
