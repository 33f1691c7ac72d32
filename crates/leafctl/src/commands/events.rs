use clap::Args;
use futures::StreamExt as _;
use leaf_bus::client::{ClientError, EventsFrom};
use leaf_bus::stream::StreamError;
use leaf_core::event::{EventRecord, header};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Show the event log of a leaf, with sequence numbers.
///
/// With `--json` each line is a CloudEvent in the JSON format.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Keep printing new events until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// The first sequence number to print; by default the oldest event's (with `--follow`: the next event's).
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    /// Print only events of this type, without `cim.leaf.` and the version: `container.*`.
    #[arg(long = "type", value_name = "PATTERN")]
    kind: Option<String>,
}

impl Events {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let pattern = self
            .kind
            .as_deref()
            .map(glob::Pattern::new)
            .transpose()
            .map_err(|e| Error::Usage(format!("--type is not a pattern such as 'container.*': {e}")))?;
        let leaf = session.leaf().await?;
        let last = session
            .client
            .last_sequence(&leaf)
            .await
            .map_err(|error| match error {
                ClientError::Stream(StreamError::NoStream { .. }) => Error::NotFound(format!(
                    "no events of leaf {leaf} found; `leafctl leaf list` lists the leaves"
                )),
                other => other.into(),
            })?;
        if self.follow {
            output.note(&format!(
                "following the events of leaf {leaf}; press Ctrl-C to stop"
            ));
        }
        let from = match (self.since, self.follow) {
            (Some(sequence), _) => EventsFrom::Sequence(sequence.max(1)),
            (None, true) => EventsFrom::Sequence(last + 1),
            (None, false) => EventsFrom::Beginning,
        };
        if !self.follow && (last == 0 || self.since.is_some_and(|since| since > last)) {
            return Ok(());
        }
        let mut events = session.client.events(&leaf, from);
        while let Some(record) = events.next().await {
            let record = record?;
            if pattern
                .as_ref()
                .is_none_or(|pattern| pattern.matches(short(&record)))
            {
                show(output, &record)?;
            }
            if !self.follow && record.sequence >= last {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the type without the common prefix and the version: `container.started`.
fn short(record: &EventRecord) -> &str {
    let kind = record.kind().unwrap_or("?");
    let kind = kind.strip_prefix("cim.leaf.").unwrap_or(kind);
    kind.rsplit_once(".v").map_or(kind, |(name, _)| name)
}

/// Prints one event.
pub(super) fn show(output: Output, record: &EventRecord) -> Result<(), Error> {
    let attribute = |name: &str| record.attribute(name).unwrap_or_default().into_owned();
    let body: Value = serde_json::from_slice(&record.body).unwrap_or(Value::Null);
    let mut event = Map::new();
    for (name, value) in record.headers.iter() {
        if let Some(name) = name.strip_prefix("ce-") {
            event.insert(name.to_owned(), Value::String(header::decode(value).into_owned()));
        }
    }
    event.insert("data".to_owned(), body.clone());
    output.item(&Value::Object(event), |_| {
        let time = attribute(header::TIME);
        let time = time.get(..19).unwrap_or(&time);
        format!(
            "{:>8}  {time}Z  {:<20}  {:<28}  {}",
            record.sequence,
            short(record),
            attribute(header::SUBJECT),
            brief(&body)
        )
    })
}

/// Returns an event's fields, shortened to fit a line.
fn brief(body: &Value) -> String {
    let Value::Object(fields) = body else {
        return body.to_string();
    };
    let words: Vec<String> = fields
        .iter()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some(format!("{name}={text}")),
            Value::Number(number) => Some(format!("{name}={number}")),
            Value::Bool(yes) => Some(format!("{name}={yes}")),
            Value::Array(items) if items.iter().all(Value::is_string) => Some(format!(
                "{name}={}",
                items
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(",")
            )),
            Value::Object(inner) => ["model", "run", "store_path", "by"].iter().find_map(|key| {
                inner
                    .get(*key)
                    .and_then(Value::as_str)
                    .map(|text| format!("{key}={text}"))
            }),
            _ => None,
        })
        .collect();
    let line = words.join(" ");
    if line.chars().count() > 100 {
        format!("{}…", line.chars().take(99).collect::<String>())
    } else {
        line
    }
}
