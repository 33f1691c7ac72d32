use clap::Args;
use leaf_core::command::RemoveSecret;
use leaf_core::id::SecretName;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Remove a secret from a leaf.
///
/// Containers and units that have it keep it until they end; a container that uses it does not start again.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The secret's name.
    name: SecretName,
}

impl Remove {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = RemoveSecret { name: self.name };
        session
            .show_slow(
                "waiting for the leaf to remove the secret",
                &request,
                output,
                |removed| fields(&[("removed", removed.name.to_string())]),
            )
            .await
    }
}
