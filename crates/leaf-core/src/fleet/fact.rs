//! What happens to the leaves of a fleet and their copies: CloudEvents in the hub's stream `FLEET`.

use jiff::Timestamp;

use super::{CopyState, CopyStatus};
use crate::event::{Headers, header};
use crate::json::to_json;
use crate::subject;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetFact {
    /// A leaf claimed its name for the first time.
    Joined,
    /// Its copy lacks events.
    Behind,
    /// It stopped renewing its claim.
    Away,
    /// It claimed its name again.
    Back,
    /// Its copy lacks events, and none arrives.
    Stalled,
    /// Its copy ends with its last event again.
    Recovered,
    /// It dropped events that were never copied.
    Gap,
    /// Leaf and copy have different events under one number.
    Differs,
    /// Its copy was deleted, to begin anew.
    Reset,
    /// The agent's task of this leaf panicked, and was started again.
    Panicked,
    /// It was removed from the registry.
    Forgotten,
}

impl FleetFact {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Joined,
        Self::Behind,
        Self::Away,
        Self::Back,
        Self::Stalled,
        Self::Recovered,
        Self::Gap,
        Self::Differs,
        Self::Reset,
        Self::Panicked,
        Self::Forgotten,
    ];

    /// Returns the fact's token in subjects and types: `joined`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Behind => "behind",
            Self::Away => "away",
            Self::Back => "back",
            Self::Stalled => "stalled",
            Self::Recovered => "recovered",
            Self::Gap => "gap",
            Self::Differs => "differs",
            Self::Reset => "reset",
            Self::Panicked => "panicked",
            Self::Forgotten => "forgotten",
        }
    }

    /// Returns the `ce-type`: `cim.fleet.joined.v1`.
    #[must_use]
    pub fn kind(self) -> String {
        format!("cim.fleet.{}.v1", self.as_str())
    }

    /// Returns the facts that a change of a copy's state is, in their order; `None` was before the leaf's first claim.
    #[must_use]
    pub fn of_change(before: Option<CopyState>, now: CopyState) -> Vec<Self> {
        if before == Some(now) {
            return Vec::new();
        }
        let mut facts = Vec::new();
        match before {
            None => facts.push(Self::Joined),
            Some(CopyState::Away) => facts.push(Self::Back),
            Some(_) => {}
        }
        match now {
            CopyState::Current if before.is_some_and(|before| before != CopyState::Away) => {
                facts.push(Self::Recovered);
            }
            CopyState::Current | CopyState::Unknown => {}
            CopyState::Behind => facts.push(Self::Behind),
            CopyState::Away => facts.push(Self::Away),
            CopyState::Stalled => facts.push(Self::Stalled),
            CopyState::Gap => facts.push(Self::Gap),
            CopyState::Differs => facts.push(Self::Differs),
        }
        facts
    }
}

/// An event of the stream `FLEET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetEvent {
    /// Since when the copy was in the state before, by the document about it. The event's id follows from it, so one that is stored twice has one id.
    pub before: Option<Timestamp>,
    /// When it happened, by the hub's clock.
    pub time: Timestamp,
    /// What happened.
    pub fact: FleetFact,
    /// The copy after that.
    pub status: CopyStatus,
}

impl FleetEvent {
    /// Returns its id: `<leaf>/<fact>/<since when the copy was in the state before>`.
    #[must_use]
    pub fn id(&self) -> String {
        let before = self.before.map_or(String::new(), |time| time.to_string());
        format!("{}/{}/{before}", self.status.leaf, self.fact.as_str())
    }

    /// Returns its subject.
    #[must_use]
    pub fn subject(&self) -> String {
        subject::fleet_fact(&self.status.leaf, self.fact.as_str())
    }

    /// Returns its `ce-*` headers, sorted by name.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::with_capacity(7, 240);
        headers.push(header::DATA_CONTENT_TYPE, "application/json");
        headers.push(header::ID, self.id());
        headers.push(header::SOURCE, "urn:cim-leaf-hub");
        headers.push(header::SPECVERSION, "1.0");
        headers.push(header::SUBJECT, &self.status.leaf);
        headers.push(header::TIME, self.time);
        headers.push(header::TYPE, self.fact.kind());
        headers
    }

    /// Returns its body: the [`CopyStatus`].
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        to_json(&self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LeafName;

    #[test]
    fn each_change_of_state_is_a_fact() {
        use CopyState as S;
        use FleetFact as F;
        for (before, now, facts) in [
            (None, S::Current, vec![F::Joined]),
            (None, S::Behind, vec![F::Joined, F::Behind]),
            (Some(S::Current), S::Current, vec![]),
            (Some(S::Current), S::Behind, vec![F::Behind]),
            (Some(S::Behind), S::Current, vec![F::Recovered]),
            (Some(S::Behind), S::Stalled, vec![F::Stalled]),
            (Some(S::Current), S::Away, vec![F::Away]),
            (Some(S::Away), S::Current, vec![F::Back]),
            (Some(S::Away), S::Gap, vec![F::Back, F::Gap]),
            (Some(S::Gap), S::Current, vec![F::Recovered]),
        ] {
            assert_eq!(FleetFact::of_change(before, now), facts, "{before:?} {now:?}");
        }
    }

    #[test]
    fn an_event_of_the_fleet_is_a_cloud_event() {
        let event = FleetEvent {
            before: None,
            time: Timestamp::UNIX_EPOCH,
            fact: FleetFact::Gap,
            status: CopyStatus {
                leaf: LeafName::new("edge-1").expect("a name"),
                state: CopyState::Gap,
                since: Timestamp::UNIX_EPOCH,
                copied: 7,
                leaf_last: 90,
                reason: None,
            },
        };
        assert_eq!(event.subject(), "leaf.v1.fleet.edge-1.gap");
        assert_eq!(event.headers().get("ce-type"), Some("cim.fleet.gap.v1"));
        assert_eq!(event.headers().get("ce-id"), Some("edge-1/gap/"));
        assert_eq!(event.headers().get("ce-subject"), Some("edge-1"));
        let status: CopyStatus = serde_json::from_slice(&event.body()).expect("its body");
        assert_eq!(status, event.status);
    }
}
