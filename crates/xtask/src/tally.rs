//! Counts tests by what their programs print: libtest and libtest-mimic say `test NAME ... ok|FAILED|ignored` and end
//! with `test result: …`.
//!
//! What was announced and did not end with a result counts as failed: a program that crashed passed nothing.

use std::collections::BTreeMap;

/// The sum of all tests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: Vec<String>,
    /// Names and reasons.
    pub(crate) skipped: Vec<(String, String)>,
    /// The package of each test program, by the program's file name.
    programs: BTreeMap<String, String>,
    current: Option<Program>,
}

/// The program that runs now.
#[derive(Debug)]
struct Program {
    label: String,
    results: u64,
    /// Whether it said `running N tests`, and no result yet.
    open: bool,
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
    /// Why its tests can't run here: `… are skipped: REASON` on a line of its own.
    reason: String,
}

impl Tally {
    /// Returns an empty tally that knows the packages of test programs by their file names.
    pub(crate) fn new(programs: BTreeMap<String, String>) -> Self {
        Self {
            programs,
            ..Self::default()
        }
    }

    pub(crate) fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    pub(crate) fn fail(&mut self, name: impl Into<String>) {
        self.failed.push(name.into());
    }

    pub(crate) fn skip(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push((name.into(), reason.into()));
    }

    /// Takes one line of what `cargo test` and its programs print.
    pub(crate) fn line(&mut self, line: &str) {
        let words = line.trim();
        if let Some(label) = self.label(line) {
            self.end_program();
            self.current = Some(Program::new(label));
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
                .push(format!("{}: ended without a result", program.label));
        }
    }

    /// The one closing line.
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

    /// `     Running tests/main.rs (target/debug/deps/main-0123)` or `   Doc-tests leaf_core`.
    fn label(&self, line: &str) -> Option<String> {
        if let Some(name) = line.strip_prefix("   Doc-tests ") {
            return Some(format!("{name} (doc tests)"));
        }
        let (source, program) = line.strip_prefix("     Running ")?.split_once(" (")?;
        let program = program.strip_suffix(')')?;
        let file = program.rsplit('/').next().unwrap_or(program);
        let package = self.programs.get(file).map_or(file, String::as_str);
        Some(format!("{package} {}", source.trim_start_matches("unittests ")))
    }

    /// The counts of the result are what the program itself says; a line may have been lost among others.
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
            program
                .failed
                .push(format!("{}: a test that could not be named", program.label));
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
            skipped: Vec::new(),
            reason: String::new(),
        }
    }

    fn test(&mut self, name: &str, outcome: &str) {
        // libtest-mimic says the kind of a test before its name; a test that can't run has the reason there.
        let (kind, bare) = match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((kind, bare)) => (kind.trim(), bare.trim()),
            None => ("", name.trim()),
        };
        let full = format!("{}: {bare}", self.label);
        match outcome.split([',', ' ', '<']).next() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed.push(full),
            Some("ignored") => {
                let own = outcome.strip_prefix("ignored, ").unwrap_or(kind).trim();
                let reason = if own.is_empty() { &self.reason } else { own };
                self.skipped.push((full, reason.to_owned()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let programs = BTreeMap::from([("main-0a1b".to_owned(), "leaf-bus".to_owned())]);
        let mut tally = Tally::new(programs);
        text.lines().for_each(|line| tally.line(line));
        tally.end_program();
        tally
    }

    #[test]
    fn tests_of_several_programs_are_added_up_and_named() {
        let tally = tally(
            "     Running unittests src/lib.rs (target/debug/deps/leaf_core-00ff)\n\nrunning 2 tests\n\
             test id::a ... ok\ntest id::b ... FAILED\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; \
             0 filtered out; finished in 0.01s\n     Running tests/main.rs (target/debug/deps/main-0a1b)\n\
             running 3 tests\ntest a ... ok\ntest [needs root] b           ... ignored\ntest c ... ignored, no nix\n\
             test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n   Doc-tests leaf_core\n\n\
             running 1 test\ntest crates/x/src/a.rs - a (line 3) ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!(tally.closing_line(), "3 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failed, ["leaf_core-00ff src/lib.rs: id::b"]);
        assert_eq!(
            tally.skipped,
            [
                ("leaf-bus tests/main.rs: b".to_owned(), "needs root".to_owned()),
                ("leaf-bus tests/main.rs: c".to_owned(), "no nix".to_owned())
            ]
        );
    }

    #[test]
    fn a_program_that_crashes_counts_as_a_failure() {
        let tally = tally(
            "     Running tests/main.rs (target/debug/deps/main-0a1b)\nrunning 3 tests\ntest a ... ok\n\
             error: test failed, to rerun pass `-p leaf-bus`\n     Running tests/b.rs (target/debug/deps/b-1)\n\
             running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failed, ["leaf-bus tests/main.rs: ended without a result"]);
    }

    #[test]
    fn a_program_that_prints_nothing_counts_as_a_failure() {
        let tally = tally("     Running tests/main.rs (target/debug/deps/main-0a1b)\n");
        assert_eq!(tally.closing_line(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_lost_line_is_counted_by_the_result() {
        let tally = tally(
            "     Running tests/main.rs (target/debug/deps/main-0a1b)\nrunning 3 tests\nnoise test a ... FAILED\n\
             test b ... ok\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 1 skipped");
        assert!(tally.failed[0].contains("could not be named"));
    }

    #[test]
    fn a_reason_for_all_tests_of_a_program_is_the_reason_of_each() {
        let tally = tally(
            "     Running tests/main.rs (target/debug/deps/main-0a1b)\nall tests here are skipped: needs root\n\
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
