use clap::Args;
use leaf_core::id::ContainerName;
use serde_json::Value;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Ask a container for its health over NATS. The reply comes from the container itself.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// The container's name.
    name: ContainerName,
}

impl Health {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .each(output, async |leaf| leaf.health(&self.name).await, view)
            .await
    }
}

fn view(health: &Value) -> View {
    match health {
        Value::Object(answers) => {
            let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let lines: Vec<(&str, String)> = answers
                .iter()
                .map(|(name, value)| (name.as_str(), words(value)))
                .collect();
            fields(&lines).into()
        }
        other => other.to_string().into(),
    }
}
