//! Commands move to a connection with renewed credentials before the former ones end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::serve::FreshConnection;
use leaf_core::host_op::Secret;
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::commands::server;
use super::daemon_settings;
use crate::support::{LIMIT, Site, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "no_command_is_lost_or_taken_twice_while_the_credentials_of_a_leaf_are_renewed_and_end",
            renewed,
        ),
        trial(
            "commands_that_moved_from_a_dead_connection_are_all_taken_when_it_is_back",
            from_a_dead_connection,
        ),
        trial(
            "no_command_is_lost_while_the_server_keeps_a_connection_that_is_gone",
            beside_a_connection_that_is_gone,
        ),
    ]
}

/// Returns credentials of the callers' account with another end, as whoever manages the account issues them.
fn until(site: &Site, credentials: &Secret, expires_at: i64) -> anyhow::Result<String> {
    let keys = std::fs::read(site.dir.path().join("identity/keys.json"))?;
    let keys: serde_json::Value = serde_json::from_slice(&keys)?;
    let account = nkeys::KeyPair::from_seed(keys["callers"].as_str().context("a seed")?)?;
    let text = credentials.expose();
    let former = text.lines().nth(1).context("a JWT")?;
    let parts: Vec<&str> = former.split('.').collect();
    let mut claims: serde_json::Value =
        serde_json::from_slice(&BASE64URL_NOPAD.decode(parts[1].as_bytes())?)?;
    claims["iat"] = Timestamp::now().as_second().into();
    claims["exp"] = expires_at.into();
    claims["jti"] = format!("until {expires_at}").into();
    let mut jwt = format!(
        "{}.{}",
        parts[0],
        BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
    );
    let signature = account.sign(jwt.as_bytes())?;
    jwt = format!("{jwt}.{}", BASE64URL_NOPAD.encode(&signature));
    Ok(text.replace(former, &jwt))
}

async fn renewed() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let file = site.dir.path().join("leafd.creds");
    let now = Timestamp::now().as_second();
    let service = site.identity.service_credentials();
    std::fs::write(&file, until(&site, &service, now + 4)?)?;
    let [callers, streams] = daemon_settings(&site);
    let callers = in_file(callers, &file);
    let life = callers.credentials.life().context("credentials with a JWT")?;
    ensure!(
        life.expires_at == Some(Timestamp::from_second(now + 4)?),
        "{life:?}"
    );
    let bus = Bus::connect_apart(&callers, &streams).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    let mut server = server(&bus).await?;

    let (give, mut fresh) = tokio::sync::mpsc::channel(1);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let answering = async {
        let mut received = BTreeMap::new();
        loop {
            tokio::select! {
                Some(fresh) = fresh.recv() => server.take_over(fresh).await?,
                incoming = server.next() => {
                    let incoming = incoming.context("the server ended")?;
                    *received.entry(incoming.body.to_vec()).or_insert(0) += 1;
                    let body = incoming.body.to_vec();
                    incoming.responder.reply(None, Ok(body)).await;
                }
                _ = &mut stopped => return anyhow::Ok(received),
            }
        }
    };
    let asking = async {
        let admin = site.admin().await?;
        let (began, mut number, mut longest) = (Instant::now(), 0_u64, Duration::ZERO);
        while began.elapsed() < Duration::from_secs(7) {
            let asked = Instant::now();
            let body = number.to_string();
            let reply = admin
                .client
                .request("leaf.v1.cmd.edge.admin.leaf.show", body.clone().into())
                .await
                .with_context(|| format!("command {number}, after {:?}", began.elapsed()))?;
            ensure!(reply.payload == body, "command {number}: {reply:?}");
            longest = longest.max(asked.elapsed());
            number += 1;
        }
        let _ = stop.send(());
        anyhow::Ok((number, longest))
    };
    let renewing = async {
        // Whoever renews the file does so before the end.
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(&file, until(&site, &service, now + 3600)?)?;
        let renewed = callers.credentials.life().context("credentials with a JWT")?;
        ensure!(renewed.id != life.id, "{renewed:?}");
        give.send(FreshConnection::open(&callers).await?).await?;
        anyhow::Ok(())
    };
    let (received, asked, given) = tokio::join!(answering, asking, renewing);
    given?;
    let ((number, longest), received) = (asked?, received?);
    ensure!(number > 100, "{number} commands");
    ensure!(
        received.len() as u64 == number && received.values().all(|times| *times == 1),
        "{received:?}"
    );
    ensure!(
        bus.callers_status()
            .is_some_and(|status| status.borrow().is_connected())
    );
    println!("{number} commands, the longest took {longest:?}");
    site.end().await
}

/// The peer of the former connection forgot it, and says so when it hears the end of the subscription.
async fn from_a_dead_connection() -> anyhow::Result<()> {
    broken(true).await
}

/// The server has the former connection still, for it heard of no end.
async fn beside_a_connection_that_is_gone() -> anyhow::Result<()> {
    broken(false).await
}

/// Breaks the connection of commands, and sends a hundred once it is back; before that they move to a fresh one, or not.
async fn broken(moves: bool) -> anyhow::Result<()> {
    let site = Site::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let dead = watch::Sender::new(false);
    let server_address = site.server.address();
    let (address, passing) = (listener.local_addr()?, dead.clone());
    let mut proxy = JoinSet::new();
    proxy.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            connections.spawn(pass(client, server_address, passing.clone()));
        }
    });
    let [callers, streams] = daemon_settings(&site);
    let through_proxy = ConnectSettings {
        servers: vec![format!("nats://{address}")],
        ..callers.clone()
    };
    let bus = Bus::connect_apart(&through_proxy, &streams).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    let mut server = server(&bus).await?;
    let former = bus.callers_status().context("two connections")?;
    let generation = former.borrow().clone();

    let fresh = match moves {
        true => Some(FreshConnection::open(&callers).await?),
        false => None,
    };
    dead.send_replace(true);
    if let Some(fresh) = fresh {
        server.take_over(fresh).await?;
    }
    let mut reset = dead.subscribe();
    tokio::time::timeout(LIMIT, reset.wait_for(|is_dead| !is_dead))
        .await
        .context("the client sends something")??;
    let mut received = BTreeMap::new();
    let answering = async {
        while let Some(incoming) = server.next().await {
            let body = incoming.body.to_vec();
            *received.entry(body.clone()).or_insert(0) += 1;
            incoming.responder.reply(None, Ok(body)).await;
        }
        anyhow::bail!("the server ended")
    };
    let asking = async {
        let mut back = former.clone();
        let is_back = back.wait_for(|status| status.is_connected() && *status != generation);
        tokio::time::timeout(LIMIT, is_back)
            .await
            .context("it is back")??;
        let admin = site.admin().await?;
        for number in 0..100 {
            let asked = admin
                .client
                .request("leaf.v1.cmd.edge.admin.leaf.show", number.to_string().into());
            let reply = tokio::time::timeout(LIMIT, asked)
                .await
                .with_context(|| format!("command {number} has no reply"))??;
            ensure!(reply.payload == number.to_string(), "{reply:?}");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = answering => ended?,
        asked = asking => asked?,
    }
    ensure!(
        received.len() == 100 && received.values().all(|times| *times == 1),
        "{received:?}"
    );
    site.end().await
}

/// Passes bytes both ways; while it is dead, nothing, and the next bytes from the client are answered by a reset, which ends that.
/// The server hears of no end.
async fn pass(client: TcpStream, server: SocketAddr, dead: watch::Sender<bool>) -> anyhow::Result<()> {
    let server = TcpStream::connect(server).await?;
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut ours, mut theirs) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            read = from_client.read(&mut ours) => {
                let read = read?;
                let is_dead = *dead.borrow();
                if is_dead || read == 0 {
                    let client = from_client.reunite(to_client)?;
                    client.set_zero_linger()?;
                    drop(client);
                    dead.send_if_modified(std::mem::take);
                    if is_dead {
                        return std::future::pending().await;
                    }
                    return Ok(());
                }
                to_server.write_all(&ours[..read]).await?;
            }
            read = from_server.read(&mut theirs) => {
                let read = read?;
                ensure!(read > 0, "the server closed");
                if !*dead.borrow() {
                    to_client.write_all(&theirs[..read]).await?;
                }
            }
        }
    }
}

fn in_file(settings: ConnectSettings, file: &Path) -> ConnectSettings {
    ConnectSettings {
        credentials: Credentials::File(file.to_owned()),
        ..settings
    }
}
