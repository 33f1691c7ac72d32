//! The garbage of a store of its own, so that nothing of the host's is deleted.

use leaf_core::id::StorePath;
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{BuildTask, Failure, GcResult, GcTask, JobResult, RootsResult, RootsTask};
use leaf_nix::gc::{Gc, Order};

use crate::lab::{Lab, Work, drive};
use crate::tests;

tests![
    garbage_is_deleted_up_to_the_bytes_that_are_wanted_and_what_a_root_holds_is_not,
    a_root_is_found_by_what_it_holds_with_all_that_it_needs,
];

fn lab() -> Lab {
    let mut lab = Lab::new();
    let store = lab.dir.join("store").display().to_string();
    lab.set(|settings| {
        settings.options.insert("store".to_owned(), store);
    });
    lab
}

fn run(order: Order) -> Result<JobResult, Failure> {
    drive(Work {
        state: Gc::new(order),
        next: Gc::next,
        read_line: Gc::read_line,
        error: Gc::error,
        after_failure: |_, _| None,
        failure: Gc::failure,
    })
}

fn collect(lab: &Lab, dry_run: bool, free_bytes: Option<u64>) -> GcResult {
    let order = lab.nix.gc(&GcTask {
        dry_run,
        free_bytes,
        gives_up: Vec::new(),
        timeout_seconds: 60,
    });
    match run(order).expect("it works") {
        JobResult::Gc(result) => result,
        other => panic!("{other:?}"),
    }
}

fn roots(lab: &Lab, path: Option<&StorePath>) -> Result<RootsResult, Failure> {
    let order = lab.nix.roots(&RootsTask {
        path: path.cloned(),
        timeout_seconds: 60,
    });
    run(order).map(|result| match result {
        JobResult::Roots(result) => result,
        other => panic!("{other:?}"),
    })
}

fn garbage_is_deleted_up_to_the_bytes_that_are_wanted_and_what_a_root_holds_is_not() {
    let lab = lab();
    let kept = lab.build(lab.script("kept", "echo kept > $out"));
    let kept = kept.result.expect("it is built").store_path;
    for name in ["one", "two", "three"] {
        let script = "i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done > $out";
        let ended = lab.build(lab.script(name, script));
        ended.result.as_ref().expect("it is built");
        std::fs::remove_dir_all(&ended.gc_roots).expect("removed");
    }
    let would = collect(&lab, true, None);
    // Each with its derivation.
    assert!(would.dry_run && would.paths == 6, "{would:?}");
    assert!(
        would.nar_bytes > Some(90_000) && would.largest.len() == 6,
        "{would:?}"
    );
    assert!(
        would.largest[..3]
            .iter()
            .all(|path| !path.as_str().ends_with(".drv")),
        "{would:?}"
    );
    assert!(!would.largest.contains(&kept), "{would:?}");
    let first = collect(&lab, false, Some(1));
    assert_eq!(
        (first.paths, first.nar_bytes, first.dry_run),
        (1, None, false),
        "{first:?}"
    );
    let rest = collect(&lab, false, None);
    assert_eq!(rest.paths, 5, "{rest:?}");
    assert!(rest.free_bytes_before > 0 && rest.free_bytes_after > 0);
    let in_store = lab.dir.join("store").join(kept.as_str().trim_start_matches('/'));
    assert!(in_store.exists(), "{in_store:?}");
    assert_eq!(collect(&lab, true, None).paths, 0);
}

fn a_root_is_found_by_what_it_holds_with_all_that_it_needs() {
    let lab = lab();
    let below = lab.derivation("below", "echo below > $out", "");
    let text = format!(
        "let below = {below}; in {}",
        lab.derivation("above", "echo ${below} > $out", "")
    );
    let task = BuildTask::new(vec![lab.file("above", &text)], 100);
    let built = lab.run(&task);
    let result = built.result.expect("it is built");
    let [below] = &result.references[..] else {
        panic!("{result:?}")
    };
    for path in [Some(below), None] {
        let found = roots(&lab, path).expect("found");
        let [root] = &found.roots[..] else {
            panic!("{found:?}")
        };
        assert_eq!(root.path, result.store_path);
        assert!(
            root.link.starts_with(&*built.gc_roots.display().to_string()),
            "{root:?}"
        );
    }
    std::fs::remove_dir_all(&built.gc_roots).expect("removed");
    assert_eq!(roots(&lab, Some(below)).expect("found"), RootsResult::default());
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent").expect("a path");
    let failure = roots(&lab, Some(&absent)).expect_err("it is not there");
    let kind = failure.explanation.expect("explained").kind;
    assert_eq!(kind, FailureKind::MissingFile, "{}", failure.error);
}
