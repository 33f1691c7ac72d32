//! The keys of the NATS operator, of accounts, and of users.

use leaf_core::host_op::Secret;
use nkeys::{KeyPair, KeyPairType};

/// The kind of holder of an NKEY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The NATS operator, or a signing key of it. The public key begins with `O`, the seed with `SO`.
    Operator,
    /// An account, or a signing key of it: `A`, `SA`.
    Account,
    /// A user: `U`, `SU`.
    User,
}

/// Why a text is not the seed of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is no seed.
    #[error("this is not the seed of a NATS key: {0}")]
    Malformed(String),
    /// It is the seed of another kind of key.
    #[error("this is the seed of another kind of NATS key, whose public key is {0}")]
    OtherKind(String),
}

/// A key with its seed.
pub struct NatsKey(KeyPair);

impl NatsKey {
    /// Makes a key.
    #[must_use]
    pub fn new(kind: KeyKind) -> Self {
        Self(KeyPair::new(kind.of_nkeys()))
    }

    /// Reads a seed.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_seed(seed: &str, kind: KeyKind) -> Result<Self, KeyError> {
        let pair = KeyPair::from_seed(seed.trim()).map_err(|error| KeyError::Malformed(error.to_string()))?;
        if pair.key_pair_type() != kind.of_nkeys() {
            return Err(KeyError::OtherKind(pair.public_key()));
        }
        Ok(Self(pair))
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.0.public_key()
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> Secret {
        Secret::new(self.0.seed().expect("the key was made here or from its seed"))
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl KeyKind {
    fn of_nkeys(self) -> KeyPairType {
        match self {
            Self::Operator => KeyPairType::Operator,
            Self::Account => KeyPairType::Account,
            Self::User => KeyPairType::User,
        }
    }
}

impl std::fmt::Debug for NatsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NatsKey({})", self.public_key())
    }
}
