use clap::Args;
use leaf_core::command::ListSecrets;

use crate::error::Error;
use crate::output::{Output, ago};
use crate::session::Session;

/// List a leaf's secrets, without their content.
#[derive(Debug, Args)]
pub(crate) struct List;

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ListSecrets {}, output, |list| {
                let mut table = output.table(&["SECRET", "GENERATION", "SET", "BY", "FOR", "USED BY"]);
                for listed in &list.secrets {
                    let secret = &listed.secret;
                    let users: Vec<String> = secret.users.iter().map(ToString::to_string).collect();
                    let containers = listed.containers.iter().map(ToString::to_string);
                    table.add_row([
                        secret.name.to_string(),
                        secret.generation.to_string(),
                        ago(secret.set_at),
                        secret.set_by.to_string(),
                        users.join(", "),
                        containers.collect::<Vec<_>>().join(", "),
                    ]);
                }
                table
            })
            .await
    }
}
