//! Jobs of several installables, and chosen outputs.

use leaf_core::id::StorePath;
use leaf_core::job::{BuildTask, BuiltDerivation, Installable, Origin};

use crate::lab::Lab;
use crate::tests;

tests![
    several_installables_are_one_job_with_origin_and_sizes_of_each,
    chosen_outputs_are_built_whatever_syntax_this_nix_has,
    a_build_that_keeps_going_lists_what_was_built_although_it_failed,
];

/// A file with these attributes.
fn attributes(lab: &Lab, name: &str, attributes: &[(&str, String)]) -> String {
    let text: String = attributes
        .iter()
        .map(|(name, value)| format!("{name} = {value};\n"))
        .collect();
    let Installable::File { path, .. } = lab.file(name, &format!("rec {{ {text} }}")) else {
        unreachable!("it is a file")
    };
    path
}

fn of_file(path: &str, attribute: &str) -> Installable {
    Installable::File {
        path: path.to_owned(),
        attribute: Some(attribute.to_owned()),
    }
}

/// The name of a path without the hash and what is the lab's own.
fn short<'a>(lab: &Lab, path: &'a StorePath) -> &'a str {
    let name = path.as_str().split_once(&lab.unique).expect("of the lab").1;
    name.trim_start_matches('-')
}

fn several_installables_are_one_job_with_origin_and_sizes_of_each() {
    let lab = Lab::new();
    let file = attributes(
        &lab,
        "set",
        &[
            ("one", lab.derivation("one", "echo 1 > $out", "")),
            ("two", lab.derivation("two", "echo 2 $one > $out", "inherit one;")),
            ("three", lab.derivation("three", "echo 3 > $out", "")),
        ],
    );
    let before = lab.build(of_file(&file, "one")).result.expect("built");
    assert_eq!(before.origin, Some(Origin::Built));
    let task = BuildTask::new(
        vec![
            of_file(&file, "one"),
            of_file(&file, "two"),
            Installable::StorePath {
                path: before.store_path,
            },
            of_file(&file, "three"),
        ],
        100,
    );
    let ended = lab.run(&task);
    let result = ended.result.expect("built");
    assert_eq!(result.built, 2);
    let first = BuiltDerivation {
        derivation: result.derivation.clone(),
        outputs: result.outputs.clone(),
        origin: result.origin,
        nar_size_bytes: result.nar_size_bytes,
        closure_size_bytes: Some(result.closure_size_bytes),
        nar_sha256: result.nar_sha256.clone(),
    };
    let mut all: Vec<(&str, Option<Origin>)> = Vec::new();
    for built in std::iter::once(&first).chain(&result.others) {
        let path = built.main_output().expect("an output");
        let (nar, closure) = (built.nar_size_bytes, built.closure_size_bytes);
        let (nar, closure) = (nar.expect("its size"), closure.expect("its size"));
        assert!(nar > 0 && closure >= nar, "{built:?}");
        assert_eq!(
            built.nar_sha256.keys().collect::<Vec<_>>(),
            built.outputs.keys().collect::<Vec<_>>()
        );
        assert_eq!(closure > nar, short(&lab, path) == "two", "{built:?}");
        all.push((short(&lab, path), built.origin));
        assert!(
            std::fs::read_dir(&ended.gc_roots)
                .expect("roots")
                .flatten()
                .any(|root| {
                    std::fs::read_link(root.path()).is_ok_and(|target| target.as_os_str() == path.as_str())
                })
        );
    }
    all.sort_by_key(|(name, _)| *name);
    all.dedup();
    assert_eq!(
        all,
        [
            ("one", Some(Origin::Present)),
            ("three", Some(Origin::Built)),
            ("two", Some(Origin::Built))
        ]
    );
}

fn chosen_outputs_are_built_whatever_syntax_this_nix_has() {
    let lab = Lab::new();
    let version = lab.check().expect("a version");
    let many = |name: &str| {
        let script = "echo o > $out; echo d > $dev; echo c > $doc";
        lab.derivation(name, script, "outputs = [ \"out\" \"dev\" \"doc\" ];")
    };
    let file = attributes(&lab, "set", &[("many", many("many")), ("other", many("other"))]);
    let names = |installable: Installable| {
        let result = lab.build(installable).result?;
        let outputs: Vec<String> = result.outputs.into_keys().collect();
        assert!(result.others.is_empty(), "{:?}", result.others);
        Ok::<_, String>((outputs.join(","), result.derivation.expect("a derivation")))
    };
    let (outputs, derivation) = names(of_file(&file, "many^dev,doc")).expect("built");
    assert_eq!(outputs, "dev,doc");
    let of = |outputs: &str| Installable::Derivation {
        path: derivation.clone(),
        outputs: outputs.to_owned(),
    };
    assert_eq!(names(of("dev")).expect("built").0, "dev");
    assert_eq!(names(of("*")).expect("built").0, "dev,doc,out");
    let why = names(of("nothing")).expect_err("there is none");
    assert!(why.contains("nothing"), "{why}");
    let all = names(of_file(&file, "other^*"));
    if (version.major, version.minor) < (2, 9) {
        let why = all.expect_err("no syntax");
        assert!(why.contains("2.8") && why.contains("^out,dev"), "{why}");
    } else {
        assert_eq!(all.expect("built").0, "dev,doc,out");
    }
    let dir = lab.dir.join("flake");
    std::fs::create_dir(&dir).expect("a directory");
    let system = format!("{}-linux", std::env::consts::ARCH);
    let text = format!(
        "{{ outputs = _: {{ packages.{system} = {{ many = {}; default = {}; }}; }}; }}",
        many("in-flake"),
        many("default")
    );
    std::fs::write(dir.join("flake.nix"), text).expect("written");
    for (fragment, expected) in [("#many^doc", "doc"), ("^dev", "dev")] {
        let reference = format!("path:{}{fragment}", dir.display());
        assert_eq!(
            names(Installable::Flake { reference }).expect("built").0,
            expected
        );
    }
}

fn a_build_that_keeps_going_lists_what_was_built_although_it_failed() {
    let lab = Lab::new();
    let file = attributes(
        &lab,
        "set",
        &[
            (
                "bad",
                lab.derivation("bad", "echo the disk is square; exit 3", ""),
            ),
            ("top", lab.derivation("top", "echo $bad > $out", "inherit bad;")),
            ("good", lab.derivation("good", "echo 1 > $out", "")),
        ],
    );
    let other = lab.script("other", "echo 2 > $out");
    let task = |keep_going| BuildTask {
        keep_going,
        ..BuildTask::new(
            vec![of_file(&file, "top"), of_file(&file, "good"), other.clone()],
            100,
        )
    };
    let ended = lab.run(&task(true));
    let why = ended.result.expect_err("one fails");
    assert!(
        why.contains("-bad.drv") && why.contains("the disk is square"),
        "{why}"
    );
    let built: Vec<_> = ended
        .partial
        .iter()
        .map(|built| (short(&lab, built.main_output().expect("an output")), built.origin))
        .collect();
    assert_eq!(
        built,
        [("other", Some(Origin::Built)), ("good", Some(Origin::Built))],
        "{}",
        ended.log
    );
    assert!(
        ended
            .partial
            .iter()
            .all(|built| built.closure_size_bytes.is_some())
    );
    // Newer versions say it of each run, and it is not said again of the plans.
    assert!(ended.log.matches("will be built").count() <= 2, "{}", ended.log);
    let ended = lab.run(&task(false));
    ended.result.expect_err("one fails");
    assert!(ended.partial.is_empty());
}
