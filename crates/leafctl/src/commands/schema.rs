use clap::Subcommand;
use leaf_core::schema::{Bundle, MessageType, catalogue};
use serde_json::json;

use crate::error::Error;
use crate::output::Output;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List this version's message types.
    List,
    /// Print the JSON Schema of a message type as a self-contained document.
    Show {
        /// The message type's name, as listed by `schema list`.
        #[arg(value_name = "TYPE")]
        name: String,
    },
}

impl Command {
    pub(super) fn run(self, output: Output) -> Result<(), Error> {
        match self {
            Self::List => {
                let types: Vec<_> = catalogue()
                    .iter()
                    .map(|t| json!({ "name": t.name, "description": describe(t) }))
                    .collect();
                output.document(&json!({ "types": types }), |_| {
                    let mut table = output.table(&["TYPE", "DESCRIPTION"]);
                    for message in catalogue() {
                        table.add_row([message.name.as_str(), describe(&message)]);
                    }
                    table
                })
            }
            Self::Show { name } => match Bundle::new().resolve(&name) {
                Some(schema) => output.document(&schema, |document| {
                    serde_json::to_string_pretty(document).expect("a schema has string keys only")
                }),
                None => Err(Error::NotFound(format!(
                    "no message type is called {name:?}; `leafctl schema list` lists all"
                ))),
            },
        }
    }
}

fn describe(message: &MessageType) -> &str {
    message.description().lines().next().unwrap_or_default()
}
