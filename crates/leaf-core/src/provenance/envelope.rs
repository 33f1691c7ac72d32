//! The envelope of a signed statement: DSSE.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the payload of an envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A DSSE envelope (<https://github.com/secure-systems-lab/dsse/blob/master/envelope.md>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The type of the payload: `application/vnd.in-toto+json`.
    pub payload_type: String,
    /// The statement, in base64.
    pub payload: String,
    /// The signatures: one.
    pub signatures: Vec<EnvelopeSignature>,
}

/// A signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvelopeSignature {
    /// The fingerprint of the key, as `ssh-keygen -l` prints it: `SHA256:…`.
    pub keyid: String,
    /// The Ed25519 signature over the [text that is signed](signed_text), in base64.
    pub sig: String,
}

/// Returns the text that is signed: DSSE's pre-authentication encoding.
#[must_use]
pub fn signed_text(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}
