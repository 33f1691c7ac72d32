//! Changes that can cut a leaf off, and that count only once somebody outside confirmed them (docs/decisions/0026).
//!
//! [`witness_text`] is what a witness signs. [`Armed`], [`Asking`], [`Decided`] and [`HubOverride`] are the files in the state
//! directory of changes, which only `leaf-helper` writes. [`HubChange`] is the change of the hub's settings, [`SystemChange`]
//! that of the whole system.

mod hub;
mod record;
mod system;

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{ChangeId, LeafName};

pub use hub::{HubChange, HubChangeError, HubOverride, MAX_CA_BYTES, MAX_CREDENTIALS_BYTES, MAX_URL_BYTES};
pub use record::{
    Armed, Asking, Decided, Decision, KIND_HUB, KIND_SYSTEM, Outcome, SavedFile, VERSION, WayBack,
};
pub use system::{
    ArmedSystem, KeptGenerations, MAX_ALLOWED_UNITS, SystemChange, SystemChangeError, SystemMode,
    is_unit_name,
};

/// The namespace of a witness's signatures (`ssh-keygen -Y sign -n`).
pub const NAMESPACE: &str = "witness@cim-leaf";

/// The shortest time in which a change must be confirmed, in seconds.
pub const MIN_SECONDS: u32 = 30;
/// The longest time in which a change must be confirmed, in seconds.
pub const MAX_SECONDS: u32 = 3600;

/// Returns the text that a witness signs to confirm a change of a leaf.
#[must_use]
pub fn witness_text(leaf: &LeafName, change: ChangeId, nonce: &WitnessNonce) -> String {
    format!("cim-leaf witness 1\nleaf: {leaf}\nchange: {change}\nnonce: {nonce}\n")
}

/// The nonce of a change, which its witness signs: 32 random bytes, as text 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct WitnessNonce([u8; 32]);

/// A text that is not a nonce for a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a witness's nonce has 64 hexadecimal digits in lower case")]
pub struct InvalidNonce;

impl From<[u8; 32]> for WitnessNonce {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for WitnessNonce {
    type Err = InvalidNonce;

    fn from_str(text: &str) -> Result<Self, InvalidNonce> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| InvalidNonce)?;
        bytes.try_into().map(Self).map_err(|_| InvalidNonce)
    }
}

impl TryFrom<String> for WitnessNonce {
    type Error = InvalidNonce;

    fn try_from(text: String) -> Result<Self, InvalidNonce> {
        text.parse()
    }
}

impl From<WitnessNonce> for String {
    fn from(nonce: WitnessNonce) -> Self {
        nonce.to_string()
    }
}

impl fmt::Display for WitnessNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for WitnessNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The confirmation of a change: the signature of its witness, or the name of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ConfirmedBy {
    /// A witness, by its SSH signature over [`witness_text`] in the namespace [`NAMESPACE`]: its bytes in base64, with or without
    /// the lines of an armored one.
    Signature(String),
    /// A person who may command the leaf.
    Caller(crate::id::Caller),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_signs_the_leaf_the_change_and_the_nonce() {
        let leaf = LeafName::new("edge-1").expect("a name");
        let change = "0193f6b0-4c1e-7000-8000-000000000000".parse().expect("an id");
        let text = witness_text(&leaf, change, &WitnessNonce::from([0xab; 32]));
        assert_eq!(
            text,
            format!(
                "cim-leaf witness 1\nleaf: edge-1\nchange: 0193f6b0-4c1e-7000-8000-000000000000\nnonce: {}\n",
                "ab".repeat(32)
            )
        );
    }

    #[test]
    fn a_nonce_is_written_in_one_way() {
        let nonce = WitnessNonce::from([0x0f; 32]);
        let text = nonce.to_string();
        assert_eq!(text.parse(), Ok(nonce));
        for other in [
            "",
            &text[..63],
            &format!("{text}0"),
            &text.to_uppercase(),
            &format!("{text}\n"),
        ] {
            assert_eq!(other.parse::<WitnessNonce>(), Err(InvalidNonce), "{other:?}");
        }
        let json = serde_json::to_string(&nonce).expect("JSON");
        assert_eq!(
            serde_json::from_str::<WitnessNonce>(&json).expect("a nonce"),
            nonce
        );
    }
}
