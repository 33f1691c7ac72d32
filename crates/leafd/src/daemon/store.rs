//! The first part of the start: the journal, and the identity of the leaf and of its host.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_core::event::HostFacts;
use leaf_core::id::{InstanceId, LeafName};
use leaf_journal::{Journal, Opened, Options};
use uuid::Uuid;

use super::VERSION;
use crate::settings::Settings;

/// The size of the journal's cache, in bytes.
const JOURNAL_CACHE_BYTES: usize = 2 << 20;

/// The journal of a run, and the identity of the leaf and of its host.
pub(super) struct Store {
    /// The leaf.
    pub(super) leaf: LeafName,
    /// This run's id.
    pub(super) instance: InstanceId,
    /// The host that it runs on.
    pub(super) host: HostFacts,
    /// When the run began.
    pub(super) started_at: Timestamp,
    /// The journal.
    pub(super) journal: Journal,
}

impl Store {
    /// Opens the journal, and returns what it contains.
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<(Self, Opened)> {
        let leaf = settings.leaf_name()?;
        let instance = InstanceId(Uuid::now_v7());
        let host = host_facts()?;
        let started_at = Timestamp::now();
        make_private(&settings.state_dir)?;
        let options = Options {
            leaf: leaf.clone(),
            epoch_if_new: u64::try_from(started_at.as_millisecond()).unwrap_or(1),
            cache_bytes: JOURNAL_CACHE_BYTES,
            holder: format!("leaf {leaf}, instance {instance}"),
        };
        let dir = settings.state_dir.clone();
        let (journal, opened) = tokio::task::spawn_blocking(move || Journal::open(&dir, &options))
            .await
            .context("opening the journal ended early")?
            .context("can't open the journal")?;
        tracing::info!(%leaf, %instance, version = VERSION, held = ?journal.held(), "starting");
        let store = Self {
            leaf,
            instance,
            host,
            started_at,
            journal,
        };
        Ok((store, opened))
    }
}

fn make_private(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o700)))
        .with_context(|| {
            format!(
                "can't create the state directory {}, or make it private",
                dir.display()
            )
        })
}

fn host_facts() -> anyhow::Result<HostFacts> {
    let name = rustix::system::uname();
    let boot = "/proc/sys/kernel/random/boot_id";
    Ok(HostFacts {
        hostname: name.nodename().to_string_lossy().into_owned(),
        system: format!("{}-linux", std::env::consts::ARCH),
        kernel: name.release().to_string_lossy().into_owned(),
        boot_id: std::fs::read_to_string(boot)
            .with_context(|| format!("can't read {boot}"))?
            .trim()
            .to_owned(),
    })
}
