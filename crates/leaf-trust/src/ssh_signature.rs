//! SSH signatures (`PROTOCOL.sshsig` of OpenSSH) by Ed25519 keys, in files and on FIDO tokens: as `ssh-keygen -Y sign` makes them, and
//! `ssh-keygen -Y verify` reads them.

use std::str::FromStr;

use ssh_encoding::{Decode as _, Encode as _, Reader as _};
use ssh_key::private::Ed25519Keypair;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, Signature, SshSig};
use zeroize::Zeroizing;

/// The bit of a token's signature that says that a person touched it (`PROTOCOL.u2f` of OpenSSH).
const USER_PRESENT: u8 = 1;

/// The hash of a text, which is what the key signs: the one of `ssh-keygen`.
const HASH: HashAlg = HashAlg::Sha512;

/// A public key that signs: `ssh-ed25519`, or `sk-ssh-ed25519@openssh.com` on a FIDO token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignerKey(KeyData);

/// Why a text is no key that signs.
#[derive(Debug, thiserror::Error)]
pub enum SignerKeyError {
    /// It is no public key.
    #[error("this is not an SSH public key, a line such as `ssh-ed25519 AAAA…`")]
    Malformed(#[source] ssh_key::Error),
    /// It is a key of another type.
    #[error("this is a key of the type {0}; only ssh-ed25519 and sk-ssh-ed25519@openssh.com can sign")]
    Algorithm(String),
}

impl SignerKey {
    /// Returns the fingerprint as `ssh-keygen -l` shows it: `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Returns whether the key is on a FIDO token.
    #[must_use]
    pub fn is_on_token(&self) -> bool {
        matches!(self.0, KeyData::SkEd25519(_))
    }

    /// Returns the bytes by which ssh-agent knows the key.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.encode(&mut bytes).expect("a key can be written");
        bytes
    }

    /// Returns the key as a line of a `.pub` file, without a comment.
    #[must_use]
    pub fn to_line(&self) -> String {
        PublicKey::from(self.0.clone())
            .to_openssh()
            .expect("a key can be written")
    }

    /// Reads the bytes by which ssh-agent knows a key.
    ///
    /// # Errors
    /// [`SignerKeyError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignerKeyError> {
        let key = PublicKey::from_bytes(bytes).map_err(SignerKeyError::Malformed)?;
        Self::of(key.key_data().clone())
    }

    fn of(key: KeyData) -> Result<Self, SignerKeyError> {
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::SkEd25519 => Ok(Self(key)),
            other => Err(SignerKeyError::Algorithm(other.to_string())),
        }
    }
}

impl FromStr for SignerKey {
    type Err = SignerKeyError;

    /// Parses a line of a `.pub` file. Its comment is dropped.
    fn from_str(line: &str) -> Result<Self, SignerKeyError> {
        let line = line.trim();
        // The types that this crate leaves out are told from what is no key.
        let kind = line.split_ascii_whitespace().next().unwrap_or_default();
        let is_other = ["ssh-rsa", "ssh-dss"].contains(&kind)
            || kind.contains("ecdsa-sha2-")
            || kind.contains("-cert-v0");
        if is_other && !kind.contains(|c: char| c.is_control()) {
            return Err(SignerKeyError::Algorithm(kind.to_owned()));
        }
        let key = PublicKey::from_openssh(line).map_err(SignerKeyError::Malformed)?;
        Self::of(key.key_data().clone())
    }
}

/// A signature, which says by whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSignature {
    signature: SshSig,
    key: SignerKey,
}

/// Why a signature is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// It is no SSH signature.
    #[error("this is not an SSH signature as `ssh-keygen -Y sign` makes it")]
    Malformed(#[source] ssh_key::Error),
    /// Its key can't be used.
    #[error("the signature is by a key that can't be used")]
    Key(#[source] SignerKeyError),
    /// It is for another purpose.
    #[error("the signature is in the namespace {found:?}, and must be in {expected:?}")]
    Namespace {
        /// The one that it is in.
        found: String,
        /// The one that it must be in.
        expected: &'static str,
    },
    /// The token was not touched.
    #[error(
        "the signature's key is on a token, which was not touched for it (no-touch-required): a touch is needed"
    )]
    NotTouched,
    /// It does not fit the text and the key.
    #[error("the signature is not by its key over this text: one of them was altered")]
    Wrong,
}

/// Why a private key can't sign.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It is no private key.
    #[error("this is not an SSH private key as `ssh-keygen -t ed25519` makes it")]
    Malformed(#[source] ssh_key::Error),
    /// It has a passphrase.
    #[error("the key has a passphrase: add it to ssh-agent with ssh-add, which then signs")]
    Encrypted,
    /// It is on a token.
    #[error("the key is on a token: add it to ssh-agent with ssh-add, which then signs")]
    OnToken,
    /// It is of another type.
    #[error("the key can't be used")]
    Key(#[source] SignerKeyError),
    /// The signature can't be made or read.
    #[error("can't sign with this key")]
    Failed(#[source] ssh_key::Error),
}

impl SshSignature {
    /// Reads the bytes of a signature, as they stand in base64 between the lines of an armored one.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`] or [`SignatureError::Key`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        let mut reader = bytes;
        let signature = SshSig::decode(&mut reader).map_err(SignatureError::Malformed)?;
        reader
            .finish(())
            .map_err(|error| SignatureError::Malformed(error.into()))?;
        let key = SignerKey::of(signature.public_key().clone()).map_err(SignatureError::Key)?;
        let read = Self { signature, key };
        // The crate also takes lengths within it that lead too far, and another version.
        if read.signature.version() != SshSig::VERSION || read.to_bytes() != bytes {
            return Err(SignatureError::Malformed(ssh_key::Error::FormatEncoding));
        }
        Ok(read)
    }

    /// Returns the bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.signature
            .encode(&mut bytes)
            .expect("a signature can be written");
        bytes
    }

    /// Returns the key that it says it is by.
    #[must_use]
    pub fn key(&self) -> &SignerKey {
        &self.key
    }

    /// Checks that the signature is by its key, over this text, for this purpose.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self, namespace: &'static str, text: &[u8]) -> Result<(), SignatureError> {
        let found = self.signature.namespace();
        if found != namespace {
            return Err(SignatureError::Namespace {
                found: found.to_owned(),
                expected: namespace,
            });
        }
        if self.key.is_on_token() {
            // The last five bytes are the flags and the token's counter.
            let flags = self.signature.signature_bytes().iter().rev().nth(4);
            if flags.is_none_or(|flags| flags & USER_PRESENT == 0) {
                return Err(SignatureError::NotTouched);
            }
        }
        let key = PublicKey::from(self.key.0.clone());
        key.verify(namespace, text, &self.signature)
            .map_err(|_| SignatureError::Wrong)
    }

    /// Signs a text with a private key in the form of OpenSSH, which has no passphrase and is on no token.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(private_key: &[u8], namespace: &str, text: &[u8]) -> Result<Self, SignError> {
        let key = private_key_of(private_key)?;
        let signature = key.sign(namespace, HASH, text).map_err(SignError::Failed)?;
        let key = SignerKey::of(signature.public_key().clone()).map_err(SignError::Key)?;
        Ok(Self { signature, key })
    }

    /// Returns the bytes that an agent has to sign for a text.
    ///
    /// # Errors
    /// [`SignError`], for an empty namespace.
    pub fn data_to_sign(namespace: &str, text: &[u8]) -> Result<Vec<u8>, SignError> {
        SshSig::signed_data(namespace, HASH, text).map_err(SignError::Failed)
    }

    /// Returns the signature of which an agent has made the inner part, over [`data_to_sign`](Self::data_to_sign).
    ///
    /// # Errors
    /// [`SignError`].
    pub fn of_agent(key: &SignerKey, namespace: &str, made: &[u8]) -> Result<Self, SignError> {
        let made = Signature::try_from(made).map_err(SignError::Failed)?;
        let signature = SshSig::new(key.0.clone(), namespace, HASH, made).map_err(SignError::Failed)?;
        Ok(Self {
            signature,
            key: key.clone(),
        })
    }
}

/// Returns the public part of a private key, also of one that can't sign by itself.
///
/// # Errors
/// [`SignError::Malformed`] or [`SignError::Key`].
pub fn public_key_of(private_key: &[u8]) -> Result<SignerKey, SignError> {
    let key = PrivateKey::from_openssh(private_key).map_err(SignError::Malformed)?;
    SignerKey::of(key.public_key().key_data().clone()).map_err(SignError::Key)
}

/// Returns the private key (`ssh-ed25519`) of 32 random bytes, in the form of OpenSSH and without a passphrase.
#[must_use]
pub fn private_key_of_seed(seed: &[u8; 32], comment: &str) -> Zeroizing<String> {
    let key = PrivateKey::new(Ed25519Keypair::from_seed(seed).into(), comment);
    let text = key.and_then(|key| key.to_openssh(LineEnding::LF));
    text.expect("an Ed25519 key can be written")
}

fn private_key_of(private_key: &[u8]) -> Result<PrivateKey, SignError> {
    let key = PrivateKey::from_openssh(private_key).map_err(SignError::Malformed)?;
    if key.is_encrypted() {
        return Err(SignError::Encrypted);
    }
    match key.algorithm() {
        Algorithm::Ed25519 => Ok(key),
        Algorithm::SkEd25519 => Err(SignError::OnToken),
        other => Err(SignError::Key(SignerKeyError::Algorithm(other.to_string()))),
    }
}

#[cfg(test)]
mod tests;
