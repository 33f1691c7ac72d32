//! What a caller or a builder may try.

use std::process::Command;

use leaf_core::job::{EvalTask, Installable};

use crate::lab::Lab;
use crate::tests;

tests![
    what_a_builder_prints_has_no_control_characters_in_the_log,
    a_reference_with_characters_of_a_shell_runs_nothing,
    a_build_that_fills_the_disk_of_the_store_fails_with_the_reason_and_the_store_works_on,
];

fn what_a_builder_prints_has_no_control_characters_in_the_log() {
    let lab = Lab::new();
    let script = r#"printf 'a\033[2Jb\rc\007d\000e\377f\n'; printf '\033]0;title\007g\n'; printf 'bar 1\rbar 2\n'; head -c 100000 /dev/urandom; echo; echo the end; exit 3"#;
    let ended = lab.build(lab.script("prints", script));
    let why = ended.result.expect_err("it fails");
    for text in [&ended.log, &why] {
        let found: Vec<char> = text
            .chars()
            .filter(|c| c.is_control() && *c != '\n' && *c != '\t')
            .collect();
        assert!(found.is_empty(), "{found:?}");
    }
    assert!(
        ended.log.contains("the end") && why.contains("exit code 3"),
        "{why}"
    );
}

fn a_reference_with_characters_of_a_shell_runs_nothing() {
    let lab = Lab::new();
    let touched = lab.dir.join("touched");
    let file = touched.display();
    for reference in [
        format!("path:/nowhere$(touch${{IFS}}{file})#a"),
        format!("path:/nowhere;touch${{IFS}}{file}#a"),
        format!("path:/nowhere`touch${{IFS}}{file}`#a"),
        format!("path:/nowhere|touch&&{file}#a"),
        format!("path:/nowhere#a'\"${{builtins.readFile({file})}}"),
    ] {
        let installable = Installable::Flake { reference };
        let task = EvalTask {
            installable: installable.clone(),
            apply: None,
            impure: false,
            timeout_seconds: 60,
        };
        if lab.nix.eval(&task).is_ok() {
            lab.eval(&task).expect_err("there is no such flake");
        }
        assert!(lab.build(installable).result.is_err());
        assert!(!touched.exists());
    }
    for reference in ["--impure", "-f", "--option", "-"] {
        let installable = Installable::Flake {
            reference: reference.to_owned(),
        };
        installable.check().expect_err("it would be a flag");
    }
}

fn a_build_that_fills_the_disk_of_the_store_fails_with_the_reason_and_the_store_works_on() {
    let mut lab = Lab::new();
    let store = lab.dir.join("store");
    std::fs::create_dir(&store).expect("a directory");
    let run = |program: &str, words: &[&str]| {
        let status = Command::new(program).args(words).arg(&store).status();
        assert!(status.is_ok_and(|status| status.success()), "{program}");
    };
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs"]);
    lab.set(|settings| {
        let store = store.display().to_string();
        settings.options.insert("store".to_owned(), store);
    });
    let fills = lab.build(lab.script("fills", "cat /dev/zero > $out"));
    let after = lab.build(lab.script("after", "echo after > $out"));
    run("umount", &["--lazy"]);
    let why = fills.result.expect_err("the disk is full");
    assert!(why.contains("No space left on device"), "{why}");
    after.result.expect("there is room again");
}
