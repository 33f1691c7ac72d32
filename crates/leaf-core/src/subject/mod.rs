//! The NATS subjects of a leaf, which are built and parsed only here.
//!
//! | subject | meaning |
//! |---|---|
//! | `leaf.v1.cmd.<leaf>.<caller>.<noun>.<verb>` | a command; the caller is fixed by its user's publish permission |
//! | `leaf.v1.ask.<noun>.<verb>` | asks many leaves for offers; changes nothing |
//! | `leaf.v1.evt.<leaf>.<aggregate>.<id>.<fact>` | a domain event, kept in the stream `EVENTS_<leaf>` |
//! | `leaf.v1.job.<leaf>.<job>.<progress\|log\|ended>` | a message about a running job |
//! | `leaf.v1.beat.<leaf>` | the lease |
//! | `leaf.v1.ctr.<leaf>.<container>.>` | a container's own subjects |
//! | `leaf.v1.state.<leaf>.<key>` | a changed entry of the leaf's state, as it crosses to a hub |
//! | `leaf.v1.hub.<leaf>.<claim\|release\|fill\|copy.read>` | a leaf's request to the hub agent |
//! | `leaf.v1.link.<leaf>.<instance>.<events\|state>.<info\|get>` | the hub agent's request for a leaf's events or state |
//! | `leaf.v1.up.<leaf>.<instance>.<aggregate>.<id>.<fact>` | a domain event on its way to the hub's copy |
//! | `leaf.v1.copy.<key>.<state\|beat\|fleet\|fact>…` | what the hub agent writes into its streams; the key is a secret of the hub |
//! | `leaf.v1.fleet.<leaf>.<fact>` | what happened to a copy |
//! | `$KV.leaf_state.<leaf>.<key>` | an entry of the leaf's state |
//! | `$SRV.<verb>.<service>.<id>` | discovery of services (NATS ADR-32) |
//!
//! Replies are only sent below `_INBOX.<caller>.`.

mod hub;
mod inbox;

pub use hub::*;
pub use inbox::*;

use crate::id::{Caller, ContainerName, JobId, LeafName, is_token};

/// The protocol version, a token of every subject.
pub const VERSION: &str = "v1";

/// The parsed subject of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSubject {
    /// The leaf that the command is for.
    pub leaf: LeafName,
    /// The caller.
    pub caller: Caller,
    /// The noun: `container`.
    pub noun: String,
    /// The verb: `start`.
    pub verb: String,
}

/// An error in parsing a command's subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Not `leaf.v1.cmd.<leaf>.<caller>.<noun>.<verb>`.
    #[error("{0:?} is not leaf.v1.cmd.<leaf>.<caller>.<noun>.<verb>")]
    Shape(String),
    /// Another protocol version.
    #[error("protocol version {0:?} is not supported, only {VERSION}")]
    Version(String),
    /// A token with a character outside `[a-z0-9_-]`.
    #[error("the token {0:?} is not [a-z0-9_-]")]
    Token(String),
}

impl CommandSubject {
    /// Returns the subject as text.
    #[must_use]
    pub fn build(&self) -> String {
        format!(
            "leaf.{VERSION}.cmd.{}.{}.{}.{}",
            self.leaf, self.caller, self.noun, self.verb
        )
    }

    /// Parses a subject.
    ///
    /// # Errors
    /// [`SubjectError`] when it is not the subject of a command of this version.
    pub fn parse(subject: &str) -> Result<Self, SubjectError> {
        let shape = || SubjectError::Shape(subject.chars().take(200).collect());
        let tokens: Vec<&str> = subject.split('.').collect();
        let [root, version, "cmd", leaf, caller, noun, verb] = tokens[..] else {
            return Err(shape());
        };
        if root != "leaf" {
            return Err(shape());
        }
        if version != VERSION {
            return Err(SubjectError::Version(version.to_owned()));
        }
        let token = |text: &str| {
            if is_token(text) {
                Ok(text.to_owned())
            } else {
                Err(SubjectError::Token(text.to_owned()))
            }
        };
        Ok(Self {
            leaf: LeafName::new(leaf).map_err(|_| SubjectError::Token(leaf.to_owned()))?,
            caller: Caller::new(caller).map_err(|_| SubjectError::Token(caller.to_owned()))?,
            noun: token(noun)?,
            verb: token(verb)?,
        })
    }
}

/// Returns the subject of a command with `*` in the leaf's place: the one that is signed.
#[must_use]
pub fn command_to_any(caller: &Caller, noun: &str, verb: &str) -> String {
    format!("leaf.{VERSION}.cmd.*.{caller}.{noun}.{verb}")
}

/// Returns the subjects that a leaf subscribes to for its commands: every version, so that an unsupported one is
/// answered.
#[must_use]
pub fn commands_of(leaf: &LeafName) -> String {
    format!("leaf.*.cmd.{leaf}.>")
}

/// Returns the subjects of all commands to all leaves, of every version.
#[must_use]
pub fn commands() -> String {
    "leaf.*.cmd.>".to_owned()
}

/// Returns the subjects of one command to a leaf, by any caller.
#[must_use]
pub fn command_by_anybody(leaf: &LeafName, noun: &str, verb: &str) -> String {
    format!("leaf.{VERSION}.cmd.{leaf}.*.{noun}.{verb}")
}

/// Returns the caller named in a command's subject, even if the subject is otherwise invalid: the sender's permission
/// fixes this token.
#[must_use]
pub fn caller_of(subject: &str) -> Option<Caller> {
    Caller::new(subject.split('.').nth(4)?).ok()
}

/// Returns the subjects that a caller publishes to for commands to any leaf.
#[must_use]
pub fn commands_by(caller: &Caller) -> String {
    format!("leaf.{VERSION}.cmd.*.{caller}.>")
}

/// Returns the subject of a question to all leaves.
#[must_use]
pub fn ask(noun: &str, verb: &str) -> String {
    format!("leaf.{VERSION}.ask.{noun}.{verb}")
}

/// Returns the subjects of all questions to all leaves.
#[must_use]
pub fn asks() -> String {
    format!("leaf.{VERSION}.ask.>")
}

/// Returns an event's subject: `aggregate` and `fact` are tokens of the event's type, `id` is a token.
#[must_use]
pub fn event(leaf: &LeafName, aggregate: &str, id: &str, fact: &str) -> String {
    format!("leaf.{VERSION}.evt.{leaf}.{aggregate}.{id}.{fact}")
}

/// Returns the parts of an event's subject: the aggregate (`container`), its token, and the fact (`started`).
#[must_use]
pub fn parts_of_event(subject: &str) -> Option<(&str, &str, &str)> {
    let mut tokens = subject.split('.');
    let start = [tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?];
    let parts = (tokens.next()?, tokens.next()?, tokens.next()?);
    (start[0] == "leaf" && start[2] == "evt" && tokens.next().is_none()).then_some(parts)
}

/// Returns the subjects of a leaf's events.
#[must_use]
pub fn events_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.evt.{leaf}.>")
}

/// Returns the subjects of all leaves' events.
#[must_use]
pub fn events() -> String {
    format!("leaf.{VERSION}.evt.>")
}

/// Returns the subject of a leaf's snapshots, from which a replay starts.
#[must_use]
pub fn snapshots_of(leaf: &LeafName) -> String {
    event(leaf, "leaf", leaf.as_str(), "snapshotted")
}

/// Returns the subject of a running job's progress.
#[must_use]
pub fn job_progress(leaf: &LeafName, job: JobId) -> String {
    format!("leaf.{VERSION}.job.{leaf}.{job}.progress")
}

/// Returns the subject of a running job's log.
#[must_use]
pub fn job_log(leaf: &LeafName, job: JobId) -> String {
    format!("leaf.{VERSION}.job.{leaf}.{job}.log")
}

/// Returns the subject of the notification that a job has ended; an event records it as well.
#[must_use]
pub fn job_ended(leaf: &LeafName, job: JobId) -> String {
    format!("leaf.{VERSION}.job.{leaf}.{job}.ended")
}

/// Returns the subjects of all messages about one running job.
#[must_use]
pub fn job_messages(leaf: &LeafName, job: JobId) -> String {
    format!("leaf.{VERSION}.job.{leaf}.{job}.>")
}

/// Returns the subjects of all messages about a leaf's running jobs.
#[must_use]
pub fn jobs_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.job.{leaf}.>")
}

/// Returns the subjects of all messages about running jobs.
#[must_use]
pub fn jobs() -> String {
    format!("leaf.{VERSION}.job.>")
}

/// Returns the subject of a leaf's lease.
#[must_use]
pub fn beat(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.beat.{leaf}")
}

/// Returns the subjects of all leases.
#[must_use]
pub fn beats() -> String {
    format!("leaf.{VERSION}.beat.*")
}

/// Returns the leaf whose beats have this subject.
#[must_use]
pub fn leaf_of_beat(subject: &str) -> Option<LeafName> {
    let prefix = beats();
    LeafName::new(subject.strip_prefix(prefix.strip_suffix('*')?)?).ok()
}

/// Returns the prefix of a container's own subjects, without a final dot.
#[must_use]
pub fn container_prefix(leaf: &LeafName, container: &ContainerName) -> String {
    container_prefix_of_token(leaf, &container.token())
}

/// Like [`container_prefix`], for a container's token or a placeholder for it in a template of permissions.
#[must_use]
pub fn container_prefix_of_token(leaf: &LeafName, token: &str) -> String {
    format!("leaf.{VERSION}.ctr.{leaf}.{token}")
}

/// Returns the subjects of all of a leaf's containers.
#[must_use]
pub fn containers_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.ctr.{leaf}.>")
}

/// Returns the subjects of all leaves' containers.
#[must_use]
pub fn containers() -> String {
    format!("leaf.{VERSION}.ctr.>")
}

/// Returns the subjects on which all containers answer health requests.
#[must_use]
pub fn container_healths() -> String {
    format!("leaf.{VERSION}.ctr.*.*.health")
}

/// Returns the subjects on which a leaf's containers answer health requests.
#[must_use]
pub fn container_healths_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.ctr.{leaf}.*.health")
}

/// Returns the subject on which a container answers health requests.
#[must_use]
pub fn container_health(leaf: &LeafName, container: &ContainerName) -> String {
    format!("{}.health", container_prefix(leaf, container))
}

/// Returns whether a text is a subject without wildcards, empty tokens and white space.
#[must_use]
pub fn is_literal(text: &str) -> bool {
    text.split('.')
        .all(|t| !t.is_empty() && t != "*" && t != ">" && !t.contains(char::is_whitespace))
}

/// Returns the name of the stream of a leaf's events.
#[must_use]
pub fn event_stream(leaf: &LeafName) -> String {
    format!("EVENTS_{leaf}")
}

/// The stream that keeps the last lease of every leaf until it expires.
pub const LEASE_STREAM: &str = "LEASES";

/// The KV bucket with the present state of all leaves; its keys begin with the leaf's name.
pub const STATE_BUCKET: &str = "leaf_state";

/// Returns the subjects of a leaf's keys in the bucket [`STATE_BUCKET`].
#[must_use]
pub fn state_keys_of(leaf: &LeafName) -> String {
    format!("$KV.{STATE_BUCKET}.{leaf}.>")
}

/// Returns the subjects of all leaves' keys in the bucket [`STATE_BUCKET`].
#[must_use]
pub fn state_keys() -> String {
    format!("$KV.{STATE_BUCKET}.>")
}

/// Returns the name of the stream behind the bucket [`STATE_BUCKET`].
#[must_use]
pub fn state_stream() -> String {
    format!("KV_{STATE_BUCKET}")
}

/// Returns the subject of a leaf's key in the bucket [`STATE_BUCKET`].
#[must_use]
pub fn state_key(leaf: &LeafName, key: &str) -> String {
    format!("$KV.{STATE_BUCKET}.{leaf}.{key}")
}

/// Returns the leaf's key in the bucket [`STATE_BUCKET`] that has this subject.
#[must_use]
pub fn key_of_state<'a>(leaf: &LeafName, subject: &'a str) -> Option<&'a str> {
    subject
        .strip_prefix("$KV.")?
        .strip_prefix(STATE_BUCKET)?
        .strip_prefix('.')?
        .strip_prefix(leaf.as_str())?
        .strip_prefix('.')
        .filter(|key| !key.is_empty())
}

/// Returns the discovery subjects of a service (NATS ADR-32): for all services, for its name, for the service of this id.
#[must_use]
pub fn discovery(service: &str, id: uuid::Uuid) -> [String; 3] {
    [
        "$SRV.*".to_owned(),
        format!("$SRV.*.{service}"),
        format!("$SRV.*.{service}.{id}"),
    ]
}

/// Returns the leaf of the subject of an event, a beat or a request to the hub agent: the token after the kind.
#[must_use]
pub fn leaf_of(subject: &str) -> Option<LeafName> {
    let mut tokens = subject.split('.');
    let is_ours = tokens.next() == Some("leaf") && tokens.next() == Some(VERSION);
    let leaf = tokens.nth(1)?;
    is_ours.then(|| LeafName::new(leaf).ok()).flatten()
}

/// Returns the verb of a discovery subject: `PING`, `INFO`, `STATS`.
#[must_use]
pub fn discovery_verb(subject: &str) -> Option<&str> {
    subject.strip_prefix("$SRV.")?.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> (LeafName, Caller) {
        (
            LeafName::new("edge-1").expect("a leaf"),
            Caller::new("admin").expect("a caller"),
        )
    }

    proptest! {
        #[test]
        fn any_subject_is_refused_or_parsed_to_what_builds_it(subject in "(leaf\\.v1\\.cmd\\.)?[a-zA-Z0-9_.*>-]{0,60}") {
            if let Ok(parsed) = CommandSubject::parse(&subject) {
                prop_assert_eq!(parsed.build(), subject);
            }
        }
    }

    #[test]
    fn a_command_subject_is_built_and_parsed() {
        let (leaf, caller) = names();
        let subject = CommandSubject {
            leaf,
            caller,
            noun: "container".into(),
            verb: "start".into(),
        };
        assert_eq!(subject.build(), "leaf.v1.cmd.edge-1.admin.container.start");
        assert_eq!(CommandSubject::parse(&subject.build()), Ok(subject));
    }

    #[test]
    fn errors_of_invalid_subjects_say_what_is_wrong() {
        use SubjectError as E;
        let parse = CommandSubject::parse;
        assert!(matches!(
            parse("leaf.v2.cmd.edge-1.admin.leaf.show"),
            Err(E::Version(_))
        ));
        assert!(matches!(
            parse("leaf.v1.cmd.edge-1.admin.leaf.SHOW"),
            Err(E::Token(_))
        ));
        assert!(matches!(parse("leaf.v1.cmd.edge-1.admin.leaf"), Err(E::Shape(_))));
        assert!(matches!(
            parse("leaf.v1.cmd.edge-1.admin.leaf.show.more"),
            Err(E::Shape(_))
        ));
        assert!(matches!(parse("leaf.v1.cmd.edge-1..leaf.show"), Err(E::Token(_))));
    }

    #[test]
    fn a_key_of_the_state_is_built_and_parsed() {
        let (leaf, _) = names();
        let subject = state_key(&leaf, "container._57eb");
        assert_eq!(subject, "$KV.leaf_state.edge-1.container._57eb");
        assert_eq!(key_of_state(&leaf, &subject), Some("container._57eb"));
        for other in [
            "$KV.leaf_state.edge-1.",
            "$KV.leaf_state.edge-12.leaf",
            "$KV.leaf_stateedge-1.leaf",
            "$KV.other.edge-1.leaf",
        ] {
            assert_eq!(key_of_state(&leaf, other), None, "{other}");
        }
    }

    #[test]
    fn a_discovery_subject_names_its_verb() {
        for subject in ["$SRV.PING", "$SRV.PING.cim-leaf", "$SRV.PING.cim-leaf.7"] {
            assert_eq!(discovery_verb(subject), Some("PING"));
        }
        assert_eq!(discovery_verb("leaf.v1.ask.leaf.show"), None);
    }

    #[test]
    fn the_caller_of_an_invalid_subject_is_known() {
        let (_, caller) = names();
        assert_eq!(caller_of("leaf.v9.cmd.edge-1.admin.x"), Some(caller));
        assert_eq!(caller_of("leaf.v1.cmd.edge-1.BAD.x"), None);
        assert_eq!(caller_of("leaf.v1.cmd"), None);
    }
}
