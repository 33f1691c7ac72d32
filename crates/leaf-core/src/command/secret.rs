//! Commands about secrets. The age file of one is in `secret.set` alone: no reply, event or record of a command contains it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::host_op::Secret;
use crate::id::{ContainerName, SecretName};
use crate::secret::SecretRecord;

commands! {
    "secret";

    /// Sets a secret, or replaces it, and has its users take it up. Answered when the helper has decrypted and stored it.
    Set: SetSecret = "set" {
        kind: Change, about: Secret(name), needs: Secrets, disk: Takes, power: Secrets,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The secret's name.
        name: SecretName,
        /// The armored age file that `leafctl secret set` makes (docs/security.md): encrypted to the leaf's host key, at most
        /// 128 KiB.
        age: Secret,
    } -> SecretRecord

    /// Removes a secret. Containers and units that have it keep it until they end.
    Remove: RemoveSecret = "remove" {
        kind: Change, about: Secret(name), needs: Secrets, disk: Frees, power: Secrets,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The secret's name.
        name: SecretName,
    } -> RemovedSecret

    /// Lists the leaf's secrets, without their content.
    List: ListSecrets = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> SecretList

    /// Shows the leaf's host key, to which secrets are encrypted.
    Recipient: ShowRecipient = "recipient" {
        kind: Query, about: Leaf, needs: Secrets, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {} -> Recipient
}

/// A secret that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedSecret {
    /// Its name.
    pub name: SecretName,
}

/// The secrets of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretList {
    /// The secrets, by name.
    pub secrets: Vec<ListedSecret>,
}

/// A secret of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedSecret {
    /// The secret.
    #[serde(flatten)]
    pub secret: SecretRecord,
    /// The containers whose specs name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerName>,
}

/// The key that secrets are encrypted to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recipient {
    /// The public part of the leaf's SSH host key, as a line of a `.pub` file without a comment. Compare it with what you know of
    /// the leaf before you encrypt to it: the sender of this reply may be another.
    pub host_key: String,
}
