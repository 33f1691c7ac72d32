//! Decides the commands about the leaf itself.

use super::{Context, Decision, Question, Reply, change, conflict, invalid, known, only, unreadable};
use crate::aggregate::Aggregate;
use crate::command::leaf::{Command, LabelLeaf, LeafLabels};
use crate::event::LeafLabelled;
use crate::labels::{self, Labels};
use crate::problem::Problem;
use crate::state::State;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    match command {
        Command::Show(_) => Ok(only(Reply::LeafReport)),
        Command::Label(command) => label(state, command, context),
        Command::MoveTo(command) => change::move_to(command, context),
        Command::Confirm(command) => Ok(change::confirm(command, context)),
        Command::Challenge(_) => {
            let question = Question::Challenge(context.caller.clone());
            Ok(only(Reply::FromHost(question)))
        }
    }
}

fn label(state: &State, command: &LabelLeaf, context: &Context) -> Result<Decision, Problem> {
    // Other commands to the leaf don't change its entry.
    let key = Aggregate::Leaf.key();
    if let Some(raw) = state.raw_entries().iter().find(|raw| raw.key == key) {
        return Err(unreadable(raw));
    }
    let of_settings = &context.labels;
    if command.set.is_empty() && command.remove.is_empty() {
        return Err(invalid("nothing is to be set or removed".to_owned()));
    }
    for (key, value) in &command.set {
        labels::check_label(key, value).map_err(|error| invalid(error.to_string()))?;
        if command.remove.contains(key) {
            return Err(invalid(format!("the label {key} is both set and removed")));
        }
    }
    for key in &command.remove {
        labels::check_key(key).map_err(|error| invalid(error.to_string()))?;
    }
    let fixed = command.set.keys().chain(&command.remove);
    let fixed: Vec<&str> = fixed
        .filter(|key| of_settings.contains_key(*key))
        .map(String::as_str)
        .collect();
    if !fixed.is_empty() {
        return Err(conflict(format!(
            "these labels stand in the leaf's settings and can only be changed there ([labels] in leafd.toml, \
            services.cim-leaf.labels on NixOS): {}",
            fixed.join(", ")
        )));
    }
    let before = state.leaf.as_ref().map(|leaf| leaf.labels.clone());
    let before = before.unwrap_or_default();
    let mut after = before.clone();
    after.extend(command.set.clone());
    after.retain(|key, _| !command.remove.contains(key));
    if !command.set.is_empty() {
        let mut all = after.clone();
        all.extend(of_settings.clone());
        labels::check(&all).map_err(|error| invalid(error.to_string()))?;
    }
    let reply = known(&LeafLabels {
        labels: labels::effective(of_settings, &after),
        of_settings: of_settings.keys().cloned().collect(),
    });
    let facts = facts(before, after, context);
    Ok(Decision { facts, reply })
}

/// Returns the fact of changed labels; none if nothing changes.
fn facts(before: Labels, after: Labels, context: &Context) -> Vec<crate::event::Fact> {
    if before == after {
        return Vec::new();
    }
    let fact = LeafLabelled {
        caller: context.caller.clone(),
        labels: after,
    };
    vec![fact.into()]
}
