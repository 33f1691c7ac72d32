//! Systems of containers that can't be built, run or become ready: the container fails with the reason, and is mended.

use anyhow::ensure;
use leaf_core::container::ContainerPhase as Phase;
use leaf_core::id::StorePath;
use leaf_core::problem::ProblemCode;
use leaf_core::spec::ContainerSource;
use leaf_host::contract::HostPaths;
use libtest_mimic::Trial;

use super::systems::{NEVER_READY, WAITS, store_path, system};
use super::{is_problem, leaf, name, toplevel, traces};
use crate::support::{Host, Need, Setup};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "an init that exits at once makes the start fail with its code and the end of its console",
            needs,
            exits_at_once,
        ),
        host.trial(
            "an invalid toplevel makes a failed container, which can be destroyed and created again",
            needs,
            bad_toplevel,
        ),
        host.trial(
            "a flake that does not evaluate makes a failed container, with the reason",
            needs,
            bad_flake,
        ),
        host.trial(
            "a container that is not ready in time fails, and can be started again",
            needs,
            not_ready_in_time,
        ),
    ]
}

async fn exits_at_once() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    // It works once its root has a file, which the test puts there.
    let script = format!("echo one; $b test -e /root/works || {{ echo 'the reason'; exit 7; }}\n{WAITS}");
    leaf.create(&name, toplevel(&system(&script).await?), false)
        .await?;
    let answer = leaf.start_container(&name).await;
    is_problem(
        answer,
        ProblemCode::Failed,
        "exit code 7; the end of its console:\none\nthe reason",
    )?;
    let failed = leaf.container(&name).await?;
    ensure!(failed.phase == Phase::Failed, "{failed:?}");
    let data = leaf.told_last(&name, "cim.leaf.container.failed.v1").await?;
    ensure!(data["step"] == "start", "{data}");
    ensure!(
        data["reason"].as_str().is_some_and(|r| r.contains("exit code 7")),
        "{data}"
    );
    // As often as somebody wants.
    let answer = leaf.start_container(&name).await;
    is_problem(answer, ProblemCode::Failed, "exit code 7")?;
    let paths = HostPaths::new(&leaf.name);
    std::fs::write(paths.roots.join(name.as_str()).join("root/works"), "")?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    leaf.destroy(&name).await?;

    let name = super::name();
    let answer = leaf.create(&name, toplevel(&system("exit 3").await?), true).await;
    is_problem(
        answer,
        ProblemCode::Failed,
        "it ended before it was ready, with exit code 3",
    )?;
    leaf.destroy_without_a_trace(&name).await
}

async fn bad_toplevel() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent")?;
    let no_init = store_path("$b mkdir $out").await?;
    let a_file = store_path("echo text > $out").await?;
    let cases = [
        (absent, "does not exist"),
        (no_init, "it has no init"),
        (a_file, "it is not a directory"),
    ];
    for (path, why) in &cases {
        let answer = leaf.create(&name, toplevel(path), false).await;
        is_problem(answer, ProblemCode::Failed, why)?;
        let failed = leaf.container(&name).await?;
        ensure!(failed.phase == Phase::Failed, "{failed:?}");
        // The name is taken until somebody frees it.
        let answer = leaf.create(&name, toplevel(path), false).await;
        is_problem(answer, ProblemCode::AlreadyExists, name.as_str())?;
        is_problem(leaf.start_container(&name).await, ProblemCode::Failed, why)?;
        leaf.destroy_without_a_trace(&name).await?;
    }
    for (body, why) in [
        (r#"{"type":"toplevel","path":"/etc"}"#, "store path"),
        (r#"{"type":"toplevel","path":"/nix/store/../etc"}"#, "store path"),
        (r#"{"type":"toplevel"}"#, "path"),
        (r#"{"type":"magic"}"#, "magic"),
    ] {
        let body = format!(r#"{{"name":"{name}","source":{body}}}"#);
        let answer = leaf.call_raw("container", "create", body.as_bytes()).await;
        is_problem(answer, ProblemCode::Malformed, why)?;
    }
    let answer = leaf
        .create(
            &name,
            ContainerSource::Template {
                name: "no-such".to_owned(),
            },
            false,
        )
        .await?;
    ensure!(answer.phase == Phase::Building, "{answer:?}");
    let failed = leaf.in_phase(&name, Phase::Failed).await?;
    ensure!(
        failed.error.as_deref().is_some_and(|e| e.contains("no-such")),
        "{failed:?}"
    );
    leaf.destroy(&name).await?;
    leaf.create(&name, toplevel(&system(WAITS).await?), true).await?;
    ensure!(leaf.container(&name).await?.phase == Phase::Running);
    leaf.destroy(&name).await
}

async fn bad_flake() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let directory = leaf.scratch().join("flake");
    std::fs::create_dir(&directory)?;
    std::fs::write(
        directory.join("flake.nix"),
        r#"{ outputs = _: { broken = throw "this is the reason"; }; }"#,
    )?;
    let flake = |fragment: &str| ContainerSource::Flake {
        reference: format!("path:{}#{fragment}", directory.display()),
    };
    for (fragment, why) in [("broken", "this is the reason"), ("absent", "absent")] {
        let made = leaf.create(&name, flake(fragment), true).await?;
        ensure!(made.phase == Phase::Building, "{made:?}");
        let failed = leaf.in_phase(&name, Phase::Failed).await?;
        ensure!(
            failed.error.as_deref().is_some_and(|e| e.contains(why)),
            "{failed:?}"
        );
        let kinds = leaf.kinds_told(&name.token()).await?;
        ensure!(kinds.last().is_some_and(|k| k == "container.failed"), "{kinds:?}");
        let answer = leaf.start_container(&name).await;
        is_problem(answer, ProblemCode::Conflict, "the build of the system")?;
        leaf.destroy(&name).await?;
    }
    // The flake is mended, and the name is free.
    std::fs::write(
        directory.join("flake.nix"),
        format!(
            r#"{{ outputs = _: {{ broken = builtins.storePath "{}"; }}; }}"#,
            system(WAITS).await?
        ),
    )?;
    let whole = super::systems::derivation(&leaf, "flake", "echo made > $out");
    std::fs::write(
        directory.join("flake.nix"),
        format!("{{ outputs = _: {{ broken = {whole}; }}; }}"),
    )?;
    leaf.create(&name, flake("broken"), false).await?;
    let failed = leaf.in_phase(&name, Phase::Failed).await?;
    ensure!(
        failed
            .error
            .as_deref()
            .is_some_and(|e| e.contains("it is not a directory")),
        "built, and found to be no system: {failed:?}"
    );
    leaf.destroy(&name).await
}

async fn not_ready_in_time() -> anyhow::Result<()> {
    let mut leaf = Setup::new()
        .containers()
        .set("containers.ready_timeout_seconds", 2)
        .start()
        .await?;
    let name = name();
    let script = format!("if $b test -e /root/works; then {WAITS}; fi\necho patience\n{NEVER_READY}");
    let answer = leaf.create(&name, toplevel(&system(&script).await?), true).await;
    is_problem(answer, ProblemCode::Failed, "not ready within 2 s")?;
    let failed = leaf.container(&name).await?;
    ensure!(
        failed.error.as_deref().is_some_and(|e| e.contains("patience")),
        "{failed:?}"
    );
    ensure!(traces::processes_with(&format!("--machine={name}")).is_empty());
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/works"), "")?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running, "{runs:?}");
    leaf.destroy(&name).await
}
