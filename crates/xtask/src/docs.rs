//! `cargo xtask docs`: the protocol's documents, made from the types in `leaf-core`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use leaf_core::command::{COMMANDS, CommandKind, MAX_COMMAND_BYTES};
use leaf_core::event::header;
use leaf_core::id::{Caller, ContainerName, JobId, LeafName};
use leaf_core::job::LOG_TYPE;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::schema::{Bundle, MessageType, Role, catalogue};
use leaf_core::{beat, subject};

use crate::command::workspace;

const DIRECTORY: &str = "docs/protocol";
/// The schemas of all message types.
const BUNDLE: &str = "messages.schema.json";

/// Write docs/protocol/: the JSON Schema of all message types, and the protocol in tables
#[derive(clap::Args)]
pub(crate) struct Docs {
    /// Write nothing; fail if a document is not what the types say
    #[arg(long)]
    check: bool,
}

impl Docs {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let drift = drift()?;
        if self.check {
            drift
                .iter()
                .for_each(|file| eprintln!("{file} is out of date; run `cargo xtask docs`"));
            return Ok(if drift.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        let made = documents();
        for file in &drift {
            let path = workspace().join(file);
            match made.get(file) {
                Some(text) => {
                    std::fs::create_dir_all(workspace().join(DIRECTORY))
                        .and_then(|()| std::fs::write(&path, text))
                        .with_context(|| format!("can't write {}", path.display()))?;
                    println!("wrote {file}");
                }
                None => {
                    std::fs::remove_file(&path)
                        .with_context(|| format!("can't remove {}", path.display()))?;
                    println!("removed {file}");
                }
            }
        }
        println!("{} documents in {DIRECTORY}", made.len());
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the files below `docs/protocol/` that are not what the types say: absent, different or too many.
pub(crate) fn drift() -> Result<Vec<String>> {
    let made = documents();
    let directory = workspace().join(DIRECTORY);
    let mut names: BTreeSet<String> = made.keys().cloned().collect();
    if directory.exists() {
        for entry in
            std::fs::read_dir(&directory).with_context(|| format!("can't read {}", directory.display()))?
        {
            names.insert(format!("{DIRECTORY}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    names.retain(|name| std::fs::read_to_string(workspace().join(name)).ok().as_ref() != made.get(name));
    Ok(names.into_iter().collect())
}

/// Returns every document by its path.
fn documents() -> BTreeMap<String, String> {
    let mut bundle =
        serde_json::to_string_pretty(&Bundle::new().document()).expect("a schema has string keys only");
    bundle.push('\n');
    BTreeMap::from([
        (format!("{DIRECTORY}/README.md"), overview(&catalogue())),
        (format!("{DIRECTORY}/{BUNDLE}"), bundle),
    ])
}

/// The address of a message type's schema, from the overview.
fn address_of(name: &str) -> String {
    format!("{BUNDLE}#/$defs/{name}")
}

fn overview(types: &[MessageType]) -> String {
    let described: BTreeMap<&str, String> = types
        .iter()
        .map(|t| (t.name.as_str(), in_one_line(t.description())))
        .collect();
    let mut text = String::from(
        "<!-- Made by `cargo xtask docs` from the types in crates/leaf-core; a test fails when they differ. -->\n\
         # The protocol of a leaf\n\n\
         All that goes over NATS, version 1. Messages of every version that was ever sent stand in `tests/golden/` and \
         stay readable.\n\n\
         [messages.schema.json](messages.schema.json) is a JSON Schema (2020-12) of all message types. Each stands in \
         its `$defs` under its name and has an `$id` of its own, to which a validator that has read the document \
         resolves references: `urn:cim-leaf:schema:v1:cmd.leaf.show`, and for events and messages of jobs, whose \
         names have a version, `urn:cim-leaf:schema:cim.leaf.leaf.started.v1`. `leafctl schema show TYPE` prints the \
         schema of one type as a document that stands by itself.\n\n\
         ## Subjects\n\n\
         Tokens are `[a-z0-9_-]`. A foreign name, such as that of a container called `Web`, becomes a token: \
         `[a-z0-9-]` stays, every other byte is `_` and two hexadecimal digits (`_57eb`).\n\n",
    );
    table(&mut text, &["subject", "what"], subjects());
    text.push_str("\n## Streams and buckets\n\n");
    table(&mut text, &["name", "what"], streams());
    let _ = writeln!(
        text,
        "\n## Keys of the bucket `{}`\n\nThe value is JSON; a key that is removed is gone from the state. A leaf whose leafd was set back to an older version \
         has entries here that it can't read itself: it passes them on as they are, and `leaf.show` names them \
         ([decision 9](../decisions/0009-what-cannot-be-read-is-kept-and-not-acted-on.md)).\n",
        subject::STATE_BUCKET
    );
    table(
        &mut text,
        &["subject of the key", "what", "schema"],
        keys(&described),
    );
    text.push_str("\n## Commands\n\n");
    let _ = writeln!(
        text,
        "A request on `{}` with a JSON body of at most {} KiB; an empty body is `{{}}`. Unknown fields are refused. No \
         header is needed; with the header `{}` the command has an id and may be sent again without harm: within 24 \
         hours the same id from the same caller gets the first reply. The reply subject must be below \
         `{}.`.\n\n\
         A *query* changes nothing. A *change* is answered when it is done or has failed. A *job* is answered with \
         its id once it is stored; `job.show` and the job's events say how it goes on.\n",
        command_pattern("<noun>", "<verb>"),
        MAX_COMMAND_BYTES / 1024,
        leaf_core::command::COMMAND_ID_HEADER,
        placeholders(subject::inbox_prefix(&caller())),
    );
    table(
        &mut text,
        &["command", "kind", "what", "schemas"],
        COMMANDS.iter().map(|command| {
            let (request, reply) = (command.request_name, command.reply_name);
            let kind = match command.kind {
                CommandKind::Query => "query",
                CommandKind::Change => "change",
                CommandKind::Job => "job",
            };
            vec![
                format!("`{}`", command.noun_verb),
                kind.to_owned(),
                described[request].clone(),
                format!(
                    "[request]({}), [reply]({})",
                    address_of(request),
                    address_of(reply)
                ),
            ]
        }),
    );
    text.push_str(
        "\n## Events\n\n\
         CloudEvents 1.0 in the NATS binding's binary mode: attributes are headers, the body is JSON. Readers ignore \
         types and fields that they don't know, and show a value of an enum that they don't know as text.\n\n",
    );
    of_role(&mut text, types, Role::Event);
    text.push_str("\n### Headers of an event\n\n");
    table(&mut text, &["header", "what"], headers());
    text.push_str(
        "\nValues are percent-encoded as the binding says: blanks, `\"`, `%` and all but printable ASCII stand as `%` and \
         two hexadecimal digits a byte of UTF-8. That goes for the headers of commands, too.\n\
         \n## Messages of a job\n\n\
         What a job says while it runs: CloudEvents with the headers of an event but for its last three, sent once and not \
         kept.\n\n",
    );
    of_role(&mut text, types, Role::Job);
    let _ = writeln!(
        text,
        "\nThe body of a `{LOG_TYPE}` is plain text, a piece of the job's log, and two more headers say where it stands \
         there: `{}` is the offset of its first byte, `{}` that of the next piece's. Whoever has read the log with \
         `job.log` up to its `next_offset` goes on with the first piece that ends beyond it; where that begins beyond it, \
         too, something was lost, and `job.log` has it.",
        header::OFFSET,
        header::NEXT_OFFSET,
    );
    text.push_str("\n## Other messages\n\n");
    of_role(&mut text, types, Role::Other);
    text.push_str(
        "\n## Errors\n\n\
         A command that did not work is answered with a [problem](messages.schema.json#/$defs/problem) (RFC 9457) and, by NATS ADR-32, \
         the headers `Nats-Service-Error-Code` (the status) and `Nats-Service-Error` (the title). Codes are stable; \
         new ones may be added.\n\n",
    );
    table(&mut text, &["code", "status", "title", "what"], problems());
    text
}

fn subjects() -> Vec<Vec<String>> {
    let job: JobId = JOB.parse().expect("a job id");
    let (leaf, container) = (leaf(), container());
    [
        (
            command_pattern("<noun>", "<verb>"),
            "a command; the caller is pinned by its user's publish permission",
        ),
        (
            subject::ask("<noun>", "<verb>"),
            "asks many leaves for offers; changes nothing",
        ),
        (
            subject::event(&leaf, "<aggregate>", "<id>", "<fact>"),
            "a domain event, kept in the leaf's stream",
        ),
        (
            subject::job_progress(&leaf, job),
            "how far a running job is, not kept",
        ),
        (
            subject::job_log(&leaf, job),
            "what a running job prints, not kept",
        ),
        (
            subject::job_ended(&leaf, job),
            "that a job has ended, for those who wait, not kept: the event says it for good",
        ),
        (subject::beat(&leaf), "the lease"),
        (
            format!("{}.>", subject::container_prefix(&leaf, &container)),
            "a container's own subjects; it may publish and answer nowhere else",
        ),
        (
            subject::container_health(&leaf, &container),
            "where a container answers requests for its health",
        ),
        (
            format!("{}.>", subject::inbox_prefix(&caller())),
            "replies to a caller, and nothing else's",
        ),
    ]
    .into_iter()
    .map(|(subject, what)| vec![format!("`{}`", placeholders(subject)), what.to_owned()])
    .collect()
}

fn streams() -> Vec<Vec<String>> {
    let lease = format!(
        "the last lease of every leaf, for {} seconds; renewed every {}",
        beat::LEASE_SECONDS,
        beat::BEAT_SECONDS
    );
    vec![
        vec![
            format!("stream `{}`", placeholders(subject::event_stream(&leaf()))),
            "the leaf's events; a message's stream sequence is the event's own".to_owned(),
        ],
        vec![format!("stream `{}`", subject::LEASE_STREAM), lease],
        vec![
            format!("bucket `{}`", subject::STATE_BUCKET),
            format!(
                "what is so now, for watchers; keys begin with the leaf (stream `{}`)",
                subject::state_stream()
            ),
        ],
    ]
}

fn keys(described: &BTreeMap<&str, String>) -> Vec<Vec<String>> {
    [
        ("leaf", "state.leaf"),
        ("snapshot", "state.snapshot"),
        ("device.<id>", "state.device"),
        ("container.<container>", "state.container"),
        ("job.<job>", "state.job"),
        ("raw.<sequence>", "state.raw"),
    ]
    .into_iter()
    .map(|(key, name)| {
        vec![
            format!("`{}`", placeholders(subject::state_key(&leaf(), key))),
            described[name].clone(),
            link(name),
        ]
    })
    .collect()
}

/// Adds the table of all message types of a role.
fn of_role(text: &mut String, types: &[MessageType], role: Role) {
    let rows = types.iter().filter(|t| t.role == role).map(|t| {
        vec![
            format!("`{}`", t.name),
            in_one_line(t.description()),
            link(&t.name),
        ]
    });
    table(text, &["type", "what", "schema"], rows);
}

fn headers() -> Vec<Vec<String>> {
    [
        (header::SPECVERSION, "CloudEvents version: `1.0`"),
        (
            header::ID,
            "`<leaf>/<epoch>/<sequence>`: the same event has the same id however often it is sent",
        ),
        (header::SOURCE, "`urn:cim-leaf:<leaf>`"),
        (header::TYPE, "the type, which ends in its major version"),
        (
            header::SUBJECT,
            "what it is about: the leaf, a device id, a container's token, a job id",
        ),
        (header::TIME, "when it was recorded, RFC 3339, UTC"),
        (header::DATA_CONTENT_TYPE, "`application/json`"),
        (
            header::SEQUENCE,
            "its place in the leaf's history, with 20 digits, so that text order is number order",
        ),
        (
            header::CAUSATION_ID,
            "the id of the command that caused it, if one did",
        ),
        (
            header::CORRELATION_ID,
            "the sender's own mark, carried along from command to event",
        ),
    ]
    .into_iter()
    .map(|(name, what)| vec![format!("`{name}`"), what.to_owned()])
    .collect()
}

/// Every problem code with the doc comment that its schema carries.
fn problems() -> Vec<Vec<String>> {
    let schema = Bundle::new().resolve("problem").expect("it is a message type");
    let codes = schema["$defs"]["ProblemCode"]["oneOf"]
        .as_array()
        .expect("each code has a description of its own");
    codes
        .iter()
        .map(|code| {
            let value: ProblemCode =
                serde_json::from_value(code["const"].clone()).expect("the schema's codes are the type's");
            let problem = Problem::new(value, "");
            vec![
                format!("`{}`", value.as_str()),
                problem.status.to_string(),
                problem.title,
                in_one_line(code["description"].as_str().unwrap_or_default()),
            ]
        })
        .collect()
}

/// A description in one line, without the links of rustdoc.
fn in_one_line(description: &str) -> String {
    description
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("[`crate::command::MAX_COMMAND_BYTES`]", "256 KiB")
}

fn link(name: &str) -> String {
    format!("[schema]({})", address_of(name))
}

fn table<R: Into<Vec<String>>>(text: &mut String, head: &[&str], rows: impl IntoIterator<Item = R>) {
    let _ = writeln!(text, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.into().iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

// Subjects are built by leaf-core itself, of names that are then written as placeholders.
const LEAF: &str = "theleaf";
const CALLER: &str = "thecaller";
const CONTAINER: &str = "thectr";
const JOB: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn leaf() -> LeafName {
    LeafName::new(LEAF).expect("a leaf name")
}

fn caller() -> Caller {
    Caller::new(CALLER).expect("a caller")
}

fn container() -> ContainerName {
    ContainerName::new(CONTAINER).expect("a container name")
}

fn command_pattern(noun: &str, verb: &str) -> String {
    let subject = subject::CommandSubject {
        leaf: leaf(),
        caller: caller(),
        noun: noun.to_owned(),
        verb: verb.to_owned(),
    };
    placeholders(subject.build())
}

fn placeholders(subject: String) -> String {
    subject
        .replace(LEAF, "<leaf>")
        .replace(CALLER, "<caller>")
        .replace(CONTAINER, "<container>")
        .replace(JOB, "<job>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_documents_are_what_the_types_say() {
        let drift = drift().expect("docs/protocol can be read");
        assert!(drift.is_empty(), "run `cargo xtask docs`: {drift:?}");
    }

    #[test]
    fn the_overview_has_every_command_event_and_code() {
        let types = catalogue();
        let text = overview(&types);
        for command in &COMMANDS {
            let name = command.noun_verb;
            assert!(text.contains(&format!("| `{name}` |")), "{name}");
        }
        for t in &types {
            assert!(text.contains(&address_of(&t.name)), "{}", t.name);
        }
        for code in problems() {
            assert!(code.iter().all(|cell| !cell.is_empty()), "{code:?}");
        }
        assert!(text.contains("`leaf.v1.cmd.<leaf>.<caller>.<noun>.<verb>`"));
        for leftover in [LEAF, CALLER, CONTAINER, JOB, "[`"] {
            assert!(!text.contains(leftover), "{leftover}");
        }
    }
}
