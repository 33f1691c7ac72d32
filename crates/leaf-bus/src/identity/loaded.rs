//! Makes a server load all accounts before it lets clients in.
//!
//! nats-server loads an account with its first client, and checks another one that comes meanwhile against what it has of the account
//! by then: the signing keys before the revocations (`buildInternalAccount` of 2.15). A revoked user is let in by a server that just
//! starts, if others connect at the same time. The system account is loaded before, and with it what it imports from.

use serde_json::{Value, json};

/// A subject on which nobody may publish or subscribe.
const SUBJECT: &str = "cim-leaf.loaded";

/// Returns what an account exports to be loaded.
pub(super) fn export() -> Value {
    json!({ "name": SUBJECT, "subject": SUBJECT, "type": "stream" })
}

/// Returns what the system account imports from an account with this name and public key.
pub(super) fn import(account: &str, key: &str) -> Value {
    let local = format!("{SUBJECT}.{account}");
    json!({ "name": local, "subject": SUBJECT, "account": key, "type": "stream", "local_subject": local })
}
