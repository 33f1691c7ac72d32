//! A leaf, and a user of NATS who may send it anything that a person may, and more.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{Client, HeaderMap, Message};
use futures::StreamExt as _;
use leaf_bus::identity::Permissions;
use leaf_core::id::Caller;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::schema::Bundle;
use serde_json::{Value, json};

use crate::support::{Setup, TestLeaf};

/// How long a command may go unanswered.
const ANSWER: Duration = Duration::from_secs(30);

/// A leaf, and a client that is the caller `tester`: it may publish below `leaf.>`, so that the leaf sees what else
/// the server would keep away.
pub(crate) struct Wire {
    pub(crate) leaf: TestLeaf,
    pub(crate) client: Client,
}

impl Wire {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::to(Setup::new().start().await?).await
    }

    pub(crate) async fn to(leaf: TestLeaf) -> anyhow::Result<Self> {
        let caller = Caller::new("tester")?;
        let mut permissions = Permissions::person(&caller);
        permissions.publish.push("leaf.>".to_owned());
        permissions.subscribe.push("_INBOX.>".to_owned());
        let credentials = leaf.identity()?.user_credentials(&caller, &permissions);
        let client = leaf.nats(&credentials, &caller).await?;
        Ok(Self { leaf, client })
    }

    /// The subject of a command.
    pub(crate) fn subject(&self, noun_verb: &str) -> String {
        format!("leaf.v1.cmd.{}.tester.{noun_verb}", self.leaf.name)
    }

    /// Sends a body to a subject and returns what comes back.
    pub(crate) async fn send(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> anyhow::Result<Message> {
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(body.into())
            .timeout(Some(ANSWER));
        self.client
            .send_request(subject.to_owned(), request)
            .await
            .with_context(|| format!("{subject}; the log:\n{}", self.leaf.log()))
    }

    /// Sends a command with a JSON body.
    pub(crate) async fn ask(&self, noun_verb: &str, body: &Value) -> anyhow::Result<Message> {
        self.send(
            &self.subject(noun_verb),
            HeaderMap::new(),
            body.to_string().into_bytes(),
        )
        .await
    }

    /// Sends a command with an id.
    pub(crate) async fn ask_as(&self, id: &str, noun_verb: &str, body: &Value) -> anyhow::Result<Message> {
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", id);
        self.send(&self.subject(noun_verb), headers, body.to_string().into_bytes())
            .await
    }

    /// Fails unless a command is refused with this code.
    pub(crate) async fn refused(
        &self,
        noun_verb: &str,
        body: &Value,
        code: ProblemCode,
    ) -> anyhow::Result<Problem> {
        let problem = problem(&self.ask(noun_verb, body).await?)?;
        ensure!(
            problem.code == code,
            "{noun_verb} {body} gave {problem:?}, not {code:?}"
        );
        Ok(problem)
    }

    /// Fails if the leaf answers no more, or has recorded anything since this sequence number.
    pub(crate) async fn nothing_recorded_since(&mut self, sequence: u64) -> anyhow::Result<()> {
        let now = self.leaf.published().await?;
        ensure!(
            now == sequence,
            "{sequence} became {now}; the log:\n{}",
            self.leaf.log()
        );
        Ok(())
    }

    /// Sends with any reply subject, and waits until the leaf has seen it.
    pub(crate) async fn send_with_reply(
        &mut self,
        subject: &str,
        reply: Option<&str>,
        body: &str,
    ) -> anyhow::Result<()> {
        let (subject, body) = (subject.to_owned(), body.to_owned());
        match reply {
            Some(reply) => {
                self.client
                    .publish_with_reply(subject, reply.to_owned(), body.into())
                    .await?;
            }
            None => self.client.publish(subject, body.into()).await?,
        }
        self.client.flush().await?;
        // Commands of one connection come in order: when this is answered, the leaf has seen the one before.
        value(&self.ask("leaf.show", &json!({})).await?, "reply.leaf.show")?;
        Ok(())
    }
}

/// The document of a successful reply, valid by the schema of this name.
pub(crate) fn value(answer: &Message, schema: &str) -> anyhow::Result<Value> {
    let document: Value = serde_json::from_slice(&answer.payload)?;
    ensure!(
        header(answer, "Nats-Service-Error").is_none(),
        "it is an error: {document}"
    );
    valid(&document, schema)?;
    Ok(document)
}

/// The problem of a reply, with the headers of ADR-32 and valid by its schema.
pub(crate) fn problem(answer: &Message) -> anyhow::Result<Problem> {
    let document: Value = serde_json::from_slice(&answer.payload)
        .with_context(|| format!("the body {:?}", String::from_utf8_lossy(&answer.payload)))?;
    let code = header(answer, "Nats-Service-Error-Code").with_context(|| format!("no error: {document}"))?;
    let text = header(answer, "Nats-Service-Error").context("the header Nats-Service-Error")?;
    valid(&document, "problem")?;
    let problem: Problem = serde_json::from_value(document)?;
    ensure!(
        code == problem.status.to_string(),
        "{code} and {}",
        problem.status
    );
    ensure!(!text.is_empty() && !text.contains(['\r', '\n']), "{text:?}");
    ensure!(
        problem.kind == format!("urn:cim-leaf:problem:{}", problem.code.as_str()),
        "{problem:?}"
    );
    ensure!(!problem.detail.is_empty(), "{problem:?}");
    Ok(problem)
}

pub(crate) fn header(answer: &Message, name: &str) -> Option<String> {
    Some(answer.headers.as_ref()?.get(name)?.as_str().to_owned())
}

/// Reads a schema, which must be valid by that of its dialect.
pub(crate) fn compile(schema: Value) -> anyhow::Result<(boon::Schemas, boon::SchemaIndex)> {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    // An error of the reader can't be sent to another thread.
    let text = |error: boon::CompileError| anyhow::anyhow!("{error:#}");
    compiler.add_resource("memory:schema", schema).map_err(text)?;
    let index = compiler.compile("memory:schema", &mut schemas).map_err(text)?;
    Ok((schemas, index))
}

/// Fails unless the document is valid by the schema of this name.
pub(crate) fn valid(document: &Value, name: &str) -> anyhow::Result<()> {
    let schema = Bundle::new()
        .resolve(name)
        .with_context(|| format!("no schema {name}"))?;
    let (schemas, index) = compile(schema).with_context(|| format!("{name} is no schema"))?;
    if let Err(error) = schemas.validate(document, index) {
        anyhow::bail!("{document} is no {name}: {error}");
    }
    Ok(())
}

/// The next message, or an error that says what was waited for.
pub(crate) async fn next(subscriber: &mut async_nats::Subscriber, what: &str) -> anyhow::Result<Message> {
    tokio::time::timeout(ANSWER, subscriber.next())
        .await
        .with_context(|| format!("waiting for {what}"))?
        .with_context(|| format!("{what}: the subscription ended"))
}
