use clap::Args;
use data_encoding::BASE64;
use leaf_core::command::TakeSession;
use leaf_core::id::JobId;

use crate::attach::{Begin, new_key};
use crate::commands::nix::run::in_session;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Come back to a program that runs in a session: take it over from the client that has it, if one does. It needs a person's signature.
///
/// After a newline, `~d` leaves the program running, `~.` ends it, and `~~` is a tilde.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Attach {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let key = new_key()?;
        let request = TakeSession {
            id: self.job,
            key: BASE64.encode(&key.public()),
        };
        let taken = leaf.call(&request).await?;
        let begin = Begin {
            job: self.job,
            key,
            terminal: taken.terminal,
            is_resumed: true,
        };
        in_session(&leaf, begin, output).await
    }
}
