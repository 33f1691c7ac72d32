//! The difference of two closures that Nix built.

use leaf_core::id::StorePath;
use leaf_core::job::diff::{PackageDiff, UnitDiff, UnitEffect};
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{DiffResult, DiffTask, Failure, JobResult};
use leaf_nix::diff::Diff;

use crate::lab::{Lab, Work, drive};
use crate::tests;

tests![
    packages_and_units_that_differ_are_found_in_two_systems,
    a_path_that_is_not_in_the_store_is_said,
];

fn diff(lab: &Lab, from: StorePath, to: StorePath) -> Result<DiffResult, Failure> {
    let order = lab.nix.diff(&DiffTask {
        from,
        to,
        timeout_seconds: 60,
    });
    let result = drive(Work {
        state: Diff::new(order),
        next: Diff::next,
        read_line: Diff::read_line,
        error: Diff::error,
        after_failure: |_, _| None,
        failure: Diff::failure,
    });
    result.map(|result| match result {
        JobResult::Diff(result) => result,
        other => panic!("{other:?}"),
    })
}

/// The name of a package, of which no part looks like a version.
fn tool(lab: &Lab) -> String {
    format!("{}-tool", lab.unique.replace('-', ""))
}

/// A system with one unit, whose program is a package of this version and size.
fn system(lab: &Lab, version: &str, bytes: usize) -> StorePath {
    let derivation = |name: &str, script: &str, more: &str| {
        format!(
            "derivation {{ name = \"{name}\"; system = \"{}-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; {more} }}",
            std::env::consts::ARCH
        )
    };
    let name = format!("{}-{version}", tool(lab));
    let package = derivation(&name, &format!("printf %{bytes}s x >$out"), "");
    let script = "mkdir -p $out/etc/systemd/system
        echo 25.05 >$out/nixos-version
        echo \"[Service]\" >$out/etc/systemd/system/tool.service
        echo \"ExecStart=$tool\" >>$out/etc/systemd/system/tool.service";
    let name = format!("nixos-system-{}", lab.unique);
    let text = derivation(&name, script, &format!("tool = {package};"));
    let ended = lab.build(lab.file("system", &text));
    ended
        .result
        .unwrap_or_else(|why| panic!("{why}: {}", ended.log))
        .store_path
}

fn packages_and_units_that_differ_are_found_in_two_systems() {
    let lab = Lab::new();
    let (old, new) = (system(&lab, "1.0", 20_000), system(&lab, "1.1", 50_000));
    let result = diff(&lab, old, new.clone()).expect("they are compared");
    let package = PackageDiff {
        name: tool(&lab),
        from: vec!["1.0".to_owned()],
        to: vec!["1.1".to_owned()],
        size_bytes: 30_000,
    };
    assert_eq!(result.packages, [package], "{result:?}");
    let grows = result.to_closure_size_bytes - result.from_closure_size_bytes;
    assert_eq!(grows, 30_000, "{result:?}");
    let system = result.system.expect("two systems");
    let unit = UnitDiff {
        unit: "tool.service".to_owned(),
        effect: UnitEffect::Restarts,
    };
    assert_eq!((&system.units[..], system.at_next_boot.len()), (&[unit][..], 0));
    let same = diff(&lab, new.clone(), new).expect("they are compared");
    assert!(same.packages.is_empty() && same.system.is_some_and(|system| system.units.is_empty()));
}

fn a_path_that_is_not_in_the_store_is_said() {
    let lab = Lab::new();
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent").expect("a path");
    let failure = diff(&lab, absent.clone(), absent).expect_err("it is not there");
    assert!(
        failure.error.ends_with("-absent is not in the store"),
        "{failure:?}"
    );
    let kind = failure.explanation.map(|explanation| explanation.kind);
    assert_eq!(kind, Some(FailureKind::MissingFile));
    // It has no record in Nix's database.
    let place = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-no-record";
    std::fs::write(place, "x").expect("written");
    let path = StorePath::new(place).expect("a path");
    let failure = diff(&lab, path.clone(), path).expect_err("Nix does not know it");
    std::fs::remove_file(place).expect("removed");
    assert!(failure.error.contains("is not valid"), "{failure:?}");
}
