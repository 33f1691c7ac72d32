//! Logs of several versions of Nix, written from the documented format.

use super::*;

const DRV: &str = "/nix/store/f1f8fmr0xmk37zcnlw5h9568p5r8rqf0-hello-1.0.drv";

fn follow(log: &str) -> (Tracker, String) {
    let mut tracker = Tracker::default();
    let mut said = String::new();
    for line in log.split_terminator('\n') {
        if let Some(text) = tracker.line(line.as_bytes()) {
            said.push_str(&text);
            said.push('\n');
        }
    }
    (tracker, said)
}

#[test]
fn a_log_of_2_8_without_parents_gives_log_and_progress() {
    let (tracker, said) = follow(include_str!("../tests/logs/nix-2.8-building.log"));
    assert_eq!(
        said,
        format!("building '{DRV}'\nhello-1.0> compiling\nhello-1.0> 50 %\n")
    );
    let progress = tracker.progress();
    assert_eq!((progress.done, progress.expected, progress.running), (0, 1, 1));
    assert_eq!(progress.activity.as_deref(), Some("building hello-1.0"));
    assert_eq!((tracker.built(), tracker.error()), (1, None));
}

#[test]
fn a_log_of_2_18_that_fetches_counts_paths_and_bytes() {
    let (tracker, said) = follow(include_str!("../tests/logs/nix-2.18-fetching.log"));
    let progress = tracker.progress();
    assert_eq!((progress.done, progress.expected, progress.running), (1, 3, 1));
    assert_eq!(
        (progress.fetched_bytes, progress.fetch_expected_bytes),
        (1500, 4000)
    );
    assert_eq!(progress.activity.as_deref(), Some("fetching glibc-2.38"));
    assert!(said.contains("copying path '/nix/store/"), "{said}");
    assert_eq!(tracker.built(), 0);
}

#[test]
fn a_log_of_2_26_with_unknown_types_names_derivation_and_reason() {
    let (tracker, said) = follow(include_str!("../tests/logs/nix-2.26-failing.log"));
    let error = tracker.error().expect("an error");
    assert!(
        error.starts_with(&format!("builder for '{DRV}' failed with exit code 2")),
        "{error}"
    );
    assert!(error.contains("last 2 log lines:"), "{error}");
    assert!(!error.contains("the end of its log"), "{error}");
    assert!(said.contains("warning: something is old"), "{said}");
    assert_eq!(tracker.progress().failed, 1);
}

#[test]
fn an_error_without_log_lines_gets_those_of_the_builder() {
    let (tracker, _) = follow(&format!(
        "@nix {{\"action\":\"start\",\"id\":1,\"level\":3,\"type\":105,\"text\":\"building\",\"fields\":[\"{DRV}\",\"\",1,1]}}\n\
         @nix {{\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[\"cc: no such file\"]}}\n\
         @nix {{\"action\":\"stop\",\"id\":1}}\n\
         @nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"x\",\"raw_msg\":\"builder for '\\u001b[35;1m{DRV}\\u001b[0m' failed with exit code 3\"}}\n"
    ));
    assert_eq!(
        tracker.error().expect("an error"),
        format!("builder for '{DRV}' failed with exit code 3; the end of its log:\n> cc: no such file")
    );
}

#[test]
fn an_evaluation_error_says_where() {
    let (tracker, _) = follow(
        "@nix {\"action\":\"msg\",\"column\":9,\"file\":\"/a.nix\",\"level\":0,\"line\":3,\"msg\":\"long\",\"raw_msg\":\"attribute 'x' missing\"}\n\
         @nix {\"action\":\"msg\",\"level\":0,\"msg\":\"(use '--show-trace' to show detailed location information)\"}\n",
    );
    assert_eq!(
        tracker.error().as_deref(),
        Some("attribute 'x' missing (at /a.nix:3:9)")
    );
}

#[test]
fn lines_of_another_format_are_in_the_log_as_text() {
    let (tracker, said) = follow(
        "plain \u{1b}[31mred\u{1b}[0m text\r\n@nix {\"action\":\n@nix {\"action\":\"dance\",\"id\":{}}\n\
         @nix {\"action\":\"future\",\"key\":[1,{}]}\n@nix {\"action\":\"result\",\"id\":9,\"type\":105,\"fields\":[1.5,null,{}]}\n\
         \u{1b}]8;;http://x\u{1b}\\link\n",
    );
    assert_eq!(said.lines().next(), Some("plain red text"));
    assert_eq!(said.lines().last(), Some("link"));
    assert!(tracker.error().expect("the raw text").contains("plain red text"));
}

#[test]
fn traces_and_warnings_are_not_errors_and_push_none_out() {
    let noise = |n: u32| {
        // `builtins.trace` and what the daemon forwards are of level 0; `builtins.warn` is of level 1.
        format!(
            "@nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"trace: error: {n} {0}\"}}\n\
             @nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"warning: error: unable to download {n}; retrying\"}}\n\
             @nix {{\"action\":\"msg\",\"level\":1,\"msg\":\"\\u001b[35;1mevaluation warning:\\u001b[0m old {n}\",\"raw_msg\":\"old {n}\"}}\n",
            "x".repeat(200)
        )
    };
    let noise: String = (0..50).map(noise).collect();
    let real =
        "@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"error: x\",\"raw_msg\":\"attribute 'x' missing\"}\n";
    let forwarded = "@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"\\u001b[31;1merror:\\u001b[0m 1 dependencies failed\"}\n";
    for log in [format!("{noise}{real}{noise}"), format!("{real}{noise}")] {
        let (tracker, said) = follow(&log);
        assert_eq!(tracker.error().as_deref(), Some("attribute 'x' missing"));
        assert!(said.contains("trace: error: 49"), "the log has all");
    }
    let (tracker, _) = follow(&format!("{noise}{real}{noise}{forwarded}{noise}"));
    assert_eq!(
        tracker.error().as_deref(),
        Some("attribute 'x' missing\n1 dependencies failed")
    );
}

#[test]
fn without_an_error_the_last_messages_are_the_reason() {
    let (tracker, _) =
        follow("@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"trace: before the end\"}\nKilled\n");
    assert_eq!(tracker.error().as_deref(), Some("trace: before the end\nKilled"));
}

#[test]
fn of_a_line_that_is_too_long_the_beginning_of_its_text_is_in_the_log() {
    let long = "x".repeat(2000);
    let (tracker, said) = follow(&format!(
        "@nix {{\"action\":\"result\",\"fields\":[\"{long}\n\
         @nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"\\u001b[31;1merror:\\u001b[0m {long}\\u00\n\
         @nix {{\"action\":\"start\",\"fields\":[\"{long}\n"
    ));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("{long}…"));
    assert_eq!(lines[1], format!("error: {long}…"));
    assert_eq!((lines.len(), tracker.error()), (2, Some(format!("{long}…"))));
}

#[test]
fn an_error_is_bounded() {
    let mut tracker = Tracker::default();
    for n in 0..100 {
        tracker.add_error(format!("{n} {}", "€".repeat(1000)));
    }
    let error = tracker.error().expect("an error");
    assert!(error.len() <= 4096 && error.ends_with('…'));
    assert!(error.starts_with("0 €") && error.contains("\n99 €"), "{error}");
}

/// Why the run with this log failed.
fn explained(log: &str) -> Explanation {
    let (tracker, _) = follow(log);
    tracker.explanation(&tracker.error().unwrap_or_default(), End::Code(1))
}

fn names<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<&'a str> {
    paths.into_iter().map(|path| name_of(path.as_str())).collect()
}

#[test]
fn a_failed_build_is_explained_by_derivation_log_and_the_chain_that_needed_it() {
    let why = explained(include_str!("../tests/logs/nix-2.8-chain.log"));
    assert_eq!(
        (why.kind, why.exit_code, why.signal),
        (FailureKind::BuilderFailed, Some(3), None)
    );
    assert_eq!(names(&why.derivation), ["bad"]);
    // Without terminal sequences and carriage returns.
    assert_eq!(why.log_tail, ["first words", "last red"]);
    assert_eq!(names(&why.needed_by), ["dep", "top"]);
    assert!(
        why.message.starts_with("builder for '/nix/store/"),
        "{}",
        why.message
    );
    let why = explained(include_str!("../tests/logs/nix-2.8-keep-going.log"));
    let mut failed = names(why.derivation.iter().chain(&why.also_failed));
    failed.sort_unstable();
    assert_eq!(failed, ["bad", "empty"]);
    assert_eq!(names(&why.needed_by), ["dep"]);
    let why = explained(include_str!("../tests/logs/nix-2.26-failing.log"));
    assert_eq!((why.kind, why.exit_code), (FailureKind::BuilderFailed, Some(2)));
    assert_eq!(why.derivation.expect("a derivation").as_str(), DRV);
}

#[test]
fn every_kind_of_failure_is_told_from_a_real_log() {
    for (log, kind, says) in [
        (
            include_str!("../tests/logs/nix-2.8-empty.log"),
            FailureKind::BuilderFailed,
            "failed to produce output",
        ),
        (
            include_str!("../tests/logs/nix-2.8-hash.log"),
            FailureKind::HashMismatch,
            "specified",
        ),
        (
            include_str!("../tests/logs/nix-2.8-silent.log"),
            FailureKind::TimedOut,
            "1 seconds of silence",
        ),
        (
            include_str!("../tests/logs/nix-2.8-ifd.log"),
            FailureKind::Policy,
            "allow-import-from-derivation",
        ),
        (
            include_str!("../tests/logs/nix-2.8-pure.log"),
            FailureKind::Policy,
            "/etc/hostname",
        ),
        (
            include_str!("../tests/logs/nix-2.8-unfree.log"),
            FailureKind::RefusedPackage,
            "unfree",
        ),
        (
            include_str!("../tests/logs/nix-2.8-typed.log"),
            FailureKind::EvaluationError,
            "cannot add",
        ),
        (
            include_str!("../tests/logs/nix-2.8-syntax.log"),
            FailureKind::EvaluationError,
            "syntax error",
        ),
        (
            include_str!("../tests/logs/nix-2.8-attribute.log"),
            FailureKind::MissingAttribute,
            "helo",
        ),
        (
            include_str!("../tests/logs/nix-2.8-missing.log"),
            FailureKind::MissingAttribute,
            "helo",
        ),
        (
            include_str!("../tests/logs/nix-2.8-flake.log"),
            FailureKind::MissingAttribute,
            "helo",
        ),
        (
            include_str!("../tests/logs/nix-2.8-file.log"),
            FailureKind::MissingFile,
            "/srv/nowhere.nix",
        ),
        (
            include_str!("../tests/logs/nix-2.8-download.log"),
            FailureKind::FetchFailed,
            "127.0.0.1:9",
        ),
        (
            include_str!("../tests/logs/nix-2.8-substituter.log"),
            FailureKind::FetchFailed,
            "-absent",
        ),
    ] {
        let why = explained(log);
        assert_eq!(why.kind, kind, "{why:?}");
        assert!(why.message.contains(says), "{why:?}");
    }
    let why = explained(include_str!("../tests/logs/nix-2.8-typed.log"));
    let place = why.place.expect("a place");
    assert_eq!((&*place.file, place.line, place.column), ("/srv/pkgs.nix", 9, 14));
    let hash = explained(include_str!("../tests/logs/nix-2.8-hash.log"))
        .hash
        .expect("hashes");
    assert!(
        hash.specified.starts_with("sha256-47DEQ") && hash.got.starts_with("sha256-h0KP"),
        "{hash:?}"
    );
}

#[test]
fn a_build_that_was_ended_is_explained_by_what_was_building() {
    let log = include_str!("../tests/logs/nix-2.8-chain.log");
    let (before, _) = log.split_once("@nix {\"action\":\"msg\"").expect("an error");
    let (tracker, _) = follow(before);
    let why = tracker.explanation("it took longer than 2 s, and was ended", End::TimedOut);
    assert_eq!(
        (why.kind, names(&why.derivation)),
        (FailureKind::TimedOut, vec!["bad"])
    );
    assert_eq!(why.log_tail, ["first words", "last red"]);
}

#[test]
fn an_explanation_is_bounded_whatever_fails() {
    let mut tracker = Tracker::default();
    let path = |n: u32| format!("/nix/store/{n:032}-x.drv");
    for n in 100..1100 {
        let said = format!("{} builder for '{}' failed {}", "", path(n), "€".repeat(2000));
        tracker.add_cause(said.trim(), None);
        tracker.add_cause(
            &format!(
                "1 dependencies of derivation '{}' failed to build",
                path(n + 5000)
            ),
            None,
        );
    }
    let why = tracker.explanation("x", End::Code(1));
    assert!(why.message.len() <= 1024, "{}", why.message.len());
    assert_eq!(
        (why.also_failed.len(), why.needed_by.len(), why.needed_by_left_out),
        (16, 16, 984)
    );
}
