use clap::Args;
use leaf_bus::rights::{self, Finding, Report, Users};
use leaf_core::id::LeafName;

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;
use crate::progress::waiting;
use crate::session;

/// Try the rights of the context's user: each that a person must have, and each that a person must not have.
///
/// Changes nothing. One line for each right; fails where one is not as it must be. `leafd check-nats` on a leaf tries the
/// rights of the leaf's own users, and with `--context` those that take two users.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The leaf whose events and state the person reads. Only its name counts: it may be away.
    #[arg(value_name = "LEAF")]
    name: LeafName,
}

impl Check {
    pub(crate) async fn run(self, global: &Global, output: Output) -> Result<(), Error> {
        let settings = session::settings(global)?;
        let caller = settings.caller().ok_or_else(|| {
            Error::Usage(
                "the context names no caller: set its inbox_prefix to _INBOX.NAME, with the name that the user's commands have"
                    .to_owned(),
            )
        })?;
        let users = Users {
            person: Some((caller, settings)),
            ..Users::default()
        };
        let report = waiting("trying each right", rights::check(&self.name, &users)).await;
        output.document(&report, |report| {
            let mut table = output.table(&Report::HEADING);
            for row in report.findings.iter().map(Finding::row) {
                table.add_row(row);
            }
            table
        })?;
        if report.ok {
            return Ok(());
        }
        Err(Error::Rights {
            wrong: report.wrong(),
            of: report.findings.len(),
        })
    }
}
