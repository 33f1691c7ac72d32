//! The policy of a leaf, as Nix enforces it.

use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{EvalTask, Failure, Installable, NixPolicy};
use leaf_nix::NixError;

use crate::lab::Lab;
use crate::tests;

tests![
    a_flake_reads_the_host_only_where_an_impure_evaluation_is_asked_for_and_host_paths_have_it,
    a_build_imports_from_a_derivation_only_where_the_policy_lets_it,
    an_evaluation_fetches_only_what_begins_with_an_allowed_uri,
    a_file_reads_only_what_is_below_the_host_paths_and_no_link_leads_out,
];

fn lab(policy: NixPolicy) -> Lab {
    let mut lab = Lab::new();
    lab.set(|settings| settings.policy = policy);
    lab
}

fn eval(
    lab: &Lab,
    installable: Installable,
    impure: bool,
) -> Result<serde_json::Value, (FailureKind, String)> {
    let ended = lab.eval(&EvalTask {
        installable,
        apply: None,
        impure,
        timeout_seconds: 60,
    });
    ended.map(|result| result.value).map_err(
        |Failure {
             explanation, error, ..
         }| (explanation.expect("explained").kind, error),
    )
}

fn refused(ended: Result<serde_json::Value, (FailureKind, String)>, setting: &str) {
    let (kind, why) = ended.expect_err("it is refused");
    assert_eq!(kind, FailureKind::Policy, "{why}");
    assert!(why.contains(setting), "{why}");
}

fn attribute(file: &Installable, name: &str) -> Installable {
    let Installable::File { path, .. } = file else {
        panic!("{file} is no file")
    };
    Installable::File {
        path: path.clone(),
        attribute: Some(name.to_owned()),
    }
}

fn a_flake_reads_the_host_only_where_an_impure_evaluation_is_asked_for_and_host_paths_have_it() {
    let lab = lab(NixPolicy::default());
    let read = lab.dir.join("on-the-host");
    std::fs::write(&read, "seven").expect("written");
    let flake = lab.dir.join("flake");
    std::fs::create_dir(&flake).expect("a directory");
    let text = format!(
        "{{ outputs = _: {{ host = builtins.readFile {}; }}; }}",
        read.display()
    );
    std::fs::write(flake.join("flake.nix"), text).expect("written");
    let installable = Installable::Flake {
        reference: format!("path:{}#host", flake.display()),
    };
    refused(eval(&lab, installable.clone(), false), "nix.policy.impure");
    assert_eq!(eval(&lab, installable.clone(), true), Ok("seven".into()));
    let mut lab = lab;
    lab.set(|settings| settings.policy.host_paths = vec![flake.display().to_string()]);
    refused(eval(&lab, installable, true), "nix.policy.host_paths");
}

fn a_build_imports_from_a_derivation_only_where_the_policy_lets_it() {
    let mut lab = lab(NixPolicy::default());
    let imported = lab.derivation("imported", "echo '\"echo > $out\"' > $out", "");
    let text = format!(
        "let script = import ({imported}); in {}",
        lab.derivation("importing", "${script}", "")
    );
    let file = lab.file("importing", &text);
    assert!(lab.build(file).result.is_ok());
    lab.set(|settings| settings.policy.import_from_derivation = false);
    let other = lab.file("importing", &text.replace("-imported", "-imported-2"));
    let why = lab.build(other).result.expect_err("it is refused");
    assert!(why.contains("allow-import-from-derivation"), "{why}");
}

fn an_evaluation_fetches_only_what_begins_with_an_allowed_uri() {
    let mut lab = lab(NixPolicy::default());
    lab.set(|settings| {
        settings
            .options
            .insert("download-attempts".to_owned(), "1".to_owned());
    });
    // Nobody listens there: what is let through fails for that reason.
    let url = "http://127.0.0.1:9/x";
    let hash = "0000000000000000000000000000000000000000000000000000";
    let own = lab.dir.join("own");
    std::fs::create_dir_all(own.join("flake")).expect("a directory");
    let fetch = format!("builtins.readFile (builtins.fetchurl {{ url = \"{url}\"; sha256 = \"{hash}\"; }})");
    let file = lab.file(
        "own/fetches",
        &format!("{{ of = {fetch}; env = builtins.getEnv \"PATH\"; }}"),
    );
    std::fs::write(
        own.join("flake/flake.nix"),
        format!("{{ outputs = _: {{ of = {fetch}; }}; }}"),
    )
    .expect("written");
    let flake = Installable::Flake {
        reference: format!("path:{}#of", own.join("flake").display()),
    };
    let both = [attribute(&file, "of"), flake];
    let is_let_through = |lab: &Lab| {
        for installable in &both {
            let (kind, why) = eval(lab, installable.clone(), false).expect_err("nobody listens");
            assert_eq!(kind, FailureKind::FetchFailed, "{installable}: {why}");
        }
    };
    is_let_through(&lab);
    lab.set(|settings| {
        settings.policy.allowed_uris = Some(vec!["https://elsewhere.example".to_owned()]);
        settings.policy.host_paths = vec![own.display().to_string()];
    });
    for installable in &both {
        refused(eval(&lab, installable.clone(), false), "nix.policy.allowed_uris");
    }
    assert_eq!(eval(&lab, attribute(&file, "env"), false), Ok("".into()));
    lab.set(|settings| settings.policy.allowed_uris = Some(vec!["http://127.0.0.1:9".to_owned()]));
    is_let_through(&lab);
}

fn a_file_reads_only_what_is_below_the_host_paths_and_no_link_leads_out() {
    let mut lab = lab(NixPolicy::default());
    let inside = lab.dir.join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    lab.set(|settings| settings.policy.host_paths = vec![inside.display().to_string()]);
    let file = lab.file(
        "inside/reads",
        "{ here = import ./one.nix; host = builtins.readFile /etc/hostname; }",
    );
    std::fs::write(inside.join("one.nix"), "1").expect("written");
    assert_eq!(eval(&lab, attribute(&file, "here"), false), Ok(1.into()));
    refused(
        eval(&lab, attribute(&file, "host"), false),
        "nix.policy.host_paths",
    );
    let outside = lab.file("outside", "2");
    let Installable::File { path: target, .. } = &outside else {
        panic!("{outside}")
    };
    let link = inside.join("link.nix");
    std::os::unix::fs::symlink(target, &link).expect("a link");
    let of_link = Installable::File {
        path: link.display().to_string(),
        attribute: None,
    };
    let task = EvalTask {
        installable: of_link,
        apply: None,
        impure: false,
        timeout_seconds: 60,
    };
    let error = lab.nix.eval(&task).expect_err("it leads out");
    assert!(
        matches!(&error, NixError::Policy { setting, .. } if setting == "nix.policy.host_paths"),
        "{error}"
    );
    // A template of the leaf's own works all the same.
    let template = lab.dir.join("templates/own");
    std::fs::create_dir_all(&template).expect("a directory");
    let own = lab.derivation("own", "echo ${leafInit} > $out", "");
    std::fs::write(template.join("default.nix"), format!("{{ leafInit }}: {own}")).expect("written");
    std::fs::write(lab.dir.join("leaf-init"), "").expect("written");
    let name = "own".to_owned();
    lab.build(Installable::Template { name })
        .result
        .expect("it is built");
}
