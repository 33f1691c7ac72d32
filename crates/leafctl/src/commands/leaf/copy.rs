//! The copies that a hub keeps of leaves' events, beside what is known of the leaves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use leaf_core::error::chain;
use leaf_core::fleet::{CopyState, CopyStatus};
use leaf_core::id::LeafName;

use crate::output::{Output, ago};
use crate::session::Session;

/// Returns the copies by leaf: none if the server is no hub, or does not show them.
pub(super) async fn copies(session: &Session, output: Output) -> BTreeMap<LeafName, CopyStatus> {
    match session.client.copies().await {
        Ok(copies) => copies,
        Err(error) => {
            output.note(&format!("can't read the hub's copies: {}", chain(&error)));
            BTreeMap::new()
        }
    }
}

/// Notes that the hub's agent is not there: what a list says of the leaves is as old as its end.
pub(super) async fn note_absent_agent(session: &Session, output: Output) {
    let agent = session.client.hub_agent().await.ok().flatten();
    if let Some(absence) = agent.and_then(|agent| agent.absence(Timestamp::now())) {
        output.note(&format!(
            "the hub learns nothing of its leaves at the moment, and they may be online: {absence}"
        ));
    }
}

/// Returns the state of a copy: `behind (12s ago), 5 events missing`.
pub(super) fn text(status: &CopyStatus) -> String {
    let since = ago(status.since);
    let missing = status.leaf_last.saturating_sub(status.copied);
    let mut text = match status.state {
        CopyState::Current => return "current".to_owned(),
        state => format!("{state} ({since})"),
    };
    if missing > 0 {
        text += &format!(", {missing} events missing");
    }
    if let Some(reason) = &status.reason {
        text += &format!(": {reason}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_what_is_missing_and_why() {
        let status: CopyStatus = serde_json::from_value(serde_json::json!({
            "leaf": "edge-1", "state": "stalled", "since": Timestamp::now(), "copied": 26, "leaf_last": 31,
            "reason": "no answer",
        }))
        .expect("a document");
        assert_eq!(text(&status), "stalled (0s ago), 5 events missing: no answer");
        let current = CopyStatus {
            state: CopyState::Current,
            ..status
        };
        assert_eq!(text(&current), "current");
    }
}
