//! Builds that work, and those that Nix refuses.

use leaf_core::id::StorePath;
use leaf_core::job::{BuildResult, Installable};
use leaf_nix::NixError;
use serde_json::Value;

use crate::lab::{Ended, Lab};
use crate::tests;

tests![
    a_build_has_a_complete_result_also_if_nothing_is_built,
    a_derivation_is_built_with_all_of_its_outputs,
    several_derivations_have_an_entry_each,
    a_store_path_is_realised_and_kept_by_a_gc_root,
    a_locked_flake_is_built_and_an_unlocked_one_is_refused,
    a_flake_that_does_not_evaluate_fails_with_the_reason_and_the_place,
    an_unknown_attribute_fails_with_its_name,
    a_builder_that_fails_is_named_with_the_end_of_its_log,
    a_failure_is_reported_with_its_cause_whatever_is_traced,
    a_template_gets_the_path_of_leaf_init,
    a_template_finds_nixpkgs_where_the_options_name_it,
    the_progress_and_the_log_of_a_build_are_read,
    a_missing_nix_is_reported,
];

fn succeeded(ended: Ended) -> BuildResult {
    ended.result.expect("a build that works")
}

fn failed(ended: Ended) -> String {
    ended.result.expect_err("a build that fails")
}

fn a_build_has_a_complete_result_also_if_nothing_is_built() {
    let lab = Lab::new();
    let dependency = lab.derivation("dep", "echo dependency > $out", "");
    let top = lab.derivation("top", "echo $dep $out > $out", &format!("dep = {dependency};"));
    let installable = lab.file("top", &top);
    let ended = lab.build(installable.clone());
    let gc_roots = ended.gc_roots.clone();
    let result = succeeded(ended);
    let path = result.store_path.as_str();
    let info: Value = serde_json::from_str(
        &lab.nix_command(&[&["path-info", "--json", "-S", path][..], lab.json_format()].concat()),
    )
    .expect("JSON");
    let info = match &info {
        Value::Array(list) => &list[0],
        by_path => &by_path[path],
    };
    assert_eq!(Some(result.closure_size_bytes), info["closureSize"].as_u64());
    assert_eq!(
        result.derivation.as_ref().map(StorePath::as_str),
        info["deriver"].as_str()
    );
    assert_eq!(result.references.len(), 1, "itself is left out");
    assert!(result.references[0].as_str().ends_with("-dep"));
    assert_eq!((result.built, result.outputs.len()), (2, 1));
    assert!(result.build_time_ms > 0);
    let again = succeeded(lab.build(installable));
    assert_eq!(again.built, 0);
    assert_eq!(again.store_path, result.store_path);

    let roots = std::process::Command::new("nix-store")
        .args(["--query", "--roots", path])
        .output()
        .expect("runs");
    let roots = String::from_utf8_lossy(&roots.stdout).into_owned();
    assert!(roots.contains(gc_roots.to_str().expect("UTF-8")), "{roots}");
}

fn a_derivation_is_built_with_all_of_its_outputs() {
    let lab = Lab::new();
    lab.script("many", "echo d > $dev; echo $dev > $out");
    let file = lab.dir.join("many.nix");
    let path = lab.nix_command(&[
        "eval",
        "--raw",
        "--impure",
        "--expr",
        &format!(
            "(import {} {{ outputs = [ \"out\" \"dev\" ]; }}).drvPath",
            file.display()
        ),
    ]);
    let path = StorePath::new(path).expect("a store path");
    let ended = lab.build(Installable::StorePath { path: path.clone() });
    let gc_roots = ended.gc_roots.clone();
    let result = succeeded(ended);
    assert_eq!(result.outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    assert_eq!(result.store_path, result.outputs["out"]);
    assert_eq!(result.references, [result.outputs["dev"].clone()]);
    assert_eq!(result.derivation, Some(path));
    assert_eq!(std::fs::read_dir(gc_roots).expect("roots").count(), 2);
}

fn several_derivations_have_an_entry_each() {
    let lab = Lab::new();
    let one = lab.derivation("one", "echo 1 > $out", "");
    let two = lab.derivation(
        "two",
        "echo 2 > $dev; echo 2 > $out",
        "outputs = [ \"out\" \"dev\" ];",
    );
    let ended = lab.build(lab.file("list", &format!("[ ({one}) ({two}) ]")));
    let gc_roots = ended.gc_roots.clone();
    let result = succeeded(ended);
    // Nix sorts them by their paths.
    let name = |path: &StorePath| path.as_str().rsplit('-').next().unwrap_or_default().to_owned();
    let [other] = &result.others[..] else {
        panic!("one other: {:?}", result.others)
    };
    let mut all = [
        (&result.derivation, &result.outputs),
        (&other.derivation, &other.outputs),
    ]
    .map(|(derivation, outputs)| {
        (
            derivation.as_ref().map(name),
            name(&outputs["out"]),
            outputs.len(),
        )
    });
    all.sort();
    assert_eq!((&all[0].0.as_deref(), &*all[0].1), (&Some("one.drv"), "one"));
    assert_eq!((&all[1].0.as_deref(), &*all[1].1), (&Some("two.drv"), "two"));
    assert_eq!(result.outputs["out"], result.store_path);
    assert_eq!(
        std::fs::read_dir(gc_roots).expect("roots").count(),
        all[0].2 + all[1].2
    );
}

fn a_store_path_is_realised_and_kept_by_a_gc_root() {
    let lab = Lab::new();
    let built = succeeded(lab.build(lab.script("plain", "echo x > $out")));
    let ended = lab.build(Installable::StorePath {
        path: built.store_path.clone(),
    });
    let link = std::fs::read_link(ended.gc_roots.join("result")).expect("a GC root");
    let result = succeeded(ended);
    assert_eq!(
        (result.outputs.get("out"), result.built),
        (Some(&built.store_path), 0)
    );
    assert_eq!(link.to_str(), Some(built.store_path.as_str()));
}

fn flake(lab: &Lab, name: &str, text: &str) -> Installable {
    let dir = lab.dir.join(name);
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::write(dir.join("flake.nix"), text).expect("written");
    Installable::Flake {
        reference: format!("path:{}", dir.display()),
    }
}

fn a_locked_flake_is_built_and_an_unlocked_one_is_refused() {
    let lab = Lab::new();
    let derivation = lab.derivation("flake", "echo x > $out", "");
    let system = format!("{}-linux", std::env::consts::ARCH);
    let plain = flake(
        &lab,
        "plain",
        &format!("{{ outputs = _: {{ packages.{system}.default = {derivation}; }}; }}"),
    );
    let built = succeeded(lab.build(plain));
    assert!(built.store_path.as_str().ends_with("-flake"));
    // What the reference meant.
    let [source] = &built.sources[..] else {
        panic!("{built:?}")
    };
    assert!(source.reference.ends_with("/plain"), "{source:?}");
    let hash = source.nar_sha256.as_deref().expect("a hash");
    assert!(
        hash.len() == 64 && source.locked.contains("narHash="),
        "{source:?}"
    );
    let fixed = Installable::Flake {
        reference: source.locked.clone(),
    };
    let again = succeeded(lab.build(fixed));
    assert_eq!((again.store_path, again.sources.len()), (built.store_path, 0));
    let unlocked = flake(
        &lab,
        "unlocked",
        &format!(
            "{{ inputs.plain.url = \"path:{}/plain\"; outputs = i: {{ packages.{system} = i.plain.packages.{system}; }}; }}",
            lab.dir.display()
        ),
    );
    let why = failed(lab.build(unlocked));
    assert!(why.contains("requires lock file changes"), "{why}");
    assert!(!lab.dir.join("unlocked/flake.lock").exists());
}

fn a_flake_that_does_not_evaluate_fails_with_the_reason_and_the_place() {
    let lab = Lab::new();
    let system = format!("{}-linux", std::env::consts::ARCH);
    let bad = flake(
        &lab,
        "bad",
        &format!("{{ outputs = _: {{ packages.{system}.default = 1 + \"x\"; }}; }}"),
    );
    let ended = lab.build(bad);
    assert!(ended.log.contains("cannot add"), "the log has it, too");
    let why = failed(ended);
    assert!(
        why.contains("cannot add a string to an integer") && why.contains("flake.nix:1:"),
        "{why}"
    );
}

fn an_unknown_attribute_fails_with_its_name() {
    let lab = Lab::new();
    let Installable::File { path, .. } = lab.file("set", "{ hello = 1; }") else {
        unreachable!()
    };
    let why = failed(lab.build(Installable::File {
        path,
        attribute: Some("helo".to_owned()),
    }));
    assert!(why.contains("attribute 'helo'"), "{why}");
}

fn a_builder_that_fails_is_named_with_the_end_of_its_log() {
    let lab = Lab::new();
    let why = failed(lab.build(lab.script("broken", "echo first; echo the disk is square >&2; exit 3")));
    assert!(
        why.contains("-broken.drv") && why.contains("exit code 3") && why.contains("the disk is square"),
        "{why}"
    );
    assert!(why.len() <= 4096);
}

fn a_failure_is_reported_with_its_cause_whatever_is_traced() {
    let lab = Lab::new();
    let ended = lab.build(lab.file(
        "noisy",
        "let noise = builtins.genList (n: builtins.trace \"error: noise ${toString n} of a library that says a lot\" n) 200;
         in builtins.deepSeq noise (throw \"the disk is square\")",
    ));
    assert!(ended.log.contains("noise 199"), "the log has it: {}", ended.log);
    let why = failed(ended);
    assert!(
        why.contains("the disk is square") && !why.contains("noise"),
        "{why}"
    );
}

fn a_template_gets_the_path_of_leaf_init() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.leaf_init = "/some/leaf-init".into());
    let dir = lab.settings.templates_dir.join("minimal");
    std::fs::create_dir_all(&dir).expect("a directory");
    let derivation = lab.derivation("template", "echo $init > $out", "init = leafInit;");
    std::fs::write(dir.join("default.nix"), format!("{{ leafInit }}: {derivation}")).expect("written");
    let result = succeeded(lab.build(Installable::Template {
        name: "minimal".to_owned(),
    }));
    let text = std::fs::read_to_string(result.store_path.as_str()).expect("readable");
    assert_eq!(text, "/some/leaf-init\n");
}

fn a_template_finds_nixpkgs_where_the_options_name_it() {
    let mut lab = Lab::new();
    let tree = lab.dir.join("nixpkgs");
    std::fs::create_dir_all(&tree).expect("a directory");
    std::fs::write(tree.join("word.nix"), "\"found\"").expect("written");
    let dir = lab.settings.templates_dir.join("system");
    std::fs::create_dir_all(&dir).expect("a directory");
    let derivation = lab.derivation(
        "template",
        "echo $word > $out",
        "word = import <nixpkgs/word.nix>;",
    );
    std::fs::write(dir.join("default.nix"), format!("{{ leafInit }}: {derivation}")).expect("written");
    let template = || Installable::Template {
        name: "system".to_owned(),
    };
    let why = failed(lab.build(template()));
    assert!(why.contains("nixpkgs"), "{why}");
    // As the NixOS module sets it.
    let search_path = format!("nixpkgs={}", tree.display());
    lab.set(|settings| {
        settings.options.insert("nix-path".to_owned(), search_path);
    });
    let result = succeeded(lab.build(template()));
    let text = std::fs::read_to_string(result.store_path.as_str()).expect("readable");
    assert_eq!(text, "found\n");
}

fn the_progress_and_the_log_of_a_build_are_read() {
    let lab = Lab::new();
    let script = "echo first words; echo last words; echo x > $out";
    let ended = lab.build(lab.script("steps", script));
    assert!(
        ended.progress.iter().any(|p| p.running == 1 && p.expected == 1),
        "a running build: {:?}",
        ended.progress
    );
    assert!(ended.log.contains("-steps> first words\n"), "{}", ended.log);
    assert!(ended.log.ends_with("-steps> last words\n"), "{}", ended.log);
    assert_eq!(succeeded(ended).built, 1);
}

fn a_missing_nix_is_reported() {
    let mut lab = Lab::new();
    assert!(lab.check().expect("a version").text.starts_with("nix ("));
    lab.set(|settings| settings.nix = "/nowhere/nix".into());
    let error = lab.check().expect_err("no nix").to_string();
    assert!(error.contains("is Nix installed?"), "{error}");
    let why = failed(lab.build(lab.script("x", "")));
    assert!(why.contains("/nowhere/nix"), "{why}");
    lab.set(|settings| settings.nix = "/bin/echo".into());
    assert!(matches!(lab.check(), Err(NixError::NotNix { .. })));
    // What crashes may well be nix.
    let directory = tempfile::tempdir().expect("a directory");
    let crashes = directory.path().join("nix");
    // A shell writes it, so that no fork in another thread holds it open for writing when it is executed.
    let write = "printf '#!/bin/sh\nkill -SEGV $$\n' >\"$0\" && chmod 755 \"$0\"";
    let mut shell = std::process::Command::new("sh");
    let written = shell.arg("-c").arg(write).arg(&crashes).status();
    assert!(written.expect("a shell").success());
    lab.set(|settings| settings.nix = crashes);
    let error = lab.check().expect_err("no version").to_string();
    assert!(
        error.contains("--version failed: it was ended by signal 11"),
        "{error}"
    );
}
