use clap::Args;
use leaf_core::command::ConfirmLeafChange;
use leaf_core::id::ChangeId;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Confirm the open change of a leaf, so that it stays; `leafctl leaf show` has its id.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// The id of the change.
    id: ChangeId,
}

impl Confirm {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = ConfirmLeafChange { id: self.id };
        session
            .show(&request, output, |confirmed| {
                fields(&[("confirmed", confirmed.id.to_string())])
            })
            .await
    }
}
