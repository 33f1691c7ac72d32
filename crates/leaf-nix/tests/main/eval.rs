//! Evaluations: their values, their bounds, and what is remembered of them.

use leaf_core::id::JobId;
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{EvalResult, EvalTask, Failure, Installable};
use serde_json::json;

use crate::lab::Lab;
use crate::tests;

tests![
    a_flake_is_evaluated_locked_and_purely_and_its_value_is_remembered,
    a_file_is_evaluated_and_builds_nothing,
    what_an_evaluation_may_not_do_is_refused_with_the_kind,
    an_evaluation_that_eats_memory_ends_with_the_name_of_its_bound,
];

fn flake(lab: &Lab, outputs: &str) -> String {
    let dir = lab.dir.join("flake");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(
        dir.join("flake.nix"),
        format!("{{ outputs = _: {{ {outputs} }}; }}"),
    )
    .expect("written");
    format!("path:{}", dir.display())
}

fn task(installable: Installable, apply: Option<&str>) -> EvalTask {
    EvalTask {
        installable,
        apply: apply.map(str::to_owned),
        impure: false,
        timeout_seconds: 60,
    }
}

fn of(reference: String) -> EvalTask {
    task(Installable::Flake { reference }, None)
}

fn value(ended: Result<EvalResult, Failure>) -> serde_json::Value {
    ended.expect("a value").value
}

fn kind(ended: Result<EvalResult, Failure>) -> (FailureKind, String) {
    let failure = ended.expect_err("it fails");
    (failure.explanation.expect("explained").kind, failure.error)
}

fn a_flake_is_evaluated_locked_and_purely_and_its_value_is_remembered() {
    let lab = Lab::new();
    let reference = flake(
        &lab,
        "lib = { a = 1; b = null; \"c d\" = [ true ]; }; time = builtins.currentTime;",
    );
    let first = of(format!("{reference}#lib"));
    let result = lab.eval(&first).expect("a value");
    assert_eq!(result.value, json!({ "a": 1, "b": null, "c d": [true] }));
    let locked = result.locked.clone().expect("locked");
    assert!(
        locked.starts_with(&reference) && locked.contains("narHash="),
        "{locked}"
    );
    assert!(!result.cached && result.nix.starts_with("nix ("), "{result:?}");
    let id: JobId = "00000000-0000-0000-0000-000000000001".parse().expect("an id");
    lab.nix.remember(id, &first, &result).expect("kept");
    let again = lab.eval(&first).expect("a value");
    assert!(
        again.cached && again.value == result.value && again.locked == result.locked,
        "{again:?}"
    );
    let names = task(
        Installable::Flake {
            reference: format!("{reference}#lib"),
        },
        Some("builtins.attrNames"),
    );
    assert_eq!(value(lab.eval(&names)), json!(["a", "b", "c d"]));
    let (kind, why) = kind(lab.eval(&of(format!("{reference}#time"))));
    assert_eq!(kind, FailureKind::MissingAttribute, "{why}");
    // Another source is another reference.
    flake(&lab, "lib = 2;");
    let changed = lab.eval(&first).expect("a value");
    assert_eq!((changed.value, changed.cached), (json!(2), false));
}

fn a_file_is_evaluated_and_builds_nothing() {
    let lab = Lab::new();
    let derivation = lab.derivation("never", "echo x > $out", "");
    let Installable::File { path, .. } = lab.file("set", &format!("{{ a.b = 7; drv = {derivation}; }}"))
    else {
        unreachable!("it is a file")
    };
    let of = |attribute: &str, apply| {
        let attribute = Some(attribute.to_owned());
        task(
            Installable::File {
                path: path.clone(),
                attribute,
            },
            apply,
        )
    };
    let result = lab.eval(&of("a.b", None)).expect("a value");
    assert_eq!((result.value, result.locked), (json!(7), None));
    let words = "x: ''$(touch /nowhere) \"--help ${toString x}''";
    assert_eq!(
        value(lab.eval(&of("a.b", Some(words)))),
        json!("$(touch /nowhere) \"--help 7")
    );
    let written = value(lab.eval(&of("drv.drvPath", None)));
    let path = written.as_str().expect("a path");
    assert!(
        path.ends_with("-never.drv") && !std::path::Path::new(path).exists(),
        "{path}"
    );
}

fn what_an_evaluation_may_not_do_is_refused_with_the_kind() {
    let lab = Lab::new();
    let imported = lab.derivation("imported", "echo 7 > $out", "");
    let reference = flake(
        &lab,
        &format!(
            "ifd = import ({imported}); host = builtins.readFile \"/etc/hostname\"; loop = let f = x: f (x + 1); in f 0; \
             wrong = 1 + \"x\"; long = builtins.genList (x: \"0123456789\") 20000; escapes = \"a\\rb${{builtins.fromJSON ''\"\\u001b[31m\"''}}\";"
        ),
    );
    for (attribute, expected, says) in [
        ("ifd", FailureKind::Policy, "allow-import-from-derivation"),
        // Newer versions name the directory.
        ("host", FailureKind::Policy, "/etc"),
        ("wrong", FailureKind::EvaluationError, "cannot add"),
        ("nothing", FailureKind::MissingAttribute, "nothing"),
        ("long", FailureKind::OutputTooLarge, "--apply"),
    ] {
        let (kind, why) = kind(lab.eval(&of(format!("{reference}#{attribute}"))));
        assert_eq!(kind, expected, "{attribute}: {why}");
        assert!(why.contains(says), "{attribute}: {why}");
    }
    assert_eq!(
        value(lab.eval(&of(format!("{reference}#escapes")))),
        json!("a\rb\u{1b}[31m")
    );
}

fn an_evaluation_that_eats_memory_ends_with_the_name_of_its_bound() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.eval_memory_mib = 1024);
    let reference = flake(
        &lab,
        "much = builtins.length (builtins.genList (x: x) 1000000000);",
    );
    let (kind, why) = kind(lab.eval(&of(format!("{reference}#much"))));
    assert_eq!(kind, FailureKind::OutOfMemory, "{why}");
    assert!(why.contains("nix.eval_memory_mib = 1024"), "{why}");
}
