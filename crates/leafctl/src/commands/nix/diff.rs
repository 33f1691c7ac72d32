use std::time::Duration;

use clap::Args;
use leaf_core::command;
use leaf_core::id::StorePath;
use leaf_core::job::JobResult;
use leaf_core::job::diff::{DiffResult, PackageDiff, UnitEffect};

use super::build::{follow, seconds};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, size};
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Compare the closures of two store paths of a leaf: packages, sizes, and, of two systems, units.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The store path of before.
    from: String,
    /// The store path of afterwards.
    to: String,
    /// The job's time limit, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
}

impl Diff {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let path = |text| StorePath::new(text).map_err(|e| Error::Usage(e.to_string()));
        let (from, to) = (path(self.from)?, path(self.to)?);
        let leaf = session.leaf().await?;
        let result = compared(&leaf, from, to, self.time_limit, output).await?;
        output.document(&result, |result| view(result, output))
    }
}

/// Has a leaf compare two of its store paths, as a job.
pub(crate) async fn compared(
    leaf: &Leaf,
    from: StorePath,
    to: StorePath,
    time_limit: Option<Duration>,
    output: Output,
) -> Result<DiffResult, Error> {
    let timeout_seconds = seconds(time_limit)?;
    let diff = command::Diff {
        from,
        to,
        timeout_seconds,
    };
    let accepted = leaf.call(&diff).await?;
    let job = follow(leaf, accepted.job, output).await?;
    match job.result {
        Some(JobResult::Diff(result)) => Ok(result),
        _ => Err(Error::NotFound(format!("job {} has compared nothing", job.id))),
    }
}

/// Shows what differs.
pub(crate) fn view(result: &DiffResult, output: Output) -> View {
    let (before, after) = (result.from_closure_size_bytes, result.to_closure_size_bytes);
    let grows = i64::try_from(i128::from(after) - i128::from(before)).unwrap_or(i64::MAX);
    let mut lines = vec![(
        "size",
        format!("{}, {} before ({})", size(after), size(before), change(grows)),
    )];
    if result.packages.is_empty() && result.packages_left_out == 0 {
        lines.push(("packages", "the same".to_owned()));
    }
    if result.packages_left_out > 0 {
        lines.push((
            "further packages",
            format!("{}, not listed", result.packages_left_out),
        ));
    }
    let mut units = Vec::new();
    if let Some(system) = &result.system {
        if system.units.is_empty() && system.units_left_out == 0 {
            lines.push(("units", "the same".to_owned()));
        }
        if system.units_left_out > 0 {
            lines.push(("further units", format!("{}, not listed", system.units_left_out)));
        }
        if !system.at_next_boot.is_empty() {
            lines.push(("in use from the next boot", system.at_next_boot.join(", ")));
        }
        units.clone_from(&system.units);
        units.sort_by_key(|unit| unit.effect);
    }
    let mut view = View::from(fields(&lines));
    if !result.packages.is_empty() {
        let mut packages = output.table(&["PACKAGE", "BEFORE", "AFTERWARDS", "SIZE"]);
        for package in &result.packages {
            packages.add_row(row(package));
        }
        view = view.and(packages);
    }
    if !units.is_empty() {
        let mut table = output.table(&["UNIT", "A SWITCH"]);
        for unit in units {
            table.add_row([unit.unit, verb(unit.effect).to_owned()]);
        }
        view = view.and(table);
    }
    view
}

fn row(package: &PackageDiff) -> [String; 4] {
    let versions = |versions: &[String]| {
        let shown = versions.iter().map(|version| match version.as_str() {
            "" => "no version",
            version => version,
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    [
        package.name.clone(),
        versions(&package.from),
        versions(&package.to),
        change(package.size_bytes),
    ]
}

/// Returns what a switch does with a unit.
fn verb(effect: UnitEffect) -> &'static str {
    match effect {
        UnitEffect::Starts => "starts it, if something wants it",
        UnitEffect::Stops => "stops it",
        UnitEffect::Restarts => "restarts it",
        UnitEffect::Reloads => "reloads it",
        UnitEffect::Keeps => "leaves it running as it is",
    }
}

/// Returns a difference of sizes with its sign.
fn change(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "+" };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_its_versions_and_a_size_with_a_sign() {
        let package = |from: &[&str], to: &[&str], size_bytes| PackageDiff {
            name: "etc".to_owned(),
            from: from.iter().map(|version| (*version).to_owned()).collect(),
            to: to.iter().map(|version| (*version).to_owned()).collect(),
            size_bytes,
        };
        assert_eq!(
            row(&package(&["1", "2"], &[], -2048)),
            ["etc", "1, 2", "", "-2.00 KiB"]
        );
        assert_eq!(row(&package(&[], &[""], 0)), ["etc", "", "no version", "+0 B"]);
    }
}
