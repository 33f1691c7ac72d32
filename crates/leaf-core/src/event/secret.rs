//! Facts about secrets. Nothing in them is secret.

use super::declare::facts;
use crate::id::{Caller, SecretName};
use crate::secret::SecretUser;

facts! {
    SecretFact of "secret";

    /// A secret was set or replaced.
    Set: SecretSet = "set" v 1 about Secret(name) {
        /// The secret's name.
        name: SecretName,
        /// The caller that set it; `leafd` if its file was replaced on the host.
        caller: Caller,
        /// How often it was set since it was removed last, from 1.
        generation: u64,
        /// The size of its age file, in bytes.
        file_bytes: u64,
        /// The SHA-256 of its age file, as 64 hexadecimal digits.
        digest: String,
        /// The users that it names. Nothing else gets it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        users: Vec<SecretUser>,
    }

    /// A secret was removed.
    Removed: SecretRemoved = "removed" v 1 about Secret(name) {
        /// The secret's name.
        name: SecretName,
        /// The caller that removed it; `leafd` if its file was removed on the host.
        caller: Caller,
    }
}
