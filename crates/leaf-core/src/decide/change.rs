//! Decides the commands about changes that can cut the leaf off, and what the events tell of them. The helper makes and decides the
//! changes; what is on the host is the truth.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Context, Decision, Reply, invalid, only};
use crate::change::{
    Armed, Decided, Decision as Outcome, HubChange, KIND_HUB, KIND_SYSTEM, MAX_SECONDS, MIN_SECONDS,
    SystemChange,
};
use crate::command::leaf::{ConfirmLeafChange, HubInPlace, MoveLeaf, OpenChange};
use crate::error::chain;
use crate::event::{Fact, LeafChangeArmed, LeafChangeConfirmed, LeafChangeWentBack, LeafHubInPlaceEnded};
use crate::host_op::Secret;
use crate::id::{Caller, ChangeId, StorePath};
use crate::problem::Problem;
use crate::state::{ChangeStage, State};

/// The time in which a change must be confirmed where its command names none, in seconds.
pub const DEFAULT_SECONDS: u32 = 120;

/// A step of a change that the helper carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeStep {
    /// It is armed and written.
    Move(Box<Move>),
    /// Another system is armed, and activated.
    Switch(Box<SystemOrder>),
    /// A person confirms it.
    Confirm {
        /// The change.
        id: ChangeId,
        /// The person.
        caller: Caller,
    },
}

/// A switch to another system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemOrder {
    /// The change.
    pub id: ChangeId,
    /// The caller that asks for it.
    pub caller: Caller,
    /// The time in which it must be confirmed, in seconds.
    pub seconds: u32,
    /// Whether only a person can confirm it.
    pub unwitnessed: bool,
    /// The system. The format of the journal is the shell's to say.
    pub system: SystemChange,
}

impl SystemOrder {
    /// Returns the open change that it is once it is armed.
    #[must_use]
    pub fn opened(&self) -> OpenChange {
        OpenChange {
            id: self.id,
            kind: KIND_SYSTEM.to_owned(),
            caller: Some(self.caller.clone()),
            url: None,
            toplevel: Some(self.system.toplevel.clone()),
            seconds_left: self.seconds.into(),
            unwitnessed: self.unwitnessed,
        }
    }
}

/// A move to another hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The change.
    pub id: ChangeId,
    /// The caller that asks for it.
    pub caller: Caller,
    /// The time in which it must be confirmed, in seconds.
    pub seconds: u32,
    /// Whether only a person can confirm it.
    pub unwitnessed: bool,
    /// The hub's URL, or several.
    pub url: String,
    /// The CA certificates to trust, in PEM; without them those that the leaf trusts now.
    pub ca: Option<String>,
    /// The content of the credentials file; without it the credentials that the leaf has now.
    pub credentials: Option<Secret>,
}

impl Move {
    /// Returns the open change that it is once it is armed.
    #[must_use]
    pub fn opened(&self) -> OpenChange {
        OpenChange {
            id: self.id,
            kind: KIND_HUB.to_owned(),
            caller: Some(self.caller.clone()),
            url: Some(self.url.clone()),
            toplevel: None,
            seconds_left: self.seconds.into(),
            unwitnessed: self.unwitnessed,
        }
    }
}

/// Returns the time in which a change must be confirmed, if it is one.
pub(super) fn checked_seconds(seconds: u32) -> Result<u32, Problem> {
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return Err(invalid(format!(
            "`seconds` is {seconds}, and a change must be confirmed within {MIN_SECONDS} to {MAX_SECONDS}"
        )));
    }
    Ok(seconds)
}

pub(super) fn move_to(command: &MoveLeaf, context: &Context) -> Result<Decision, Problem> {
    let seconds = checked_seconds(command.seconds.unwrap_or(DEFAULT_SECONDS))?;
    let form = HubChange {
        url: command.url.clone(),
        ca: command.ca.clone(),
        credentials: command.credentials.clone(),
        // The shell knows it; here the rest is looked at.
        section: "0".repeat(64),
    };
    form.check().map_err(|error| invalid(chain(&error)))?;
    Ok(only(Reply::WhenChanged(ChangeStep::Move(Box::new(Move {
        id: ChangeId(context.fresh_id),
        caller: context.caller.clone(),
        seconds,
        unwitnessed: command.no_witness,
        url: command.url.clone(),
        ca: command.ca.clone(),
        credentials: command.credentials.clone(),
    })))))
}

pub(super) fn confirm(command: &ConfirmLeafChange, context: &Context) -> Decision {
    only(Reply::WhenChanged(ChangeStep::Confirm {
        id: command.id,
        caller: context.caller.clone(),
    }))
}

/// The records on the host of changes that can cut the leaf off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedChanges {
    /// The change that is armed, or is going back.
    pub open: Option<Armed>,
    /// The time until the open change goes back; zero if it does so now.
    pub left: Duration,
    /// The last changes that were decided, in any order.
    pub decided: Vec<Decided>,
    /// The hub in the settings' place, whether it is used or not.
    pub hub: Option<HubInPlace>,
    /// Whether it is used: the settings are those in whose place it was put.
    pub is_hub_used: bool,
}

impl ObservedChanges {
    /// Returns the open change, of which this time has passed since the observation.
    #[must_use]
    pub fn open_change(&self, since: Duration) -> Option<OpenChange> {
        let open = self.open.as_ref()?;
        Some(OpenChange {
            id: open.id,
            kind: open.kind.clone(),
            caller: open.caller.clone(),
            url: self.url_of(open.id),
            toplevel: toplevel(open),
            seconds_left: self.left.saturating_sub(since).as_secs(),
            unwitnessed: open.unwitnessed,
        })
    }

    fn url_of(&self, id: ChangeId) -> Option<String> {
        let hub = self.hub.as_ref().filter(|hub| hub.change == id)?;
        Some(hub.url.clone())
    }
}

/// Returns the fact that a change was armed; none if the events tell that already.
#[must_use]
pub fn change_armed(state: &State, open: &OpenChange) -> Option<Fact> {
    let fact = LeafChangeArmed {
        change: open.id,
        kind: open.kind.clone(),
        caller: open.caller.clone(),
        url: open.url.clone(),
        toplevel: open.toplevel.clone(),
        unwitnessed: open.unwitnessed,
    };
    stage(state, open.id).is_none().then(|| fact.into())
}

/// Returns the fact that a person confirmed a change; none if the events tell already how it was decided.
#[must_use]
pub fn change_confirmed(state: &State, change: ChangeId, by: Option<String>) -> Option<Fact> {
    is_undecided(state, change).then(|| LeafChangeConfirmed { change, by }.into())
}

/// Returns the facts about changes of which the events don't tell yet.
#[must_use]
pub fn changes_observed(state: &State, seen: &ObservedChanges) -> Vec<Fact> {
    let mut facts = Vec::new();
    let decided: BTreeMap<_, _> = seen
        .decided
        .iter()
        .map(|decided| ((decided.armed.armed_at, decided.armed.id), decided))
        .collect();
    for decided in decided.into_values() {
        let change = decided.armed.id;
        if !is_undecided(state, change) {
            continue;
        }
        let open = OpenChange {
            id: change,
            kind: decided.armed.kind.clone(),
            caller: decided.armed.caller.clone(),
            url: seen.url_of(change),
            toplevel: toplevel(&decided.armed),
            seconds_left: 0,
            unwitnessed: decided.armed.unwitnessed,
        };
        facts.extend(change_armed(state, &open));
        let outcome = decided.outcome.as_ref();
        facts.push(match decided.decision() {
            Outcome::Confirmed => LeafChangeConfirmed {
                change,
                by: outcome.and_then(|outcome| outcome.by.clone()),
            }
            .into(),
            Outcome::Back => LeafChangeWentBack {
                change,
                why: outcome.and_then(|outcome| outcome.why.clone()),
            }
            .into(),
        });
    }
    facts.extend(
        seen.open_change(Duration::ZERO)
            .and_then(|open| change_armed(state, &open)),
    );
    if let Some(hub) = seen.hub.as_ref().filter(|_| !seen.is_hub_used) {
        let told = state.leaf.as_ref().and_then(|leaf| leaf.hub_in_place_ended);
        if told != Some(hub.change) {
            let ended = LeafHubInPlaceEnded {
                change: hub.change,
                url: hub.url.clone(),
            };
            facts.push(ended.into());
        }
    }
    facts
}

/// Returns the toplevel of a change of the system.
fn toplevel(armed: &Armed) -> Option<StorePath> {
    armed.system.as_ref().map(|system| system.toplevel.clone())
}

fn stage(state: &State, change: ChangeId) -> Option<ChangeStage> {
    Some(state.leaf.as_ref()?.changes.get(&change)?.stage)
}

fn is_undecided(state: &State, change: ChangeId) -> bool {
    matches!(stage(state, change), None | Some(ChangeStage::Armed))
}
