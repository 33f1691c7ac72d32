//! Changes that can cut a leaf off, as leafd has them: its settings, its events, and the commands of people. The real helper confirms;
//! arming needs systemd, and is tried on a test host.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, ensure};
use leaf_core::command::LeafReport;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::ctl;
use crate::support::{FleetSite, Host, Need, ServedHelper, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial(
            "leafd uses the hub that a change has written until its settings name another one, then never again, and says so in events and reports",
            &[Need::HubAgent],
            another_hub,
        ),
        host.trial(
            "leafd records what was armed, confirmed and taken back without it, once each, also over restarts",
            &[],
            observed,
        ),
        host.trial(
            "leafctl: a person confirms the open change of a leaf, with a signature and not without one",
            &[Need::Root, Need::Helper],
            confirmed,
        ),
        host.trial(
            "leafctl: a leaf is not moved without an own server, without a helper, to a hub without encryption, or by a websocket with a witness",
            &[],
            not_moved,
        ),
    ]
}

const CHANGE: &str = "0193f6b0-4c1e-7000-8000-000000000000";

/// A person with a key that may sign, and the state directory of changes.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let scene = Self {
            directory: tempfile::tempdir()?,
        };
        std::fs::create_dir_all(scene.changes().join("decided"))?;
        Ok(scene)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn changes(&self) -> PathBuf {
        self.at("changes")
    }

    fn write(&self, name: &str, record: &Value) -> anyhow::Result<()> {
        let file = self.changes().join(name);
        let beside = file.with_extension("new");
        std::fs::write(&beside, record.to_string())?;
        Ok(std::fs::rename(&beside, &file)?)
    }

    /// Makes a key, and lets the leaf's administrator sign with it.
    async fn signer(&self, setup: Setup) -> anyhow::Result<Setup> {
        let made = tokio::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
            .arg(self.at("key"))
            .status()
            .await?;
        ensure!(made.success(), "ssh-keygen: {made}");
        let public = std::fs::read_to_string(self.at("key.pub"))?;
        std::fs::write(self.at("allowed"), format!("admin {public}"))?;
        Ok(setup
            .set("trust.allowed_signers", self.at("allowed").display().to_string())
            .set("trust.callers.admin", vec!["cuts-off"]))
    }

    async fn ctl(&self, leaf: &TestLeaf, arguments: &[&str], signs: bool) -> anyhow::Result<Output> {
        let mut command = ctl::command(arguments);
        command
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", self.at("nobody"));
        if signs {
            command.env("LEAFCTL_SIGN_WITH", self.at("key"));
        }
        ctl::run(command).await
    }
}

fn record(leaf: &TestLeaf, more: Value) -> Value {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut record = json!({
        "version": 1, "id": CHANGE, "leaf": leaf.name, "kind": "hub", "caller": "ann", "nonce": "ab".repeat(32),
        "boot_id": boot_id.trim(), "deadline_boot_ms": u64::MAX / 2, "witnesses": [], "unwitnessed": true,
        "way_back": {"files": [], "restart": []}, "apply": [],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        record[name] = value.clone();
    }
    record
}

/// Waits until the report says this.
async fn reports(leaf: &mut TestLeaf, what: &str, says: impl Fn(&LeafReport) -> bool) -> anyhow::Result<()> {
    let mut last = String::new();
    let shown = until(what, async || {
        let report = leaf.show().await?;
        last = format!("{report:?}");
        Ok(says(&report).then_some(()))
    });
    shown.await.with_context(|| last.clone())
}

async fn kinds(leaf: &mut TestLeaf) -> anyhow::Result<Vec<String>> {
    let events = leaf.events().await?;
    let kinds = events.iter().filter_map(|event| event.subject.rsplit('.').next());
    Ok(kinds
        .filter(|kind| kind.starts_with("change_") || kind.starts_with("hub_in"))
        .map(str::to_owned)
        .collect())
}

async fn another_hub() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut site = FleetSite::start().await?;
    site.start_agent()?;
    let (_, setup) = site.leaf().await?;
    // The hub of its settings is not there; the one that a change has written is.
    let (url, credentials, ca) = (
        setup.get("nats.embedded.hub.url")?,
        setup.get("nats.embedded.hub.credentials")?,
        setup.get("nats.embedded.hub.ca")?,
    );
    let setup = setup
        .set("nats.embedded.hub.url", "tls://127.0.0.1:9")
        .changes(&scene.changes());
    let section = leafd::settings::Hub {
        url: "tls://127.0.0.1:9".to_owned(),
        credentials: credentials.clone().into(),
        ca: Some(ca.clone().into()),
    };
    std::fs::copy(&ca, scene.changes().join("hub-x.pem"))?;
    let hub = json!({
        "version": 1, "change": CHANGE, "url": url, "ca": "hub-x.pem",
        "section": leafd::hub_override::section_hash(Some(&section)),
    });
    scene.write("hub.json", &hub)?;
    let mut leaf = setup.start().await?;
    reports(&mut leaf, "the leaf is at the other hub", |report| {
        let is_there = report
            .hub
            .as_ref()
            .is_some_and(|hub| hub.connected && hub.url == url);
        is_there && report.hub_in_place.as_ref().is_some_and(|hub| hub.url == url)
    })
    .await?;
    ensure!(kinds(&mut leaf).await?.is_empty());
    // A new system with another section.
    leaf.stop().await?;
    let settings = std::fs::read_to_string(leaf.settings_file())?;
    let settings = settings.replace("tls://127.0.0.1:9", "tls://127.0.0.1:10");
    std::fs::write(leaf.settings_file(), settings)?;
    for _ in 0..2 {
        leaf.start_again().await?;
        reports(&mut leaf, "the hub of the settings is used again", |report| {
            let is_there = report
                .hub
                .as_ref()
                .is_some_and(|hub| hub.url == "tls://127.0.0.1:10");
            is_there && report.hub_in_place.is_none()
        })
        .await?;
        until("the event", async || {
            Ok((kinds(&mut leaf).await? == ["hub_in_place_ended"]).then_some(()))
        })
        .await?;
        ensure!(leaf.log().contains("is not used any more"), "{}", leaf.log_end());
        leaf.stop().await?;
    }
    // The system of before: what has ended stays so.
    let settings = std::fs::read_to_string(leaf.settings_file())?;
    let settings = settings.replace("tls://127.0.0.1:10", "tls://127.0.0.1:9");
    std::fs::write(leaf.settings_file(), settings)?;
    leaf.start_again().await?;
    reports(&mut leaf, "the hub of the settings is used", |report| {
        let hub = report.hub.as_ref();
        hub.is_some_and(|hub| hub.url == "tls://127.0.0.1:9") && report.hub_in_place.is_none()
    })
    .await?;
    ensure!(kinds(&mut leaf).await? == ["hub_in_place_ended"]);
    Ok(())
}

async fn observed() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut leaf = Setup::new().changes(&scene.changes()).start().await?;
    scene.write("armed.json", &record(&leaf, json!({})))?;
    reports(&mut leaf, "the change is open", |report| {
        report
            .change
            .as_ref()
            .is_some_and(|open| open.id.to_string() == CHANGE && open.seconds_left > 1000)
    })
    .await?;
    let shown = scene.ctl(&leaf, &["leaf", "show"], false).await?;
    ctl::ended(&shown, 0, "")?;
    let text = String::from_utf8(shown.stdout)?;
    ensure!(
        text.contains("by ann; it goes back in") && text.contains(&format!("leaf confirm {CHANGE}")),
        "{text}"
    );
    ensure!(kinds(&mut leaf).await? == ["change_armed"]);
    // The guard takes it back while leafd is away.
    leaf.stop().await?;
    std::fs::remove_file(scene.changes().join("armed.json"))?;
    let back = json!({ "outcome": { "decision": "back", "why": "nobody confirmed it in time" } });
    scene.write(&format!("decided/{CHANGE}.json"), &record(&leaf, back))?;
    for _ in 0..2 {
        leaf.start_again().await?;
        until("the event", async || {
            Ok((kinds(&mut leaf).await? == ["change_armed", "change_went_back"]).then_some(()))
        })
        .await?;
        ensure!(leaf.show().await?.change.is_none());
        leaf.stop().await?;
    }
    Ok(())
}

async fn confirmed() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let setup = scene.signer(Setup::new()).await?.changes(&scene.changes());
    let helper = ServedHelper::start(scene.directory.path(), setup.name(), &[]).await?;
    let setup = setup.set("containers.helper_socket", helper.socket().display().to_string());
    let mut leaf = setup.start().await?;
    scene.write("progress.json", &json!({ "id": CHANGE, "step": "applied" }))?;
    scene.write("armed.json", &record(&leaf, json!({})))?;
    reports(&mut leaf, "the change is open", |report| report.change.is_some()).await?;
    let confirm = ["leaf", "confirm", CHANGE];
    let unsigned = scene.ctl(&leaf, &confirm, false).await?;
    ctl::ended(&unsigned, 6, "none of them is at hand")?;
    ensure!(scene.changes().join("armed.json").exists());
    let other = ["leaf", "confirm", "0193f6b0-4c1e-7000-8000-000000000001"];
    let other = scene.ctl(&leaf, &other, true).await?;
    ctl::ended(&other, 6, "is open, and not")?;
    for _ in 0..2 {
        let signed = scene.ctl(&leaf, &confirm, true).await?;
        ctl::ended(&signed, 0, "").with_context(|| helper.log())?;
    }
    ensure!(!scene.changes().join("armed.json").exists());
    let decided = std::fs::read_to_string(scene.changes().join(format!("decided/{CHANGE}.json")))?;
    let decided: Value = serde_json::from_str(&decided)?;
    ensure!(
        decided["outcome"]["decision"] == "confirmed" && decided["outcome"]["by"] == "admin",
        "{decided}"
    );
    ensure!(kinds(&mut leaf).await? == ["change_armed", "change_confirmed"]);
    reports(&mut leaf, "no change is open", |report| report.change.is_none()).await?;
    Ok(())
}

async fn not_moved() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let setup = scene.signer(Setup::new()).await?.changes(&scene.changes());
    let setup = setup.set(
        "containers.helper_socket",
        scene.at("no.sock").display().to_string(),
    );
    std::fs::write(scene.at("creds"), nkeys::KeyPair::new_user().seed()?)?;
    let leaf = setup.start().await?;
    for (url, more, code, says) in [
        ("nats://hub.example:7422", None, 6, "is not encrypted"),
        ("tls://me:hush@hub.example", None, 6, "has a user or password"),
        ("wss://hub.example", None, 6, "has a websocket"),
        ("wss://hub.example", Some("--no-witness"), 6, "does not exist"),
        (
            "tls://hub.example",
            Some("--within=5s"),
            6,
            "must be confirmed within 30 to 3600",
        ),
        ("tls://hub.example", None, 6, "does not exist"),
    ] {
        let credentials = scene.at("creds").display().to_string();
        let arguments = ["leaf", "move-to", url, "--credentials", &credentials];
        let arguments: Vec<&str> = arguments.into_iter().chain(more).collect();
        let refused = scene.ctl(&leaf, &arguments, true).await?;
        ctl::ended(&refused, code, says).with_context(|| format!("{arguments:?}"))?;
    }
    let without = scene
        .ctl(&leaf, &["leaf", "move-to", "tls://hub.example"], true)
        .await?;
    ctl::ended(&without, 6, "has no hub yet")?;
    let unsigned = scene
        .ctl(&leaf, &["leaf", "move-to", "tls://hub.example"], false)
        .await?;
    ctl::ended(&unsigned, 6, "none of them is at hand")?;
    ensure!(!Path::new(&scene.changes().join("armed.json")).exists());
    Ok(())
}
