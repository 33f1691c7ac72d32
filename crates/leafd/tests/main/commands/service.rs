//! The leaf as a NATS service: discovery, schemas, many callers, too much work.

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use leaf_bus::identity::Permissions;
use leaf_core::command::{COMMANDS, Declaration};
use leaf_core::id::Caller;
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::repeat::slow_job;
use super::wire::{Wire, value};
use crate::support::{Host, Need, Setup, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial(
            "PING, INFO and STATS are answered as ADR-32 requires, and errors are counted",
            &[],
            discovery,
        ),
        host.trial("the reply of every query is valid by its schema", &[], queries),
        host.trial(
            "jobs' replies are valid by their schemas from the queue to the end, and too many jobs are refused",
            &[Need::Nix],
            jobs,
        ),
        host.trial(
            "64 callers at once are all answered, each in its own inbox",
            &[],
            many,
        ),
    ]
}

async fn discovery() -> anyhow::Result<()> {
    let wire = Wire::start().await?;
    let shown = value(&wire.ask("leaf.show", &json!({})).await?, "reply.leaf.show")?;
    wire.refused("leaf.eat", &json!({}), ProblemCode::UnknownCommand)
        .await?;
    wire.refused("hardware.show", &json!({ "id": "none" }), ProblemCode::NotFound)
        .await?;
    let ask = async |subject: String| {
        let answer = wire.send(&subject, HeaderMap::new(), Vec::new()).await?;
        anyhow::Ok(serde_json::from_slice::<Value>(&answer.payload)?)
    };
    let id = ask("$SRV.PING".into()).await?["id"].clone();
    // Through a hub each leaf hears whose service is asked, and who knows an instance may write into its copy.
    ensure!(id.is_string() && id != shown["instance"], "{id}: {shown}");
    for (verb, kind) in [
        ("PING", "ping_response"),
        ("INFO", "info_response"),
        ("STATS", "stats_response"),
    ] {
        let own = id.as_str().context("an id")?;
        for subject in [
            format!("$SRV.{verb}"),
            format!("$SRV.{verb}.cim-leaf"),
            format!("$SRV.{verb}.cim-leaf.{own}"),
        ] {
            let said = ask(subject.clone()).await?;
            ensure!(
                said["type"] == format!("io.nats.micro.v1.{kind}"),
                "{subject}: {said}"
            );
            ensure!(
                said["name"] == "cim-leaf" && said["id"] == id,
                "{subject}: {said}"
            );
            // A semantic version, and metadata of strings.
            let version = said["version"].as_str().unwrap_or_default();
            ensure!(
                version
                    .split('.')
                    .filter(|part| part.parse::<u32>().is_ok())
                    .count()
                    == 3,
                "{said}"
            );
            ensure!(said["metadata"]["leaf"] == wire.leaf.name.as_str(), "{said}");
        }
    }
    let info = ask("$SRV.INFO".into()).await?;
    let subjects: Vec<&str> = info["endpoints"]
        .as_array()
        .context("endpoints")?
        .iter()
        .filter_map(|e| e["subject"].as_str())
        .collect();
    for Declaration { noun, verb, .. } in &COMMANDS {
        let subject = format!("leaf.v1.cmd.{}.*.{noun}.{verb}", wire.leaf.name);
        ensure!(
            subjects.contains(&subject.as_str()),
            "{subject} is not in {subjects:?}"
        );
    }
    ensure!(info["description"].is_string(), "{info}");
    let stats = ask("$SRV.STATS".into()).await?;
    ensure!(
        stats["started"]
            .as_str()
            .is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()),
        "{stats}"
    );
    for endpoint in stats["endpoints"].as_array().context("endpoints")? {
        for number in [
            "num_requests",
            "num_errors",
            "processing_time",
            "average_processing_time",
        ] {
            ensure!(endpoint[number].is_u64(), "{number} of {endpoint}");
        }
        ensure!(
            endpoint["last_error"].is_string() && endpoint["queue_group"].is_string(),
            "{endpoint}"
        );
    }
    let of = |name: &str| {
        stats["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|e| e["name"] == name)
            .cloned()
            .unwrap_or_default()
    };
    ensure!(
        of("leaf-show")["num_errors"] == 0 && of("leaf-show")["num_requests"].as_u64() >= Some(1),
        "{stats}"
    );
    ensure!(of("hardware-show")["num_errors"] == 1, "{stats}");
    ensure!(
        of("hardware-show")["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("device none does not exist")),
        "{stats}"
    );
    ensure!(of("other")["num_errors"] == 1, "{stats}");
    Ok(())
}

async fn queries() -> anyhow::Result<()> {
    let wire = Wire::start().await?;
    let ask = async |verb: &str, body: Value| value(&wire.ask(verb, &body).await?, &format!("reply.{verb}"));
    let devices = until("the hardware is known", async || {
        let list = ask("hardware.list", json!({})).await?;
        Ok(list["devices"]
            .as_array()
            .filter(|devices| !devices.is_empty())
            .cloned())
    })
    .await?;
    for device in &devices {
        let shown = ask("hardware.show", json!({ "id": device["id"] })).await?;
        ensure!(shown == *device, "{shown} is not {device}");
    }
    ask("hardware.rescan", json!({})).await?;
    ask("container.list", json!({})).await?;
    ask("job.list", json!({})).await?;
    ask("leaf.show", json!({})).await?;
    let nobody = json!({ "id": "01890a5d-ac96-774b-bcce-b302099a8057" });
    for verb in ["job.show", "job.log", "job.cancel"] {
        wire.refused(verb, &nobody, ProblemCode::NotFound).await?;
    }
    wire.refused(
        "container.show",
        &json!({ "name": "nobody" }),
        ProblemCode::NotFound,
    )
    .await?;
    Ok(())
}

async fn jobs() -> anyhow::Result<()> {
    let leaf = Setup::new()
        .set("nix.max_jobs", 1)
        .set("nix.max_queued_jobs", 1)
        .start()
        .await?;
    let wire = Wire::to(leaf).await?;
    let ask = async |verb: &str, body: Value| value(&wire.ask(verb, &body).await?, &format!("reply.{verb}"));
    let running = slow_job(&wire).await?;
    until("the first runs", async || {
        Ok((ask("job.show", json!({ "id": running })).await?["job"]["phase"] == "running").then_some(()))
    })
    .await?;
    let queued = slow_job(&wire).await?;
    ensure!(ask("job.show", json!({ "id": queued })).await?["job"]["phase"] == "queued");
    let build = json!({ "installable": { "type": "flake", "reference": "/a" } });
    let problem = wire.refused("nix.build", &build, ProblemCode::Overloaded).await?;
    ensure!(
        problem.status == 503 && problem.detail.contains("try again later"),
        "{problem:?}"
    );
    ensure!(ask("job.list", json!({})).await?["jobs"].as_array().map(Vec::len) == Some(2));
    // A job that waits has a log, which is empty so far.
    let log = ask("job.log", json!({ "id": queued })).await?;
    ensure!(
        log == json!({ "text": "", "next_offset": 0, "complete": false }),
        "{log}"
    );
    for job in [&queued, &running] {
        let ended = ask("job.cancel", json!({ "id": job })).await?;
        ensure!(ended["phase"] == "cancelled", "{ended}");
        let log = ask("job.log", json!({ "id": job })).await?;
        ensure!(log["complete"] == true, "{log}");
    }
    Ok(())
}

async fn many() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let callers = (0..64).map(|number| {
        let wire = &wire;
        async move {
            let caller = Caller::new(format!("person-{number}"))?;
            let credentials = wire
                .leaf
                .identity()?
                .user_credentials(&caller, &Permissions::person(&caller));
            let client = wire.leaf.nats(&credentials, &caller).await?;
            let subject = format!("leaf.v1.cmd.{}.{caller}.leaf.show", wire.leaf.name);
            for _ in 0..20 {
                let answer = client.request(subject.clone(), "".into()).await?;
                let said: Value = serde_json::from_slice(&answer.payload)?;
                ensure!(said["name"] == wire.leaf.name.as_str(), "{said}");
            }
            anyhow::Ok(())
        }
    });
    for outcome in futures::future::join_all(callers).await {
        outcome?;
    }
    wire.nothing_recorded_since(before).await
}
