//! The accounts and users of `docs/nats.md`, made as it says, have the rights that they must have.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::identity::{ContainerSigner, daemon_caller};
use leaf_bus::rights::{self, Action, Finding, Found, ScopeError, Users};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use libtest_mimic::Trial;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::plain::PlainServer;
use crate::support::trial;

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "the_documented_configuration_of_a_server_gives_every_right",
            configuration,
        ),
        trial(
            "without_one_line_of_the_documented_configuration_what_it_gives_is_missing",
            without_a_line,
        ),
        trial("the_documented_commands_of_nsc_give_every_right", nsc),
        trial("a_signing_key_without_its_scope_is_refused", unscoped),
    ]
}

fn leaf() -> LeafName {
    LeafName::new("edge-1").expect("a leaf's name")
}

fn alice() -> Caller {
    Caller::new("alice").expect("a caller")
}

/// Returns the fenced block of the document whose first line begins like this.
fn block(begins: &str) -> anyhow::Result<String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/nats.md");
    let text = std::fs::read_to_string(document)?;
    let mut blocks = text.split("\n```").skip(1).step_by(2);
    let block = blocks.find_map(|block| {
        let (_, body) = block.split_once('\n')?;
        body.starts_with(begins).then(|| format!("{body}\n"))
    });
    block.with_context(|| format!("docs/nats.md has no block that begins with {begins:?}"))
}

fn user(url: &str, credentials: Credentials, caller: &Caller) -> ConnectSettings {
    ConnectSettings {
        credentials,
        inbox_prefix: subject::inbox_prefix(caller),
        ..ConnectSettings::new(url)
    }
}

fn seed(key: &KeyPair) -> anyhow::Result<String> {
    Ok(key.seed()?)
}

/// Makes the bucket that a leaf makes at its first start.
async fn make_bucket(streams: &ConnectSettings) -> anyhow::Result<()> {
    let options = match &streams.credentials {
        Credentials::NkeyFile(file) => {
            async_nats::ConnectOptions::with_nkey(std::fs::read_to_string(file)?.trim().to_owned())
        }
        Credentials::Text(text) => async_nats::ConnectOptions::new().credentials(text.expose())?,
        other => bail!("{other:?}"),
    };
    let client = options
        .custom_inbox_prefix(&streams.inbox_prefix)
        .connect(streams.servers.join(","))
        .await?;
    async_nats::jetstream::new(client)
        .create_key_value(async_nats::jetstream::kv::Config {
            bucket: subject::STATE_BUCKET.to_owned(),
            ..Default::default()
        })
        .await?;
    Ok(())
}

async fn findings(users: &Users) -> Vec<Finding> {
    rights::check(&leaf(), users).await.findings
}

/// Fails unless everything was tried and is as it must be.
fn is_right(findings: &[Finding]) -> anyhow::Result<()> {
    let other: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.ok || finding.found == Found::Untried)
        .collect();
    ensure!(other.is_empty(), "{other:#?}");
    Ok(())
}

/// A server with the configuration of the document, and its users.
struct Configured {
    _server: PlainServer,
    _dir: tempfile::TempDir,
    users: Users,
}

/// Starts one; `change` changes the text.
async fn configured(change: impl Fn(String) -> String) -> anyhow::Result<Configured> {
    let dir = tempfile::tempdir()?;
    let mut text = String::new();
    let mut files = BTreeMap::new();
    for name in ["STREAMS", "CALLERS_LEAFD", "ALICE"] {
        let key = KeyPair::new_user();
        text += &format!("{name}: \"{}\"\n", key.public_key());
        let file = dir.path().join(name);
        std::fs::write(&file, format!("{}\n", seed(&key)?))?;
        files.insert(name, Credentials::in_file(&file));
    }
    ensure!(
        files
            .values()
            .all(|file| matches!(file, Credentials::NkeyFile(_))),
        "{files:?}"
    );
    let documented = change(block("# nats-server: the two accounts of edge-1")?);
    // The document says nothing of where the streams are.
    let store = format!("jetstream: {{ store_dir: {:?} }}", dir.path().join("store"));
    text += &documented.replacen("jetstream: enabled", &store, 1);
    let server = PlainServer::start(dir.path(), &text).await?;
    let url = server.url();
    let mut of = |name, caller: &Caller| user(&url, files.remove(name).expect("one of the three"), caller);
    let users = Users {
        streams: Some(of("STREAMS", &daemon_caller())),
        callers: Some(of("CALLERS_LEAFD", &daemon_caller())),
        person: Some((alice(), of("ALICE", &alice()))),
        container: None,
    };
    Ok(Configured {
        _server: server,
        _dir: dir,
        users,
    })
}

async fn configuration() -> anyhow::Result<()> {
    let site = configured(|text| text).await?;
    make_bucket(site.users.streams.as_ref().context("set above")?).await?;
    is_right(&findings(&site.users).await)
}

async fn without_a_line() -> anyhow::Result<()> {
    let imports: Vec<String> = block("# nats-server: the two accounts of edge-1")?
        .lines()
        .filter(|line| line.contains("account: LEAF"))
        .map(str::to_owned)
        .collect();
    ensure!(imports.len() == 9, "{imports:#?}");
    for line in imports {
        let site = configured(|text| text.replacen(&format!("{line}\n"), "", 1)).await?;
        make_bucket(site.users.streams.as_ref().context("set above")?).await?;
        let subject = line.split('"').nth(1).context("a subject")?.to_owned();
        let all = findings(&site.users).await;
        let missing: Vec<&Finding> = all.iter().filter(|finding| !finding.ok).collect();
        let says = |subject: &str| {
            let about = missing.iter().filter(|finding| {
                finding
                    .advice
                    .as_ref()
                    .is_some_and(|advice| advice.ends_with(subject))
            });
            about.count()
        };
        ensure!(
            missing.iter().all(|finding| finding.found == Found::Silent
                && matches!(finding.action, Action::Hear | Action::Request)),
            "without {line}: {missing:#?}"
        );
        if subject == "$JS.API.INFO" {
            // leafd asks for the account's information as well. Without this import the server answers each request itself, too:
            // that the account has no JetStream. One of two replies comes first.
            ensure!(says(&subject) == 2, "without {line}: {missing:#?}");
        } else {
            let about = missing.iter().all(|finding| {
                finding
                    .advice
                    .as_ref()
                    .is_some_and(|advice| advice.contains(&subject))
            });
            ensure!(missing.len() == 1 && about, "without {line}: {missing:#?}");
        }
    }
    Ok(())
}

// ---- nsc ------------------------------------------------------------------------------------------------------------

/// Signs claims as NATS does (ADR-14).
fn sign(subject: &str, name: &str, nats: &Value, issuer: &KeyPair) -> anyhow::Result<String> {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "iat": 1_700_000_000, "jti": format!("{subject}{name}"), "iss": issuer.public_key(),
        "sub": subject, "name": name, "nats": nats,
    });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&body));
    Ok(format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes())?)
    ))
}

/// The arguments of one call of nsc.
struct Call {
    words: Vec<String>,
    flags: Vec<(String, String)>,
}

impl Call {
    fn of(arguments: &[String]) -> Self {
        let mut call = Self {
            words: Vec::new(),
            flags: Vec::new(),
        };
        let mut arguments = arguments.iter().peekable();
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                None => call.words.push(argument.clone()),
                Some(flag) => match flag.split_once('=') {
                    Some((flag, value)) => call.flags.push((flag.to_owned(), value.to_owned())),
                    None => {
                        let value = arguments.next_if(|next| !next.starts_with("--"));
                        call.flags
                            .push((flag.to_owned(), value.cloned().unwrap_or_default()));
                    }
                },
            }
        }
        call
    }

    fn flag(&self, name: &str) -> anyhow::Result<&str> {
        let found = self.flags.iter().find(|(flag, _)| flag == name);
        found
            .map(|(_, value)| value.as_str())
            .with_context(|| format!("{:?} lacks --{name}", self.words))
    }

    /// The values of a flag that is a list, and may be given several times.
    fn list(&self, name: &str) -> Vec<&str> {
        let values = self.flags.iter().filter(|(flag, _)| flag == name);
        values.flat_map(|(_, value)| value.split(',')).collect()
    }

    fn permissions(&self) -> anyhow::Result<Value> {
        let mut claims = json!({
            "pub": { "allow": self.list("allow-pub"), "deny": self.list("deny-pub") },
            "sub": { "allow": self.list("allow-sub") },
            "subs": -1, "data": -1, "payload": -1,
        });
        if let Ok(max) = self.flag("allow-pub-response") {
            let seconds = self.flag("response-ttl")?.strip_suffix('s').context("seconds")?;
            let nanos = seconds.parse::<u64>()? * 1_000_000_000;
            claims["resp"] = json!({ "max": max.parse::<u32>()?, "ttl": nanos });
        }
        Ok(claims)
    }
}

/// Runs the commands of the document in a shell, with a program in nsc's place that notes its arguments; returns them, and
/// the seed in the file that the commands write.
fn calls(dir: &Path) -> anyhow::Result<(Vec<Call>, KeyPair)> {
    let signer = KeyPair::new_account();
    let log = dir.join("calls");
    // A line for each argument, and an empty one after each call.
    let nsc = format!(
        "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\n' \"$word\" >> {log:?}; done\necho >> {log:?}\n\
         case \"$1 $2\" in 'generate nkey') printf '%s\\n%s\\n' {} {} >&2 ;; esac\n",
        seed(&signer)?,
        signer.public_key()
    );
    let program = dir.join("nsc");
    std::fs::write(&program, nsc)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-eu", "-c", &block("# nsc: the two accounts of edge-1")?])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", dir.display()))
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&log)?;
    let mut calls = Vec::new();
    let mut arguments = Vec::new();
    for line in text.lines() {
        if line.is_empty() {
            calls.push(Call::of(&arguments));
            arguments.clear();
        } else {
            arguments.push(line.to_owned());
        }
    }
    Ok((calls, signer))
}

/// An operator's accounts and users, as the commands make them.
struct Nsc {
    operator: KeyPair,
    accounts: BTreeMap<String, (KeyPair, Value)>,
    /// By account and name.
    credentials: BTreeMap<(String, String), Secret>,
}

impl Nsc {
    fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            accounts: BTreeMap::new(),
            credentials: BTreeMap::new(),
        }
    }

    fn add_account(&mut self, name: &str) {
        let claims = json!({
            "type": "account", "version": 2, "imports": [], "exports": [], "signing_keys": [],
            "limits": {
                "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1,
                "wildcards": true,
            },
        });
        self.accounts
            .insert(name.to_owned(), (KeyPair::new_account(), claims));
    }

    fn account(&mut self, name: &str) -> anyhow::Result<&mut (KeyPair, Value)> {
        self.accounts
            .get_mut(name)
            .with_context(|| format!("no account {name}"))
    }

    /// Does what one call of nsc does.
    fn run(&mut self, call: &Call, signer: &KeyPair) -> anyhow::Result<()> {
        let words: Vec<&str> = call.words.iter().map(String::as_str).collect();
        match words[..] {
            ["add", "account", name] => self.add_account(name),
            ["edit", "account", name] => {
                for (flag, limit) in [
                    ("js-mem-storage", "mem_storage"),
                    ("js-disk-storage", "disk_storage"),
                    ("js-streams", "streams"),
                    ("js-consumer", "consumer"),
                ] {
                    let value: i64 = call.flag(flag)?.parse()?;
                    self.account(name)?.1["limits"][limit] = json!(value);
                }
            }
            ["add", "export"] => {
                let subject = call.flag("subject")?;
                let mut export = json!({ "name": subject, "subject": subject, "type": "stream" });
                if call.flag("service").is_ok() {
                    export["type"] = json!("service");
                    export["response_type"] = json!(call.flag("response-type").unwrap_or("Singleton"));
                }
                push(&mut self.account(call.flag("account")?)?.1["exports"], export)?;
            }
            ["add", "import"] => {
                let subject = call.flag("remote-subject")?;
                let from = self.account(call.flag("src-account")?)?.0.public_key();
                let kind = if call.flag("service").is_ok() {
                    "service"
                } else {
                    "stream"
                };
                let import = json!({ "name": subject, "subject": subject, "account": from, "type": kind });
                push(&mut self.account(call.flag("account")?)?.1["imports"], import)?;
            }
            ["add", "user"] => {
                let (account, name) = (call.flag("account")?, call.flag("name")?);
                let mut claims = call.permissions()?;
                claims["type"] = json!("user");
                claims["version"] = json!(2);
                let key = KeyPair::new_user();
                let jwt = sign(&key.public_key(), name, &claims, &self.account(account)?.0)?;
                let text = format!(
                    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
                     -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
                    seed(&key)?
                );
                self.credentials
                    .insert((account.to_owned(), name.to_owned()), Secret::new(text));
            }
            ["generate", "nkey"] => {}
            ["edit", "signing-key"] => {
                ensure!(call.flag("sk")? == "containers.seed", "the file that was written");
                let scope = json!({
                    "kind": "user_scope", "key": signer.public_key(), "role": call.flag("role")?,
                    "template": call.permissions()?,
                });
                push(&mut self.account(call.flag("account")?)?.1["signing_keys"], scope)?;
            }
            ref other => bail!("the test does not know nsc {other:?}"),
        }
        Ok(())
    }

    /// The configuration of a server with these accounts.
    fn config(&self, store: &Path) -> anyhow::Result<String> {
        let system = KeyPair::new_account();
        let operator = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
        let operator = sign(&self.operator.public_key(), "operator", &operator, &self.operator)?;
        let limits = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1 });
        let claims = json!({ "type": "account", "version": 2, "limits": limits });
        let mut preload = format!(
            "{}: {}\n",
            system.public_key(),
            sign(&system.public_key(), "SYS", &claims, &self.operator)?
        );
        for (name, (key, claims)) in &self.accounts {
            let jwt = sign(&key.public_key(), name, claims, &self.operator)?;
            preload += &format!("{}: {jwt}\n", key.public_key());
        }
        Ok(format!(
            "operator: {operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{preload}}}\n\
             jetstream: {{ store_dir: {store:?} }}\n",
            system.public_key()
        ))
    }

    fn user(&self, url: &str, account: &str, caller: &Caller) -> anyhow::Result<ConnectSettings> {
        let of = (account.to_owned(), caller.to_string());
        let credentials = self
            .credentials
            .get(&of)
            .with_context(|| format!("no user {of:?}"))?;
        Ok(user(url, Credentials::Text(credentials.clone()), caller))
    }
}

fn push(list: &mut Value, item: Value) -> anyhow::Result<()> {
    list.as_array_mut().context("a list")?.push(item);
    Ok(())
}

/// A server with the accounts of the document's commands; `change` changes the accounts before it starts.
struct Site {
    server: PlainServer,
    dir: tempfile::TempDir,
    nsc: Nsc,
}

impl Site {
    async fn start(change: impl FnOnce(&mut Nsc) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let (calls, signer) = calls(dir.path())?;
        let mut nsc = Nsc::new();
        for call in &calls {
            nsc.run(call, &signer)?;
        }
        change(&mut nsc)?;
        let server = PlainServer::start(dir.path(), &nsc.config(&dir.path().join("store"))?).await?;
        Ok(Self { server, dir, nsc })
    }

    /// The key in the file that the commands wrote, as a leaf reads it.
    fn signer(&self) -> anyhow::Result<(ContainerSigner, ConnectSettings)> {
        let callers = self.nsc.user(&self.server.url(), "CALLERS", &daemon_caller())?;
        let Credentials::Text(text) = &callers.credentials else {
            bail!("a text");
        };
        let file = self.dir.path().join("leafd.creds");
        std::fs::write(&file, text.expose())?;
        Ok((
            ContainerSigner::open(&self.dir.path().join("containers.seed"), &file)?,
            callers,
        ))
    }
}

async fn nsc() -> anyhow::Result<()> {
    let site = Site::start(|_| Ok(())).await?;
    let url = site.server.url();
    let streams = site.nsc.user(&url, "LEAF", &daemon_caller())?;
    make_bucket(&streams).await?;
    let (signer, callers) = site.signer()?;
    let missing = rights::check_scope(&leaf(), &signer, &callers).await?;
    ensure!(missing.is_empty(), "{missing:#?}");
    let users = Users {
        streams: Some(streams),
        container: Some(Users::container_of(&leaf(), &signer, &callers)),
        callers: Some(callers),
        person: Some((alice(), site.nsc.user(&url, "CALLERS", &alice())?)),
    };
    is_right(&findings(&users).await)
}

async fn unscoped() -> anyhow::Result<()> {
    // Listed as a plain signing key: its users have no permissions, which allows everything, and no limits, which allow nothing.
    // Messages without a body pass these.
    let plain = Site::start(|nsc| {
        let keys = &mut nsc.account("CALLERS")?.1["signing_keys"];
        *keys = json!([keys[0]["key"]]);
        Ok(())
    })
    .await?;
    let (signer, callers) = plain.signer()?;
    let error = rights::check_scope(&leaf(), &signer, &callers).await;
    ensure!(
        matches!(error, Err(ScopeError::Refused { .. } | ScopeError::Closed { .. })),
        "{error:?}"
    );

    // With a scope that is too wide by one subject.
    let wide = Site::start(|nsc| {
        let keys = &mut nsc.account("CALLERS")?.1["signing_keys"];
        push(&mut keys[0]["template"]["sub"]["allow"], json!("leaf.*.cmd.>"))
    })
    .await?;
    let (signer, callers) = wide.signer()?;
    match rights::check_scope(&leaf(), &signer, &callers).await {
        Err(ScopeError::TooWide { what, .. }) if what.starts_with("subscribe to leaf.") => {}
        other => bail!("{other:?}"),
    }

    // With one that is too narrow, containers do less than they may.
    let narrow = Site::start(|nsc| {
        let keys = &mut nsc.account("CALLERS")?.1["signing_keys"];
        keys[0]["template"]["sub"]["allow"] = json!(["_INBOX.{{name()}}.>"]);
        Ok(())
    })
    .await?;
    let (signer, callers) = narrow.signer()?;
    let missing = rights::check_scope(&leaf(), &signer, &callers).await?;
    ensure!(
        matches!(&missing[..], [finding] if finding.subject == "leaf.v1.ctr.edge-1.cim-check.health"),
        "{missing:#?}"
    );

    // Not listed at all.
    let unlisted = Site::start(|nsc| {
        nsc.account("CALLERS")?.1["signing_keys"] = json!([]);
        Ok(())
    })
    .await?;
    let (signer, callers) = unlisted.signer()?;
    let error = rights::check_scope(&leaf(), &signer, &callers).await;
    ensure!(matches!(error, Err(ScopeError::Refused { .. })), "{error:?}");
    Ok(())
}
