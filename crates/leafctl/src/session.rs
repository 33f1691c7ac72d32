//! A connection, and the leaf that the command is for.

use std::cell::RefCell;
use std::time::Duration;

use leaf_bus::client::{CallError, CallOptions, Client, ClientError};
use leaf_bus::connect::ConnectSettings;
use leaf_bus::context::{self, ContextError};
use leaf_bus::stream::StreamError;
use leaf_core::beat::LEASE_SECONDS;
use leaf_core::command::{CommandKind, Request, ShowContainer};
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::id::{CommandId, ContainerName, LeafName};
use leaf_core::problem::{Problem, ProblemCode};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::global::Global;
use crate::output::{Output, ago};
use crate::progress::waiting;
use crate::text::Text;

/// The hint where nothing names a server.
const NOTHING_NAMED: &str = "there is no --context, no LEAFCTL_CONTEXT, no selected context (`nats context select`), and no \
leaf with an embedded NATS server on this host (/run/cim-leaf/access/context.json), so nats://127.0.0.1:4222 was tried. Such a \
leaf writes context.json into its state directory: name that file";
/// The hint where the leaf on this host was tried.
const LOCAL_LEAF: &str =
    "no context is named or selected, so the leaf on this host was tried: `systemctl status leafd`";

/// A connection to NATS.
pub(crate) struct Session {
    /// The connection.
    pub client: Client,
    timeout: Duration,
    leaf: Option<LeafName>,
    /// The given id, until the first change has taken it.
    command_id: RefCell<Option<CommandId>>,
}

impl Session {
    /// Connects as given by the context and the flags.
    pub(crate) async fn open(global: &Global) -> Result<Self, Error> {
        let (settings, hint) = find(global)?;
        let settings = settings.overridden(global.server.as_deref(), global.creds.as_deref());
        let client = Client::connect(&settings, global.timeout)
            .await
            .map_err(|source| Error::Connect { source, hint })?;
        Ok(Self {
            client,
            timeout: global.timeout,
            leaf: global.leaf.clone(),
            command_id: RefCell::new(global.command_id.clone()),
        })
    }

    /// Returns the leaf that was named, or the only one.
    pub(crate) async fn leaf(&self) -> Result<LeafName, Error> {
        if let Some(leaf) = &self.leaf {
            return Ok(leaf.clone());
        }
        let mut leaves = self.client.leaves().await?.into_iter().map(|beat| beat.leaf);
        match (leaves.next(), leaves.next()) {
            (Some(leaf), None) => Ok(leaf),
            (None, _) => Err(Error::NoLeaf(
                "no leaf holds a lease on this server: is leafd running?".to_owned(),
            )),
            (Some(one), Some(two)) => {
                let all: Vec<String> = [one, two]
                    .into_iter()
                    .chain(leaves)
                    .map(|leaf| leaf.to_string())
                    .collect();
                Err(Error::Usage(format!(
                    "there are several leaves; name one with --leaf: {}",
                    all.join(", ")
                )))
            }
        }
    }

    /// Sends a command to the leaf and returns its reply.
    pub(crate) async fn call<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        let leaf = self.leaf().await?;
        self.call_leaf(&leaf, request, self.timeout).await
    }

    /// Sends a command to the leaf and prints its reply: as JSON, or as formatted by `text`.
    pub(crate) async fn show<R: Request, P: Into<Text>>(
        &self,
        request: &R,
        output: Output,
        text: impl FnOnce(&R::Reply) -> P,
    ) -> Result<(), Error> {
        let leaf = self.leaf().await?;
        self.show_at(&leaf, request, output, text).await
    }

    /// Like [`Session::show`], for a given leaf.
    pub(crate) async fn show_at<R: Request, P: Into<Text>>(
        &self,
        leaf: &LeafName,
        request: &R,
        output: Output,
        text: impl FnOnce(&R::Reply) -> P,
    ) -> Result<(), Error> {
        print(self.call_to(leaf, request).await, output, text)
    }

    /// Like [`Session::show`], for a command that waits for the host. `what` is the spinner's text.
    pub(crate) async fn show_slow<R: Request, P: Into<Text>>(
        &self,
        what: &'static str,
        request: &R,
        output: Output,
        text: impl FnOnce(&R::Reply) -> P,
    ) -> Result<(), Error> {
        let leaf = self.leaf().await?;
        print(waiting(what, self.call_slow(&leaf, request)).await, output, text)
    }

    /// Sends a command to a given leaf and returns its reply.
    pub(crate) async fn call_to<R: Request>(&self, leaf: &LeafName, request: &R) -> Result<R::Reply, Error> {
        self.call_leaf(leaf, request, self.timeout).await
    }

    /// Returns how long to wait for a message before querying again.
    pub(crate) fn look_again_after(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Asks a container for its health.
    pub(crate) async fn health(
        &self,
        leaf: &LeafName,
        name: &ContainerName,
    ) -> Result<serde_json::Value, Error> {
        let answer = self
            .client
            .request_container_health(leaf, name, self.timeout)
            .await;
        answer.map_err(|error| match error {
            ClientError::Stream(StreamError::Unanswered { .. }) => Error::NoLeaf(format!(
                "container {name} does not reply: is it running? (`leafctl container show {name}`)"
            )),
            other => other.into(),
        })
    }

    /// Queries a container until it has settled: it runs, is stopped, or has failed.
    pub(crate) async fn settled(&self, leaf: &LeafName, name: &ContainerName) -> Result<Container, Error> {
        loop {
            let container = self.call_to(leaf, &ShowContainer { name: name.clone() }).await?;
            match container.phase {
                ContainerPhase::Failed => {
                    let why = container.error.unwrap_or_default();
                    return Err(Error::Problem(Problem::new(
                        ProblemCode::Failed,
                        format!("container {name}: {why}"),
                    )));
                }
                phase if phase.is_moving() || phase == ContainerPhase::Building => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => return Ok(container),
            }
        }
    }

    /// Sends a command that waits for the host, which may take longer than other replies.
    pub(crate) async fn call_slow<R: Request>(
        &self,
        leaf: &LeafName,
        request: &R,
    ) -> Result<R::Reply, Error> {
        self.call_leaf(leaf, request, self.timeout.max(Duration::from_secs(120)))
            .await
    }

    async fn call_leaf<R: Request>(
        &self,
        leaf: &LeafName,
        request: &R,
        timeout: Duration,
    ) -> Result<R::Reply, Error> {
        let id = (R::DECLARATION.kind != CommandKind::Query).then(|| self.next_id());
        let options = CallOptions {
            id: id.clone(),
            timeout,
            ..CallOptions::default()
        };
        let answer = self.client.call(leaf, request, options).await;
        match (answer, id) {
            (Ok(reply), _) => Ok(reply),
            (Err(error @ (CallError::TimedOut { .. } | CallError::Disconnected)), Some(id)) => {
                Err(Error::Lost {
                    id,
                    how: error.into(),
                })
            }
            (Err(CallError::NoLeaf(leaf)), _) => Err(self.without_reply(leaf).await),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Returns the given id, for the first change, or else a new one.
    fn next_id(&self) -> CommandId {
        let given = self.command_id.borrow_mut().take();
        given.unwrap_or_else(|| Uuid::now_v7().into())
    }

    /// Returns the error about a leaf that does not reply: it explains why `leaf list` may list it all the same.
    async fn without_reply(&self, leaf: LeafName) -> Error {
        let leaves = self.client.leaves().await.unwrap_or_default();
        match leaves.into_iter().find(|beat| beat.leaf == leaf) {
            Some(beat) => Error::NoLeaf(format!(
                "leaf {leaf} takes no commands, though `leafctl leaf list` still has it: instance {} on {} sent its last beat {}; \
                leafd is starting or stopping there, or has ended less than {LEASE_SECONDS} s ago: see its log on {} \
                (`journalctl -u leafd`)",
                beat.instance,
                beat.hostname,
                ago(beat.time),
                beat.hostname
            )),
            None => Error::Call(CallError::NoLeaf(leaf)),
        }
    }
}

/// Returns the context by the order that the help of `--context` names, and the hint for a connection that fails.
fn find(global: &Global) -> Result<(ConnectSettings, Option<&'static str>), Error> {
    // The flag, or else the variable.
    if let Some(context) = &global.context {
        return Ok((context::load(Some(context))?, None));
    }
    if let Some(selected) = context::selected()? {
        return Ok((selected, None));
    }
    if global.server.is_some() {
        return Ok((context::load(None)?, None));
    }
    match context::local_leaf() {
        Ok(Some(local)) => Ok((local, Some(LOCAL_LEAF))),
        Ok(None) => Ok((context::load(None)?, Some(NOTHING_NAMED))),
        Err(source @ ContextError::Unreadable { .. }) => Err(Error::LocalLeaf(source)),
        Err(damaged) => Err(damaged.into()),
    }
}

/// Prints the reply to a command. One with a value unknown to this version is printed as the leaf sent it.
fn print<T: Serialize, P: Into<Text>>(
    answer: Result<T, Error>,
    output: Output,
    text: impl FnOnce(&T) -> P,
) -> Result<(), Error> {
    match answer {
        Ok(answer) => output.document(&answer, text),
        Err(Error::Call(CallError::Unreadable { leaf, reply, source })) => {
            match serde_json::from_slice::<serde_json::Value>(&reply) {
                Ok(document) => {
                    output.note(&format!(
                        "leaf {leaf} may be of a newer version: {source}; its reply follows unchanged"
                    ));
                    output.document(&document, |document| format!("{document:#}"))
                }
                Err(_) => Err(Error::Call(CallError::Unreadable { leaf, reply, source })),
            }
        }
        Err(error) => Err(error),
    }
}
