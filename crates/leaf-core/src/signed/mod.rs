//! Signed commands: what is signed, and what a leaf holds a signed text against. `docs/security.md` is the contract.
//!
//! [`SignedText`] is the text; [`SignedText::check`] compares it with the message that it came with; [`Freshness`] and [`NonceKey`]
//! decide whether it holds now; [`CommandRules`] says which commands need a signature. The signature itself is verified by
//! `leaf-trust`, and whose key it is decided by the files of the leaf's owner.

mod freshness;
mod nonce;
mod provenance;
mod refusals;
mod rules;
mod text;

pub use freshness::{Freshness, LONGEST, Marks, NotFresh, TOLERANCE};
pub use nonce::{Nonce, NonceError, NonceKey};
pub use provenance::{Provenance, RefusedSignature};
pub use refusals::{Counted, Refusals};
pub use rules::{CommandRules, RulesError, Subject};
pub use text::{MAX_TEXT_BYTES, Mismatch, Sent, SignedText, TextError, body_hash, id_at};

/// The namespace of the signatures (`ssh-keygen -Y sign -n`).
pub const NAMESPACE: &str = "command@cim-leaf";

/// The header with the signed text, in base64.
pub const TEXT_HEADER: &str = "Leaf-Signed";

/// The header with the signature: its kind ([`SSH_KIND`], [`OPENPGP_KIND`]), a colon, and its bytes in base64.
pub const SIGNATURE_HEADER: &str = "Leaf-Signature";

/// The kind of an SSH signature.
pub const SSH_KIND: &str = "ssh";

/// The kind of an OpenPGP signature. A leafd reads it if it was built with the feature `openpgp`.
pub const OPENPGP_KIND: &str = "pgp";

/// The largest signature, in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 4 * 1024;
