use clap::Args;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use leaf_bus::client::{ClientError, EventsFrom};
use leaf_bus::stream::StreamError;
use leaf_core::event::{EventRecord, header};
use leaf_core::id::LeafName;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::fleet::{Failures, at_each};
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;
use crate::view::prefix;

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
        let (since, follow) = (self.since, self.follow);
        let from = |last| match (since, follow) {
            (Some(sequence), true) => Some(EventsFrom::Sequence(sequence.max(1))),
            (None, true) => Some(EventsFrom::Sequence(last + 1)),
            (Some(sequence), false) => {
                (sequence.max(1) <= last).then(|| EventsFrom::Sequence(sequence.max(1)))
            }
            (None, false) => (last > 0).then_some(EventsFrom::Beginning),
        };
        let reading = Reading::open(session, output, from).await?;
        if follow {
            output.note(&format!(
                "following the events of {}; press Ctrl-C to stop",
                reading.leaves()
            ));
        }
        let is_meant = |kind: &str| pattern.as_ref().is_none_or(|pattern| pattern.matches(kind));
        if follow {
            reading.print_all(is_meant).await
        } else {
            reading.print_known(is_meant).await
        }
    }
}

/// Reads the events of the leaves of a command.
pub(super) struct Reading {
    output: Output,
    /// The leaves that have events, each with what stands before its lines.
    logs: Vec<Log>,
    failures: Option<Failures>,
}

/// The events of one leaf.
struct Log {
    leaf: LeafName,
    prefix: String,
    /// The last sequence number when the reading began.
    last: u64,
    /// Its events; `None` if there are none to print.
    events: Option<BoxStream<'static, Result<EventRecord, ClientError>>>,
}

impl Reading {
    /// Opens the events of each leaf. `from` returns the first to print, given the last sequence number.
    pub(super) async fn open(
        session: &Session,
        output: Output,
        from: impl Fn(u64) -> Option<EventsFrom>,
    ) -> Result<Self, Error> {
        let leaves = session.leaves().await?;
        let opened = at_each(&leaves, async |leaf| {
            let last = last_sequence(leaf).await?;
            Ok((last, from(last)))
        })
        .await;
        let is_for_several = session.is_for_several();
        let width = leaves.iter().map(|leaf| leaf.name.as_str().len()).max();
        let mut reading = Self {
            output,
            logs: Vec::new(),
            failures: is_for_several.then(|| Failures::of(leaves.len(), output)),
        };
        for (leaf, opened) in leaves.into_iter().zip(opened) {
            let Leaf { name, client, .. } = leaf;
            match opened {
                Ok((last, from)) => reading.logs.push(Log {
                    prefix: width
                        .filter(|_| is_for_several)
                        .map_or(String::new(), |width| prefix(&name, width)),
                    events: from.map(|from| client.events(&name, from).boxed()),
                    last,
                    leaf: name,
                }),
                Err(error) => reading.failed(&name, error)?,
            }
        }
        Ok(reading)
    }

    /// Returns a description of the leaves: `leaf edge-1`, `2 leaves`.
    pub(super) fn leaves(&self) -> String {
        match self.logs.as_slice() {
            [log] => format!("leaf {}", log.leaf),
            logs => format!("{} leaves", logs.len()),
        }
    }

    /// Prints the events up to those that were the last when the reading began, whose types `is_meant` accepts.
    pub(super) async fn print_known(mut self, is_meant: impl Fn(&str) -> bool) -> Result<(), Error> {
        for mut log in std::mem::take(&mut self.logs) {
            let Some(mut events) = log.events.take() else {
                continue;
            };
            while let Some(record) = events.next().await {
                match record {
                    Ok(record) => {
                        self.print(&record, &log.prefix, &is_meant)?;
                        if record.sequence >= log.last {
                            break;
                        }
                    }
                    Err(error) => self.failed(&log.leaf, error.into())?,
                }
            }
        }
        self.end()
    }

    /// Prints the events as they come, without an end, whose types `is_meant` accepts.
    pub(super) async fn print_all(mut self, is_meant: impl Fn(&str) -> bool) -> Result<(), Error> {
        let mut logs = std::mem::take(&mut self.logs);
        let events = logs.iter_mut().enumerate().filter_map(|(number, log)| {
            let events = log.events.take()?;
            Some(events.map(move |record| (number, record)))
        });
        let mut events = futures::stream::select_all(events);
        while let Some((number, record)) = events.next().await {
            let log = &logs[number];
            match record {
                Ok(record) => self.print(&record, &log.prefix, &is_meant)?,
                Err(error) => self.failed(&log.leaf, error.into())?,
            }
        }
        self.end()
    }

    fn print(
        &self,
        record: &EventRecord,
        prefix: &str,
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        if is_meant(short(record)) {
            show(self.output, record, prefix)?;
        }
        Ok(())
    }

    /// Notes that the events of a leaf can't be read: the error of a command for one leaf.
    fn failed(&mut self, leaf: &LeafName, error: Error) -> Result<(), Error> {
        match &mut self.failures {
            Some(failures) => {
                failures.add(leaf, error);
                Ok(())
            }
            None => Err(error),
        }
    }

    fn end(self) -> Result<(), Error> {
        self.failures.map_or(Ok(()), Failures::end)
    }
}

/// Returns the last sequence number of a leaf's events.
async fn last_sequence(leaf: &Leaf) -> Result<u64, Error> {
    let last = leaf.client.last_sequence(&leaf.name).await;
    last.map_err(|error| match error {
        ClientError::Stream(StreamError::NoStream { .. }) => Error::NotFound(format!(
            "no events of leaf {} found; `leafctl leaf list` lists the leaves",
            leaf.name
        )),
        other => other.into(),
    })
}

/// Returns the type without the common prefix and the version: `container.started`.
fn short(record: &EventRecord) -> &str {
    let kind = record.kind().unwrap_or("?");
    let kind = kind.strip_prefix("cim.leaf.").unwrap_or(kind);
    kind.rsplit_once(".v").map_or(kind, |(name, _)| name)
}

/// Prints one event, with a prefix for people.
fn show(output: Output, record: &EventRecord, prefix: &str) -> Result<(), Error> {
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
            "{prefix}{:>8}  {time}Z  {:<20}  {:<28}  {}",
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
