//! Credentials: kept, revoked, of another operator, and in a context file.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use leaf_bus::client::Client;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::EmbeddedServer;
use leaf_bus::identity::{Identity, admin_caller};
use leaf_core::id::ContainerName;
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{container_of, is_unauthorized};
use crate::support::{LIMIT, Site, User, leaf, runs, settings, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "an_identity_of_one_account_gets_the_other_and_keeps_its_keys",
            upgraded,
        ),
        trial(
            "revoked_credentials_of_a_container_are_refused_and_new_ones_are_not",
            revoked,
        ),
        trial("credentials_of_another_operator_are_refused", stranger),
        trial("the_context_file_connects_as_admin", context),
        trial(
            "a_copy_of_the_admins_credentials_ends_and_who_reads_the_renewed_file_goes_on",
            ended,
        ),
    ]
}

/// State directories of before there were two accounts.
async fn upgraded() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("identity");
    let first = Identity::open_or_create(&place, &leaf())?;
    let file = place.join("keys.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let fields = keys.as_object_mut().context("an object")?;
    fields.remove("callers");
    fields.remove("service");
    fields.insert("format".to_owned(), 1.into());
    std::fs::write(&file, keys.to_string())?;
    let identity = Identity::open_or_create(&place, &leaf())?;
    ensure!(identity.account() == first.account());
    ensure!(identity.leaf_credentials() == first.leaf_credentials());
    ensure!(identity.callers_account() != first.callers_account());
    let again = Identity::open_or_create(&place, &leaf())?;
    ensure!(identity.server_config()? == again.server_config()?);
    let server = EmbeddedServer::start(settings(dir.path()), &identity).await?;
    let file = std::fs::read_to_string(identity.admin_credentials_file())?;
    let admin = User::connect(
        &server.client_url(),
        &leaf_core::host_op::Secret::new(file),
        &admin_caller(),
    )
    .await?;
    jetstream::new(admin.client).query_account().await?;
    server.stop().await;
    Ok(())
}

async fn revoked() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let (web, other) = (ContainerName::new("web")?, ContainerName::new("other")?);
    let old = site.identity.container_credentials(&web);
    let mut inside = site.connect(&old, &web.caller(&leaf())).await?;
    let mut neighbour = container_of(&site, &other).await?;
    let mut admin = site.admin().await?;
    inside.may_publish("leaf.v1.ctr.edge.web.up").await?;

    let connects = |user: &User| {
        user.client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    site.identity.revoke_container(&web)?;
    site.server.reloader().reload().await?;
    let told = async {
        while inside.client.connection_state() == async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, told)
        .await
        .context("the container's connection is dropped")?;
    let refused = site.connect(&old, &web.caller(&leaf())).await;
    is_unauthorized(refused)?;
    // Nobody else is disturbed.
    neighbour.may_publish("leaf.v1.ctr.edge.other.up").await?;
    admin.may_publish("$SRV.PING").await?;
    ensure!(connects(&neighbour) == 1 && connects(&admin) == 1);

    // A later container of the name, at once, has what works, and the old ones stay worthless, over a restart, too.
    let new = site.identity.container_credentials(&web);
    site.connect(&new, &web.caller(&leaf())).await?;
    let old_server = runs(&site.server, None).await?;
    site.server.restart("a test");
    runs(&site.server, Some(old_server)).await?;
    site.connect(&new, &web.caller(&leaf())).await?;
    ensure!(site.connect(&old, &web.caller(&leaf())).await.is_err());
    site.identity.revoke_container(&web)?;
    site.server.stop().await;
    // What was revoked while no server ran holds as well.
    site.server = EmbeddedServer::start(settings(site.dir.path()), &site.identity).await?;
    ensure!(site.connect(&new, &web.caller(&leaf())).await.is_err());
    let newest = site.identity.container_credentials(&web);
    site.connect(&newest, &web.caller(&leaf())).await?;
    site.end().await
}

async fn stranger() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let other = Identity::open_or_create(&site.dir.path().join("other"), &leaf())?;
    let refused = site.connect(&other.admin_credentials(), &admin_caller()).await;
    is_unauthorized(refused)?;
    site.end().await
}

async fn ended() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let short = site.identity.clone().with_admin_valid(Duration::from_secs(3));
    let copy = short.admin_credentials();
    short.write_admin_credentials()?;
    let url = site.server.client_url();
    let reader = Client::connect(
        &ConnectSettings {
            credentials: Credentials::File(short.admin_credentials_file().to_owned()),
            inbox_prefix: subject::inbox_prefix(&admin_caller()),
            ..ConnectSettings::new(&url)
        },
        LIMIT,
    )
    .await?;
    let with_copy = site.connect(&copy, &admin_caller()).await?;
    site.identity.write_admin_credentials()?;
    let cut = async {
        while with_copy.client.connection_state() == async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, cut)
        .await
        .context("the copy's connection is cut at its end")?;
    // In the last second the server cuts connections, and still takes new ones.
    let refused = async {
        loop {
            if let Err(error) = site.connect(&copy, &admin_caller()).await {
                return format!("{error:?}").to_lowercase();
            }
        }
    };
    let error = tokio::time::timeout(LIMIT, refused)
        .await
        .context("the copy is refused")?;
    // It depends on the second in which it is tried.
    ensure!(
        error.contains("user authentication expired") || error.contains("authorization violation"),
        "{error}"
    );
    // The other one was cut as well, and came back.
    let asked = async {
        while reader.leaves().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, asked)
        .await
        .context("who reads the file goes on")?;
    site.end().await
}

async fn context() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let path = site.dir.path().join("context.json");
    site.identity.write_context(&path, &site.server.client_url())?;
    let context: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let field = |name: &str| context[name].as_str().map(str::to_owned).context("a text");
    let client = async_nats::ConnectOptions::with_credentials_file(field("creds")?)
        .await?
        .custom_inbox_prefix(field("inbox_prefix")?)
        .connect(field("url")?)
        .await?;
    let account = jetstream::new(client).query_account().await?;
    ensure!(
        account.limits.max_storage.is_none_or(|max| max < 0),
        "{account:?}"
    );
    site.end().await
}
