//! The key of a session's client: plain Ed25519 (RFC 8032), made for one session and kept in memory.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// A client's key.
#[derive(Debug)]
pub struct SessionKey(SigningKey);

impl SessionKey {
    /// Returns the key of 32 random bytes.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&random))
    }

    /// Returns its public part.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Returns the signature over a text.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> [u8; 64] {
        self.0.sign(text).to_bytes()
    }
}

/// Returns whether a signature over a text is that of a public key. Strict: keys of small order have none.
#[must_use]
pub fn is_signed_by(public: &[u8], text: &[u8], signature: &[u8]) -> bool {
    let (Ok(public), Ok(signature)) = (public.try_into(), Signature::from_slice(signature)) else {
        return false;
    };
    VerifyingKey::from_bytes(public).is_ok_and(|key| key.verify_strict(text, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_own_signature_over_this_text_is_taken() {
        let (key, other) = (SessionKey::new([7; 32]), SessionKey::new([8; 32]));
        let signature = key.sign(b"text");
        assert!(is_signed_by(&key.public(), b"text", &signature));
        assert!(!is_signed_by(&other.public(), b"text", &signature));
        assert!(!is_signed_by(&key.public(), b"texT", &signature));
        assert!(!is_signed_by(&key.public(), b"text", &signature[1..]));
        assert!(!is_signed_by(b"short", b"text", &signature));
        // The neutral element: of it, every text has the signature of zeros.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut zeros = [0; 64];
        zeros[0] = 1;
        assert!(!is_signed_by(&neutral, b"text", &zeros));
    }
}
