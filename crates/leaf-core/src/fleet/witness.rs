//! What a leaf and a hub's agent say to each other about a change that can cut the leaf off ([`crate::change`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::change::WitnessNonce;
use crate::id::ChangeId;

/// A leaf's request for a signature that confirms a change: to the agent on `leaf.v1.hub.<leaf>.witness`. The leaf is that of the
/// subject, which no other leaf may publish on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessRequest {
    /// The change.
    pub change: ChangeId,
    /// What was made for this change, and makes the signature good for it alone.
    pub nonce: WitnessNonce,
}

/// The agent's reply to a request for a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum WitnessReply {
    /// The agent confirms the change.
    Signed {
        /// The SSH signature over [`witness_text`](crate::change::witness_text): its bytes in base64, with padding.
        signature: String,
    },
    /// The agent does not sign.
    Refused {
        /// The reason.
        why: String,
    },
    /// An answer of a newer agent.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_keep_their_form() {
        let change = "0193f6b0-4c1e-7000-8000-000000000000";
        let nonce = "ab".repeat(32);
        let request: WitnessRequest =
            serde_json::from_str(&format!(r#"{{"change":"{change}","nonce":"{nonce}"}}"#))
                .expect("a request");
        assert_eq!(
            (request.change.to_string(), request.nonce.to_string()),
            (change.to_owned(), nonce)
        );
        for (text, reply) in [
            (
                r#"{"answer":"signed","signature":"U1NI"}"#,
                WitnessReply::Signed {
                    signature: "U1NI".to_owned(),
                },
            ),
            (
                r#"{"answer":"refused","why":"no key"}"#,
                WitnessReply::Refused {
                    why: "no key".to_owned(),
                },
            ),
        ] {
            assert_eq!(
                serde_json::from_str::<WitnessReply>(text).expect("a reply"),
                reply
            );
            assert_eq!(serde_json::to_string(&reply).expect("JSON"), text);
        }
        let newer = serde_json::from_str(r#"{"answer":"later","seconds":5}"#);
        assert_eq!(newer.ok(), Some(WitnessReply::Unknown));
    }
}
