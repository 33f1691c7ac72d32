use clap::Args;
use leaf_core::id::ContainerName;
use serde_json::Value;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Ask a container for its health over NATS. The reply comes from the container itself.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// The container's name.
    name: ContainerName,
}

impl Health {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let health: Value = session.health(&leaf, &self.name).await?;
        output.document(&health, |health| match health {
            Value::Object(answers) => {
                let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let lines: Vec<(&str, String)> = answers
                    .iter()
                    .map(|(name, value)| (name.as_str(), words(value)))
                    .collect();
                fields(&lines)
            }
            other => other.to_string().into(),
        })
    }
}
