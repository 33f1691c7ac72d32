//! `leafd witness`: a hub over TLS with its real agent, the real helper as a service, and what goes wrong between them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use leaf_core::id::LeafName;
use libtest_mimic::Trial;
use tokio::process::{Child, Command};

use crate::support::{FleetSite, Host, LIMIT, Need, ServedHelper, free_port, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Root, Need::HubAgent, Need::Helper];
    vec![
        host.trial(
            "the witness asks the hub over a new connection until it signs, and the helper takes the signature",
            needs,
            asks_until_it_signs,
        ),
        host.trial(
            "the witness asks the hub that a change has written, and the other one once that is gone",
            needs,
            asks_the_hub_in_force,
        ),
        host.trial(
            "the helper takes no signature of a witness that the leaf does not know",
            needs,
            unknown_witness,
        ),
        host.trial("the witness of another leaf's change asks nobody", needs, other_leaf),
        host.trial(
            "the witness asks nobody where another hub than the change's would be dialled",
            needs,
            not_in_use,
        ),
    ]
}

const CHANGE: &str = "0193f6b0-4c1e-7000-8000-000000000000";

/// A leaf of a fleet, with its helper and the state directory of changes.
struct Scene {
    site: FleetSite,
    leaf: LeafName,
    helper: ServedHelper,
    directory: tempfile::TempDir,
}

impl Scene {
    /// With the keys of these witnesses; without any, that of the fleet.
    async fn begin(witness: Option<&str>) -> anyhow::Result<Self> {
        let site = FleetSite::start().await?;
        let (leaf, setup) = site.leaf().await?;
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        setup
            .set(
                "containers.helper_socket",
                at("helper.sock").display().to_string(),
            )
            .write(&at("leafd.toml"), &at("state"))?;
        let witness = match witness {
            Some(key) => key.to_owned(),
            None => std::fs::read_to_string(site.keys().join("hub/witness.pub"))?,
        };
        std::fs::create_dir(at("changes"))?;
        let helper = ServedHelper::start(directory.path(), &leaf, &[witness.trim()]).await?;
        let scene = Self {
            site,
            leaf,
            helper,
            directory,
        };
        Ok(scene)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("witness.log")).unwrap_or_default()
    }

    /// Writes the question that the helper asks before it arms a change.
    fn asks(&self, leaf: &str) -> anyhow::Result<()> {
        let text = format!(
            r#"{{"id":"{CHANGE}","leaf":"{leaf}","nonce":"{}"}}"#,
            "ab".repeat(32)
        );
        Ok(std::fs::write(self.at("changes/asking.json"), text)?)
    }

    fn is_answered(&self) -> bool {
        !self.at("changes/asking.json").exists()
    }

    fn start(&self) -> anyhow::Result<Child> {
        let log = std::fs::File::create(self.at("witness.log"))?;
        Ok(Command::new(env!("CARGO_BIN_EXE_leafd"))
            .args(["witness", "--config"])
            .arg(self.at("leafd.toml"))
            .arg("--directory")
            .arg(self.at("changes"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?)
    }

    async fn says(&self, what: &str) -> anyhow::Result<()> {
        until(&format!("the witness says {what:?}"), async || {
            ensure!(self.log().contains(what), "{}{}", self.log(), self.helper.log());
            Ok(Some(()))
        })
        .await
    }
}

async fn ended(scene: &Scene, witness: &mut Child) -> anyhow::Result<()> {
    let logs = || format!("{}{}", scene.log(), scene.helper.log());
    let status = tokio::time::timeout(LIMIT, witness.wait()).await;
    let status = status.with_context(|| format!("the witness does not end: {}", logs()))??;
    ensure!(status.success(), "{status}: {}", logs());
    Ok(())
}

async fn asks_until_it_signs() -> anyhow::Result<()> {
    let mut scene = Scene::begin(None).await?;
    // Nothing is open.
    ended(&scene, &mut scene.start()?).await?;
    scene.asks(scene.leaf.as_str())?;
    let mut witness = scene.start()?;
    // The hub's server is there, and its agent is not.
    scene.says("nothing answered it within 5 s").await?;
    scene.site.stop_server().await?;
    scene.says("can't connect to 127.0.0.1").await?;
    scene.site.start_server().await?;
    scene.site.start_agent()?;
    ended(&scene, &mut witness).await?;
    ensure!(scene.is_answered(), "{}{}", scene.log(), scene.helper.log());
    ensure!(scene.site.agent_log().contains("signed as a witness"));
    Ok(())
}

async fn asks_the_hub_in_force() -> anyhow::Result<()> {
    let mut scene = Scene::begin(None).await?;
    scene.site.start_agent()?;
    let settings = std::fs::read_to_string(scene.at("leafd.toml"))?;
    let settings: toml::Table = toml::from_str(&settings)?;
    let hub = settings["nats"]["embedded"]["hub"].clone().try_into()?;
    let section = leafd::hub_override::section_hash(Some(&hub));
    let nowhere = free_port()?;
    let text = format!(
        r#"{{"version":1,"change":"{CHANGE}","url":"tls://127.0.0.1:{nowhere}","section":"{section}"}}"#
    );
    std::fs::write(scene.at("changes/hub.json"), text)?;
    scene.asks(scene.leaf.as_str())?;
    let mut witness = scene.start()?;
    scene
        .says(&format!("can't connect to 127.0.0.1:{nowhere}"))
        .await?;
    ensure!(!scene.is_answered());
    std::fs::remove_file(scene.at("changes/hub.json"))?;
    ended(&scene, &mut witness).await?;
    ensure!(scene.is_answered(), "{}", scene.log());
    Ok(())
}

async fn unknown_witness() -> anyhow::Result<()> {
    let other = leaf_trust::ssh_signature::private_key_of_seed(&[3; 32], "another");
    let other = leaf_trust::ssh_signature::public_key_of(other.as_bytes())?.to_line();
    let mut scene = Scene::begin(Some(&other)).await?;
    scene.site.start_agent()?;
    scene.asks(scene.leaf.as_str())?;
    let mut witness = scene.start()?;
    scene
        .says("leaf-helper does not take the hub's signature")
        .await?;
    ensure!(!scene.is_answered());
    witness.kill().await?;
    Ok(())
}

async fn other_leaf() -> anyhow::Result<()> {
    let mut scene = Scene::begin(None).await?;
    scene.site.start_agent()?;
    scene.asks("another")?;
    let mut witness = scene.start()?;
    scene.says("the open change is one of the leaf another").await?;
    ensure!(!scene.site.agent_log().contains("signed as a witness"));
    ensure!(Path::new(&scene.at("changes/asking.json")).exists());
    witness.kill().await?;
    Ok(())
}

async fn not_in_use() -> anyhow::Result<()> {
    let mut scene = Scene::begin(None).await?;
    scene.site.start_agent()?;
    // The section is another one than that in whose place the hub was written: what would be dialled is the section's hub.
    let text = format!(
        r#"{{"version":1,"change":"{CHANGE}","url":"tls://127.0.0.1:1","section":"{}"}}"#,
        "0".repeat(64)
    );
    std::fs::write(scene.at("changes/hub.json"), text)?;
    let (leaf, nonce) = (&scene.leaf, "a".repeat(64));
    let armed = format!(r#"{{"version":1,"id":"{CHANGE}","leaf":"{leaf}","nonce":"{nonce}"}}"#);
    std::fs::write(scene.at("changes/armed.json"), armed)?;
    let mut witness = scene.start()?;
    scene.says("the hub of the open change is not in use").await?;
    ensure!(!scene.site.agent_log().contains("signed as a witness"));
    witness.kill().await?;
    Ok(())
}
