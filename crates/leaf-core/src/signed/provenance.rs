//! What is known of the sender of a command, beside its subject.

/// What is known of the sender of a command, beside the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provenance {
    /// The command is not signed.
    Unsigned,
    /// It is signed by a key that may sign for its caller, for this leaf, now.
    Signed {
        /// The fingerprint of the key: `SHA256:…`.
        signer: String,
    },
    /// It is signed, and the signature is refused.
    Refused(RefusedSignature),
}

/// A signature that a leaf refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedSignature {
    /// The fingerprint of the key, if the signature could be read.
    pub signer: Option<String>,
    /// The reason.
    pub reason: String,
    /// Whether the leaf's files or settings name the caller.
    pub is_named: bool,
}
