//! Counts tests from the output of their programs: libtest and libtest-mimic print `test NAME ... ok|FAILED|ignored` and
//! end with `test result: …`.
//!
//! A program that announced tests and did not end with a result counts as failed, since it crashed.

use std::borrow::Cow;
use std::collections::VecDeque;

/// The number of kept lines of a failed test's output, at its beginning and at its end, and of bytes of each.
const SAID_LINES: usize = 10;
const SAID_BYTES: usize = 600;
/// The number of bytes of the reason in the list of failed tests.
const REASON_BYTES: usize = 300;

/// The sum of all tests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: Vec<Failure>,
    /// The skipped tests with their reasons.
    pub(crate) skipped: Vec<(String, String)>,
    current: Option<Program>,
}

/// A test that failed.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    pub(crate) name: String,
    /// The beginning of its output.
    beginning: Vec<String>,
    /// The end of its output, after the beginning: the cause of an error stands after its context.
    end: VecDeque<String>,
    /// The number of lines between the two.
    left_out: usize,
}

impl Failure {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    fn tell(&mut self, line: &str) {
        let line = line[..line.floor_char_boundary(SAID_BYTES)].to_owned();
        if self.beginning.len() < SAID_LINES {
            self.beginning.push(line);
            return;
        }
        self.end.push_back(line);
        if self.end.len() > SAID_LINES {
            self.end.pop_front();
            self.left_out += 1;
        }
    }

    /// Returns the first line of what it said, for the list of failed tests, which may be all that a reader of a shortened
    /// log has.
    pub(crate) fn reason(&self) -> Option<&str> {
        let line = self.beginning.first()?.trim();
        Some(&line[..line.floor_char_boundary(REASON_BYTES)])
    }

    /// Returns what it said: the beginning and the end.
    pub(crate) fn said(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let between = (self.left_out > 0).then(|| format!("[… {} lines …]", self.left_out).into());
        let (beginning, end) = (self.beginning.iter(), self.end.iter());
        let borrowed = |line| Cow::Borrowed(String::as_str(line));
        beginning.map(borrowed).chain(between).chain(end.map(borrowed))
    }
}

/// The running program.
#[derive(Debug)]
struct Program {
    label: String,
    results: u64,
    /// Whether it printed `running N tests`, and no result yet.
    open: bool,
    passed: u64,
    failed: Vec<Failure>,
    /// The index of the failed test whose output it is printing, in the part at the end.
    tells_of: Option<usize>,
    skipped: Vec<(String, String)>,
    /// The reason why its tests are skipped: `… are skipped: REASON` on a line of its own.
    reason: String,
}

impl Tally {
    /// Returns the tally of a test program with this label.
    pub(crate) fn of(label: &str) -> Self {
        Self {
            current: Some(Program::new(label.to_owned())),
            ..Self::default()
        }
    }

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    pub(crate) fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    pub(crate) fn fail(&mut self, name: impl Into<String>) {
        self.failed.push(Failure::new(name));
    }

    pub(crate) fn skip(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push((name.into(), reason.into()));
    }

    /// Handles a line of the output of a test program, or of `cargo test --doc`, which runs several.
    pub(crate) fn line(&mut self, line: &str) {
        let words = line.trim();
        if let Some(name) = line.strip_prefix("   Doc-tests ") {
            // Cargo's earlier output is not a program's.
            if self
                .current
                .as_ref()
                .is_some_and(|program| program.open || program.results > 0)
            {
                self.end_program();
            }
            self.current = Some(Program::new(format!("{name} (doc tests)")));
        } else if words.starts_with("running ") && (words.ends_with(" tests") || words.ends_with(" test")) {
            let program = self.program();
            program.open = true;
        } else if let Some(result) = words.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some((_, reason)) = words.split_once(" are skipped: ") {
            self.program().reason = reason.to_owned();
        } else if let Some((name, outcome)) = words.strip_prefix("test ").and_then(|t| t.rsplit_once(" ... "))
        {
            self.program().test(name, outcome);
        } else if let Some(program) = &mut self.current {
            program.tell(line);
        }
    }

    /// Ends the last program.
    pub(crate) fn end_program(&mut self) {
        let Some(program) = self.current.take() else {
            return;
        };
        self.passed += program.passed;
        self.failed.extend(program.failed);
        self.skipped.extend(program.skipped);
        if program.open || program.results == 0 {
            self.failed
                .push(Failure::new(format!("{}: ended without a result", program.label)));
        }
    }

    /// Returns the closing line.
    pub(crate) fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        )
    }

    fn program(&mut self) -> &mut Program {
        self.current
            .get_or_insert_with(|| Program::new("an unnamed test program".to_owned()))
    }

    /// Handles the result line, whose counts are authoritative: a line of a test may have been lost in other output.
    fn result(&mut self, result: &str) {
        let count = |what: &str| -> u64 {
            result
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(what))
                .find_map(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        let (passed, failed, ignored) = (count("passed"), count("failed"), count("ignored"));
        let mut program = self
            .current
            .take()
            .unwrap_or_else(|| Program::new("an unnamed test program".to_owned()));
        self.passed += passed;
        let unnamed = |named: usize, all: u64| all.saturating_sub(named as u64);
        for _ in 0..unnamed(program.failed.len(), failed) {
            let name = format!("{}: a test that could not be named", program.label);
            program.failed.push(Failure::new(name));
        }
        for _ in 0..unnamed(program.skipped.len(), ignored) {
            let name = format!("{}: a test that could not be named", program.label);
            program.skipped.push((name, program.reason.clone()));
        }
        self.failed.append(&mut program.failed);
        self.skipped.append(&mut program.skipped);
        program.passed = 0;
        program.open = false;
        program.results += 1;
        self.current = Some(program);
    }
}

impl Program {
    fn new(label: String) -> Self {
        Self {
            label,
            results: 0,
            open: false,
            passed: 0,
            failed: Vec::new(),
            tells_of: None,
            skipped: Vec::new(),
            reason: String::new(),
        }
    }

    fn test(&mut self, name: &str, outcome: &str) {
        // libtest-mimic prints the kind of a test before its name; for a skipped test it is the reason.
        let (kind, bare) = match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((kind, bare)) => (kind.trim(), bare.trim()),
            None => ("", name.trim()),
        };
        let full = format!("{}: {bare}", self.label);
        match outcome.split([',', ' ', '<']).next() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed.push(Failure::new(full)),
            Some("ignored") => {
                let own = outcome.strip_prefix("ignored, ").unwrap_or(kind).trim();
                let reason = if own.is_empty() { &self.reason } else { own };
                self.skipped.push((full, reason.to_owned()));
            }
            _ => {}
        }
    }

    /// Handles a line of the part with the output of failed tests: `---- NAME ----` or `---- NAME stdout ----`, and the
    /// output.
    fn tell(&mut self, line: &str) {
        let heading = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" ----"));
        if let Some(heading) = heading {
            let name = format!(
                "{}: {}",
                self.label,
                heading.strip_suffix(" stdout").unwrap_or(heading)
            );
            self.tells_of = self.failed.iter().position(|failure| failure.name == name);
        } else if line == "failures:" {
            self.tells_of = None;
        } else if let Some(failure) = self.tells_of.and_then(|which| self.failed.get_mut(which))
            && !line.trim().is_empty()
        {
            failure.tell(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::of("leaf-bus tests/main.rs");
        text.lines().for_each(|line| tally.line(line));
        tally.end_program();
        tally
    }

    fn names(tally: &Tally) -> Vec<&str> {
        tally.failed.iter().map(|failure| failure.name.as_str()).collect()
    }

    fn said(failure: &Failure) -> Vec<Cow<'_, str>> {
        failure.said().collect()
    }

    #[test]
    fn a_failed_test_has_its_output() {
        let tally = tally(
            "running 3 tests\ntest a ... FAILED\ntest b ... ok\n\
             test c::d ... FAILED\nnoise\n\nfailures:\n\n---- a ----\nit is blue,\n\nnot red\n\n---- c::d stdout ----\n\
             thread panicked\n\nfailures:\n    a\n    c::d\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\nnoise\n",
        );
        assert_eq!(
            names(&tally),
            ["leaf-bus tests/main.rs: a", "leaf-bus tests/main.rs: c::d"]
        );
        assert_eq!(said(&tally.failed[0]), ["it is blue,", "not red"]);
        assert_eq!(tally.failed[0].reason(), Some("it is blue,"));
        assert_eq!(said(&tally.failed[1]), ["thread panicked"]);
    }

    #[test]
    fn of_a_long_output_the_beginning_and_the_end_are_kept() {
        let lines: Vec<_> = (1..=2 * SAID_LINES + 3)
            .map(|number| number.to_string())
            .collect();
        let tally = tally(&format!(
            "running 1 test\ntest a ... FAILED\n\nfailures:\n\n---- a ----\n{}\n\nfailures:\n    a\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored\n",
            lines.join("\n")
        ));
        let mut expected = lines[..SAID_LINES].to_vec();
        expected.push("[… 3 lines …]".to_owned());
        expected.extend_from_slice(&lines[SAID_LINES + 3..]);
        assert_eq!(said(&tally.failed[0]), expected);
    }

    #[test]
    fn tests_of_several_programs_are_added_up_and_named() {
        let mut all = Tally::default();
        let mut unit = Tally::of("leaf-core src/lib.rs");
        let said = "\nrunning 2 tests\ntest id::a ... ok\ntest id::b ... FAILED\n\n\
                    test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        said.lines().for_each(|line| unit.line(line));
        unit.end_program();
        all.add(unit);
        all.add(tally(
            "running 3 tests\ntest a ... ok\ntest [needs root] b           ... ignored\ntest c ... ignored, no nix\n\
             test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n   Doc-tests leaf_core\n\n\
             running 1 test\ntest crates/x/src/a.rs - a (line 3) ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n",
        ));
        assert_eq!(all.closing_line(), "3 passed, 1 failed, 2 skipped");
        assert_eq!(names(&all), ["leaf-core src/lib.rs: id::b"]);
        assert_eq!(
            all.skipped,
            [
                ("leaf-bus tests/main.rs: b".to_owned(), "needs root".to_owned()),
                ("leaf-bus tests/main.rs: c".to_owned(), "no nix".to_owned())
            ]
        );
    }

    #[test]
    fn a_program_that_crashes_counts_as_a_failure() {
        let tally = tally("running 3 tests\ntest a ... ok\nthread 'main' has overflowed its stack\n");
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(names(&tally), ["leaf-bus tests/main.rs: ended without a result"]);
    }

    #[test]
    fn a_program_that_prints_nothing_counts_as_a_failure() {
        let tally = tally("\n");
        assert_eq!(tally.closing_line(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_lost_line_is_counted_by_the_result() {
        let tally = tally(
            "running 3 tests\nnoise test a ... FAILED\n\
             test b ... ok\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 1 skipped");
        assert!(tally.failed[0].name.contains("could not be named"));
    }

    #[test]
    fn a_reason_for_all_tests_of_a_program_is_the_reason_of_each() {
        let tally = tally(
            "all tests here are skipped: needs root\n\
             running 1 test\ntest a ... ignored\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured\n",
        );
        assert_eq!(
            tally.skipped,
            [("leaf-bus tests/main.rs: a".to_owned(), "needs root".to_owned())]
        );
    }

    #[test]
    fn doc_tests_may_have_several_results() {
        let tally = tally(
            "   Doc-tests leaf_core\nrunning 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n\
             running 1 test\ntest b ... FAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n",
        );
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 0 skipped");
    }
}
