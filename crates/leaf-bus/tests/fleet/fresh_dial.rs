//! A request over a connection that is made for it, by the protocol of leaf nodes: what a witness is asked with.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_bus::embedded::Hub;
use leaf_bus::leaf_node::{FreshDial, FreshDialError};
use leaf_core::error::chain;
use leaf_core::subject;
use libtest_mimic::Trial;
use nkeys::KeyPair;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{LinkedLeaf, TestHub, WITH_TLS, stolen, trial_with_operator, until_linked};
use crate::support::{LIMIT, authority, freeze, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_fresh_dial_asks_a_hub_that_has_nkeys", asks),
        trial_with_operator("a_fresh_dial_asks_a_hub_that_has_an_operator", asks),
        trial("a_fresh_dial_asks_over_tls_and_trusts_no_other_ca", asks_over_tls),
        trial_with_operator("a_fresh_dial_asks_over_tls_with_credentials", asks_over_tls),
        trial(
            "a_fresh_dial_does_not_displace_the_leafs_own_link",
            does_not_displace,
        ),
        trial("a_fresh_dial_asks_in_its_own_name_only", asks_in_its_own_name),
        trial_with_operator(
            "a_fresh_dial_asks_in_its_own_name_only_with_an_operator",
            asks_in_its_own_name,
        ),
        trial("a_hub_that_does_not_know_the_leaf_refuses_a_fresh_dial", unknown),
        trial(
            "a_leaf_without_the_right_to_ask_is_refused_by_name",
            lacks_the_right,
        ),
        trial("a_hub_without_an_agent_leaves_a_fresh_dial_unanswered", no_agent),
        trial("a_fresh_dial_to_a_hub_that_hangs_ends_by_itself", hangs),
        trial("a_fresh_dial_to_another_port_says_so", other_port),
        trial(
            "a_fresh_dial_asks_the_next_server_where_one_greets_and_does_not_answer",
            next_server,
        ),
    ]
}

fn to(url: String, credentials: PathBuf) -> Hub {
    Hub {
        urls: vec![url],
        credentials,
        ca: None,
    }
}

async fn ask(hub: &Hub) -> Result<Vec<u8>, FreshDialError> {
    FreshDial::new(hub, &leaf())?
        .ask(&subject::hub_witness(&leaf()), b"who is there?")
        .await
}

/// Answers each request to the hub with its subject, as the agent's user in the account of the connections.
async fn answers(hub: &TestHub) -> anyhow::Result<JoinSet<()>> {
    let agent = hub.agent_in_links().await?;
    let mut requests = agent.subscribe(subject::hub_requests()).await?;
    agent.flush().await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(request) = requests.next().await {
            let said = request.subject.to_string() + " " + &String::from_utf8_lossy(&request.payload);
            if let Some(reply) = request.reply {
                let _ = agent.publish(reply, said.into()).await;
            }
        }
    });
    Ok(tasks)
}

const ANSWER: &str = "leaf.v1.hub.edge.witness who is there?";

async fn asks() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let _agent = answers(&hub).await?;
    let here = to(hub.leaf_url(), hub.user_file(&hub.leaf)?);
    for _ in 0..3 {
        ensure!(ask(&here).await? == ANSWER.as_bytes());
    }
    // The scheme that nats-server knows as well, and the second of two addresses.
    let port = hub.server.leaf_port.context("a port")?;
    let two = Hub {
        urls: vec![
            "nats://127.0.0.1:9".to_owned(),
            format!("nats-leaf://127.0.0.1:{port}"),
        ],
        ..here
    };
    ensure!(ask(&two).await? == ANSWER.as_bytes());
    Ok(())
}

async fn asks_over_tls() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (own, own_pem) = authority("own")?;
    let (_, other_pem) = authority("other")?;
    let key = rcgen::KeyPair::generate()?;
    let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &own)?;
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    let cert = file("cert.pem", &cert.pem())?;
    let key = file("key.pem", &key.serialize_pem())?;
    let (own, other) = (file("own.pem", &own_pem)?, file("other.pem", &other_pem)?);
    let tls = format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}");
    let hub = WITH_TLS.scope(tls, Box::pin(TestHub::start())).await?;
    let _agent = answers(&hub).await?;
    let port = hub.server.leaf_port.context("a port")?;
    let with = |url: String, ca: &PathBuf| -> anyhow::Result<Hub> {
        Ok(Hub {
            ca: Some(ca.clone()),
            ..to(url, hub.user_file(&hub.leaf)?)
        })
    };
    let named = format!("tls://localhost:{port}");
    ensure!(ask(&with(named.clone(), &own)?).await? == ANSWER.as_bytes());
    // The hub requires it, whatever the address says.
    ensure!(ask(&with(format!("nats://localhost:{port}"), &own)?).await? == ANSWER.as_bytes());
    for (url, ca) in [(named, &other), (format!("tls://127.0.0.1:{port}"), &own)] {
        let error = ask(&with(url, ca)?).await.err().context("it is not trusted")?;
        let text = chain(&error);
        ensure!(
            text.contains("can't reach the hub") && text.contains("certificate"),
            "{text}"
        );
    }
    Ok(())
}

async fn does_not_displace() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let leaf_server = Box::pin(LinkedLeaf::start(&hub)).await?;
    until_linked(&hub, &leaf_server).await?;
    let _agent = answers(&hub).await?;
    let here = to(hub.leaf_url(), hub.user_file(&hub.leaf)?);
    for _ in 0..10 {
        ensure!(ask(&here).await? == ANSWER.as_bytes());
    }
    until_linked(&hub, &leaf_server).await?;
    let log = std::fs::read_to_string(leaf_server.dir.path().join("nats/nats-server.log"))?;
    let said = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    ensure!(
        said("Leafnode connection created") == 1 && said("Leafnode connection closed") == 0,
        "{log}"
    );
    leaf_server.server.stop().await;
    Ok(())
}

async fn asks_in_its_own_name() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let agent = hub.agent_in_links().await?;
    let mut requests = agent.subscribe(subject::hub_requests()).await?;
    agent.flush().await?;
    let stolen_file = hub.user_file(&hub.stolen)?;
    // As another leaf, whose inbox it may not hear; and as itself, on the subject of another.
    for (name, of) in [(leaf(), leaf()), (stolen(), leaf())] {
        let dial = FreshDial::new(&to(hub.leaf_url(), stolen_file.clone()), &name)?;
        let error = dial.ask(&subject::hub_witness(&of), b"forged").await;
        let error = error.err().context("it was answered")?;
        ensure!(
            matches!(&error, FreshDialError::Refused { said, .. } if said.contains("Permissions Violation")),
            "{error:?}"
        );
    }
    let own = FreshDial::new(&to(hub.leaf_url(), stolen_file), &stolen())?;
    let asked = async {
        let request = requests.next().await.context("a request")?;
        ensure!(
            request.subject.as_str() == "leaf.v1.hub.stolen.witness",
            "{request:?}"
        );
        let reply = request.reply.context("a reply subject")?;
        ensure!(subject::is_inbox_of_leaf(&reply, &stolen()), "{reply}");
        agent.publish(reply, "yes".into()).await?;
        Ok(())
    };
    let witness = subject::hub_witness(&stolen());
    let (answer, asked) = tokio::join!(own.ask(&witness, b"mine"), asked);
    asked?;
    ensure!(answer? == b"yes");
    Ok(())
}

async fn unknown() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let stranger = KeyPair::new_user();
    let error = ask(&to(hub.leaf_url(), hub.user_file(&stranger)?)).await;
    let error = error.err().context("it was answered")?;
    ensure!(
        matches!(&error, FreshDialError::Refused { said, .. } if said.contains("Authorization Violation")),
        "{error:?}"
    );
    let missing = to(hub.leaf_url(), "/nowhere/hub.creds".into());
    let error = ask(&missing).await.err().context("it was answered")?;
    ensure!(
        matches!(error, FreshDialError::Credentials(_)) && chain(&error).contains("/nowhere/hub.creds"),
        "{error:?}"
    );
    Ok(())
}

async fn lacks_the_right() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start_without(&subject::hub_requests_of(&leaf()))).await?;
    let _agent = answers(&hub).await?;
    let error = ask(&to(hub.leaf_url(), hub.user_file(&hub.leaf)?)).await;
    let error = error.err().context("it was answered")?;
    ensure!(
        matches!(&error, FreshDialError::Refused { said, .. } if said.contains("leaf.v1.hub.edge.witness")),
        "{error:?}"
    );
    Ok(())
}

async fn no_agent() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let error = ask(&to(hub.leaf_url(), hub.user_file(&hub.leaf)?)).await;
    let error = error.err().context("it was answered")?;
    ensure!(matches!(error, FreshDialError::Unanswered { .. }), "{error:?}");
    Ok(())
}

/// A server that greets, and hears no more. It ends with the tasks.
async fn deaf_server(tasks: &mut JoinSet<std::io::Result<()>>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let info =
            r#"INFO {"server_id":"N","version":"2.15.1","client_id":7,"nonce":"n","leafnode_urls":[]}"#;
        stream.write_all(format!("{info}\r\n").as_bytes()).await?;
        std::future::pending::<std::io::Result<()>>().await
    });
    Ok(format!("nats://127.0.0.1:{port}"))
}

async fn hangs() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let file = hub.user_file(&hub.leaf)?;
    let begun = Instant::now();
    // The kernel still accepts connections for it.
    freeze(hub.server.pid().context("a process")?).await?;
    let error = ask(&to(hub.leaf_url(), file.clone())).await;
    let error = error.err().context("it was answered")?;
    ensure!(matches!(error, FreshDialError::Dial(_)), "{error:?}");
    let mut tasks = JoinSet::new();
    let error = ask(&to(deaf_server(&mut tasks).await?, file)).await;
    let error = error.err().context("it was answered")?;
    ensure!(matches!(error, FreshDialError::Lost { .. }), "{error:?}");
    ensure!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    Ok(())
}

/// The port for clients, one that hears nothing, one that does not know the leaf; and then the hub.
async fn next_server() -> anyhow::Result<()> {
    let (hub, stranger) = (
        Box::pin(TestHub::start()).await?,
        Box::pin(TestHub::start()).await?,
    );
    let _agent = answers(&hub).await?;
    let mut tasks = JoinSet::new();
    let servers = Hub {
        urls: vec![
            hub.server.url(),
            deaf_server(&mut tasks).await?,
            stranger.leaf_url(),
            hub.leaf_url(),
        ],
        ..to(String::new(), hub.user_file(&hub.leaf)?)
    };
    ensure!(ask(&servers).await? == ANSWER.as_bytes());
    let without = Hub {
        urls: servers.urls[..3].to_vec(),
        ..servers
    };
    let error = ask(&without).await.err().context("it was answered")?;
    ensure!(matches!(error, FreshDialError::Refused { .. }), "{error:?}");
    Ok(())
}

async fn other_port() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start()).await?;
    let file = hub.user_file(&hub.leaf)?;
    let error = ask(&to(hub.server.url(), file.clone())).await;
    let error = error.err().context("it was answered")?;
    ensure!(matches!(error, FreshDialError::OtherPort { .. }), "{error:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await
    });
    let error = ask(&to(format!("nats://127.0.0.1:{port}"), file.clone())).await;
    let text = chain(&error.err().context("it was answered")?);
    ensure!(text.contains("it is not a NATS server"), "{text}");
    // Nobody listens.
    let error = ask(&to("nats://127.0.0.1:9".to_owned(), file)).await;
    let text = chain(&error.err().context("it was answered")?);
    ensure!(text.contains("can't connect to 127.0.0.1:9"), "{text}");
    Ok(())
}
