use std::collections::BTreeSet;

use clap::Args;
use jiff::Timestamp;
use leaf_core::command::{HubReport, OpenChange, ShowLeaf};
use leaf_core::id::LeafName;
use leaf_core::labels::{self, Labels};

use super::copy::{self, copies};
use crate::advice;
use crate::error::Error;
use crate::output::{Output, ago};
use crate::session::Session;
use crate::text::fields;

/// Show a leaf's identity, uptime and status.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The leaf's name; may be omitted if there is only one leaf.
    name: Option<LeafName>,
}

impl Show {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let session = session.named(self.name)?;
        let copies = copies(&session, output).await;
        session
            .show(&ShowLeaf {}, output, |r| {
                let mut rows = vec![
                    ("leaf", r.name.to_string()),
                    ("instance", r.instance.to_string()),
                    ("version", r.version.clone()),
                    ("started", format!("{} ({})", r.started_at, ago(r.started_at))),
                    (
                        "host",
                        format!("{}, {}, kernel {}", r.host.hostname, r.host.system, r.host.kernel),
                    ),
                    ("labels", label_text(&r.labels, &r.labels_of_settings)),
                    (
                        "events",
                        format!("{} recorded, {} published", r.sequence, r.published),
                    ),
                    (
                        "devices",
                        format!("{} present, {} known", r.devices_present, r.devices),
                    ),
                    (
                        "containers",
                        format!(
                            "{} running, {} in all{}",
                            r.containers_running,
                            r.containers,
                            refused(r.no_containers.as_deref())
                        ),
                    ),
                    (
                        "jobs",
                        format!(
                            "{} running, {} queued{}",
                            r.jobs_running,
                            r.jobs_queued,
                            refused(r.no_nix_jobs.as_deref())
                        ),
                    ),
                    (
                        "commands",
                        r.refusing
                            .as_ref()
                            .map_or("taken".to_owned(), |why| format!("refused: {why}")),
                    ),
                ];
                if let Some(until) = r.credentials_until {
                    rows.push(("credentials", format!("for its NATS server until {until}")));
                }
                if let Some(local) = &r.local_access {
                    let text = format!(
                        "as {}, with credentials until {}, which leafd renews",
                        local.caller, local.valid_until
                    );
                    rows.push(("own people", text));
                }
                if let Some(hub) = &r.hub {
                    rows.push(("hub", hub_text(hub)));
                    rows.extend(advice::about_hub(hub, Timestamp::now()).map(|what| ("what to do", what)));
                }
                if let Some(hub) = &r.hub_in_place {
                    let text = format!(
                        "by change {}, in the place of that of the settings, until a new system changes these (nats.embedded.hub)",
                        hub.change
                    );
                    rows.push(("this hub", text));
                }
                if let Some(change) = &r.change {
                    rows.push(("open change", change_text(change)));
                    let confirm = format!("leafctl --leaf {} leaf confirm {}", r.name, change.id);
                    rows.push(("what to do", format!("so that it stays: {confirm}")));
                }
                if let Some(status) = copies.get(&r.name) {
                    rows.push(("copy", copy::text(status)));
                    rows.extend(advice::about_copy(status).map(|what| ("what to do", what)));
                }
                rows.extend(r.raw_entries.iter().map(|entry| {
                    (
                        "unreadable",
                        format!("{}: {}; written by a newer leafd", entry.key, entry.reason),
                    )
                }));
                fields(&rows)
            })
            .await
    }
}

/// Returns what an open change does, and when it goes back.
fn change_text(change: &OpenChange) -> String {
    let what = match (&change.url, change.kind.as_str()) {
        (Some(url), "hub") => format!("to the hub {url}"),
        (_, kind) => format!("of the leaf's {kind}"),
    };
    let by = change
        .caller
        .as_ref()
        .map_or_else(String::new, |caller| format!(", by {caller}"));
    let until = if change.seconds_left == 0 {
        "it goes back now".to_owned()
    } else {
        format!("it goes back in {} s", change.seconds_left)
    };
    let unless = if change.unwitnessed {
        " unless a person confirms it"
    } else {
        " unless it is confirmed"
    };
    format!("{what}{by}; {until}{unless}")
}

/// Returns the labels of a leaf, and which of them stand in its settings.
pub(super) fn label_text(labels: &Labels, of_settings: &BTreeSet<String>) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    let mut text = labels::text(labels);
    if !of_settings.is_empty() {
        let keys: Vec<&str> = of_settings.iter().map(String::as_str).collect();
        text += &format!(" (in the settings: {})", keys.join(" "));
    }
    text
}

/// Returns how a leaf is connected to its hub.
fn hub_text(hub: &HubReport) -> String {
    let claimed = match hub.claimed_at {
        Some(time) => format!("claim renewed {}", ago(time)),
        None => "no claim since the start".to_owned(),
    };
    let mut text = format!("{}, {claimed}", hub.url);
    if let Some(last) = hub.copied {
        text += &format!(", events copied up to {last}");
    }
    if let Some(end) = hub.credentials_until {
        text += &format!(", credentials until {end}");
    }
    match &hub.problem {
        Some(why) => text + "; not connected: " + why,
        None if hub.connected => text,
        None => text + "; not connected",
    }
}

/// The end of a row whose commands this leaf always refuses.
fn refused(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!("; refused: {why}"))
}
