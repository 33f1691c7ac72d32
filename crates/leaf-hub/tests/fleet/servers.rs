//! NATS servers of their own: a hub, leaves that connect to it, and links between them that can be cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use leaf_bus::embedded::NatsServer;
use leaf_bus::identity::HubUsers;
use leaf_core::id::InstanceId;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// A server's process, which ends with it.
pub(crate) struct Server {
    program: PathBuf,
    config: PathBuf,
    pub(crate) port: u16,
    process: Option<Child>,
}

impl Server {
    pub(crate) async fn start(program: &Path, config: PathBuf, port: u16) -> anyhow::Result<Self> {
        let mut server = Self {
            program: program.to_owned(),
            config,
            port,
            process: None,
        };
        server.start_again().await?;
        Ok(server)
    }

    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.config.with_extension("log"))?;
        let process = Command::new(&self.program)
            .arg("-c")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.process = Some(process);
        let listens = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START, listens)
            .await
            .with_context(|| format!("{} does not start", self.config.display()))
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Ends it as a power cut does.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }
}

/// The program that the tests use for hubs, and for leaves unless they say otherwise.
pub(crate) async fn program() -> anyhow::Result<PathBuf> {
    Ok(NatsServer::find(None).await?.path)
}

/// A port that nothing listens on.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The configuration of a hub's server, with these accounts.
pub(crate) fn hub_config(directory: &Path, port: u16, leaf_port: u16, users: &HubUsers) -> String {
    format!(
        "server_name: hub\nhost: 127.0.0.1\nport: {port}\njetstream {{ store_dir: \"{}\" }}\n\
         leafnodes {{ host: 127.0.0.1, port: {leaf_port}, advertise: \"127.0.0.1:1\", isolate_leafnode_interest: true }}\n{}",
        directory.join("hub-js").display(),
        users.accounts()
    )
}

/// A leaf's end of the connection.
pub(crate) struct LeafEnd {
    pub(crate) leaf: String,
    /// The name of its server.
    pub(crate) server: String,
    pub(crate) port: u16,
    pub(crate) hub: SocketAddr,
    /// The seed of its user at the hub.
    pub(crate) seed: String,
}

/// Makes the configuration of a leaf's server, for the instance of leafd that runs it.
pub(crate) fn leaf_config(directory: &Path, end: &LeafEnd, instance: InstanceId) -> String {
    let LeafEnd {
        leaf,
        server,
        port,
        hub,
        seed,
    } = end;
    format!(
        r#"server_name: {server}
host: 127.0.0.1
port: {port}
jetstream {{ store_dir: "{}" }}
system_account: SYS
accounts {{
  SYS {{ users: [{{user: sys, password: sys}}] }}
  LEAF {{ jetstream: enabled
    users: [{{user: leafd, password: x}}]
    exports: [
      {{service: "$JS.API.STREAM.INFO.*"}}, {{service: "$JS.API.DIRECT.GET.>", response_type: stream}}
      {{stream: "leaf.v1.evt.>"}}, {{stream: "leaf.v1.beat.*"}}, {{stream: "leaf.v1.state.>"}}
    ]
  }}
  LINK {{
    users: [{{user: link, password: x}}]
    imports: [
      {{service: {{account: LEAF, subject: "$JS.API.STREAM.INFO.EVENTS_{leaf}"}}, to: "leaf.v1.link.{leaf}.{instance}.events.info"}}
      {{service: {{account: LEAF, subject: "$JS.API.DIRECT.GET.EVENTS_{leaf}"}}, to: "leaf.v1.link.{leaf}.{instance}.events.get"}}
      {{service: {{account: LEAF, subject: "$JS.API.STREAM.INFO.KV_leaf_state"}}, to: "leaf.v1.link.{leaf}.{instance}.state.info"}}
      {{service: {{account: LEAF, subject: "$JS.API.DIRECT.GET.KV_leaf_state"}}, to: "leaf.v1.link.{leaf}.{instance}.state.get"}}
      {{stream: {{account: LEAF, subject: "leaf.v1.evt.{leaf}.>"}}, to: "leaf.v1.up.{leaf}.{instance}.>"}}
      {{stream: {{account: LEAF, subject: "leaf.v1.beat.{leaf}"}}}}
      {{stream: {{account: LEAF, subject: "leaf.v1.state.{leaf}.>"}}}}
    ]
  }}
}}
leafnodes {{ reconnect: 1, remotes: [ {{urls: ["nats://{hub}"], nkey: {seed}, account: LINK}} ] }}
"#,
        directory.join(format!("{server}-js")).display()
    )
}

/// A connection between servers that can be cut.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    whole: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let whole = watch::Sender::new(true);
        let state = whole.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let mut state = state.clone();
                if !*state.borrow_and_update() {
                    continue;
                }
                connections.spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let (mut near, mut far) = (near, far);
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Ok(Self {
            address,
            whole,
            _tasks: tasks,
        })
    }

    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

/// Waits until something is so.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if tokio::time::Instant::now() >= end {
            bail!("within {limit:?} it is not so that {what}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
