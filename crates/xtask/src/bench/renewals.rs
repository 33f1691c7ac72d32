//! What a leaf and its containers answer while the credentials of many containers are renewed.

use std::process::Command;

use anyhow::Result;

use super::leaf::Measured;
use super::measures::json;
use super::numbers::{Row, number};
use super::programs::Programs;

/// The number of running containers. The address pool of a leaf has room for 255.
const CONTAINERS: usize = 250;

/// Requests during the renewals, compared with the same requests after them. One round: it takes minutes to start the containers.
pub(super) fn measure(programs: &Programs, _rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start(programs)?;
    leaf.wait_published()?;
    let run = |leaf: &Measured, what: &str| {
        json(
            Command::new(&programs.renewals)
                .arg(what)
                .arg(leaf.state())
                .args([Measured::name(), CONTAINERS.to_string()]),
        )
    };
    let filled = run(&leaf, "fill");
    // It renews them all after its start.
    let leaf = leaf.restart(programs)?;
    let found = filled.and_then(|_| run(&leaf, "ask"));
    let emptied = run(&leaf, "empty");
    leaf.stop()?;
    let found = found?;
    emptied?;
    let seconds = number(&found, &["seconds"]);
    let row = |who: &str, what: &str, figure: &str, name: &str| {
        let of = |when: &str| number(&found, &[when, who, figure]) / 1e3;
        let (during, after) = (of("during"), of("after"));
        let what = format!(
            "{what} while the credentials of {CONTAINERS} running containers are renewed ({seconds:.0} s), {name}, compared with as \
             long without"
        );
        Row::report(what, format!("{during:.2} ms")).against(format!("{after:.2} ms"), during / after)
    };
    let mut rows = Vec::new();
    for (who, what) in [
        ("leaf", "`leaf.show`"),
        ("container", "a request answered inside a container"),
    ] {
        for (figure, name) in [
            ("p50_us", "median"),
            ("p99_us", "99th percentile"),
            ("max_us", "the longest"),
        ] {
            rows.push(row(who, what, figure, name));
        }
    }
    Ok(rows)
}
