//! The verification of a system that Nix built, in a store of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use leaf_core::id::StorePath;
use leaf_core::job::verify::{PathFinding, Stated};
use leaf_core::job::{Failure, JobResult, VerifyResult, VerifyTask};
use leaf_nix::verify::Verify;

use crate::lab::{Lab, Work, drive};
use crate::tests;

tests![
    where_each_path_of_a_system_comes_from_is_found_and_a_changed_one_only_if_it_is_hashed,
    a_host_without_a_system_is_said,
];

/// A system whose `/etc` is another directory.
struct System {
    lab: Lab,
    toplevel: StorePath,
    nar_sha256: String,
    etc: PathBuf,
    running: PathBuf,
}

impl System {
    fn new() -> Self {
        let lab = Lab::new();
        let script =
            "mkdir -p $out/etc; echo 25.05 >$out/nixos-version; ln -s $out/nixos-version $out/etc/issue";
        let text = format!(
            "derivation {{ name = \"nixos-system-{}\"; system = \"{}-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; \
             PATH = \"/bin:/usr/bin\"; }}",
            lab.unique,
            std::env::consts::ARCH
        );
        let ended = lab.build(lab.file("system", &text));
        let result = ended.result.unwrap_or_else(|why| panic!("{why}: {}", ended.log));
        let (etc, running) = (lab.dir.join("etc"), lab.dir.join("current-system"));
        fs::create_dir(&etc).expect("a directory");
        symlink(result.store_path.as_str(), &running).expect("a link");
        symlink(format!("{}/etc", result.store_path), etc.join("static")).expect("a link");
        symlink("/etc/static/issue", etc.join("issue")).expect("a link");
        Self {
            nar_sha256: result.nar_sha256["out"].clone(),
            toplevel: result.store_path,
            lab,
            etc,
            running,
        }
    }

    fn verify(&self, hashes: &[&str], contents: bool) -> Result<VerifyResult, Failure> {
        let stated = hashes.iter().map(|hash| Stated {
            path: self.toplevel.clone(),
            nar_sha256: (*hash).to_owned(),
        });
        let mut order = self.lab.nix.verify(&VerifyTask {
            stated: stated.collect(),
            contents,
            timeout_seconds: 60,
        });
        order.running.clone_from(&self.running);
        order.etc.clone_from(&self.etc);
        let result = drive(Work {
            state: Verify::new(order),
            next: Verify::next,
            read_line: Verify::read_line,
            error: Verify::error,
            after_failure: Verify::after_failure,
            failure: Verify::failure,
        });
        result.map(|result| match result {
            JobResult::Verify(result) => result,
            other => panic!("{other:?}"),
        })
    }
}

fn where_each_path_of_a_system_comes_from_is_found_and_a_changed_one_only_if_it_is_hashed() {
    let system = System::new();
    let findings = |result: &VerifyResult| -> Vec<PathFinding> {
        result.listed.iter().map(|listed| listed.what).collect()
    };
    let built = system.verify(&[], false).expect("verified");
    assert_eq!(
        (built.paths, built.built_here, built.modified),
        (1, 1, None),
        "{built:?}"
    );
    assert_eq!(findings(&built), [PathFinding::BuiltHere]);
    assert_eq!((built.etc.of_system, built.etc.unexplained), (1, 0), "{built:?}");
    let attested = system.verify(&[&system.nar_sha256], true).expect("verified");
    assert_eq!(
        (attested.attested, attested.modified),
        (1, Some(0)),
        "{attested:?}"
    );
    assert!(attested.listed.is_empty(), "{attested:?}");
    let contradicted = system.verify(&[&"0".repeat(64)], false).expect("verified");
    assert_eq!((contradicted.contradicted, contradicted.built_here), (1, 1));

    // One byte of it is changed, as no build would.
    let version = format!("{}/nixos-version", system.toplevel);
    let mut permissions = fs::metadata(&version).expect("a file").permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "it is removed below")]
    permissions.set_readonly(false);
    fs::set_permissions(&version, permissions).expect("writable");
    fs::write(&version, "25.06\n").expect("written");
    let unseen = system.verify(&[&system.nar_sha256], false).expect("verified");
    assert_eq!((unseen.attested, unseen.modified), (1, None), "{unseen:?}");
    let seen = system.verify(&[&system.nar_sha256], true).expect("verified");
    assert_eq!((seen.attested, seen.modified), (1, Some(1)), "{seen:?}");
    assert_eq!(findings(&seen), [PathFinding::Modified]);

    // And all of it is gone.
    fs::remove_dir_all(system.toplevel.as_str()).expect("removed");
    for contents in [false, true] {
        let gone = system.verify(&[], contents).expect("verified");
        assert_eq!(gone.missing, 1, "{gone:?}");
        assert_eq!(findings(&gone)[0], PathFinding::Missing);
        assert!(gone.etc.not_compared.is_some(), "{gone:?}");
    }
    let deleted = std::process::Command::new("nix-store")
        .args(["--delete", "--ignore-liveness", system.toplevel.as_str()])
        .output()
        .expect("nix-store runs");
    assert!(deleted.status.success(), "{deleted:?}");
}

fn a_host_without_a_system_is_said() {
    let system = System::new();
    fs::remove_file(&system.running).expect("removed");
    let failure = system.verify(&[], false).expect_err("there is none");
    assert!(failure.error.contains("runs no NixOS system"), "{failure:?}");
    symlink("/etc", &system.running).expect("a link");
    let failure = system.verify(&[], false).expect_err("it is none");
    assert!(failure.error.contains("leads to no system"), "{failure:?}");
}
