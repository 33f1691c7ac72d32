//! The same command id again, and commands that depend on what their sender saw.

use anyhow::ensure;
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::wire::{Wire, header, problem, value};
use crate::support::{Host, Need, Setup, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial("a repeated command id gets the first reply and has one effect, also after a restart, and another body is refused", &[Need::Nix], twice),
        host.trial("a repeated command id is answered together with the first command in progress", &[Need::Nix], meanwhile),
        host.trial("a command that depends on a generation is refused when another was seen, and every container reply is valid by its schema", &[Need::Containers], generations),
    ]
}

async fn twice() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let build = json!({ "installable": { "type": "file", "path": "/nowhere.nix" } });
    let other = json!({ "installable": { "type": "file", "path": "/elsewhere.nix" } });
    let first = wire.ask_as("c1", "nix.build", &build).await?;
    value(&first, "reply.nix.build")?;
    ensure!(header(&first, "ce-causationid").as_deref() == Some("c1"));
    // Blanks and the order of fields are not another command.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-id", "c1");
    let spaced = format!(" {} \n", serde_json::to_string_pretty(&build)?);
    let again = wire
        .send(&wire.subject("nix.build"), headers, spaced.into_bytes())
        .await?;
    ensure!(again.payload == first.payload, "{again:?} is not {first:?}");
    for (verb, body) in [
        ("nix.build", &other),
        (
            "job.cancel",
            &json!({ "id": "01890a5d-ac96-774b-bcce-b302099a8057" }),
        ),
    ] {
        let reused = problem(&wire.ask_as("c1", verb, body).await?)?;
        ensure!(reused.code == ProblemCode::CommandIdReused, "{reused:?}");
        ensure!(
            reused.instance.as_deref() == Some("urn:cim-leaf:command:c1"),
            "{reused:?}"
        );
    }
    // A query changes nothing, so its id is not kept.
    value(
        &wire.ask_as("c1", "leaf.show", &json!({})).await?,
        "reply.leaf.show",
    )?;
    ensure!(jobs(&wire).await?.len() == 1);
    wire.leaf.stop().await?;
    wire.leaf.start_again().await?;
    let again = until("the leaf answers after its restart", async || {
        Ok(wire.ask_as("c1", "nix.build", &build).await.ok())
    })
    .await?;
    ensure!(again.payload == first.payload, "{again:?} is not {first:?}");
    let reused = problem(&wire.ask_as("c1", "nix.build", &other).await?)?;
    ensure!(reused.code == ProblemCode::CommandIdReused, "{reused:?}");
    ensure!(jobs(&wire).await?.len() == 1);
    // Another caller's ids are others.
    let build = leaf_core::command::Build::of([leaf_core::job::Installable::File {
        path: "/nowhere.nix".into(),
        attribute: None,
    }]);
    wire.leaf.call_as(&"c1".parse()?, &build).await?;
    ensure!(jobs(&wire).await?.len() == 2);
    Ok(())
}

async fn meanwhile() -> anyhow::Result<()> {
    let wire = Wire::start().await?;
    let job = slow_job(&wire).await?;
    until("the build runs", async || {
        let shown = value(
            &wire.ask("job.show", &json!({ "id": job })).await?,
            "reply.job.show",
        )?;
        let log = value(
            &wire.ask("job.log", &json!({ "id": job })).await?,
            "reply.job.log",
        );
        Ok((shown["job"]["phase"] == "running"
            && log.is_ok_and(|log| log["text"].as_str().is_some_and(|text| text.contains("it began"))))
        .then_some(()))
    })
    .await?;
    let cancel = json!({ "id": job });
    let all = futures::future::join_all((0..8).map(|_| wire.ask_as("stop-it", "job.cancel", &cancel))).await;
    let mut answers = Vec::new();
    for answer in all {
        let answer = answer?;
        let ended = value(&answer, "reply.job.cancel")?;
        ensure!(ended["phase"] == "cancelled", "{ended}");
        answers.push(answer.payload);
    }
    ensure!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    let reused = problem(
        &wire
            .ask_as(
                "stop-it",
                "job.cancel",
                &json!({ "id": "01890a5d-ac96-774b-bcce-b302099a8057" }),
            )
            .await?,
    )?;
    ensure!(reused.code == ProblemCode::CommandIdReused, "{reused:?}");
    Ok(())
}

async fn generations() -> anyhow::Result<()> {
    let wire = Wire::to(Setup::new().containers().start().await?).await?;
    let name = format!("g{:x}", std::process::id());
    let toplevel = built(&wire, "mkdir() { :; }; echo '#!' > $out").await?;
    let create = json!({ "name": name, "source": { "type": "toplevel", "path": toplevel } });
    // A file is no system: created or refused, the container is there, or says why not.
    let answer = wire.ask("container.create", &create).await?;
    if header(&answer, "Nats-Service-Error").is_some() {
        ensure!(problem(&answer)?.code == ProblemCode::Failed);
    } else {
        value(&answer, "reply.container.create")?;
    }
    wire.refused("container.create", &create, ProblemCode::AlreadyExists)
        .await?;
    let shown = value(
        &wire.ask("container.show", &json!({ "name": name })).await?,
        "reply.container.show",
    )?;
    let generation = shown["desired"]["generation"].as_u64().unwrap_or(0);
    ensure!(generation == 1, "{shown}");
    for verb in ["start", "stop", "destroy"] {
        for seen in [0, generation + 1, u64::MAX] {
            let body = json!({ "name": name, "if_generation": seen });
            let conflict = wire
                .refused(&format!("container.{verb}"), &body, ProblemCode::Conflict)
                .await?;
            ensure!(conflict.detail.contains("generation 1"), "{conflict:?}");
        }
    }
    value(
        &wire.ask("container.list", &json!({})).await?,
        "reply.container.list",
    )?;
    value(
        &wire.ask("container.logs", &json!({ "name": name })).await?,
        "reply.container.logs",
    )?;
    let body = json!({ "name": name, "if_generation": generation });
    value(
        &wire.ask("container.destroy", &body).await?,
        "reply.container.destroy",
    )?;
    for verb in ["show", "start", "stop", "destroy", "logs"] {
        wire.refused(
            &format!("container.{verb}"),
            &json!({ "name": name }),
            ProblemCode::NotFound,
        )
        .await?;
    }
    Ok(())
}

async fn jobs(wire: &Wire) -> anyhow::Result<Vec<Value>> {
    let list = value(&wire.ask("job.list", &json!({})).await?, "reply.job.list")?;
    Ok(list["jobs"].as_array().cloned().unwrap_or_default())
}

/// Writes a Nix file with one derivation into the leaf's directory, and returns the path.
pub(crate) fn nix_file(wire: &Wire, name: &str, script: &str) -> anyhow::Result<String> {
    let file = wire.leaf.state_dir.join(format!("{name}.nix"));
    let unique = wire.leaf.name.as_str();
    std::fs::write(
        &file,
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; leaf = \"{unique}\"; args = [ \"-c\" ''{script}'' ]; }}"
        ),
    )?;
    Ok(file.display().to_string())
}

/// Begins a build that does not end by itself.
pub(crate) async fn slow_job(wire: &Wire) -> anyhow::Result<Value> {
    let number = jobs(wire).await?.len();
    let file = nix_file(
        wire,
        &format!("slow{number}"),
        "echo it began; while :; do read -t 1 line < /dev/zero; done",
    )?;
    let accepted = wire
        .ask(
            "nix.build",
            &json!({ "installable": { "type": "file", "path": file } }),
        )
        .await?;
    Ok(value(&accepted, "reply.nix.build")?["job"].clone())
}

/// Builds and returns the store path.
async fn built(wire: &Wire, script: &str) -> anyhow::Result<Value> {
    let file = nix_file(wire, "built", script)?;
    let accepted = wire
        .ask(
            "nix.build",
            &json!({ "installable": { "type": "file", "path": file } }),
        )
        .await?;
    let job = value(&accepted, "reply.nix.build")?["job"].clone();
    until("it is built", async || {
        let shown = value(
            &wire.ask("job.show", &json!({ "id": job })).await?,
            "reply.job.show",
        )?;
        ensure!(shown["job"]["error"].is_null(), "{shown}");
        Ok(shown["job"]["result"]["store_path"]
            .is_string()
            .then(|| shown["job"]["result"]["store_path"].clone()))
    })
    .await
}
