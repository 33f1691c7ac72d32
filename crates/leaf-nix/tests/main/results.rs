//! Builds that work, and those that Nix refuses.

use leaf_core::id::StorePath;
use leaf_core::job::{BuildResult, BuildTask, Installable, JobOutcome, JobPhase, JobResult};
use leaf_nix::NixError;
use serde_json::Value;

use crate::lab::{Lab, new_id};
use crate::tests;

tests![
    a_build_tells_all_of_its_result_and_again_when_nothing_is_to_be_built,
    a_derivation_is_built_with_all_of_its_outputs,
    a_store_path_is_realised_and_held,
    a_locked_flake_is_built_and_an_unlocked_one_is_refused,
    a_flake_that_does_not_evaluate_fails_with_the_reason_and_the_place,
    an_unknown_attribute_fails_with_its_name,
    a_builder_that_fails_is_named_with_the_end_of_its_log,
    a_template_gets_the_path_of_leaf_init,
    a_job_is_started_once,
    jobs_run_at_the_same_time,
    a_missing_nix_is_told,
    a_cached_build_takes_not_much_longer_than_nix_itself,
];

fn succeeded(outcome: JobOutcome) -> BuildResult {
    match outcome {
        JobOutcome::Succeeded(JobResult::Build(result)) => result,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: &JobOutcome) -> &str {
    assert_eq!(outcome.phase(), JobPhase::Failed, "{outcome:?}");
    outcome.error().expect("a reason")
}

async fn a_build_tells_all_of_its_result_and_again_when_nothing_is_to_be_built() {
    let lab = Lab::new();
    let dependency = lab.derivation("dep", "echo dependency > $out", "");
    let top = lab.derivation("top", "echo $dep $out > $out", &format!("dep = {dependency};"));
    let installable = lab.file("top", &top);
    let mut job = lab.start(installable.clone());
    let id = job.id();
    let result = succeeded(job.ended().await);
    let path = result.store_path.as_str();
    let info: Value =
        serde_json::from_str(&lab.nix_command(&["path-info", "--json", "-S", path])).expect("JSON");
    let info = &info[0];
    assert_eq!(Some(result.closure_size_bytes), info["closureSize"].as_u64());
    assert_eq!(
        result.derivation.as_ref().map(StorePath::as_str),
        info["deriver"].as_str()
    );
    assert_eq!(result.references.len(), 1, "itself is left out");
    assert!(result.references[0].as_str().ends_with("-dep"));
    assert_eq!((result.built, result.outputs.len()), (2, 1));
    assert!(result.build_time_ms > 0);
    let again = succeeded(lab.build(installable).await);
    assert_eq!(again.built, 0);
    assert_eq!(again.store_path, result.store_path);

    let roots = std::process::Command::new("nix-store")
        .args(["--query", "--roots", path])
        .output()
        .expect("runs");
    let roots = String::from_utf8_lossy(&roots.stdout).into_owned();
    assert!(
        roots.contains(lab.gc_root(id).to_str().expect("UTF-8")),
        "{roots}"
    );
    lab.nix.release(id).expect("released");
    lab.nix.forget(id).await.expect("forgotten");
    assert!(matches!(lab.nix.read_log(id, 0, 10), Err(NixError::NoJob(_))));
    let swept = lab.nix.sweep(&Default::default()).await.expect("swept");
    assert_eq!((swept.removed.len(), swept.running.len()), (1, 0));
}

async fn a_derivation_is_built_with_all_of_its_outputs() {
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
    let mut job = lab.start(Installable::StorePath { path: path.clone() });
    let id = job.id();
    let result = succeeded(job.ended().await);
    assert_eq!(result.outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    assert_eq!(result.store_path, result.outputs["out"]);
    assert_eq!(result.references, [result.outputs["dev"].clone()]);
    assert_eq!(result.derivation, Some(path));
    assert_eq!(std::fs::read_dir(lab.gc_root(id)).expect("roots").count(), 2);
}

async fn a_store_path_is_realised_and_held() {
    let lab = Lab::new();
    let built = succeeded(lab.build(lab.script("plain", "echo x > $out")).await);
    let mut job = lab.start(Installable::StorePath {
        path: built.store_path.clone(),
    });
    let id = job.id();
    let result = succeeded(job.ended().await);
    assert_eq!(
        (result.outputs.get("out"), result.built),
        (Some(&built.store_path), 0)
    );
    let link = std::fs::read_link(lab.gc_root(id).join("result")).expect("a GC root");
    assert_eq!(link.to_str(), Some(built.store_path.as_str()));
}

fn flake(lab: &Lab, name: &str, text: &str) -> Installable {
    let dir = lab.dir.join(name);
    std::fs::create_dir(&dir).expect("a folder");
    std::fs::write(dir.join("flake.nix"), text).expect("written");
    Installable::Flake {
        reference: format!("path:{}", dir.display()),
    }
}

async fn a_locked_flake_is_built_and_an_unlocked_one_is_refused() {
    let lab = Lab::new();
    let derivation = lab.derivation("flake", "echo x > $out", "");
    let system = format!("{}-linux", std::env::consts::ARCH);
    let plain = flake(
        &lab,
        "plain",
        &format!("{{ outputs = _: {{ packages.{system}.default = {derivation}; }}; }}"),
    );
    assert!(
        succeeded(lab.build(plain).await)
            .store_path
            .as_str()
            .ends_with("-flake")
    );
    let unlocked = flake(
        &lab,
        "unlocked",
        &format!(
            "{{ inputs.plain.url = \"path:{}/plain\"; outputs = i: {{ packages.{system} = i.plain.packages.{system}; }}; }}",
            lab.dir.display()
        ),
    );
    let outcome = lab.build(unlocked).await;
    assert!(
        failed(&outcome).contains("requires lock file changes"),
        "{outcome:?}"
    );
    assert!(!lab.dir.join("unlocked/flake.lock").exists());
}

async fn a_flake_that_does_not_evaluate_fails_with_the_reason_and_the_place() {
    let lab = Lab::new();
    let system = format!("{}-linux", std::env::consts::ARCH);
    let bad = flake(
        &lab,
        "bad",
        &format!("{{ outputs = _: {{ packages.{system}.default = 1 + \"x\"; }}; }}"),
    );
    let mut job = lab.start(bad);
    let id = job.id();
    let outcome = job.ended().await;
    let why = failed(&outcome);
    assert!(
        why.contains("cannot add a string to an integer") && why.contains("flake.nix:1:"),
        "{why}"
    );
    assert!(lab.whole_log(id).contains("cannot add"), "the log has it, too");
    assert!(!lab.gc_root(id).exists());
}

async fn an_unknown_attribute_fails_with_its_name() {
    let lab = Lab::new();
    let Installable::File { path, .. } = lab.file("set", "{ hello = 1; }") else {
        unreachable!()
    };
    let outcome = lab
        .build(Installable::File {
            path,
            attribute: Some("helo".to_owned()),
        })
        .await;
    assert!(failed(&outcome).contains("attribute 'helo'"), "{outcome:?}");
}

async fn a_builder_that_fails_is_named_with_the_end_of_its_log() {
    let lab = Lab::new();
    let outcome = lab
        .build(lab.script("broken", "echo first; echo the disk is square >&2; exit 3"))
        .await;
    let why = failed(&outcome);
    assert!(
        why.contains("-broken.drv") && why.contains("exit code 3") && why.contains("the disk is square"),
        "{why}"
    );
    assert!(why.len() <= 4096);
}

async fn a_template_gets_the_path_of_leaf_init() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.leaf_init = "/some/leaf-init".into());
    let dir = lab.settings.templates_dir.join("minimal");
    std::fs::create_dir_all(&dir).expect("a folder");
    let derivation = lab.derivation("template", "echo $init > $out", "init = leafInit;");
    std::fs::write(dir.join("default.nix"), format!("{{ leafInit }}: {derivation}")).expect("written");
    let result = succeeded(
        lab.build(Installable::Template {
            name: "minimal".to_owned(),
        })
        .await,
    );
    let text = std::fs::read_to_string(result.store_path.as_str()).expect("readable");
    assert_eq!(text, "/some/leaf-init\n");
}

async fn a_job_is_started_once() {
    let lab = Lab::new();
    let task = BuildTask {
        installable: lab.script("once", "echo x > $out"),
        timeout_seconds: 60,
        container: None,
    };
    let id = new_id();
    let mut job = lab.nix.start(id, &task).expect("started");
    assert!(matches!(lab.nix.start(id, &task), Err(NixError::Started(_))));
    succeeded(job.ended().await);
    assert!(matches!(lab.nix.start(id, &task), Err(NixError::Started(_))));
    let bad = BuildTask {
        installable: Installable::Flake {
            reference: "--help".to_owned(),
        },
        ..task
    };
    assert!(matches!(
        lab.nix.start(new_id(), &bad),
        Err(NixError::Installable { .. })
    ));
}

async fn jobs_run_at_the_same_time() {
    let lab = Lab::new();
    let mut jobs: Vec<_> = (0..4)
        .map(|n| lab.start(lab.script(&format!("par{n}"), &format!("echo {n} > $out"))))
        .collect();
    for (n, job) in jobs.iter_mut().enumerate() {
        let path = succeeded(job.ended().await).store_path;
        assert_eq!(
            std::fs::read_to_string(path.as_str()).expect("readable").trim(),
            n.to_string()
        );
    }
}

async fn a_missing_nix_is_told() {
    let mut lab = Lab::new();
    assert!(lab.nix.check().expect("a version").text.starts_with("nix ("));
    lab.set(|settings| settings.nix = "/nowhere/nix".into());
    let error = lab.nix.check().expect_err("no nix").to_string();
    assert!(error.contains("is Nix installed?"), "{error}");
    let outcome = lab.build(lab.script("x", "")).await;
    assert!(failed(&outcome).contains("/nowhere/nix"), "{outcome:?}");
    lab.set(|settings| settings.nix = "/bin/echo".into());
    assert!(matches!(lab.nix.check(), Err(NixError::NotNix { .. })));
}

/// Other tests run at the same time, so the bound is loose; `cargo xtask bench` measures it.
async fn a_cached_build_takes_not_much_longer_than_nix_itself() {
    let lab = Lab::new();
    let installable = lab.script("cached", "echo x > $out");
    let Installable::File { path: file, .. } = &installable else {
        unreachable!()
    };
    let path = succeeded(lab.build(installable.clone()).await).store_path;
    let (mut bare, mut job) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let begin = std::time::Instant::now();
        lab.nix_command(&["build", "--json", "--no-link", "-f", file]);
        lab.nix_command(&["path-info", "-S", path.as_str()]);
        bare.push(begin.elapsed());
        let begin = std::time::Instant::now();
        succeeded(lab.build(installable.clone()).await);
        job.push(begin.elapsed());
    }
    bare.sort();
    job.sort();
    println!(
        "cached build: job {:?}, nix build and path-info {:?}",
        job[4], bare[4]
    );
    assert!(job[4] < bare[4] * 3, "job {:?}, nix {:?}", job[4], bare[4]);
}
