use std::path::Path;

use clap::Args;
use jiff::Timestamp;

use super::shared::{note_foreign, open_to_write};
use crate::error::Error;
use crate::global::Global;
use crate::output::Output;

/// Push the accounts to the hub's servers, with all revocations that they or the directory have, and read them back.
///
/// It is idempotent. With --server URL to another address of the hub.
#[derive(Debug, Args)]
pub(super) struct Push {}

impl Push {
    pub(super) async fn run(self, dir: &Path, global: &Global, output: Output) -> Result<(), Error> {
        let mut directory = open_to_write(dir)?;
        let pushed = directory
            .push(global.server.as_deref(), global.timeout, Timestamp::now())
            .await?;
        note_foreign(&pushed, output);
        output.document(&serde_json::json!({ "accounts": pushed }), |_| {
            let mut table = output.table(&["ACCOUNT", "SERVERS", "REVOKED", "STATE"]);
            for account in &pushed {
                let state = if account.pushed { "pushed" } else { "unchanged" };
                table.add_row([
                    account.account,
                    &account.servers.to_string(),
                    &account.revoked.to_string(),
                    state,
                ]);
            }
            table
        })
    }
}
