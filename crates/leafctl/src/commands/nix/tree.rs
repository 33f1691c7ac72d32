//! The activities of a running job as lines for a person: a tree of builds, and the transfers.

use std::collections::BTreeSet;

use jiff::Timestamp;
use leaf_core::id::StorePath;
use leaf_core::job::activities::{Activities, BuildActivity, BuildState, Counts, Transfer};

use crate::output::size;
use crate::text::Text;

/// Returns the lines, at most so many, and each at most so many columns wide. `now` is the leaf's time.
///
/// A build stands above the builds of this job that it needed; those that nothing here needs yet are roots.
pub(super) fn lines(seen: &Activities, now: Timestamp, columns: usize, rows: usize) -> Vec<String> {
    let mut tree = Tree {
        seen,
        now,
        lines: Vec::new(),
        shown: BTreeSet::new(),
    };
    let needed: BTreeSet<&StorePath> = seen.builds.iter().flat_map(|build| &build.needs).collect();
    // What runs first: rows may not suffice for the rest.
    let roots = seen
        .builds
        .iter()
        .filter(|build| build.state != BuildState::Ended || !needed.contains(&build.derivation));
    for root in roots {
        tree.build(root, "", "");
    }
    let mut all: Vec<String> = seen
        .transfers
        .iter()
        .map(|transfer| transfer_line(transfer, now))
        .collect();
    all.extend(tree.lines);
    let rows = rows.saturating_sub(1).max(1);
    let left_out = seen.builds_left_out + seen.transfers_left_out;
    if all.len() > rows || left_out > 0 {
        let kept = all.len().min(rows.saturating_sub(1));
        let more = (all.len() - kept) as u64 + left_out;
        all.truncate(kept);
        all.push(format!("… {more} more"));
    }
    all.push(summary(seen));
    all.into_iter().map(|line| clipped(&line, columns)).collect()
}

/// Returns the counts as one line.
pub(super) fn summary(seen: &Activities) -> String {
    let counts = |what: &str, counts: &Counts| {
        if *counts == Counts::default() {
            return None;
        }
        let mut parts = vec![format!("{} of {} {what}", counts.done, counts.expected)];
        for (count, state) in [
            (counts.running, "running"),
            (counts.waiting(), "waiting"),
            (counts.failed, "failed"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {state}"));
            }
        }
        Some(parts.join(", "))
    };
    let parts: Vec<String> = [counts("built", &seen.derivations), counts("fetched", &seen.paths)]
        .into_iter()
        .flatten()
        .collect();
    if parts.is_empty() {
        return seen.activity.clone().unwrap_or_else(|| "begins".to_owned());
    }
    parts.join("; ")
}

/// Returns a build as one line.
pub(super) fn build_line(build: &BuildActivity, now: Timestamp) -> String {
    let until = build.until.unwrap_or(now);
    let time = duration(until.duration_since(build.since).as_secs());
    let mark = match build.state {
        BuildState::Running => "▶",
        BuildState::Ended => "✔",
        BuildState::Failed => "✘",
    };
    let mut line = format!("{mark} {}", name_of(build.derivation.as_str()));
    if let Some(machine) = &build.machine {
        line.push_str(&format!(" on {machine}"));
    }
    if let Some(phase) = &build.phase {
        line.push_str(&format!(" ({phase})"));
    }
    line.push_str(&format!(" {time}"));
    if let Some(said) = &build.last_line {
        line.push_str(&format!(" │ {said}"));
    }
    line
}

/// Returns a transfer as one line.
pub(super) fn transfer_line(transfer: &Transfer, now: Timestamp) -> String {
    let mut line = format!("↓ {}", name_of(&transfer.what));
    if let Some(from) = &transfer.from {
        line.push_str(&format!(" from {from}"));
    }
    match (transfer.done_bytes, transfer.expected_bytes) {
        (0, 0) => {}
        (done, 0) => line.push_str(&format!(" {}", size(done))),
        (done, expected) => line.push_str(&format!(" {} of {}", size(done), size(expected))),
    }
    let seconds = now.duration_since(transfer.since).as_secs();
    line.push_str(&format!(" {}", duration(seconds)));
    line
}

struct Tree<'a> {
    seen: &'a Activities,
    now: Timestamp,
    lines: Vec<String>,
    /// What has a line: each build has one, also if several need it.
    shown: BTreeSet<&'a StorePath>,
}

impl<'a> Tree<'a> {
    /// Adds a build and what it needed; `first` stands before its line, and `further` before those below.
    fn build(&mut self, build: &'a BuildActivity, first: &str, further: &str) {
        if !self.shown.insert(&build.derivation) {
            return;
        }
        self.lines.push(format!("{first}{}", build_line(build, self.now)));
        let seen = self.seen;
        let below: Vec<&BuildActivity> = seen
            .builds
            .iter()
            .filter(|other| other.state == BuildState::Ended)
            .filter(|other| {
                build.needs.contains(&other.derivation) && !self.shown.contains(&other.derivation)
            })
            .collect();
        for (number, other) in below.iter().enumerate() {
            let is_last = number + 1 == below.len();
            let (branch, trunk) = if is_last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            self.build(other, &format!("{further}{branch}"), &format!("{further}{trunk}"));
        }
    }
}

/// Returns the name in a store path, without its hash and `.drv`; any other text unchanged.
fn name_of(path: &str) -> &str {
    let Some(file) = path.strip_prefix("/nix/store/") else {
        return path;
    };
    file.get(33..).unwrap_or(file).trim_end_matches(".drv")
}

fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..=59 => format!("{seconds}s"),
        seconds @ 60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Returns a line that commands no terminal, with an ellipsis where it is cut to so many columns.
fn clipped(line: &str, columns: usize) -> String {
    let line = Text::line(line);
    let widths = line.as_str().chars().map(|c| (c, width(c)));
    if widths.clone().map(|(_, width)| width).sum::<usize>() <= columns {
        return line.as_str().to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for (c, width) in widths {
        if used + width + 1 > columns {
            break;
        }
        used += width;
        kept.push(c);
    }
    kept.push('…');
    kept
}

/// Returns the columns of a character, rather too many than too few: the scripts of East Asia and pictures have two.
fn width(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115f | 0x2e80..=0xffdc | 0x1_f000.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn path(letter: char) -> StorePath {
        let path = format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{letter}.drv");
        StorePath::new(path.as_str()).expect("a path")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn build(letter: char, state: BuildState, since: i64, needs: &str) -> BuildActivity {
        BuildActivity {
            derivation: path(letter),
            state,
            machine: None,
            phase: None,
            last_line: None,
            since: at(since),
            until: (state != BuildState::Running).then(|| at(since + 3)),
            needs: needs.chars().map(path).collect(),
        }
    }

    fn seen() -> Activities {
        Activities {
            builds: vec![
                BuildActivity {
                    machine: Some("ssh://far".to_owned()),
                    phase: Some("buildPhase".to_owned()),
                    last_line: Some("making \u{1b}[31mit\rall".to_owned()),
                    ..build('d', BuildState::Running, 20, "bc")
                },
                build('c', BuildState::Ended, 10, "a"),
                build('b', BuildState::Ended, 10, "a"),
                build('a', BuildState::Ended, 5, ""),
                build('x', BuildState::Failed, 5, ""),
            ],
            transfers: vec![Transfer {
                what: "/nix/store/22bgd045z0d4icpbc2yyz4gx48ak44la-src".to_owned(),
                from: Some("https://cache".to_owned()),
                since: at(90),
                done_bytes: 1024,
                expected_bytes: 2048,
            }],
            derivations: Counts {
                done: 3,
                expected: 7,
                running: 1,
                failed: 1,
            },
            ..Activities::default()
        }
    }

    #[test]
    fn builds_stand_above_what_they_needed_and_each_has_one_line() {
        let shown = lines(&seen(), at(100), 200, 50);
        assert_eq!(
            shown,
            [
                "↓ src from https://cache 1.00 KiB of 2.00 KiB 10s",
                r"▶ d on ssh://far (buildPhase) 1m20s │ making \u{1b}[31mit\rall",
                "├─ ✔ c 3s",
                "│  └─ ✔ a 3s",
                "└─ ✔ b 3s",
                "✘ x 3s",
                "3 of 7 built, 1 running, 2 waiting, 1 failed",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_and_no_picture_higher_than_it_may_be() {
        let mut seen = seen();
        seen.builds[0].last_line = Some("汉字汉字汉字 and more".to_owned());
        for columns in 1..90 {
            for rows in 2..9 {
                let shown = lines(&seen, at(100), columns, rows);
                assert!(shown.len() <= rows, "{columns}×{rows}: {shown:?}");
                for line in &shown {
                    let columns_of_line: usize = line.chars().map(width).sum();
                    assert!(columns_of_line <= columns.max(1), "{columns}: {line}");
                    assert!(!line.contains('\u{1b}'));
                }
            }
        }
        let few = lines(&seen, at(100), 200, 4);
        assert_eq!(
            (few[2].as_str(), few[3].as_str()),
            ("… 4 more", "3 of 7 built, 1 running, 2 waiting, 1 failed")
        );
    }

    #[test]
    fn what_nix_does_before_it_builds_is_said_and_a_circle_of_a_hostile_leaf_ends() {
        let mut seen = Activities {
            activity: Some("evaluating".to_owned()),
            ..Activities::default()
        };
        assert_eq!(lines(&seen, at(0), 80, 24), ["evaluating"]);
        seen.builds = vec![
            build('a', BuildState::Ended, 0, "b"),
            build('b', BuildState::Ended, 0, "a"),
            build('c', BuildState::Running, 0, "ac"),
        ];
        seen.builds_left_out = 9;
        let shown = lines(&seen, at(1), 80, 24);
        assert_eq!(
            shown,
            ["▶ c 1s", "└─ ✔ a 3s", "   └─ ✔ b 3s", "… 9 more", "evaluating"]
        );
    }
}
