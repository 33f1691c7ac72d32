use clap::Args;
use leaf_core::command::RescanHardware;
use leaf_core::id::DeviceId;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Scan the hardware now, and show what has changed.
#[derive(Debug, Args)]
pub(crate) struct Rescan;

impl Rescan {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&RescanHardware {}, output, |r| {
                let list = |what: &str, ids: &[DeviceId]| {
                    ids.iter().map(|id| format!("{what} {id}\n")).collect::<String>()
                };
                let changes = list("appeared", &r.appeared)
                    + &list("changed ", &r.changed)
                    + &list("vanished", &r.vanished);
                format!(
                    "{} devices; {}",
                    r.devices,
                    if changes.is_empty() {
                        "no change".to_owned()
                    } else {
                        format!("changes:\n{changes}")
                    }
                )
            })
            .await
    }
}
