//! The service's discovery replies: PING, INFO and STATS of NATS ADR-32.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use leaf_core::command::{COMMANDS, Declaration};
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

/// The service's identity.
#[derive(Debug, Clone)]
pub struct ServiceInfo {
    /// The leaf's name.
    pub leaf: LeafName,
    /// The service's id, for discovery alone. Through a hub all leaves hear who is asked, and who knows an instance's id may be
    /// able to write into the hub's copy of its events: so this is another one.
    pub id: Uuid,
    /// The daemon's version.
    pub version: String,
    /// The service's description, one sentence.
    pub description: String,
}

/// The service's name, the same for all leaves.
pub const SERVICE_NAME: &str = "cim-leaf";
/// The header of an error reply with its status.
pub const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";
/// The header of an error reply with its title.
pub const ERROR_HEADER: &str = "Nats-Service-Error";

/// The name of the endpoint that counts messages of no other endpoint.
const OTHER: &str = "other";

#[derive(Debug)]
pub(crate) struct Stats {
    info: ServiceInfo,
    started: Timestamp,
    endpoints: Vec<Endpoint>,
    silent: AtomicU64,
}

#[derive(Debug)]
struct Endpoint {
    name: String,
    subject: String,
    requests: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    last_error: watch::Sender<String>,
}

impl Stats {
    pub(crate) fn new(info: ServiceInfo) -> Self {
        let endpoint = |name: String, subject: String| Endpoint {
            name,
            subject,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            last_error: watch::Sender::new(String::new()),
        };
        let leaf = &info.leaf;
        let commands = COMMANDS.iter().map(|Declaration { noun, verb, .. }| {
            endpoint(
                format!("{noun}-{verb}"),
                subject::command_by_anybody(leaf, noun, verb),
            )
        });
        let other = endpoint(OTHER.to_owned(), subject::commands_of(leaf));
        Self {
            endpoints: commands.chain([other]).collect(),
            info,
            started: Timestamp::now(),
            silent: AtomicU64::new(0),
        }
    }

    pub(crate) fn other(&self) -> usize {
        self.endpoints.len() - 1
    }

    pub(crate) fn endpoint(&self, noun: &str, verb: &str) -> usize {
        let known = COMMANDS
            .iter()
            .position(|command| (command.noun, command.verb) == (noun, verb));
        known.unwrap_or_else(|| self.other())
    }

    pub(crate) fn count(&self, endpoint: usize, took: Duration, error: Option<String>) {
        let endpoint = &self.endpoints[endpoint];
        endpoint.requests.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        endpoint.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(error) = error {
            endpoint.errors.fetch_add(1, Ordering::Relaxed);
            endpoint
                .last_error
                .send_replace(error.chars().take(512).collect());
        }
    }

    pub(crate) fn refused_silently(&self, endpoint: usize, reply: Option<&str>) {
        self.silent.fetch_add(1, Ordering::Relaxed);
        let reply: String = reply.unwrap_or("(none)").chars().take(200).collect();
        self.count(
            endpoint,
            Duration::ZERO,
            Some(format!("reply subject {reply} is not the caller's own inbox")),
        );
    }

    pub(crate) fn silent(&self) -> u64 {
        self.silent.load(Ordering::Relaxed)
    }

    /// Returns the reply to a discovery verb.
    pub(crate) fn discovery(&self, verb: &str) -> Option<Vec<u8>> {
        let mut answer = json!({
            "name": SERVICE_NAME,
            "id": self.info.id,
            "version": self.info.version,
            "metadata": { "leaf": self.info.leaf },
        });
        let (kind, more) = match verb {
            "PING" => ("ping_response", json!({})),
            "INFO" => (
                "info_response",
                json!({
                    "description": self.info.description,
                    "endpoints": self.endpoints.iter().map(Endpoint::info).collect::<Vec<_>>(),
                }),
            ),
            "STATS" => (
                "stats_response",
                json!({
                    "started": self.started,
                    "endpoints": self.endpoints.iter().map(Endpoint::stats).collect::<Vec<_>>(),
                }),
            ),
            _ => return None,
        };
        let fields = answer.as_object_mut().expect("it is made as an object");
        fields.insert("type".to_owned(), format!("io.nats.micro.v1.{kind}").into());
        if let Value::Object(more) = more {
            fields.extend(more);
        }
        Some(answer.to_string().into_bytes())
    }
}

impl Endpoint {
    fn info(&self) -> Value {
        json!({ "name": self.name, "subject": self.subject, "queue_group": "", "metadata": {} })
    }

    fn stats(&self) -> Value {
        let requests = self.requests.load(Ordering::Relaxed);
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        json!({
            "name": self.name,
            "subject": self.subject,
            "queue_group": "",
            "num_requests": requests,
            "num_errors": self.errors.load(Ordering::Relaxed),
            "last_error": *self.last_error.borrow(),
            "processing_time": nanoseconds,
            "average_processing_time": nanoseconds.checked_div(requests).unwrap_or(0),
        })
    }
}
