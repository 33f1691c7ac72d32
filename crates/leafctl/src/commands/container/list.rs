use clap::Args;
use leaf_core::command::ListContainers;

use super::show::desired_run;
use crate::error::Error;
use crate::output::{Output, ago, first_line, name_of};
use crate::session::Session;
use crate::view::View;

/// List the containers of a leaf.
#[derive(Debug, Args)]
pub(crate) struct List;

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ListContainers {}, output, |list| {
                let mut table = output.table(&[
                    "CONTAINER",
                    "PHASE",
                    "DESIRED",
                    "SINCE",
                    "ADDRESS",
                    "SYSTEM",
                    "ERROR",
                ]);
                for container in &list.containers {
                    table.add_row([
                        container.name.to_string(),
                        name_of(&container.phase),
                        desired_run(&container.desired),
                        ago(container.changed_at),
                        container.desired.network.container_address.to_string(),
                        container
                            .desired
                            .toplevel
                            .as_ref()
                            .map_or("-".to_owned(), ToString::to_string),
                        first_line(container.error.as_deref()),
                    ]);
                }
                let mut view = View::from(table);
                if !list.problems.is_empty() {
                    let mut problems = output.table(&["CAN'T BE USED", "PROBLEM"]);
                    for entry in &list.problems {
                        problems.add_row([entry.entry.clone(), entry.problem.clone()]);
                    }
                    view = view.and(problems);
                }
                if list.foreign.is_empty() {
                    return view;
                }
                let mut foreign = output.table(&["FOREIGN", "RUNS", "MADE BY", "ADDRESS", "SYSTEM"]);
                for container in &list.foreign {
                    let by = if container.declarative {
                        "the host's NixOS configuration"
                    } else {
                        "another tool or leaf; see `container adopt`"
                    };
                    foreign.add_row([
                        container.name.to_string(),
                        if container.running { "yes" } else { "no" }.to_owned(),
                        by.to_owned(),
                        container
                            .address
                            .map_or("-".to_owned(), |address| address.to_string()),
                        container
                            .toplevel
                            .as_ref()
                            .map_or("-".to_owned(), ToString::to_string),
                    ]);
                }
                view.and(foreign)
            })
            .await
    }
}
