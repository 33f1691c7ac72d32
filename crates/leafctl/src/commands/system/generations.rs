use clap::Args;
use leaf_core::command::{ListGenerations, SystemReport};

use crate::error::Error;
use crate::output::{Output, ago, name_of};
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// List the generations of a leaf's system, what runs and was booted, and how the last switches ended.
#[derive(Debug, Args)]
pub(crate) struct Generations;

impl Generations {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ListGenerations {}, output, |report| view(report, output))
            .await
    }
}

fn view(report: &SystemReport, output: Output) -> View {
    let mut lines = Vec::new();
    let path = |path: &Option<leaf_core::id::StorePath>| {
        path.as_ref().map_or("none".to_owned(), ToString::to_string)
    };
    lines.push(("running", path(&report.running)));
    lines.push(("booted", path(&report.booted)));
    if let Some(open) = &report.change {
        let state = if report.can_be_confirmed {
            format!("in use; leafctl leaf confirm {}", open.id)
        } else {
            "not in use yet, going back, or being installed".to_owned()
        };
        lines.push((
            "open",
            format!("{}, {} s left: {state}", path(&open.toplevel), open.seconds_left),
        ));
    }
    let mut generations = output.table(&["GENERATION", "MADE", "SYSTEM", "IS"]);
    for generation in &report.generations {
        let marks = [
            (report.profile == Some(generation.number), "next boot"),
            (report.running.as_ref() == Some(&generation.toplevel), "running"),
            (report.booted.as_ref() == Some(&generation.toplevel), "booted"),
        ];
        let marks: Vec<_> = marks
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, mark)| *mark)
            .collect();
        generations.add_row([
            generation.number.to_string(),
            generation.made_at.map(ago).unwrap_or_default(),
            generation.toplevel.to_string(),
            marks.join(", "),
        ]);
    }
    let mut view = View::from(fields(&lines)).and(generations);
    if !report.decided.is_empty() {
        let mut decided = output.table(&["CHANGE", "WHEN", "OUTCOME", "SYSTEM", "WHY"]);
        for change in &report.decided {
            decided.add_row([
                change.id.to_string(),
                change.at.map(ago).unwrap_or_default(),
                name_of(&change.decision),
                path(&change.toplevel),
                change.why.clone().unwrap_or_default(),
            ]);
        }
        view = view.and(decided);
    }
    view
}
