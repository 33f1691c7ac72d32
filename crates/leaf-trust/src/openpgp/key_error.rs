//! Why a public key can't be used.

/// Why a public key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("a key is `pgp` and the key in base64, on one line: `gpg --export FINGERPRINT | base64 -w0`")]
    Base64,
    /// It is no public key.
    #[error("this is not an OpenPGP public key as `gpg --export` writes it")]
    Malformed(#[source] pgp::errors::Error),
    /// It is a private key.
    #[error("this is a private key, which has no place here: export the public one with `gpg --export`")]
    Private,
    /// There are several, or something else.
    #[error("this is not one OpenPGP public key: a line has one, `gpg --export FINGERPRINT`")]
    Structure,
    /// It is of another kind.
    #[error("this is an OpenPGP key of {0}; only those of version 4 with Ed25519 can sign")]
    Algorithm(String),
    /// Its own signature does not hold.
    #[error(
        "the OpenPGP key {0} has no signature of its own that can be used: it must be by Ed25519 over SHA-256, SHA-384 or SHA-512"
    )]
    Unsigned(String),
    /// None of its parts signs.
    #[error("neither the OpenPGP key {0} nor a subkey of it is one of Ed25519 that signs")]
    DoesNotSign(String),
}
