//! The snapshot of what Nix is doing, from its live activities.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;

use jiff::Timestamp;
use leaf_core::id::StorePath;
use leaf_core::job::activities::{
    Activities, BuildActivity, BuildState, Counts, MOST_BUILDS, MOST_TRANSFERS, Transfer,
};

use super::{
    ACT_BUILD, ACT_BUILDS, ACT_COPY_PATH, ACT_COPY_PATHS, ACT_FETCH_TREE, ACT_FILE_TRANSFER, ACT_SUBSTITUTE,
    Activity, Tracker,
};

/// The number of ended builds that are remembered.
const ENDED_BUILDS: usize = 256;
/// The most bytes of a derivation that are read; one that is larger has no dependencies here.
const MAX_DERIVATION_BYTES: u64 = 1 << 20;

/// A build that has ended.
#[derive(Debug)]
pub(super) struct EndedBuild {
    path: String,
    machine: String,
    inputs: Vec<String>,
    since: Timestamp,
    until: Timestamp,
}

impl Tracker {
    /// Remembers a build that has ended.
    pub(super) fn remember_build(&mut self, activity: &Activity) {
        if self.ended_builds.len() == ENDED_BUILDS {
            self.ended_builds.pop_front();
            self.forgotten_builds += 1;
        }
        self.ended_builds.push_back(EndedBuild {
            path: activity.path.clone(),
            machine: activity.place.clone(),
            inputs: activity.inputs.clone(),
            since: activity.since,
            until: Timestamp::now(),
        });
    }

    /// Notes the builds that an error is about.
    pub(super) fn note_failed(&mut self, error: &str) {
        let failed = self.built.iter().filter(|path| error.contains(path.as_str()));
        self.failed.extend(failed.cloned());
    }

    /// Returns what Nix is doing now.
    pub(crate) fn activities(&self) -> Activities {
        let mut builds = Vec::new();
        let mut inputs = Vec::new();
        for activity in self.live(ACT_BUILD) {
            let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let build = |derivation| BuildActivity {
                derivation,
                state: BuildState::Running,
                machine: optional(&activity.place),
                phase: optional(&activity.phase),
                last_line: activity.tail.back().cloned(),
                since: activity.since,
                until: None,
                needs: Vec::new(),
            };
            if let Ok(path) = StorePath::new(activity.path.as_str()) {
                builds.push(build(path));
                inputs.push(&activity.inputs);
            }
        }
        for ended in self.ended_builds.iter().rev() {
            let Ok(derivation) = StorePath::new(ended.path.as_str()) else {
                continue;
            };
            let failed = self.failed.contains(&ended.path);
            builds.push(BuildActivity {
                derivation,
                state: if failed {
                    BuildState::Failed
                } else {
                    BuildState::Ended
                },
                machine: (!ended.machine.is_empty()).then(|| ended.machine.clone()),
                phase: None,
                last_line: None,
                since: ended.since,
                until: Some(ended.until),
                needs: Vec::new(),
            });
            inputs.push(&ended.inputs);
        }
        let builds_left_out = builds.len().saturating_sub(MOST_BUILDS) as u64 + self.forgotten_builds;
        builds.truncate(MOST_BUILDS);
        let listed: BTreeSet<StorePath> = builds.iter().map(|build| build.derivation.clone()).collect();
        for (build, inputs) in builds.iter_mut().zip(inputs) {
            let needs = inputs
                .iter()
                .filter_map(|path| StorePath::new(path.as_str()).ok());
            build.needs = needs.filter(|path| listed.contains(path)).collect();
        }
        let mut transfers = self.transfers();
        let transfers_left_out = transfers.len().saturating_sub(MOST_TRANSFERS) as u64;
        transfers.truncate(MOST_TRANSFERS);
        let counts = |kind| {
            let counts = self.counts(kind);
            Counts {
                done: counts.done,
                expected: counts.expected,
                running: counts.running,
                failed: counts.failed,
            }
        };
        Activities {
            builds,
            builds_left_out,
            transfers,
            transfers_left_out,
            derivations: counts(ACT_BUILDS),
            paths: counts(ACT_COPY_PATHS),
            activity: self.activity(),
        }
        .bounded()
    }

    fn live(&self, kind: u64) -> impl Iterator<Item = &Activity> {
        let ids = self.kinds.get(&kind).into_iter().flat_map(|kind| &kind.live);
        ids.filter_map(|id| self.activities.get(id))
    }

    /// Returns what is being fetched or copied: each once, although Nix has an activity for its substitution, its copy and its download.
    fn transfers(&self) -> Vec<Transfer> {
        let copied: BTreeSet<&str> = self.live(ACT_COPY_PATH).map(|copy| copy.path.as_str()).collect();
        let substituted = self
            .live(ACT_SUBSTITUTE)
            .filter(|activity| !copied.contains(activity.path.as_str()));
        let of_a_path = |activity: &&Activity| {
            let parent = self.activities.get(&activity.parent);
            parent.is_some_and(|parent| matches!(parent.kind, ACT_COPY_PATH | ACT_SUBSTITUTE))
        };
        let downloads = self
            .live(ACT_FILE_TRANSFER)
            .filter(|activity| !of_a_path(activity));
        let all = self.live(ACT_COPY_PATH).chain(substituted);
        all.chain(downloads)
            .chain(self.live(ACT_FETCH_TREE))
            .filter(|activity| !activity.path.is_empty())
            .map(|activity| Transfer {
                what: activity.path.clone(),
                from: (!activity.place.is_empty()).then(|| activity.place.clone()),
                since: activity.since,
                done_bytes: activity.counts.done,
                expected_bytes: activity.counts.expected,
            })
            .collect()
    }
}

/// Returns the derivations that a derivation in the store needs; none if it can't be read.
pub(super) fn inputs_of(path: &str) -> Vec<String> {
    if StorePath::new(path).is_err() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_DERIVATION_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => inputs_in(&String::from_utf8_lossy(&bytes)),
        Err(_) => Vec::new(),
    }
}

/// Returns the derivations in the second list of a derivation in the ATerm format (`derivations.cc` of Nix).
fn inputs_in(text: &str) -> Vec<String> {
    let after_outputs = text
        .strip_prefix("Derive([")
        .and_then(|text| text.split_once("],["));
    let Some((_, list)) = after_outputs else {
        return Vec::new();
    };
    let list = match list.split_once(")],[") {
        Some((list, _)) if list.starts_with('(') => list,
        _ => return Vec::new(),
    };
    let paths = list
        .split("(\"")
        .skip(1)
        .filter_map(|tuple| tuple.split('"').next());
    paths
        .filter(|path| path.ends_with(".drv"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_of_a_derivation_are_those_of_its_second_list() {
        let a = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv";
        let b = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-b.drv";
        let text = format!(
            r#"Derive([("dev","/nix/store/x-dev","",""),("out","/nix/store/x","","")],[("{a}",["dev","out"]),("{b}",["out"])],["/nix/store/s.drv"],"x86_64-linux","/bin/sh",[],[("x","],[(\"/nix/store/no.drv")])"#
        );
        assert_eq!(inputs_in(&text), [a, b]);
        let none = r#"Derive([("out","/nix/store/x","","")],[],["/nix/store/s"],"x86_64-linux","/bin/sh",[("/nix/store/no.drv",[])],[])"#;
        assert_eq!(inputs_in(none), Vec::<String>::new());
        for odd in [
            "",
            "Derive([",
            "Derive([],[(",
            "DrvWithVersion(\"xp\",[],[(\"a.drv\")],[",
        ] {
            assert_eq!(inputs_in(odd), Vec::<String>::new(), "{odd}");
        }
        assert_eq!(inputs_of("/etc/passwd"), Vec::<String>::new());
    }

    fn line(tracker: &mut Tracker, json: &str) {
        tracker.line(format!("@nix {json}").as_bytes());
    }

    #[test]
    fn a_snapshot_has_builds_with_their_place_and_phase_and_each_transfer_once() {
        let a = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv";
        let b = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-b.drv";
        let c = "/nix/store/22bgd045z0d4icpbc2yyz4gx48ak44la-c";
        let mut tracker = Tracker::default();
        for json in [
            r#"{"action":"start","id":1,"type":104,"level":5,"parent":0,"text":""}"#.to_owned(),
            r#"{"action":"result","id":1,"type":105,"fields":[1,4,1,0]}"#.to_owned(),
            format!(r#"{{"action":"start","id":2,"type":105,"level":3,"parent":0,"text":"building","fields":["{a}","",1,1]}}"#),
            r#"{"action":"stop","id":2}"#.to_owned(),
            format!(r#"{{"action":"start","id":3,"type":105,"level":3,"parent":0,"text":"building","fields":["{b}","ssh://far",1,1]}}"#),
            r#"{"action":"result","id":3,"type":104,"fields":["buildPhase"]}"#.to_owned(),
            r#"{"action":"result","id":3,"type":101,"fields":["making \u001b[31mit"]}"#.to_owned(),
            format!(r#"{{"action":"start","id":4,"type":108,"level":4,"parent":0,"text":"","fields":["{c}","https://cache"]}}"#),
            format!(r#"{{"action":"start","id":5,"type":100,"level":4,"parent":4,"text":"","fields":["{c}","https://cache","local"]}}"#),
            r#"{"action":"result","id":5,"type":105,"fields":[10,100,0,0]}"#.to_owned(),
            r#"{"action":"start","id":6,"type":101,"level":4,"parent":5,"text":"","fields":["https://cache/nar/x"]}"#.to_owned(),
            r#"{"action":"start","id":7,"type":101,"level":4,"parent":0,"text":"","fields":["https://example.org/src.tar"]}"#.to_owned(),
        ] {
            line(&mut tracker, &json);
        }
        let seen = tracker.activities();
        let of = |build: &BuildActivity| (build.derivation.to_string(), build.state, build.machine.clone());
        assert_eq!(
            seen.builds.iter().map(of).collect::<Vec<_>>(),
            [
                (b.to_owned(), BuildState::Running, Some("ssh://far".to_owned())),
                (a.to_owned(), BuildState::Ended, None),
            ]
        );
        assert_eq!(seen.builds[0].phase.as_deref(), Some("buildPhase"));
        assert_eq!(seen.builds[0].last_line.as_deref(), Some("making it"));
        assert!(seen.builds[1].until.is_some());
        assert_eq!((seen.derivations.done, seen.derivations.waiting()), (1, 2));
        let of = |transfer: &Transfer| {
            (
                transfer.what.clone(),
                transfer.done_bytes,
                transfer.expected_bytes,
            )
        };
        assert_eq!(
            seen.transfers.iter().map(of).collect::<Vec<_>>(),
            [
                (c.to_owned(), 10, 100),
                ("https://example.org/src.tar".to_owned(), 0, 0)
            ]
        );
        line(
            &mut tracker,
            &format!(
                r#"{{"action":"msg","level":0,"msg":"error: builder for '{b}' failed","raw_msg":"builder for '{b}' failed"}}"#
            ),
        );
        line(&mut tracker, r#"{"action":"stop","id":3}"#);
        let states: Vec<_> = tracker
            .activities()
            .builds
            .iter()
            .map(|build| build.state)
            .collect();
        assert_eq!(states, [BuildState::Failed, BuildState::Ended]);
    }
}
