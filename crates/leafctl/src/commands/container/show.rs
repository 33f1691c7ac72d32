use clap::Args;
use leaf_core::command::ShowContainer;
use leaf_core::container::{Container, ContainerNetwork, Desired, LastUpdate};
use leaf_core::id::ContainerName;

use crate::error::Error;
use crate::output::{Output, ago, name_of};
use crate::session::Session;
use crate::text::{Fields, fields};

/// Show one container.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The container's name.
    name: ContainerName,
}

impl Show {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ShowContainer { name: self.name }, output, text)
            .await
    }
}

/// Returns the desired run state as text: `running, paused`.
pub(super) fn desired_run(desired: &Desired) -> String {
    let paused = if desired.paused { ", paused" } else { "" };
    format!("{}{paused}", name_of(&desired.run))
}

/// Returns a container as text.
pub(super) fn text(container: &Container) -> Fields {
    let desired = &container.desired;
    let mut lines = vec![
        ("container", container.name.to_string()),
        (
            "phase",
            format!("{} ({})", name_of(&container.phase), ago(container.changed_at)),
        ),
        (
            "desired",
            format!("{}, generation {}", desired_run(desired), desired.generation),
        ),
        (
            "system",
            desired
                .toplevel
                .as_ref()
                .map_or("-".to_owned(), ToString::to_string),
        ),
        ("address", addresses(&desired.network)),
        ("created", container.created_at.to_string()),
    ];
    if let Some(ready) = container.ready_at {
        lines.push(("ready", format!("{ready} ({})", ago(ready))));
    }
    if let Some(until) = container.credentials_until {
        lines.push((
            "credentials",
            format!("for NATS until {until}, which leafd renews"),
        ));
    }
    if let Some(job) = desired.build_job {
        lines.push(("built by job", job.to_string()));
    }
    let options = &desired.options;
    if !options.is_default() {
        let json = serde_json::to_string(options).expect("options have text keys and no failing parts");
        lines.push(("options", json));
    }
    if container.oom_kills > 0 {
        lines.push(("OOM kills", container.oom_kills.to_string()));
    }
    if let Some(why) = &container.reverted {
        lines.push(("reverted", why.clone()));
    }
    if let Some(update) = &container.last_update {
        lines.push(("update", updated(update)));
    }
    if let Some(error) = &container.error {
        lines.push(("error", error.clone()));
    }
    fields(&lines)
}

/// Returns what an update did: `in place; restarted web.service`.
fn updated(update: &LastUpdate) -> String {
    let how = match &update.restarted {
        Some(reason) => format!("by a restart: {reason}"),
        None => "in place".to_owned(),
    };
    let units = [
        ("restarted", &update.restarted_units),
        ("started", &update.started_units),
        ("reloaded", &update.reloaded_units),
        ("stopped", &update.stopped_units),
        ("failed as before", &update.failed_units),
    ];
    let lists = units.iter().filter(|(_, units)| !units.is_empty());
    let lists = lists.map(|(what, units)| format!("{what} {}", units.join(", ")));
    std::iter::once(how).chain(lists).collect::<Vec<_>>().join("; ")
}

fn addresses(network: &ContainerNetwork) -> String {
    match network.container_address6 {
        Some(v6) => format!("{}, {v6}", network.container_address),
        None => network.container_address.to_string(),
    }
}
