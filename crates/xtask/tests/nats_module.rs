//! What the NixOS module of the NATS server renders, held against nats-server itself: it reads each sample, and serves as
//! the options say. The Nix side evaluates without nixpkgs.
//!
//! Without nats-server or nix-instantiate every test counts as ignored.

#![expect(clippy::print_stderr, reason = "a program, which speaks to whoever runs it")]

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use leaf_bus::embedded::NatsServer;
use leaf_bus::identity::{Identity, Permissions};
use leaf_core::id::{Caller, LeafName};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// The longest that a wait for a state may take.
const LIMIT: Duration = Duration::from_secs(30);
const SAMPLES: &str = "samples.nix";
/// Whole systems, evaluated with the real NixOS modules, of which the variable names a tree.
const SYSTEMS: &str = "../eval-nats.nix";
const NIXPKGS: &str = "NIXPKGS";

fn main() -> ExitCode {
    let missing = runtime().block_on(async {
        NatsServer::find(None).await.map_err(|e| e.to_string())?;
        let nix = Command::new("nix-instantiate").arg("--version").output().await;
        nix.map(|_| ())
            .map_err(|e| format!("can't run nix-instantiate: {e}"))
    });
    let mut trials = vec![
        trial(
            "nats_server_accepts_every_configuration_that_the_module_renders",
            accepts_every_sample,
        ),
        trial(
            "nats_server_refuses_a_setting_that_it_does_not_know",
            refuses_unknown_settings,
        ),
        trial(
            "a_leafs_server_listens_on_its_one_address_and_on_nothing_else",
            listens_on_one_address,
        ),
        trial(
            "a_leafs_server_takes_nobody_without_credentials_nor_with_those_of_another_operator",
            takes_nobody_without_credentials,
        ),
        trial(
            "jetstream_is_in_the_leafs_domain_and_within_its_limits",
            jetstream_has_domain_and_limits,
        ),
        trial(
            "monitoring_is_reachable_on_the_loopback_where_it_is_wanted",
            monitoring_on_the_loopback,
        ),
        trial(
            "a_server_that_learns_at_its_start_who_it_is_does_not_start_without_that",
            identity_from_the_host,
        ),
        trial(
            "a_client_without_a_certificate_is_refused_where_certificates_are_verified",
            verifies_certificates,
        ),
        trial(
            "messages_cross_between_leaf_and_hub_and_those_of_object_buckets_do_not",
            objects_stay_where_they_are,
        ),
    ];
    let systems = trial(
        "the_build_step_of_each_evaluated_system_accepts_its_configuration_and_no_wrong_one",
        build_step_of_systems,
    );
    let has_openssl = std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_ok();
    let can_evaluate = std::env::var_os(NIXPKGS).is_some() && has_openssl;
    if !can_evaluate {
        eprintln!(
            "the build step of systems is skipped: it takes openssl, and {NIXPKGS}, a tree with nixpkgs' lib/ and nixos/"
        );
    }
    trials.push(systems.with_ignored_flag(!can_evaluate));
    if let Err(why) = missing {
        eprintln!("tests of the NATS server's module are skipped: {why}");
        trials = trials.into_iter().map(|t| t.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn trial<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    Trial::test(name, move || {
        match runtime().block_on(async { timeout(4 * LIMIT, test()).await }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(format!("{e:?}").into()),
            Err(_) => Err("it did not end".into()),
        }
    })
}

/// Authorities that server and clients show certificates of.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Writes a certificate for this name to `NAME.pem` and its key to `NAME.key`.
    fn issue(&self, folder: &Path, file: &str, name: &str) -> anyhow::Result<()> {
        let key = rcgen::KeyPair::generate()?;
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?;
        fs::write(folder.join(format!("{file}.pem")), cert.pem())?;
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }
}

/// A machine with a server's credentials in a folder and an address of its own on the loopback.
struct Site {
    folder: tempfile::TempDir,
    identity: Identity,
    address: Ipv4Addr,
    given: Value,
}

impl Site {
    fn new(name: &str, authority: &Authority) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("nats-module-").tempdir()?;
        let identity = Identity::open_or_create(&folder.path().join("identity"), &LeafName::new(name)?)?;
        // Any address of 127.0.0.0/8 is this machine's, so each site has one of its own.
        let [.., a, b, c] = uuid::Uuid::now_v7().into_bytes();
        let address = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));

        let path = |file: &str| folder.path().join(file);
        // `operator: JWT`, `system_account: KEY`, and the accounts: what a host keeps in two files.
        let config = identity.server_config();
        let (operator, accounts) = config.split_once('\n').context("a line of the operator")?;
        let operator = operator
            .strip_prefix("operator: ")
            .context("the operator's JWT")?;
        fs::write(path("operator.jwt"), operator)?;
        fs::write(path("accounts.conf"), accounts)?;
        let caller = Caller::new("hub-user")?;
        let everything = Permissions {
            publish: vec![">".to_owned()],
            subscribe: vec![">".to_owned()],
            ..Permissions::default()
        };
        let everybody = identity.user_credentials(&caller, &everything);
        fs::write(path("user.creds"), everybody.expose())?;
        fs::write(path("ca.pem"), authority.issuer.pem())?;
        authority.issue(folder.path(), "tls", &address.to_string())?;
        authority.issue(folder.path(), "hub", "leaf")?;

        let jwts: BTreeMap<&str, &str> = accounts
            .lines()
            .filter_map(|line| line.trim().split_once(": "))
            .filter(|(key, _)| key.len() == 56 && key.starts_with('A'))
            .collect();
        let system = accounts
            .lines()
            .find_map(|line| line.strip_prefix("system_account: "));
        let given = json!({
            "folder": folder.path(),
            "system": system.context("the system account")?,
            "account": identity.account(),
            "accounts": jwts,
            "address": address,
            "port": free_port(address)?,
            "leafnodesPort": free_port(address)?,
            "monitoringPort": free_port(Ipv4Addr::LOCALHOST)?,
            "hub": "tls://hub.example:7422",
            "ca": path("ca.pem"),
        });
        Ok(Self {
            folder,
            identity,
            address,
            given,
        })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn url(&self) -> String {
        format!("nats://{}:{}", self.address, self.given["port"])
    }

    fn socket(&self) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(
            self.address.into(),
            serde_json::from_value(self.given["port"].clone())?,
        ))
    }

    /// Evaluates the samples for this site, and writes each to a file.
    async fn render(&self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let given = ["--argstr".to_owned(), "given".to_owned(), self.given.to_string()];
        let samples: BTreeMap<String, String> = serde_json::from_value(evaluate(SAMPLES, &given).await?)?;
        samples
            .into_iter()
            .map(|(name, text)| {
                let file = self.path(&format!("{name}.conf"));
                fs::write(&file, text)?;
                Ok((name, file))
            })
            .collect()
    }

    /// Starts a server with this sample, and returns when it takes connections.
    async fn start(&self, sample: &str) -> anyhow::Result<Server> {
        let samples = self.render().await?;
        let log = self.path("nats-server.log");
        let mut command = nats_server().await?;
        let child = command
            .arg("-c")
            .arg(samples.get(sample).context("no such sample")?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let mut server = Server { child, log };
        let socket = self.socket()?;
        wait_for("connections to be taken", async || {
            if let Some(status) = server.child.try_wait()? {
                bail!(
                    "nats-server ended with {status}: {}",
                    fs::read_to_string(&server.log)?
                );
            }
            Ok(tokio::net::TcpStream::connect(socket).await.ok())
        })
        .await?;
        Ok(server)
    }

    /// Connects as a user who may everything, with the authorities and certificates that are here.
    async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        let options = async_nats::ConnectOptions::new()
            .credentials_file(self.path("user.creds"))
            .await?;
        self.connect_with(options).await
    }

    async fn connect_with(&self, options: async_nats::ConnectOptions) -> anyhow::Result<async_nats::Client> {
        let client = options
            .add_root_certificates(self.path("ca.pem"))
            .connect(self.url())
            .await?;
        Ok(client)
    }
}

/// A running nats-server; dropping it kills it.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// The addresses that the server's process listens on.
    fn listeners(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id().context("it has ended")?));
        let sockets: Vec<String> = fs::read_dir(process.join("fd"))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|target| {
                Some(
                    target
                        .to_str()?
                        .strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .to_owned(),
                )
            })
            .collect();
        let mut listeners = Vec::new();
        for table in ["net/tcp", "net/tcp6"] {
            let table = fs::read_to_string(process.join(table)).unwrap_or_default();
            for line in table.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [_, local, _, state, ..] = fields[..] else {
                    continue;
                };
                if state == "0A"
                    && fields
                        .get(9)
                        .is_some_and(|inode| sockets.iter().any(|s| s == inode))
                {
                    listeners.push(parse_socket(local).with_context(|| format!("understand {local}"))?);
                }
            }
        }
        Ok(listeners)
    }
}

/// Reads an IPv4 address and port of `/proc/net/tcp` (proc(5)): in hexadecimal, the address in the machine's byte order. One
/// of IPv6 counts as unspecified, since no sample has any.
fn parse_socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match u32::from_str_radix(address, 16) {
        Ok(address) => Ipv4Addr::from(address.to_ne_bytes()),
        Err(_) => Ipv4Addr::UNSPECIFIED,
    };
    Some(SocketAddr::new(address.into(), port))
}

async fn nats_server() -> anyhow::Result<Command> {
    let mut command = Command::new(NatsServer::find(None).await?.path);
    command.kill_on_drop(true);
    Ok(command)
}

async fn check(file: &Path) -> anyhow::Result<Output> {
    Ok(nats_server()
        .await?
        .arg("-t")
        .arg("-c")
        .arg(file)
        .output()
        .await?)
}

/// Evaluates an expression of `tests/nix/nats`, to JSON.
async fn evaluate(file: &str, arguments: &[String]) -> anyhow::Result<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/nix/nats");
    let output = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json"])
        .arg(folder.join(file))
        .args(arguments)
        // Debian's nix names a group of build users that it doesn't make.
        .args(["--option", "build-users-group", ""])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn free_port(address: Ipv4Addr) -> anyhow::Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

/// Asks until there is an answer.
async fn wait_for<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let found = timeout(LIMIT, async {
        loop {
            if let Some(found) = ask().await? {
                return anyhow::Ok(found);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    found
        .await
        .with_context(|| format!("waited in vain for {what}"))?
}

async fn accepts_every_sample() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let samples = site.render().await?;
    assert!(samples.len() >= 7, "{samples:?}");
    for (name, file) in samples {
        let output = check(&file).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(said.contains("is valid"), "{name}: {said}");
    }
    Ok(())
}

async fn refuses_unknown_settings() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let file = &site.render().await?["leaf"];
    fs::write(file, fs::read_to_string(file)? + "ping_intervall: \"2s\"\n")?;
    let output = check(file).await?;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ping_intervall"), "{said}");
    Ok(())
}

async fn listens_on_one_address() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let server = site.start("leaf").await?;
    assert_eq!(server.listeners()?, [site.socket()?]);
    let elsewhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), site.socket()?.port());
    let refused = tokio::net::TcpStream::connect(elsewhere).await;
    assert!(refused.is_err(), "it listens on {elsewhere} as well");
    Ok(())
}

async fn takes_nobody_without_credentials() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let (site, other) = (Site::new("edge", &authority)?, Site::new("other", &authority)?);
    let _server = site.start("leaf").await?;
    let anonymous = site.connect_with(async_nats::ConnectOptions::new()).await;
    let error = format!("{:#}", anonymous.err().context("an anonymous client was let in")?);
    assert!(error.contains("authorization"), "{error}");
    let stranger = async_nats::ConnectOptions::new()
        .credentials_file(other.path("user.creds"))
        .await?;
    let stranger = site.connect_with(stranger).await;
    let error = format!("{:#}", stranger.err().context("a stranger was let in")?);
    assert!(error.contains("authorization"), "{error}");
    site.connect().await?.flush().await?;
    Ok(())
}

async fn jetstream_has_domain_and_limits() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let _server = site.start("full_resolver").await?;
    // The same name as the leaf's: `nats-values.nix` says so.
    let context = async_nats::jetstream::with_domain(site.connect().await?, "edge-1");
    let config = |max_bytes| async_nats::jetstream::stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        max_bytes,
        ..Default::default()
    };
    let beyond = context.create_stream(config(17 << 20)).await;
    assert!(beyond.is_err(), "a stream beyond max_file_store was made");
    context.create_stream(config(1 << 20)).await?;
    context.publish("s.1", "x".into()).await?.await?;
    assert!(site.path("data/jetstream").is_dir());
    assert!(site.path("data/accounts").is_dir());
    Ok(())
}

async fn monitoring_on_the_loopback() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let server = site.start("durable_and_monitored").await?;
    let port = serde_json::from_value(site.given["monitoringPort"].clone())?;
    let mut expected = vec![site.socket()?, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)];
    let mut listeners = server.listeners()?;
    listeners.sort();
    expected.sort();
    assert_eq!(listeners, expected);
    Ok(())
}

async fn identity_from_the_host() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    for missing in ["operator.jwt", "accounts.conf"] {
        let (here, away) = (site.path(missing), site.path("away"));
        fs::rename(&here, &away)?;
        let error = site.start("of_the_host").await.err();
        let error = format!(
            "{:#}",
            error.with_context(|| format!("it started without {missing}"))?
        );
        assert!(error.contains(missing), "{error}");
        fs::rename(&away, &here)?;
    }
    let server = site.start("of_the_host").await?;
    assert_eq!(server.listeners()?, [site.socket()?]);
    let certificate = |options: async_nats::ConnectOptions| {
        options.add_client_certificate(site.path("hub.pem"), site.path("hub.key"))
    };
    let anonymous = site
        .connect_with(certificate(async_nats::ConnectOptions::new()))
        .await;
    let error = format!("{:#}", anonymous.err().context("an anonymous client was let in")?);
    assert!(error.contains("authorization"), "{error}");
    let admin = async_nats::ConnectOptions::new()
        .credentials(site.identity.admin_credentials().expose())?
        .custom_inbox_prefix("_INBOX.admin");
    site.connect_with(certificate(admin)).await?.flush().await?;
    Ok(())
}

async fn verifies_certificates() -> anyhow::Result<()> {
    let site = Site::new("hub", &Authority::new()?)?;
    let server = site.start("hub").await?;
    site.connect()
        .await
        .err()
        .context("a client without a certificate was let in")?;
    wait_for("the server's word on the client", async || {
        let log = fs::read_to_string(&server.log)?;
        Ok(log.contains("client didn't provide a certificate").then_some(()))
    })
    .await
}

async fn objects_stay_where_they_are() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let hub = Site::new("hub", &authority)?;
    let mut leaf = Site::new("edge", &authority)?;
    let hub_server = hub.start("hub").await?;
    assert_eq!(hub_server.listeners()?.len(), 2);
    leaf.given["hub"] = format!("tls://{}:{}", hub.address, hub.given["leafnodesPort"]).into();
    // The leaf's user at the hub.
    fs::copy(hub.path("user.creds"), leaf.path("hub.creds"))?;
    let _leaf_server = leaf.start("connected").await?;

    let certified = async_nats::ConnectOptions::new()
        .credentials_file(hub.path("user.creds"))
        .await?
        .add_client_certificate(leaf.path("hub.pem"), leaf.path("hub.key"));
    let at_hub = hub.connect_with(certified).await?;
    let at_leaf = leaf.connect().await?;

    // Each direction: what is published at one side arrives at the other in its order, so nothing is still under way when
    // the last message has arrived.
    for (from, to, never) in [
        (&at_leaf, &at_hub, vec!["$O.bucket.C.x", "private.x"]),
        (&at_hub, &at_leaf, vec!["$O.bucket.C.x"]),
    ] {
        let mut all = to.subscribe(">").await?;
        to.flush().await?;
        wait_for("the leaf's connection to its hub", async || {
            from.publish("free.first", "x".into()).await?;
            from.flush().await?;
            Ok(timeout(Duration::from_millis(100), all.next()).await.ok())
        })
        .await?;
        for subject in &never {
            from.publish((*subject).to_owned(), "x".into()).await?;
        }
        from.publish("free.last", "x".into()).await?;
        loop {
            let message = timeout(LIMIT, all.next())
                .await?
                .context("the subscription ended")?;
            assert!(
                !never.contains(&message.subject.as_str()),
                "{} crossed",
                message.subject
            );
            if message.subject.as_str() == "free.last" {
                break;
            }
        }
    }
    Ok(())
}

/// Runs the builders' scripts of the configurations as Nix would, with the nats-server that is here.
async fn build_step_of_systems() -> anyhow::Result<()> {
    let program = NatsServer::find(None).await?.path;
    let evaluated = evaluate(SYSTEMS, &[]).await?;
    let units = evaluated["units"].as_object().context("the units by name")?;
    assert!(units.len() >= 3, "{units:?}");
    for (name, unit) in units {
        let text = |field: &str| unit[field].as_str().with_context(|| format!("{field} of {name}"));
        // Evaluation puts nothing into the store.
        let script = text("check")?
            .split_inclusive(char::is_whitespace)
            .map(|word| match word.strip_suffix(' ') {
                Some(word) if word.ends_with("/bin/nats-server") => format!("{} ", program.display()),
                _ => word.to_owned(),
            })
            .collect::<String>();
        let here = |text: &str| match text.split_once("operator: \"/nix/store/") {
            Some((before, rest)) => {
                let (_, after) = rest.split_once('"').context("the end of a path")?;
                let operator = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/nix/nats/operator.jwt");
                anyhow::Ok(format!("{before}operator: \"{operator}\"{after}"))
            }
            None => Ok(text.to_owned()),
        };
        let checked = here(text("checked")?)?;
        let accepted = build(&script, text("settings")?, &checked).await?;
        let said = String::from_utf8_lossy(&accepted.stderr);
        assert!(
            accepted.status.success() && said.contains("is valid"),
            "{name}: {said}"
        );
        let wrong = checked.replace("max_payload: ", "max_payload: \"a lot\" #");
        assert_ne!(wrong, checked);
        let refused = build(&script, &wrong, &wrong).await?;
        assert!(
            !refused.status.success(),
            "{name}: a wrong configuration was built"
        );
    }
    Ok(())
}

async fn build(script: &str, text: &str, checked: &str) -> anyhow::Result<Output> {
    let folder = tempfile::tempdir()?;
    let (text_file, checked_file) = (folder.path().join("text"), folder.path().join("checked"));
    fs::write(&text_file, text)?;
    fs::write(&checked_file, checked)?;
    let out = folder.path().join("out");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("textPath", &text_file)
        .env("checkedPath", &checked_file)
        .env("out", &out)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        fs::read_to_string(out)? == text,
        "what was built is not what was rendered"
    );
    Ok(output)
}
