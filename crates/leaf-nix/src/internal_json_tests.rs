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
