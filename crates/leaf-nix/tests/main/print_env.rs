//! Build environments: what they have, what holds them, and what has none.

use leaf_core::job::explanation::FailureKind;
use leaf_core::job::print_env::Variable;
use leaf_core::job::{Failure, Installable, JobResult, PrintEnvResult, PrintEnvTask};
use leaf_nix::print_env::PrintEnv;

use crate::lab::{Lab, Work, drive};
use crate::tests;

tests![
    an_environment_has_what_the_setup_of_its_stdenv_made_and_a_gc_root_holds_it,
    a_derivation_in_the_store_has_an_environment_too,
    what_has_no_environment_fails_with_the_kind,
];

/// A lab whose sandbox has bash.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let libraries = std::process::Command::new("ldd")
        .arg("/bin/bash")
        .output()
        .expect("ldd runs");
    let libraries = String::from_utf8(libraries.stdout).expect("UTF-8");
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    // A link as such leads nowhere in the sandbox of newer versions.
    let followed = |path: &str| {
        let target = std::fs::canonicalize(path).expect("it exists");
        format!("{path}={}", target.display())
    };
    let paths: Vec<String> = std::iter::once("/bin/sh=/bin/busybox".to_owned())
        .chain(std::iter::once("/bin/bash").chain(libraries).map(followed))
        .collect();
    lab.set(|settings| {
        settings
            .options
            .insert("sandbox-paths".to_owned(), paths.join(" "));
    });
    lab
}

/// A flake with an stdenv of its own, in which this script is the setup.
fn flake(lab: &Lab, setup: &str) -> String {
    let dir = lab.dir.join("flake");
    std::fs::create_dir_all(dir.join("stdenv")).expect("a directory");
    std::fs::write(dir.join("stdenv/setup"), setup).expect("written");
    let tool = lab.derivation("tool", "echo a tool > $out", "");
    let plain = lab.derivation("plain", "echo > $out", "");
    let full = format!("{}-env", lab.unique);
    std::fs::write(
        dir.join("flake.nix"),
        format!(
            r#"{{ outputs = _: rec {{
              plain = {plain};
              env = derivation {{
                name = "{full}"; system = "{}-linux"; builder = "/bin/bash"; args = [ "-c" "exit 1" ];
                outputs = [ "out" "dev" ]; stdenv = ./stdenv; tool = {tool}; shellHook = "echo \"hi\"\n";
              }};
            }}; }}"#,
            std::env::consts::ARCH,
        ),
    )
    .expect("written");
    format!("path:{}", dir.display())
}

fn print_env(lab: &Lab, installable: Installable) -> (Result<PrintEnvResult, Failure>, std::path::PathBuf) {
    let task = PrintEnvTask {
        installable,
        impure: false,
        timeout_seconds: 100,
    };
    let order = lab.nix.print_env(&task).expect("a good task");
    let gc_roots = lab.gc_roots();
    let ended = drive(Work {
        state: PrintEnv::new(order, &gc_roots),
        next: PrintEnv::next,
        read_line: PrintEnv::read_line,
        error: PrintEnv::error,
        after_failure: |_, _| None,
        failure: PrintEnv::failure,
    });
    let ended = ended.map(|result| match result {
        JobResult::PrintEnv(result) => result,
        other => panic!("{other:?}"),
    });
    (ended, gc_roots)
}

fn of(reference: String) -> Installable {
    Installable::Flake { reference }
}

const SETUP: &str = "greet() { echo \"hello $name\"; }\nexport FROM_SETUP='a \"quoted\" $value'\nlist=(one 'two words')\n\
                     declare -A table=([key]=value)\nPATH=/tools/bin\n";

fn an_environment_has_what_the_setup_of_its_stdenv_made_and_a_gc_root_holds_it() {
    let lab = lab();
    let reference = flake(&lab, SETUP);
    let (result, gc_roots) = print_env(&lab, of(format!("{reference}#env")));
    let result = result.expect("an environment");
    let variables = &result.environment.variables;
    let exported = |text: &str| Some(Variable::Exported(text.to_owned()));
    assert_eq!(
        variables.get("FROM_SETUP").cloned(),
        exported("a \"quoted\" $value")
    );
    assert_eq!(variables.get("PATH").cloned(), exported("/tools/bin"));
    assert_eq!(variables.get("shellHook").cloned(), exported("echo \"hi\"\n"));
    let list = vec!["one".to_owned(), "two words".to_owned()];
    assert_eq!(variables.get("list"), Some(&Variable::Array(list)));
    assert!(
        matches!(variables.get("table"), Some(Variable::Associative(table)) if table["key"] == "value"),
        "{variables:?}"
    );
    let greet = result.environment.bash_functions.get("greet");
    assert!(
        greet.is_some_and(|body| body.contains("hello $name")),
        "{greet:?}"
    );
    let locked = result.locked.expect("locked");
    assert!(
        locked.starts_with(&reference) && locked.contains("narHash="),
        "{locked}"
    );
    // The tool that it needs, and the environment.
    assert!(result.built == 2 && result.nix.starts_with("nix ("));
    let Some(Variable::Exported(tool)) = variables.get("tool") else {
        panic!("{variables:?}")
    };
    assert!(std::path::Path::new(tool).exists(), "{tool}");
    let root = std::fs::canonicalize(gc_roots.join("environment")).expect("a link");
    let held = lab.nix_command(&["path-info", "--recursive", root.to_str().expect("UTF-8")]);
    assert!(held.lines().any(|line| line == tool), "{held}");

    // Once more, from the store.
    let (again, _) = print_env(&lab, of(format!("{reference}#env")));
    let again = again.expect("an environment");
    assert_eq!((again.built, again.environment), (0, result.environment));
}

fn a_derivation_in_the_store_has_an_environment_too() {
    let lab = lab();
    let reference = flake(&lab, SETUP);
    let path = lab.nix_command(&["eval", "--raw", &format!("{reference}#env.drvPath")]);
    let path = leaf_core::id::StorePath::new(path.trim()).expect("a store path");
    let (result, _) = print_env(&lab, Installable::StorePath { path });
    let result = result.expect("an environment");
    assert!(result.locked.is_none() && result.environment.bash_functions.contains_key("greet"));
}

fn what_has_no_environment_fails_with_the_kind() {
    let lab = lab();
    let reference = flake(&lab, "echo this goes wrong; exit 3\n");
    for (attribute, expected, says) in [
        ("nothing", FailureKind::MissingAttribute, "nothing"),
        ("plain", FailureKind::EvaluationError, "bash"),
        ("env", FailureKind::BuilderFailed, "failed with exit code 3"),
    ] {
        let (ended, _) = print_env(&lab, of(format!("{reference}#{attribute}")));
        let failure = ended.expect_err(attribute);
        let kind = failure.explanation.expect("explained").kind;
        assert_eq!(kind, expected, "{attribute}: {}", failure.error);
        assert!(failure.error.contains(says), "{attribute}: {}", failure.error);
    }
    let much = "for n in 1 2 3; do declare \"more$n=$(printf '%100000s' x)\"; done\n";
    let reference = flake(&lab, much);
    let (ended, _) = print_env(&lab, of(format!("{reference}#env")));
    let failure = ended.expect_err("it is too large");
    let kind = failure.explanation.expect("explained").kind;
    assert_eq!(kind, FailureKind::OutputTooLarge, "{}", failure.error);
    assert!(failure.error.contains("262144 bytes"), "{}", failure.error);
}
