//! The subjects between a leaf and its hub, and those of the hub's copies.

use uuid::Uuid;

use super::{VERSION, is_literal};
use crate::id::{InstanceId, LeafName, WorkId};

/// Returns the subjects of the changed entries of a leaf's state, as they cross to a hub.
#[must_use]
pub fn state_changes_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.state.{leaf}.>")
}

/// Returns the subjects of all leaves' changed entries.
#[must_use]
pub fn state_changes() -> String {
    format!("leaf.{VERSION}.state.*.>")
}

/// Returns the leaf and the key of a changed entry's subject.
#[must_use]
pub fn parts_of_state_change(subject: &str) -> Option<(LeafName, &str)> {
    let rest = subject.strip_prefix("leaf.")?.strip_prefix(VERSION)?;
    let (leaf, key) = rest.strip_prefix(".state.")?.split_once('.')?;
    is_literal(key).then_some((LeafName::new(leaf).ok()?, key))
}

/// Returns the subjects of events on their way to the copy, of all leaves and instances.
#[must_use]
pub fn ups() -> String {
    format!("leaf.{VERSION}.up.>")
}

/// Returns the subjects of a leaf's events on their way to the copy, of any instance.
#[must_use]
pub fn ups_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.up.{leaf}.*.>")
}

/// Returns the subjects on which an instance of a leaf sends its events to the hub's copy.
#[must_use]
pub fn up_events_of(leaf: &LeafName, instance: InstanceId) -> String {
    format!("{}>", up_prefix(leaf, instance))
}

/// Returns the beginning of these subjects, with its last dot.
#[must_use]
pub fn up_prefix(leaf: &LeafName, instance: InstanceId) -> String {
    format!("leaf.{VERSION}.up.{leaf}.{instance}.")
}

/// Returns the subjects of a leaf's requests to the hub agent.
#[must_use]
pub fn hub_requests_of(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.>")
}

/// Returns the subjects of all leaves' requests to the hub agent.
#[must_use]
pub fn hub_requests() -> String {
    format!("leaf.{VERSION}.hub.*.>")
}

/// Returns the subject of a leaf's claim on its name at the hub.
#[must_use]
pub fn hub_claim(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.claim")
}

/// Returns the subject on which a leaf that is stopped gives its claim back.
#[must_use]
pub fn hub_release(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.release")
}

/// Returns the subject of a leaf's request for events of the hub's copy.
#[must_use]
pub fn hub_copy_read(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.copy.read")
}

/// Returns the subject of a leaf's request to send the events that the hub's copy lacks.
#[must_use]
pub fn hub_fill(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.fill")
}

/// Returns the subject of a leaf's request for the signature of a witness.
#[must_use]
pub fn hub_witness(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.witness")
}

/// Returns the subject of a leaf's report on its works.
#[must_use]
pub fn hub_work(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.hub.{leaf}.work")
}

/// What the hub agent reads of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRead {
    /// The settings and the state of the stream of events: `STREAM.INFO`.
    EventsInfo,
    /// Events: `DIRECT.GET`.
    EventsGet,
    /// The settings and the state of the stream of the bucket [`STATE_BUCKET`]: `STREAM.INFO`.
    StateInfo,
    /// Entries of that bucket: `DIRECT.GET`.
    StateGet,
}

impl LinkRead {
    fn as_str(self) -> &'static str {
        match self {
            Self::EventsInfo => "events.info",
            Self::EventsGet => "events.get",
            Self::StateInfo => "state.info",
            Self::StateGet => "state.get",
        }
    }
}

/// Returns the subject of a request of the hub agent to a leaf. Only the server of this instance answers it, so what is read is
/// that instance's also where a second one runs under the leaf's name.
#[must_use]
pub fn link_read(leaf: &LeafName, instance: InstanceId, what: LinkRead) -> String {
    format!("leaf.{VERSION}.link.{leaf}.{instance}.{}", what.as_str())
}

/// Returns the subjects of these requests to any instance of a leaf.
#[must_use]
pub fn link_reads_of(leaf: &LeafName, what: LinkRead) -> String {
    format!("leaf.{VERSION}.link.{leaf}.*.{}", what.as_str())
}

/// Returns the subjects of all requests of the hub agent to leaves.
#[must_use]
pub fn link_reads() -> String {
    format!("leaf.{VERSION}.link.>")
}

/// Returns the subjects that the hub agent writes its copies on.
#[must_use]
pub fn copies() -> String {
    format!("leaf.{VERSION}.copy.>")
}

/// Returns the subject of a copy of events that takes none. Nobody knows this key, so nobody publishes on it.
#[must_use]
pub fn closed_copy(leaf: &LeafName, key: Uuid) -> String {
    format!("{}.{}", closed_copy_before(leaf), key.simple())
}

/// Returns the subject of a copy of events that takes none, as earlier agents made it.
#[must_use]
pub fn closed_copy_before(leaf: &LeafName) -> String {
    format!("leaf.{VERSION}.copy.{leaf}.closed")
}

/// Returns whether this is the subject of a copy of a leaf's events that takes none, with a key that nobody knows.
#[must_use]
pub fn is_closed_copy(leaf: &LeafName, subject: &str) -> bool {
    let key = subject.strip_prefix(&closed_copy_before(leaf));
    key.and_then(|key| key.strip_prefix('.')).is_some_and(is_key)
}

/// Returns the beginning of the subjects that the hub agent writes one of its streams on, with its last dot: only who has read the stream's
/// settings knows the key.
#[must_use]
pub fn written(key: Uuid, what: &str) -> String {
    format!("leaf.{VERSION}.copy.{}.{what}.", key.simple())
}

/// Returns whether this is the beginning of such subjects.
#[must_use]
pub fn is_written(prefix: &str, what: &str) -> bool {
    let rest = prefix
        .strip_prefix("leaf.")
        .and_then(|rest| rest.strip_prefix(VERSION)?.strip_prefix(".copy."));
    let key = rest.and_then(|rest| rest.strip_suffix('.')?.strip_suffix(what)?.strip_suffix('.'));
    key.is_some_and(is_key)
}

fn is_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the subjects that earlier agents wrote entries of leaves' states on.
#[must_use]
pub fn written_states_before() -> String {
    format!("leaf.{VERSION}.copy.*.state.>")
}

/// Returns the subjects that earlier agents wrote leaves' beats on.
#[must_use]
pub fn written_beats_before() -> String {
    format!("leaf.{VERSION}.copy.*.beat")
}

/// The stream of what happened to the copies of a hub.
pub const FLEET_STREAM: &str = "FLEET";

/// The KV bucket with the state of each copy of a hub; its keys are the leaves' names.
pub const FLEET_BUCKET: &str = "fleet";

/// Returns the subject of the document about the copy of a leaf, an entry of [`FLEET_BUCKET`].
#[must_use]
pub fn copy_status(leaf: &LeafName) -> String {
    format!("$KV.{FLEET_BUCKET}.{leaf}")
}

/// Returns the subject of the document about the active hub agent, in the same bucket. No leaf has such a name.
#[must_use]
pub fn active_agent() -> String {
    format!("$KV.{FLEET_BUCKET}.agent.active")
}

/// Returns the subjects of the documents about all copies.
#[must_use]
pub fn copy_statuses() -> String {
    format!("$KV.{FLEET_BUCKET}.>")
}

/// Returns the subject of something that happened to the copy of a leaf.
#[must_use]
pub fn fleet_fact(leaf: &LeafName, fact: &str) -> String {
    format!("leaf.{VERSION}.fleet.{leaf}.{fact}")
}

/// Returns the subjects of one fact about the copies of all leaves.
#[must_use]
pub fn fleet_facts_of_all(fact: &str) -> String {
    format!("leaf.{VERSION}.fleet.*.{fact}")
}

/// Returns the subject of the fact that a work of a leaf was taken over. There is at most one of each work.
#[must_use]
pub fn work_taken_over(first: &LeafName, work: WorkId) -> String {
    format!("leaf.{VERSION}.fleet.{first}.taken_over.{work}")
}

/// Returns the subjects of all that happened to copies.
#[must_use]
pub fn fleet_facts() -> String {
    format!("leaf.{VERSION}.fleet.>")
}

#[cfg(test)]
mod tests {
    use super::super::{event, leaf_of};
    use super::*;

    #[test]
    fn subjects_between_a_leaf_and_its_hub_are_built_and_parsed() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let event = event(&leaf, "leaf", "edge-1", "started");
        let change = "leaf.v1.state.edge-1.container._57eb";
        assert_eq!(
            parts_of_state_change(change),
            Some((leaf.clone(), "container._57eb"))
        );
        for other in [
            "leaf.v1.state.edge-1",
            "leaf.v1.state.edge-1.",
            "leaf.v1.state.edge-1.>",
            "leaf.v1.state.edge-1.a b",
        ] {
            assert_eq!(parts_of_state_change(other), None, "{other}");
        }
        assert_eq!(leaf_of(&hub_claim(&leaf)).as_ref(), Some(&leaf));
        assert_eq!(leaf_of(&event).as_ref(), Some(&leaf));
        assert_eq!(leaf_of("leaf.v2.evt.edge-1.a"), None);
    }

    #[test]
    fn an_instance_sends_its_events_up_below_a_prefix_of_its_own() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let prefix = up_prefix(&leaf, InstanceId(Uuid::from_u128(7)));
        assert_eq!(prefix, "leaf.v1.up.edge-1.00000000-0000-0000-0000-000000000007.");
        assert_ne!(prefix, up_prefix(&leaf, InstanceId(Uuid::from_u128(8))));
    }

    #[test]
    fn the_subjects_of_events_sent_up_are_all_below_the_prefix() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let subjects = up_events_of(&leaf, InstanceId(Uuid::from_u128(7)));
        assert_eq!(
            subjects,
            "leaf.v1.up.edge-1.00000000-0000-0000-0000-000000000007.>"
        );
    }

    #[test]
    fn what_the_hub_agent_writes_on_has_a_key_that_cannot_be_guessed() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let key = Uuid::from_u128(7);
        let prefix = written(key, "beat");
        assert_eq!(prefix, "leaf.v1.copy.00000000000000000000000000000007.beat.");
        assert!(is_written(&prefix, "beat") && !is_written(&prefix, "state"));
        for known in [
            "leaf.v1.copy.*.beat.",
            "leaf.v1.copy.edge-1.beat.",
            "leaf.v1.beat.",
        ] {
            assert!(!is_written(known, "beat"), "{known}");
        }
        let closed = closed_copy(&leaf, key);
        assert_eq!(
            closed,
            "leaf.v1.copy.edge-1.closed.00000000000000000000000000000007"
        );
        assert!(is_closed_copy(&leaf, &closed));
        for known in [
            closed_copy_before(&leaf),
            closed_copy(&LeafName::new("edge-2").expect("a leaf"), key),
        ] {
            assert!(!is_closed_copy(&leaf, &known), "{known}");
        }
    }
}
