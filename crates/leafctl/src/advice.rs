//! What a person does next about a leaf and its hub, in one line.

use jiff::{SignedDuration, Timestamp};
use leaf_core::command::HubReport;
use leaf_core::fleet::{CopyState, CopyStatus};

/// How long before their end credentials are to be renewed by a person: 30 days.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Returns what to do about a hub's copy; `None` if nothing is to be done.
pub(crate) fn about_copy(status: &CopyStatus) -> Option<String> {
    let leaf = &status.leaf;
    Some(match status.state {
        CopyState::Current | CopyState::Unknown => return None,
        CopyState::Behind => "wait: the copy is being filled".to_owned(),
        CopyState::Away => format!(
            "look at leafd and the link on its host: it is caught up by itself once it is back; if it is lost for good, \
             `leaf-hub forget {leaf}` at the hub"
        ),
        CopyState::Stalled => {
            "mend what the reason says, on the leaf or its link: the copy then goes on by itself".to_owned()
        }
        CopyState::Gap => format!(
            "`leaf-hub reset {leaf}` at the hub begins a new copy where the leaf's events begin; what only the old copy has is \
             lost with it"
        ),
        CopyState::Differs => format!(
            "choose a history: the leaf's with `leaf-hub reset {leaf}` at the hub; the hub's by moving journal.redb and the \
             directory nats out of the leaf's state directory while leafd is stopped; or give the leaf another name"
        ),
    })
}

/// Returns what to do about a leaf's connection to its hub; `None` if nothing is to be done.
pub(crate) fn about_hub(hub: &HubReport, now: Timestamp) -> Option<String> {
    if !hub.connected {
        return Some(
            "the leaf goes on without it; mend the link, or look at `systemctl status leaf-hub` and at [leaves] at the hub: the \
             leaf is caught up by itself"
                .to_owned(),
        );
    }
    if let Some(end) = hub.credentials_until.filter(|end| end.duration_since(now) < SOON) {
        return Some(format!(
            "the leaf's credentials at the hub end at {end}: `leafctl fleet rotate` makes new ones, which have to be brought to the \
             leaf before"
        ));
    }
    let lost = hub.lost_after?;
    Some(format!(
        "the hub lost events of its copy, which went up to {lost}: nothing on the leaf; it sends them again from its stream, and what \
         that has dropped is in the hub's backup only"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_that_needs_a_person_says_what_to_do() {
        let status = |state: &str| -> CopyStatus {
            serde_json::from_value(serde_json::json!({
                "leaf": "edge-1", "state": state, "since": Timestamp::now(), "copied": 26, "leaf_last": 31,
            }))
            .expect("a document")
        };
        assert_eq!(about_copy(&status("current")), None);
        for (state, says) in [
            ("behind", "wait"),
            ("away", "`leaf-hub forget edge-1`"),
            ("stalled", "mend what the reason says"),
            ("gap", "`leaf-hub reset edge-1`"),
            ("differs", "moving journal.redb and the directory nats"),
        ] {
            let advice = about_copy(&status(state)).expect("an advice");
            assert!(advice.contains(says) && !advice.contains('\n'), "{advice}");
        }
    }

    #[test]
    fn a_hub_that_is_away_or_lost_its_copy_is_explained() {
        let report = |connected: bool, lost: Option<u64>| HubReport {
            url: "tls://hub:7422".to_owned(),
            connected,
            claimed_at: None,
            copied: None,
            problem: None,
            lost_after: lost,
            works: true,
            credentials_until: None,
        };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(about_hub(&report(true, None), now), None);
        assert!(about_hub(&report(false, None), now).is_some_and(|text| text.contains("leaf-hub")));
        assert!(about_hub(&report(true, Some(90)), now).is_some_and(|text| text.contains("up to 90")));
        let ends_in_days = |days: i64| HubReport {
            credentials_until: Some(now + SignedDuration::from_hours(24 * days)),
            ..report(true, None)
        };
        assert_eq!(about_hub(&ends_in_days(31), now), None);
        let soon = about_hub(&ends_in_days(29), now);
        assert!(soon.is_some_and(|text| text.contains("end at 1970-01-30") && text.contains("fleet rotate")));
    }
}
