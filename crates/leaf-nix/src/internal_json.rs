//! Parses Nix's log with `--log-format internal-json`, lines `@nix {json}` on standard error, into progress, a readable
//! log, and errors. It supports Nix 2.8 and later; unknown keys, types and actions are ignored, and any other line is
//! part of the log unchanged (`logging.hh` and `logging.cc` of Nix).

mod activities;
mod cause;
mod causes;
mod cut_off;
mod errors;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;
use leaf_core::id::StorePath;
use leaf_core::job::explanation::{FailureKind, Place};
use leaf_core::job::process::End;
use leaf_core::job::{BuiltDerivation, Explanation, Origin, Progress};
use serde::Deserialize;

use activities::{EndedBuild, inputs_of};
use causes::Causes;
use errors::Errors;
pub(crate) use errors::cut;

const ACT_COPY_PATH: u64 = 100;
const ACT_FILE_TRANSFER: u64 = 101;
const ACT_COPY_PATHS: u64 = 103;
const ACT_BUILDS: u64 = 104;
const ACT_BUILD: u64 = 105;
const ACT_SUBSTITUTE: u64 = 108;
/// A content-addressed derivation waits for the build of the one that it is resolved to: the fields are both.
const ACT_BUILD_WAITING: u64 = 111;
const ACT_FETCH_TREE: u64 = 112;
const RES_BUILD_LOG_LINE: u64 = 101;
const RES_SET_PHASE: u64 = 104;
const RES_PROGRESS: u64 = 105;
const RES_SET_EXPECTED: u64 = 106;
const RES_POST_BUILD_LOG_LINE: u64 = 107;

const LEVEL_ERROR: i64 = 0;
const LEVEL_INFO: i64 = 3;
const TAIL_LINES: usize = 10;
const TAIL_LINE_BYTES: usize = 400;
const ENDED_TAILS: usize = 16;

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Line<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(default)]
    id: u64,
    #[serde(default)]
    parent: u64,
    level: Option<i64>,
    #[serde(rename = "type")]
    kind: Option<u64>,
    text: Option<Cow<'a, str>>,
    #[serde(default)]
    fields: Vec<Field<'a>>,
    msg: Option<Cow<'a, str>>,
    raw_msg: Option<Cow<'a, str>>,
    file: Option<Cow<'a, str>>,
    line: Option<u64>,
    column: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged, bound(deserialize = "'de: 'a"))]
enum Field<'a> {
    Number(u64),
    Text(Cow<'a, str>),
    Other(serde::de::IgnoredAny),
}

fn number(fields: &[Field<'_>], index: usize) -> u64 {
    match fields.get(index) {
        Some(Field::Number(n)) => *n,
        _ => 0,
    }
}

fn text<'a>(fields: &'a [Field<'_>], index: usize) -> Option<&'a str> {
    match fields.get(index) {
        Some(Field::Text(text)) => Some(text),
        Some(Field::Other(_) | Field::Number(_)) | None => None,
    }
}

#[derive(Debug, Default)]
struct Activity {
    kind: u64,
    /// The store path or URL that it is about, if any.
    path: String,
    /// The machine of a build, or the store that a path comes from.
    place: String,
    /// The activity that it is a part of.
    parent: u64,
    /// The phase of a build.
    phase: String,
    /// The derivations that the derivation of a build needs.
    inputs: Vec<String>,
    /// When it began.
    since: Timestamp,
    counts: Counts,
    expected_by_kind: BTreeMap<u64, u64>,
    tail: VecDeque<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    done: u64,
    expected: u64,
    running: u64,
    failed: u64,
}

/// All activities of one kind: the counts of those that ended, and the number that was announced.
#[derive(Debug, Default)]
struct Kind {
    ended: Counts,
    announced: u64,
    live: BTreeSet<u64>,
}

/// Follows one run of Nix.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    activities: BTreeMap<u64, Activity>,
    kinds: BTreeMap<u64, Kind>,
    built: BTreeSet<String>,
    /// The derivations that content-addressed ones are resolved to.
    resolved: BTreeMap<String, String>,
    /// The store paths whose substitution began.
    substituted: BTreeSet<String>,
    evaluating: bool,
    /// The last log lines of builds that ended, by derivation.
    ended_tails: VecDeque<(String, VecDeque<String>)>,
    /// The builds that ended last, and the number of those before.
    ended_builds: VecDeque<EndedBuild>,
    forgotten_builds: u64,
    /// The builds that an error named.
    failed: BTreeSet<String>,
    errors: Errors,
    causes: Causes,
    /// The last lines that are no errors: traces, warnings, and lines of another format.
    tail: VecDeque<String>,
}

impl Tracker {
    /// Handles a line without its end, and returns its text for the log, if any.
    pub(crate) fn line(&mut self, bytes: &[u8]) -> Option<String> {
        if let Some(json) = bytes.strip_prefix(b"@nix ") {
            if let Ok(line) = serde_json::from_slice::<Line<'_>>(json) {
                return match &*line.action {
                    "start" => self.start(&line),
                    "stop" => {
                        self.stop(line.id);
                        None
                    }
                    "result" => self.result(&line),
                    "msg" => self.message(&line),
                    _ => None,
                };
            }
            if let Some(whole) = cut_off::completed(json)
                && let Ok(line) = serde_json::from_slice::<Line<'_>>(&whole)
            {
                return self.beginning(&line);
            }
        }
        let text = plain(&String::from_utf8_lossy(bytes));
        push_tail(&mut self.tail, &text);
        Some(text)
    }

    /// Handles a line of which only the beginning was kept, since it is too long, and returns its text.
    fn beginning(&mut self, line: &Line<'_>) -> Option<String> {
        match &*line.action {
            // The activity comes after the text, so it is not known.
            "result" => Some(plain(text(&line.fields, 0)?)),
            "msg" => self.message(line),
            _ => None,
        }
    }

    fn start(&mut self, line: &Line<'_>) -> Option<String> {
        let kind = line.kind.unwrap_or_default();
        let path = match kind {
            ACT_BUILD | ACT_COPY_PATH | ACT_SUBSTITUTE | ACT_FILE_TRANSFER => text(&line.fields, 0),
            ACT_FETCH_TREE => line.text.as_deref(),
            _ => None,
        };
        let path = path.unwrap_or_default().to_owned();
        if kind == ACT_SUBSTITUTE {
            self.substituted.insert(path.clone());
        }
        if kind == ACT_BUILD {
            self.built.insert(path.clone());
            self.evaluating = false;
        }
        if kind == ACT_BUILD_WAITING
            && let (Some(from), Some(to)) = (text(&line.fields, 0), text(&line.fields, 1))
        {
            self.resolved.insert(from.to_owned(), to.to_owned());
        }
        let place = match kind {
            ACT_BUILD | ACT_COPY_PATH | ACT_SUBSTITUTE => text(&line.fields, 1).unwrap_or_default(),
            _ => "",
        };
        let inputs = match kind {
            ACT_BUILD => inputs_of(&path),
            _ => Vec::new(),
        };
        self.kinds.entry(kind).or_default().live.insert(line.id);
        self.activities.insert(
            line.id,
            Activity {
                kind,
                path,
                place: place.to_owned(),
                parent: line.parent,
                inputs,
                since: Timestamp::now(),
                ..Activity::default()
            },
        );
        let said = plain(line.text.as_deref().unwrap_or_default());
        (line.level.unwrap_or(LEVEL_INFO) <= LEVEL_INFO && !said.is_empty()).then_some(said)
    }

    fn stop(&mut self, id: u64) {
        let Some(activity) = self.activities.remove(&id) else {
            return;
        };
        let kind = self.kinds.entry(activity.kind).or_default();
        kind.live.remove(&id);
        kind.ended.done += activity.counts.done;
        kind.ended.failed += activity.counts.failed;
        for (of, count) in &activity.expected_by_kind {
            let of = self.kinds.entry(*of).or_default();
            of.announced = of.announced.saturating_sub(*count);
        }
        if activity.kind == ACT_BUILD {
            self.remember_build(&activity);
        }
        if !activity.tail.is_empty() {
            if self.ended_tails.len() == ENDED_TAILS {
                self.ended_tails.pop_front();
            }
            self.ended_tails.push_back((activity.path, activity.tail));
        }
    }

    fn result(&mut self, line: &Line<'_>) -> Option<String> {
        let activity = self.activities.get_mut(&line.id);
        match line.kind? {
            RES_BUILD_LOG_LINE | RES_POST_BUILD_LOG_LINE => {
                let said = plain(text(&line.fields, 0)?);
                let Some(activity) = activity else {
                    return Some(said);
                };
                push_tail(&mut activity.tail, &said);
                Some(format!("{}> {said}", name_of(&activity.path)))
            }
            RES_SET_PHASE => {
                activity?.phase = plain(text(&line.fields, 0)?);
                None
            }
            RES_PROGRESS => {
                activity?.counts = Counts {
                    done: number(&line.fields, 0),
                    expected: number(&line.fields, 1),
                    running: number(&line.fields, 2),
                    failed: number(&line.fields, 3),
                };
                None
            }
            RES_SET_EXPECTED => {
                let (of, count) = (number(&line.fields, 0), number(&line.fields, 1));
                let before = activity?.expected_by_kind.insert(of, count).unwrap_or_default();
                let kind = self.kinds.entry(of).or_default();
                kind.announced = kind.announced.saturating_sub(before).saturating_add(count);
                None
            }
            _ => None,
        }
    }

    fn message(&mut self, line: &Line<'_>) -> Option<String> {
        let said = plain(line.msg.as_deref()?);
        let level = line.level.unwrap_or(LEVEL_INFO);
        if level > LEVEL_INFO {
            self.evaluating |= said.starts_with("evaluating file");
            return None;
        }
        // Level 0 alone makes no error: `builtins.trace` prints at it, and what the daemon forwards has lost its level.
        // An error that ends Nix has a `raw_msg` (`JSONLogger::logEI`); one that the daemon printed begins with its word.
        let error = match (&line.raw_msg, said.strip_prefix("error:")) {
            (Some(raw), _) if level == LEVEL_ERROR => Some(plain(raw)),
            (None, Some(error)) if level == LEVEL_ERROR => Some(error.trim().to_owned()),
            _ => None,
        };
        match error {
            Some(mut error) => {
                let place = line.file.as_deref().zip(line.line).map(|(file, row)| Place {
                    file: plain(file),
                    line: row,
                    column: line.column.unwrap_or_default(),
                });
                self.note_failed(&error);
                self.add_cause(&error, place);
                if let (Some(file), Some(row)) = (&line.file, line.line) {
                    error.push_str(&format!(" (at {file}:{row}:{})", line.column.unwrap_or_default()));
                }
                self.add_error(error);
            }
            None => push_tail(&mut self.tail, &said),
        }
        Some(said)
    }

    fn add_cause(&mut self, error: &str, place: Option<Place>) {
        let live = self.activities.values();
        let tails = live
            .map(|activity| (&activity.path, &activity.tail))
            .chain(self.ended_tails.iter().map(|(path, tail)| (path, tail)));
        let tail_of = |derivation: &StorePath| {
            let mut tails = tails.clone();
            let found = tails.find(|(path, tail)| path.as_str() == derivation.as_str() && !tail.is_empty());
            found.map(|(_, tail)| tail.iter().cloned().collect())
        };
        // Nix evaluates before it builds.
        let evaluates = !self.kinds.contains_key(&ACT_BUILDS);
        self.causes.push(error, place, evaluates, tail_of);
    }

    /// Returns why Nix failed, of which this is the error.
    pub(crate) fn explanation(&self, error: &str, end: End) -> Explanation {
        if end != End::TimedOut {
            return self.causes.explanation(error);
        }
        let mut builds = self
            .activities
            .values()
            .filter(|activity| activity.kind == ACT_BUILD);
        let building = builds.next();
        Explanation {
            derivation: building.and_then(|build| StorePath::new(build.path.as_str()).ok()),
            log_tail: building
                .map(|build| build.tail.iter().cloned().collect())
                .unwrap_or_default(),
            ..Explanation::new(FailureKind::TimedOut, error)
        }
    }

    fn add_error(&mut self, mut error: String) {
        if error.is_empty() || self.errors.has(&error) {
            return;
        }
        let live = self
            .activities
            .values()
            .map(|activity| (&activity.path, &activity.tail));
        let ended = self.ended_tails.iter().map(|(path, tail)| (path, tail));
        if error.contains("failed")
            && !error.contains("log lines:")
            && let Some((_, tail)) = live
                .chain(ended)
                .find(|(path, tail)| !path.is_empty() && !tail.is_empty() && error.contains(path.as_str()))
        {
            error.push_str("; the end of its log:");
            for line in tail {
                error.push_str("\n> ");
                error.push_str(line);
            }
        }
        self.errors.push(error);
    }

    /// Returns Nix's errors in order, or else its last lines, in at most 4 KiB. The first error and the last one are
    /// among them.
    pub(crate) fn error(&self) -> Option<String> {
        self.errors.text().or_else(|| {
            // Lines and bytes of the tail are bounded below 4 KiB.
            let tail: Vec<&str> = self.tail.iter().map(String::as_str).collect();
            Some(tail.join("\n")).filter(|tail| !tail.trim().is_empty())
        })
    }

    /// Returns the number of derivations whose build began.
    pub(crate) fn built(&self) -> u32 {
        u32::try_from(self.built.len()).unwrap_or(u32::MAX)
    }

    /// Returns how the outputs of a derivation came into the store.
    pub(crate) fn origin(&self, built: &BuiltDerivation) -> Origin {
        let derivation = built.derivation.as_ref();
        let substituted = |path: &StorePath| self.substituted.contains(path.as_str());
        let was_built = |path: &StorePath| {
            let resolved = self.resolved.get(path.as_str());
            self.built.contains(path.as_str()) || resolved.is_some_and(|path| self.built.contains(path))
        };
        if derivation.is_some_and(was_built) {
            Origin::Built
        } else if built.outputs.values().any(substituted) {
            Origin::Substituted
        } else {
            Origin::Present
        }
    }

    /// Returns the progress.
    pub(crate) fn progress(&self) -> Progress {
        let builds = self.counts(ACT_BUILDS);
        let copies = self.counts(ACT_COPY_PATHS);
        let transfer = self.counts(ACT_FILE_TRANSFER);
        // A local cache transfers no files: then copied bytes are counted.
        let bytes = if transfer.expected > 0 {
            transfer
        } else {
            self.counts(ACT_COPY_PATH)
        };
        Progress {
            done: builds.done + copies.done,
            expected: builds.expected + copies.expected,
            running: builds.running + copies.running,
            failed: builds.failed + copies.failed,
            fetched_bytes: bytes.done,
            fetch_expected_bytes: bytes.expected,
            activity: self.activity(),
        }
    }

    /// Returns the counts as in Nix's own progress bar.
    fn counts(&self, kind: u64) -> Counts {
        let Some(kind) = self.kinds.get(&kind) else {
            return Counts::default();
        };
        let mut sum = Counts {
            expected: kind.ended.done,
            ..kind.ended
        };
        for activity in kind.live.iter().filter_map(|id| self.activities.get(id)) {
            sum.done = sum.done.saturating_add(activity.counts.done);
            sum.expected = sum.expected.saturating_add(activity.counts.expected);
            sum.running = sum.running.saturating_add(activity.counts.running);
            sum.failed = sum.failed.saturating_add(activity.counts.failed);
        }
        sum.expected = sum.expected.max(kind.announced);
        sum
    }

    fn activity(&self) -> Option<String> {
        [
            (ACT_BUILD, "building"),
            (ACT_SUBSTITUTE, "fetching"),
            (ACT_COPY_PATH, "copying"),
            (ACT_FETCH_TREE, ""),
            (ACT_FILE_TRANSFER, "downloading"),
        ]
        .into_iter()
        .find_map(|(kind, verb)| {
            let id = self.kinds.get(&kind)?.live.last()?;
            let mut said = format!("{verb} {}", name_of(&self.activities.get(id)?.path))
                .trim()
                .to_owned();
            cut(&mut said, 200);
            (!said.is_empty()).then_some(said)
        })
        .or_else(|| self.evaluating.then(|| "evaluating".to_owned()))
    }
}

/// Returns the name in a store path, without its hash and `.drv`; any other text unchanged.
fn name_of(path: &str) -> &str {
    let Some(file) = path.strip_prefix("/nix/store/") else {
        return path;
    };
    file.get(33..).unwrap_or(file).trim_end_matches(".drv")
}

fn push_tail(tail: &mut VecDeque<String>, line: &str) {
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    let mut line = line.to_owned();
    cut(&mut line, TAIL_LINE_BYTES);
    tail.push_back(line);
}

/// Returns a text without terminal sequences (ECMA-48) and control characters; a carriage return becomes a new line.
fn plain(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(']') => {
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || c == '\u{1b}' && chars.next_if_eq(&'\\').is_some() {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push('\n');
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[path = "internal_json_tests.rs"]
mod tests;
