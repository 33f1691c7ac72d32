//! A responder that does nothing in the place of leafd: a leaf of the same hub, with the same accounts and rights.

use std::path::Path;

use anyhow::{Context as _, Result};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings, Hub};
use leaf_bus::identity::Identity;
use leaf_core::id::LeafName;
use leaf_core::subject;
use nkeys::KeyPair;
use tokio::process::Child;

use crate::bare;
use crate::ours::TheHub;
use crate::{Programs, WITHIN};

/// The subject of a command to it.
pub(crate) const COMMAND: &str = "leaf.v1.cmd.responder.ann.leaf.show";

/// The leaf's name.
pub(crate) fn name() -> LeafName {
    LeafName::new("responder").expect("a leaf name")
}

pub(crate) struct InPlaceOfLeafd {
    server: EmbeddedServer,
    _responder: Child,
}

impl InPlaceOfLeafd {
    /// Starts its server and the responder, and waits until a person at the hub is answered.
    pub(crate) async fn start(
        programs: &Programs<'_>,
        dir: &Path,
        hub: &TheHub,
        key: &KeyPair,
        bytes: usize,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let identity = Identity::open_or_create(&dir.join("identity"), &name())?;
        let settings = EmbeddedSettings {
            nats_server: Some(programs.nats_server.to_owned()),
            hub: Some(Hub {
                urls: vec![format!("nats://127.0.0.1:{}", hub.server.leaf_port)],
                credentials: hub.seed_file("responder", key)?,
                ca: None,
            }),
            ..EmbeddedSettings::new(dir.join("nats"), "127.0.0.1:0".parse()?)
        };
        let server = EmbeddedServer::start(settings, &identity).await?;
        let credentials = dir.join("responder.creds");
        std::fs::write(&credentials, identity.claimant_credentials().expose())?;
        let commands = subject::commands_of(&name());
        let responder = bare::start_responder(&server.client_url(), &commands, Some(&credentials), bytes)?;
        let ann = hub.ann().await?;
        let answered = async {
            while ann.request(COMMAND, "{}".into()).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, answered)
            .await
            .context("the responder answers")?;
        Ok(Self {
            server,
            _responder: responder,
        })
    }

    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }
}
