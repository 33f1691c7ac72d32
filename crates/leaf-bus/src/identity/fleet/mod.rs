//! The keys of a fleet whose hub has a NATS operator: which accounts and roles there are, their JWTs, and users of the roles.
//! `docs/keys.md` is the contract.
//!
//! Pure but for the making of keys: whoever keeps them (`leafctl fleet`) stores and pushes what is made here.

mod accounts;
mod key;
mod revocations;
mod role;

pub use accounts::{Fleet, operator_jwt, preload, server_config};
pub use key::{KeyError, KeyKind, NatsKey};
pub use revocations::{Revocations, Shrunk};
pub use role::{Account, Role};

use std::time::Duration;

use leaf_core::host_op::Secret;
use serde_json::json;

use super::jwt::{self, Claims};

/// The longest life that a credential can have.
pub const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A user of a role, just made.
#[derive(Debug)]
pub struct FleetUser {
    /// The public key.
    pub key: String,
    /// The JWT.
    pub jwt: String,
    /// The text of the credentials file: the JWT and the seed.
    pub credentials: Secret,
}

/// Makes a user of a role with a new key. Its rights are those of the role, so its JWT has none. `account` is the public key of
/// the role's account, `signer` the role's key; both times are seconds of the Unix epoch.
#[must_use]
pub fn new_user(name: &str, account: &str, signer: &NatsKey, issued_at: i64, expires_at: i64) -> FleetUser {
    let user = NatsKey::new(KeyKind::User);
    let key = user.public_key();
    let jwt = jwt::sign(
        Claims {
            subject: &key,
            name,
            issued_at,
            expires_at: Some(expires_at),
            nats: json!({ "type": "user", "version": 2, "issuer_account": account }),
        },
        signer.pair(),
    );
    FleetUser {
        credentials: Secret::new(jwt::credentials(&jwt, user.pair())),
        key,
        jwt,
    }
}
