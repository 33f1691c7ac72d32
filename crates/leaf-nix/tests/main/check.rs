//! Second builds: what is reproducible, what is not and where it differs, and what can't be built again.

use leaf_core::job::check::DifferenceKind;
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::process::Program;
use leaf_core::job::{CheckResult, CheckTask, Failure, Installable, JobResult, Origin};
use leaf_nix::check::Check;

use crate::lab::{Lab, Work, drive};
use crate::tests;

tests![
    what_builds_the_same_twice_is_reproducible_with_all_of_its_outputs,
    what_differs_is_named_file_by_file_and_the_second_build_is_kept,
    every_derivation_of_a_file_is_checked_and_one_that_differs_does_not_hide_another,
    a_second_build_that_fails_and_a_path_without_a_build_say_so,
];

/// Checks an installable, with this program of tests for the comparison.
fn check(lab: &Lab, installable: Installable) -> Result<CheckResult, Failure> {
    let task = CheckTask {
        installable,
        impure: false,
        timeout_seconds: 100,
    };
    let order = lab.nix.check_build(&task).expect("a good task");
    let this = std::env::current_exe().expect("a path");
    let ended = drive(Work {
        state: Check::new(order, &lab.gc_roots(), Program::new(this, ["nix-compare".into()])),
        next: Check::next,
        read_line: Check::read_line,
        error: Check::error,
        after_failure: Check::after_failure,
        failure: Check::failure,
    });
    ended.map(|result| match result {
        JobResult::Check(result) => result,
        other => panic!("{other:?}"),
    })
}

const RANDOM: &str = "/proc/sys/kernel/random/uuid";

fn what_builds_the_same_twice_is_reproducible_with_all_of_its_outputs() {
    let lab = Lab::new();
    let good = lab.derivation(
        "good",
        "echo a > $out; echo b > $dev",
        "outputs = [ \"out\" \"dev\" ];",
    );
    let dir = lab.dir.join("flake");
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::write(
        dir.join("flake.nix"),
        format!("{{ outputs = _: {{ good = {good}; }}; }}"),
    )
    .expect("written");
    let reference = format!("path:{}#good", dir.display());
    for origin in [Origin::Built, Origin::Present] {
        let result = check(
            &lab,
            Installable::Flake {
                reference: reference.clone(),
            },
        )
        .expect("reproducible");
        let [derivation] = &result.derivations[..] else {
            panic!("{result:?}")
        };
        assert_eq!(derivation.origin, Some(origin));
        assert_eq!(derivation.outputs.len(), 2, "{derivation:?}");
        assert!(
            result
                .locked
                .as_ref()
                .is_some_and(|locked| locked.contains("narHash=")),
            "{result:?}"
        );
        // By its derivation as well.
        let path = derivation.derivation.clone().expect("a derivation");
        let result = check(&lab, Installable::StorePath { path }).expect("reproducible");
        assert_eq!(result.derivations.len(), 1);
    }
}

fn what_differs_is_named_file_by_file_and_the_second_build_is_kept() {
    let lab = Lab::new();
    let script = format!(
        "mkdir -p $out/d; echo 'always the same' > $out/same; (echo 'begins the same'; read id < {RANDOM}; echo $id) > $out/id; \
         read id < {RANDOM}; ln -s $id $out/d/link"
    );
    let failure = check(&lab, lab.script("random", &script)).expect_err("it differs");
    let why = failure.explanation.expect("explained");
    assert_eq!(why.kind, FailureKind::NotReproducible, "{}", failure.error);
    let output = why.message.split_whitespace().next().expect("a path").to_owned();
    assert!(
        std::path::Path::new(&format!("{output}.check/id")).is_file(),
        "{output}"
    );
    let found: Vec<_> = why
        .differences
        .iter()
        .map(|one| (one.file.trim_start_matches(&*output), one.what))
        .collect();
    let expected = [
        ("/d/link", DifferenceKind::LinkTarget),
        ("/id", DifferenceKind::Content),
    ];
    assert_eq!(found, expected, "{}", failure.error);
    assert!(
        why.differences[1].first_byte >= Some(16) && why.differences_left_out == 0,
        "{:?}",
        why.differences
    );
    assert!(
        failure.error.contains("2 files differ") && failure.error.contains("/d/link"),
        "{}",
        failure.error
    );
}

fn every_derivation_of_a_file_is_checked_and_one_that_differs_does_not_hide_another() {
    let lab = Lab::new();
    let random = |name: &str| lab.derivation(name, &format!("read id < {RANDOM}; echo $id > $out"), "");
    let text = format!(
        "{{ a = {}; b = {}; c = {}; }}",
        random("a"),
        lab.derivation("b", "echo b > $out", ""),
        random("c")
    );
    let failure = check(&lab, lab.file("three", &text)).expect_err("two differ");
    let why = failure.explanation.expect("explained");
    assert_eq!(why.kind, FailureKind::NotReproducible);
    let first = why.derivation.expect("a derivation");
    let [other] = &why.also_failed[..] else {
        panic!("{:?}", why.also_failed)
    };
    // The order is Nix's.
    let mut ends = [first, other.clone()].map(|path| path.as_str().chars().rev().take(6).collect::<String>());
    ends.sort();
    assert_eq!(ends, ["vrd.a-", "vrd.c-"]);
    assert_eq!(why.differences.len(), 2, "{:?}", why.differences);
}

fn a_second_build_that_fails_and_a_path_without_a_build_say_so() {
    let mut lab = Lab::new();
    let flag = lab.dir.join("flag");
    std::fs::write(&flag, "0").expect("written");
    lab.set(|settings| {
        let paths = format!("/bin/sh=/bin/busybox /flag={}", flag.display());
        settings.options.insert("sandbox-paths".to_owned(), paths);
    });
    let depends = lab.script(
        "depends",
        "read code < /flag; echo code $code; echo > $out; exit $code",
    );
    let _ = lab.build(depends.clone()).result.expect("it is built");
    std::fs::write(&flag, "4").expect("written");
    let failure = check(&lab, depends).expect_err("the second one fails");
    let why = failure.explanation.expect("explained");
    assert_eq!((why.kind, why.exit_code), (FailureKind::BuilderFailed, Some(4)));
    assert_eq!(why.log_tail, ["code 4"]);
    let source = lab.dir.join("a-source");
    std::fs::write(&source, "x").expect("written");
    let text = format!("builtins.path {{ path = {}; }}", source.display());
    let failure = check(&lab, lab.file("source", &text)).expect_err("nothing to build");
    assert!(!failure.error.is_empty());
}
