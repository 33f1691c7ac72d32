//! SSH keys, signatures and encrypted files of a leaf and its people: what several crates need of cryptography, as functions of bytes.
//!
//! - [`host_key`]: the SSH host key of a leaf, which files are encrypted to
//! - [`ssh_signature`], [`allowed_signers`], [`agent`]: signatures of people's keys, who may make them, and ssh-agent
//! - `openpgp`, with the cargo feature of that name: signatures of people's OpenPGP keys, and who may make them
//! - [`age_file`]: files that only a leaf's host key decrypts
//! - [`provenance`]: a leaf's statements about what it built, signed and verified
//! - [`session_key`]: the key of the client of a session, and its signatures
//! - [`secret`]: the document of a secret, which an age file brings to a leaf
//!
//! The signing keys and credentials of NATS are in `leaf-bus`. `docs/security.md` is the contract.

pub mod age_file;
pub mod agent;
pub mod allowed_signers;
pub mod host_key;
#[cfg(feature = "openpgp")]
pub mod openpgp;
mod pattern;
pub mod provenance;
pub mod secret;
pub mod session_key;
mod signer_line;
pub mod ssh_signature;
#[cfg(test)]
mod test_keys;
