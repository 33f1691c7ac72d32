//! Provenance: a leaf's signed statement about what it built. docs/provenance.md is the contract.
//!
//! | module | contents |
//! |---|---|
//! | [`envelope`] | the envelope of a signed statement, and the text that is signed |
//! | [`statement`] | the statement |
//!
//! `leaf-trust` signs and verifies.

pub mod envelope;
pub mod statement;
