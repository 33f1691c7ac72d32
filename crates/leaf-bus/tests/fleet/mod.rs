//! A leaf's server and its hub: what crosses their connection, tested against real servers.

mod copies;
mod crossings;
mod fresh_dial;
mod hostile_hub;
mod kept;
mod raw;
mod raw_flood;
mod raw_garbage;
mod raw_hub;
mod raw_scene;
mod raw_thief;
mod stolen_leaf;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings, Hub};
use leaf_bus::hub_link::HubLink;
use leaf_bus::identity::fleet::{
    Account, Fleet, KeyKind, NatsKey, Revocations, Role, new_user, operator_jwt, server_config,
};
use leaf_bus::identity::{HubUsers, Identity, Permissions, hub_caller};
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_core::id::{Caller, InstanceId, LeafName};
use leaf_core::subject;
use libtest_mimic::Trial;
use nkeys::KeyPair;

use crate::plain::PlainServer;
use crate::support::{LIMIT, leaf, settings, trial_of};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = crossings::trials();
    trials.extend(copies::trials());
    trials.extend(kept::trials());
    trials.extend(stolen_leaf::trials());
    trials.extend(hostile_hub::trials());
    trials.extend(raw_thief::trials());
    trials.extend(raw_flood::trials());
    trials.extend(raw_garbage::trials());
    trials.extend(raw_hub::trials());
    trials.extend(fresh_dial::trials());
    trials
}

/// How long a message that must not arrive is waited for, after one that does.
const QUIET: Duration = Duration::from_millis(300);

/// The leaf whose keys are stolen.
fn stolen() -> LeafName {
    LeafName::new("stolen").expect("a leaf name")
}

/// The instance of leafd that runs a leaf's server.
fn instance() -> InstanceId {
    InstanceId(uuid::Uuid::from_u128(7))
}

fn ann() -> Caller {
    Caller::new("ann").expect("a caller")
}

/// A hub's server, with the keys of all its users.
struct TestHub {
    server: PlainServer,
    agent: KeyPair,
    agent_in_links: KeyPair,
    /// A user of `LINKS` with every right: whoever owns the hub.
    owner: KeyPair,
    leaf: KeyPair,
    stolen: KeyPair,
    ann: KeyPair,
    /// The users' credentials by their keys, where the hub has a NATS operator.
    credentials: BTreeMap<String, String>,
    dir: tempfile::TempDir,
}

tokio::task_local! {
    /// In it a hub has a NATS operator, with the accounts as JWTs, in place of users with NKEYS in its configuration.
    static WITH_OPERATOR: ();
    /// In it a hub's port for leaf nodes has these settings of TLS.
    static WITH_TLS: String;
}

/// Returns a test with a hub that has a NATS operator.
fn trial_with_operator<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    trial_of(name, move || WITH_OPERATOR.scope((), test()))
}

impl TestHub {
    async fn start() -> anyhow::Result<Self> {
        Self::start_as("", "").await
    }

    /// Starts a hub where the leaf's user lacks the right to a subject.
    async fn start_without(subject: &str) -> anyhow::Result<Self> {
        Self::start_as(subject, "").await
    }

    /// Starts a hub where few of a leaf's events may wait to be stored.
    async fn start_that_is_soon_flooded() -> anyhow::Result<Self> {
        Self::start_as("", "max_buffered_msgs: 8").await
    }

    /// Starts a hub where the leaf's user lacks the right to a subject, with these settings of JetStream.
    async fn start_as(subject: &str, jetstream: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        if WITH_OPERATOR.try_with(|()| ()).is_ok() {
            return Self::start_with_operator(dir, subject, jetstream).await;
        }
        let [agent, agent_in_links, owner, leaf_key, stolen_key, ann_key] =
            [(); 6].map(|()| KeyPair::new_user());
        let users = HubUsers {
            agent: agent.public_key(),
            agent_in_links: agent_in_links.public_key(),
            leaves: vec![
                (leaf(), leaf_key.public_key()),
                (stolen(), stolen_key.public_key()),
            ],
            people: vec![(ann(), ann_key.public_key())],
        };
        let of_leaf = |line: &str| line.contains(&leaf_key.public_key());
        let of_agent = |line: &str| line.contains(&agent_in_links.public_key());
        let accounts: Vec<String> = users
            .accounts()
            .lines()
            .map(|line| {
                if of_leaf(line) {
                    let quoted = format!("\"{subject}\"");
                    line.replace(&format!("{quoted},"), "")
                        .replace(&format!(",{quoted}"), "")
                } else if of_agent(line) {
                    format!("      {{ nkey: {} }}\n{line}", owner.public_key())
                } else {
                    line.to_owned()
                }
            })
            .collect();
        let server = Self::serve(&dir, jetstream, &accounts.join("\n")).await?;
        Ok(Self {
            server,
            agent,
            agent_in_links,
            owner,
            leaf: leaf_key,
            stolen: stolen_key,
            ann: ann_key,
            credentials: BTreeMap::new(),
            dir,
        })
    }

    /// The same with a NATS operator: the users are those of the roles' keys.
    async fn start_with_operator(
        dir: tempfile::TempDir,
        subject: &str,
        jetstream: &str,
    ) -> anyhow::Result<Self> {
        let [operator, signer] = [(); 2].map(|()| NatsKey::new(KeyKind::Operator));
        let accounts = Account::ALL.map(|account| (account, NatsKey::new(KeyKind::Account).public_key()));
        let roles = Role::ALL.map(|role| (role, NatsKey::new(KeyKind::Account)));
        let fleet = Fleet {
            accounts: accounts.into(),
            roles: roles
                .iter()
                .map(|(role, key)| (*role, key.public_key()))
                .collect(),
        };
        let now = jiff::Timestamp::now().as_second();
        let mut credentials = BTreeMap::new();
        let mut user = |name: &str, account: Account, key: &NatsKey| -> anyhow::Result<KeyPair> {
            let user = new_user(name, fleet.account(account), key, now, now + 3600);
            let text = user.credentials.expose();
            let seed = text
                .lines()
                .find(|line| line.starts_with("SU"))
                .context("a seed")?;
            let pair = KeyPair::from_seed(seed)?;
            credentials.insert(user.key, text.to_owned());
            Ok(pair)
        };
        let mut of_role = |role: Role, name: &str| {
            let (_, key) = roles.iter().find(|(other, _)| *other == role).context("a role")?;
            user(name, role.account(), key)
        };
        let agent = of_role(Role::AgentInFleet, "hub")?;
        let agent_in_links = of_role(Role::AgentInLinks, "hub")?;
        let leaf_key = of_role(Role::Leaf, leaf().as_str())?;
        let stolen_key = of_role(Role::Leaf, stolen().as_str())?;
        let ann_key = of_role(Role::Person, ann().as_str())?;
        // A signing key that is not one of ours, and whose users may do everything.
        let of_owner = NatsKey::new(KeyKind::Account);
        let owner = user("owner", Account::Links, &of_owner)?;
        let everything = serde_json::json!({ "subs": -1, "data": -1, "payload": -1 });
        let scope = serde_json::json!({
            "kind": "user_scope", "key": of_owner.public_key(), "role": "owner", "template": everything,
        });
        let earlier = serde_json::json!({ "signing_keys": [scope] });
        let in_template: Vec<&str> = subject
            .split('.')
            .map(|token| {
                if token == leaf().as_str() {
                    "{{name()}}"
                } else {
                    token
                }
            })
            .collect();
        let in_template = in_template.join(".");
        let mut jwts = BTreeMap::new();
        for account in Account::ALL {
            let earlier = (account == Account::Links).then_some(&earlier);
            let mut claims = fleet.account_claims(account, &Revocations::default(), earlier);
            let keys = claims["signing_keys"].as_array_mut().into_iter().flatten();
            for key in keys.filter(|key| key.get("role") == Some(&"leaf".into())) {
                for part in ["/template/pub/allow", "/template/sub/allow"] {
                    let allowed = key.pointer_mut(part).and_then(serde_json::Value::as_array_mut);
                    allowed
                        .context("a list")?
                        .retain(|subject| *subject != in_template);
                }
            }
            let jwt = fleet.account_jwt(account, claims, now, &signer);
            jwts.insert(fleet.account(account).to_owned(), jwt);
        }
        let system = fleet.account(Account::System);
        let url = "nats://127.0.0.1:4222";
        let jwt = operator_jwt("fleet", &operator, &signer.public_key(), system, url, now);
        let resolver = dir.path().join("accounts").display().to_string();
        let server = Self::serve(&dir, jetstream, &server_config(&jwt, system, &resolver, &jwts)).await?;
        Ok(Self {
            server,
            agent,
            agent_in_links,
            owner,
            leaf: leaf_key,
            stolen: stolen_key,
            ann: ann_key,
            credentials,
            dir,
        })
    }

    async fn serve(dir: &tempfile::TempDir, jetstream: &str, accounts: &str) -> anyhow::Result<PlainServer> {
        let tls = WITH_TLS.try_with(Clone::clone).unwrap_or_default();
        let config = format!(
            "server_name: hub\njetstream {{ store_dir: \"{}\"\n{jetstream}\n}}\n\
             leafnodes {{ listen: \"127.0.0.1:-1\", isolate_leafnode_interest: true\n{tls} }}\n{accounts}",
            dir.path().join("jetstream").display(),
        );
        PlainServer::start(dir.path(), &config).await
    }

    async fn connect(&self, key: &KeyPair, caller: &Caller) -> anyhow::Result<Client> {
        let prefix = subject::inbox_prefix(caller);
        match self.credentials.get(&key.public_key()) {
            None => connect_with(&self.server.url(), key, &prefix).await,
            Some(credentials) => async_nats::ConnectOptions::with_credentials(credentials)?
                .custom_inbox_prefix(&prefix)
                .connect(self.server.url())
                .await
                .with_context(|| format!("connecting as {prefix}")),
        }
    }

    async fn ann(&self) -> anyhow::Result<Client> {
        self.connect(&self.ann, &ann()).await
    }

    async fn owner(&self) -> anyhow::Result<Client> {
        self.connect(&self.owner, &hub_caller()).await
    }

    async fn agent(&self) -> anyhow::Result<Client> {
        self.connect(&self.agent, &hub_caller()).await
    }

    /// The agent's side of the hub.
    async fn keeper(&self) -> anyhow::Result<leaf_bus::hub::Hub> {
        use leaf_bus::connect::{ConnectSettings, Credentials};
        let settings = |key: &KeyPair| -> anyhow::Result<_> {
            Ok(ConnectSettings {
                credentials: Credentials::in_file(&self.user_file(key)?),
                inbox_prefix: subject::inbox_prefix(&hub_caller()),
                ..ConnectSettings::new(&self.server.url())
            })
        };
        let hub =
            leaf_bus::hub::Hub::connect(&settings(&self.agent)?, &settings(&self.agent_in_links)?).await?;
        hub.connected().await;
        Ok(hub)
    }

    /// Makes the hub's streams as the agent does: the copies of both leaves take the events of [`instance`].
    async fn with_streams(&self) -> anyhow::Result<()> {
        let hub = self.keeper().await?;
        hub.registry().await?;
        hub.state_copy().await?;
        for leaf in [leaf(), stolen()] {
            let copy = hub.copy(&leaf, 1 << 20);
            copy.begin(1).await?;
            copy.admit(instance(), 0).await?;
        }
        Ok(())
    }

    async fn agent_in_links(&self) -> anyhow::Result<Client> {
        self.connect(&self.agent_in_links, &hub_caller()).await
    }

    fn leaf_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.server.leaf_port.unwrap_or_default())
    }

    /// Writes a key's seed, or the credentials of its user, into a file, and returns its path.
    fn user_file(&self, key: &KeyPair) -> anyhow::Result<std::path::PathBuf> {
        let path = self.dir.path().join(key.public_key());
        match self.credentials.get(&key.public_key()) {
            None => std::fs::write(&path, key.seed()?)?,
            Some(credentials) => std::fs::write(&path, credentials)?,
        }
        Ok(path)
    }
}

async fn connect_with(url: &str, key: &KeyPair, inbox_prefix: &str) -> anyhow::Result<Client> {
    async_nats::ConnectOptions::with_nkey(key.seed()?)
        .custom_inbox_prefix(inbox_prefix)
        .connect(url)
        .await
        .with_context(|| format!("connecting as {inbox_prefix}"))
}

/// The server of the leaf that is not stolen, connected to the hub.
struct LinkedLeaf {
    identity: Identity,
    server: EmbeddedServer,
    dir: tempfile::TempDir,
}

impl LinkedLeaf {
    async fn start(hub: &TestHub) -> anyhow::Result<Self> {
        Box::pin(Self::start_at(hub.leaf_url(), hub.user_file(&hub.leaf)?)).await
    }

    /// Starts it with a hub at this address, and this file with the seed of its user there.
    async fn start_at(hub_url: String, credentials: std::path::PathBuf) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity =
            Identity::open_or_create(&dir.path().join("identity"), &leaf())?.of_instance(instance());
        let settings = EmbeddedSettings {
            hub: Some(Hub {
                urls: vec![hub_url],
                credentials,
                ca: None,
            }),
            ..settings(dir.path())
        };
        let server = EmbeddedServer::start(settings, &identity).await?;
        Ok(Self {
            identity,
            server,
            dir,
        })
    }

    /// The daemon's user in the streams' account.
    async fn keeper(&self) -> anyhow::Result<Client> {
        self.connect(&self.identity.leaf_credentials(), "_INBOX.leafd")
            .await
    }

    /// The daemon's user in the callers' account.
    async fn service(&self) -> anyhow::Result<Client> {
        self.connect(&self.identity.service_credentials(), "_INBOX.leafd")
            .await
    }

    /// The daemon's user in the account of the connection.
    async fn claimant(&self) -> anyhow::Result<Client> {
        let prefix = subject::leaf_inbox_prefix(&leaf());
        self.connect(&self.identity.claimant_credentials(), &prefix).await
    }

    /// What leafd takes commands with, from its own people and from the hub.
    async fn takes_commands(&self) -> anyhow::Result<Server> {
        let user = |secret| ConnectSettings {
            credentials: Credentials::Text(secret),
            inbox_prefix: "_INBOX.leafd".to_owned(),
            ..ConnectSettings::new(&self.server.client_url())
        };
        let bus = Bus::connect(&user(self.identity.service_credentials())).await?;
        bus.connected().await;
        let info = ServiceInfo {
            leaf: leaf(),
            id: uuid::Uuid::from_u128(9),
            version: "0.0.0".to_owned(),
            description: "a test".to_owned(),
        };
        let mut server = Server::start(&bus, info).await?;
        let hub = HubLink::open(&user(self.identity.claimant_credentials()), &leaf()).await?;
        server.take_from_hub(&hub).await?;
        Ok(server)
    }

    /// A user in the streams' account, or in the callers', who hears everything.
    async fn listener(&self, in_streams: bool) -> anyhow::Result<Client> {
        let all = Permissions {
            publish: vec![">".to_owned()],
            subscribe: vec![">".to_owned()],
            ..Permissions::default()
        };
        let name = Caller::new("listener")?;
        let credentials = if in_streams {
            self.identity.trusted_credentials(&name, &all)
        } else {
            self.identity.user_credentials(&name, &all)
        };
        self.connect(&credentials, "_INBOX.listener").await
    }

    async fn connect(
        &self,
        credentials: &leaf_core::host_op::Secret,
        prefix: &str,
    ) -> anyhow::Result<Client> {
        Ok(async_nats::ConnectOptions::new()
            .credentials(credentials.expose())?
            .custom_inbox_prefix(prefix)
            .connect(self.server.client_url())
            .await?)
    }

    /// Creates the streams as leafd does.
    async fn with_streams(&self) -> anyhow::Result<Client> {
        use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
        use leaf_bus::kv::StateBucket;
        use leaf_bus::stream::{EventStream, StreamSettings};
        let settings = |credentials| ConnectSettings {
            credentials: Credentials::Text(credentials),
            inbox_prefix: "_INBOX.leafd".to_owned(),
            ..ConnectSettings::new(&self.server.client_url())
        };
        let bus = Bus::connect_apart(
            &settings(self.identity.service_credentials()),
            &settings(self.identity.leaf_credentials()),
        )
        .await?;
        bus.connected().await;
        EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
        StateBucket::ensure(&bus, &leaf()).await?;
        self.keeper().await
    }
}

/// The streams of a hub that a thief must not write into. The copy of the stolen leaf's own events takes what it sends.
const STREAMS: [&str; 5] = ["EVENTS_edge", "LEASES", "KV_leaf_state", "KV_fleet", "FLEET"];

/// Makes sure that nobody has written into the streams of the hub, or into those of the leaf.
async fn nothing_stored(agent: &Client, keeper: &Client) -> anyhow::Result<()> {
    let of_leaf = ["EVENTS_edge", "KV_leaf_state"].map(|name| ("of the leaf", name, keeper));
    let of_hub = STREAMS.map(|name| ("at the hub", name, agent));
    for (whose, name, client) in of_hub.into_iter().chain(of_leaf) {
        let js = async_nats::jetstream::new(client.clone());
        let info = js.get_stream(name).await?.get_info().await?;
        anyhow::ensure!(info.state.messages == 0, "{name} {whose} has {:?}", info.state);
    }
    Ok(())
}

/// Waits until the hub hears the leaf: the connection is there and the interest in what the leaf sends is known to it.
async fn until_linked(hub: &TestHub, leaf_server: &LinkedLeaf) -> anyhow::Result<()> {
    let owner = hub.owner().await?;
    let beat = subject::beat(&leaf());
    let mut beats = owner.subscribe(beat.clone()).await?;
    owner.flush().await?;
    until_heard(&leaf_server.keeper().await?, &beat, &mut beats).await
}

/// Sends a message on a subject until a subscription hears one there. Interest crosses a connection in the order of the
/// subscriptions, so that by then all that were made before this one on its side are known on the other.
async fn until_heard(
    sender: &Client,
    subject: &str,
    subscription: &mut async_nats::Subscriber,
) -> anyhow::Result<()> {
    use futures::StreamExt as _;
    let heard = async {
        loop {
            sender.publish(subject.to_owned(), "until heard".into()).await?;
            sender.flush().await?;
            let pause = tokio::time::sleep(Duration::from_millis(50));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    message = subscription.next() => {
                        if message.context("the subscription ended")?.subject.as_str() == subject {
                            return anyhow::Ok(());
                        }
                    }
                    () = &mut pause => break,
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, heard)
        .await
        .with_context(|| format!("waiting for {subject} to be heard"))?
}

/// Returns the subjects of all messages that a subscription has by now.
async fn heard(subscription: &mut async_nats::Subscriber) -> Vec<String> {
    use futures::StreamExt as _;
    let mut subjects = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(QUIET, subscription.next()).await {
        subjects.push(message.subject.to_string());
    }
    subjects
}
