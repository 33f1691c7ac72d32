//! Secrets: set over NATS, decrypted by the helper, given to containers, and found nowhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use leaf_bus::client::CallError;
use leaf_core::command::{
    CreateContainer, ListSecrets, RemoveSecret, SetContainer, SetSecret, ShowRecipient,
};
use leaf_core::container::{Container, ContainerPhase as Phase};
use leaf_core::host_op::Secret;
use leaf_core::id::{CommandId, ContainerName, LeafName, SecretName};
use leaf_core::problem::ProblemCode;
use leaf_core::secret::SecretRecord;
use leaf_core::spec::ContainerOptions;
use leaf_host::contract::HostPaths;
use leaf_trust::host_key::HostKey;
use leaf_trust::secret::SecretDocument;
use libtest_mimic::Trial;
use uuid::Uuid;

use super::systems::system;
use super::{is_problem, name, toplevel};
use crate::support::{Host, Need, Setup, TestLeaf, ssh_key, until};

/// A script that writes the SHA-256 of each of its secrets to its console, is ready, and ends when it is told to halt.
const SHOWS: &str = "for one in password token; do f=$CREDENTIALS_DIRECTORY/$one; \
    [ -f $f ] && echo \"$one is $($b sha256sum < $f | $b cut -c -64)\"; done; \
    exec /run/leaf/init ready -- $b sh -c 'trap \"exit 0\" 37; while :; do $b sleep 1000 & wait; done'";

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let containers = &[Need::Containers];
    vec![
        host.trial(
            "a secret reaches its containers, a new one restarts those once that want it, and its content is found nowhere",
            containers,
            reaches_containers,
        ),
        host.trial(
            "a secret that changed on the host while leafd was away restarts its container once",
            containers,
            changed_meanwhile,
        ),
        host.trial(
            "a secret of another leaf, name, key or user, an altered one and one that is too large are refused",
            containers,
            refused,
        ),
    ]
}

/// A leaf with a host key of its own.
struct SecretLeaf {
    leaf: TestLeaf,
    key: HostKey,
    _directory: tempfile::TempDir,
}

/// Returns the file of a new host key, and its public part.
async fn new_key(directory: &Path) -> anyhow::Result<(PathBuf, HostKey)> {
    let file = directory.join("ssh_host_ed25519_key");
    let public = ssh_key(&file).await?;
    Ok((file, public.parse()?))
}

async fn secret_leaf() -> anyhow::Result<SecretLeaf> {
    let directory = tempfile::tempdir()?;
    let (file, key) = new_key(directory.path()).await?;
    let setup = Setup::new()
        .containers()
        .set("containers.host_key", file.display().to_string());
    Ok(SecretLeaf {
        leaf: setup.start().await?,
        key,
        _directory: directory,
    })
}

/// A content that nothing else on this machine has.
fn content() -> String {
    format!("plaintext-{}-{}", Uuid::now_v7(), Uuid::now_v7())
}

fn secret(name: &str) -> SecretName {
    SecretName::new(name).expect("a name")
}

/// Returns the console's line about a secret with this content.
fn line(credential: &str, content: &str) -> anyhow::Result<String> {
    use std::io::Write as _;
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("it was piped")?
        .write_all(content.as_bytes())?;
    let output = child.wait_with_output()?;
    let digest = String::from_utf8(output.stdout)?;
    Ok(format!(
        "{credential} is {}",
        digest.get(..64).context("a digest")?
    ))
}

fn options(secrets: serde_json::Value) -> anyhow::Result<ContainerOptions> {
    Ok(serde_json::from_value(serde_json::json!({ "secrets": secrets }))?)
}

impl SecretLeaf {
    fn encrypted(&self, name: &str, users: &[&str], content: &str) -> anyhow::Result<String> {
        let users: Result<Vec<_>, _> = users.iter().map(|user| user.parse()).collect();
        let document = SecretDocument {
            leaf: self.leaf.name.clone(),
            name: secret(name),
            made: jiff::Timestamp::now(),
            users: users?,
            content: content.as_bytes().to_vec().into(),
        };
        Ok(document.encrypt(&self.key)?)
    }

    async fn send(&mut self, name: &str, age: &str) -> Result<SecretRecord, CallError> {
        let request = SetSecret {
            name: secret(name),
            age: Secret::new(age),
        };
        self.leaf.call(&request).await
    }

    async fn set(&mut self, name: &str, users: &[&str], content: &str) -> anyhow::Result<SecretRecord> {
        let age = self.encrypted(name, users, content)?;
        let record = self.send(name, &age).await?;
        self.is_nowhere(&[content, line_of(&age)])?;
        Ok(record)
    }

    async fn create(
        &mut self,
        name: &ContainerName,
        secrets: serde_json::Value,
    ) -> anyhow::Result<Container> {
        let create = CreateContainer {
            name: name.clone(),
            source: toplevel(&system(SHOWS).await?),
            start: true,
            options: options(secrets)?,
        };
        Ok(self.leaf.call(&create).await?)
    }

    /// Waits until the console has as many lines about secrets, and returns the last.
    async fn shown(&mut self, name: &ContainerName, lines: usize) -> anyhow::Result<String> {
        let what = format!("{name} has shown {lines} secrets");
        let mut last = String::new();
        let leaf = &mut self.leaf;
        until(&what, async || {
            let console = leaf.console(name).await?;
            let shown: Vec<&str> = console.lines().filter(|line| line.contains(" is ")).collect();
            ensure!(shown.len() <= lines, "more: {console}");
            last = shown.last().copied().unwrap_or_default().to_owned();
            Ok((shown.len() == lines).then_some(()))
        })
        .await?;
        self.leaf.in_phase(name, Phase::Running).await?;
        Ok(last)
    }

    /// Fails if one of these texts is in a file of the leaf or in the memory of leafd or its nats-server. In the memory only the
    /// first is looked for.
    fn is_nowhere(&self, texts: &[&str]) -> anyhow::Result<()> {
        let mut files = vec![self.leaf.scratch().to_owned(), self.leaf.state_dir.clone()];
        let paths = HostPaths::new(&self.leaf.name);
        files.extend([paths.run, paths.state]);
        while let Some(file) = files.pop() {
            if file.is_dir() && !file.is_symlink() {
                for entry in std::fs::read_dir(&file)? {
                    files.push(entry?.path());
                }
            } else if file.is_file() && !file.is_symlink() {
                // The server may remove a file in the meantime.
                let bytes = std::fs::read(&file).unwrap_or_default();
                for text in texts {
                    ensure!(!has(&bytes, text.as_bytes()), "{text:?} is in {}", file.display());
                }
            }
        }
        let plain = texts.first().context("a text")?;
        // What leafd does have is found.
        let leafd = self.leaf.pid().context("leafd runs")?;
        let own_name = format!("leaf {}", self.leaf.name);
        ensure!(
            in_memory(leafd, own_name.as_bytes())?.is_some(),
            "{own_name:?} is not found in leafd"
        );
        for pid in self.leaf.pid().into_iter().chain(self.leaf.nats_pid()) {
            let found = in_memory(pid, plain.as_bytes())?;
            ensure!(
                found.is_none(),
                "{plain:?} is in the memory of process {pid}: {found:?}"
            );
        }
        Ok(())
    }
}

/// Returns a line in the middle of an armored file, which nothing else has.
fn line_of(age: &str) -> &str {
    let lines: Vec<&str> = age.lines().collect();
    lines[lines.len() / 2]
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Returns the part of a process's memory that has a text, if one has it: what a core dump of it would have.
fn in_memory(pid: u32, text: &[u8]) -> anyhow::Result<Option<String>> {
    use std::os::unix::fs::FileExt as _;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut read_any = false;
    for map in maps.lines() {
        let mut words = map.split_whitespace();
        let (range, rights) = (words.next().context("a range")?, words.next().context("rights")?);
        let (from, to) = range.split_once('-').context("a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(to - from)?];
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            read_any = true;
            if has(&bytes, text) {
                return Ok(Some(map.to_owned()));
            }
        }
    }
    ensure!(read_any, "no memory of process {pid} can be read");
    Ok(None)
}

async fn reaches_containers() -> anyhow::Result<()> {
    let mut own = secret_leaf().await?;
    let (web, idle, other) = (name(), name(), name());
    let recipient = own.leaf.call(&ShowRecipient {}).await?;
    ensure!(recipient.host_key == own.key.to_string(), "{recipient:?}");

    // A container that lacks its secret says so, and runs as soon as that is set.
    let made = own
        .create(&web, serde_json::json!({ "password": { "secret": "db" } }))
        .await?;
    ensure!(made.desired.secrets.is_empty(), "{made:?}");
    let failed = own.leaf.in_phase(&web, Phase::Failed).await?;
    let error = failed.error.context("an error")?;
    ensure!(error.contains("the leaf has no secret db"), "{error}");
    let (first, second) = (content(), content());
    let users = [format!("container {web}"), format!("container {idle}")];
    let users = [users[0].as_str(), users[1].as_str()];
    let record = own.set("db", &users, &first).await?;
    ensure!(record.generation == 1 && record.users.len() == 2, "{record:?}");
    ensure!(own.shown(&web, 1).await? == line("password", &first)?);

    // One that wants no restart, and one that has another secret.
    let nothing = serde_json::json!({ "password": { "secret": "db", "on_change": "nothing" } });
    own.create(&idle, nothing).await?;
    own.shown(&idle, 1).await?;
    own.set("api", &[&format!("container {other}")], &content())
        .await?;
    own.create(&other, serde_json::json!({ "token": { "secret": "api" } }))
        .await?;
    own.shown(&other, 1).await?;

    let record = own.set("db", &users, &second).await?;
    ensure!(record.generation == 2, "{record:?}");
    ensure!(own.shown(&web, 2).await? == line("password", &second)?);
    own.is_nowhere(&[&first])?;
    // The same age file again changes nothing.
    let age = own.encrypted("db", &users, &second)?;
    let set = SetSecret {
        name: secret("db"),
        age: Secret::new(age.clone()),
    };
    let id = CommandId::from(Uuid::now_v7());
    let third = own.leaf.call_as(&id, &set).await?;
    ensure!(third.generation == 3, "{third:?}");
    own.shown(&web, 3).await?;
    ensure!(
        own.leaf.call_as(&id, &set).await? == third,
        "a repeated command gets the first reply"
    );
    ensure!(
        own.send("db", &age).await? == third,
        "the same file is the same secret"
    );

    let listed = own.leaf.call(&ListSecrets {}).await?.secrets;
    let names: Vec<&str> = listed.iter().map(|one| one.secret.name.as_str()).collect();
    ensure!(names == ["api", "db"], "{listed:?}");
    ensure!(listed[0].containers == [other.clone()], "{listed:?}");
    ensure!(listed[1].containers.len() == 2, "{listed:?}");
    ensure!(!serde_json::to_string(&listed)?.contains(line_of(&age)));
    // The host has the age file, for root alone.
    let file = HostPaths::new(&own.leaf.name).secrets.join("db.age");
    ensure!(std::fs::read_to_string(&file)? == age);

    // A container that has it keeps it when it is removed, and doesn't start again.
    own.leaf.call(&RemoveSecret { name: secret("db") }).await?;
    ensure!(!file.exists());
    let again = own.leaf.call(&RemoveSecret { name: secret("db") }).await;
    is_problem(again, ProblemCode::NotFound, "no secret db")?;
    let runs = own.leaf.container(&web).await?;
    ensure!(runs.phase == Phase::Running, "{runs:?}");
    own.leaf.stop_container(&web).await?;
    let start = own.leaf.start_container(&web).await;
    is_problem(start, ProblemCode::Failed, "the leaf has no secret db")?;

    // The others were never restarted.
    own.shown(&idle, 1).await?;
    own.shown(&other, 1).await?;
    own.leaf.published().await?;
    own.is_nowhere(&[&second, line_of(&age)])?;
    let told: Vec<String> = own.leaf.kinds_told("db").await?;
    let expected = ["set", "set", "set", "removed"].map(|kind| format!("secret.{kind}"));
    ensure!(told == expected, "{told:?}");
    for name in [&web, &idle, &other] {
        own.leaf.destroy_without_a_trace(name).await?;
    }
    Ok(())
}

async fn changed_meanwhile() -> anyhow::Result<()> {
    let mut own = secret_leaf().await?;
    let web = name();
    let (first, second) = (content(), content());
    let user = format!("container {web}");
    own.set("db", &[&user], &first).await?;
    own.set("gone", &[], &first).await?;
    own.create(&web, serde_json::json!({ "password": { "secret": "db" } }))
        .await?;
    own.shown(&web, 1).await?;
    // As if leafd had ended between the helper's work and its record.
    own.leaf.signal(rustix::process::Signal::KILL)?;
    own.leaf.ended().await?;
    let secrets = HostPaths::new(&own.leaf.name).secrets;
    std::fs::write(secrets.join("db.age"), own.encrypted("db", &[&user], &second)?)?;
    std::fs::remove_file(secrets.join("gone.age"))?;
    // What can't be used is left alone.
    let (_, other) = new_key(own.leaf.scratch()).await?;
    let document = SecretDocument {
        leaf: own.leaf.name.clone(),
        name: secret("alien"),
        made: jiff::Timestamp::now(),
        users: Vec::new(),
        content: b"x".to_vec().into(),
    };
    std::fs::write(secrets.join("alien.age"), document.encrypt(&other)?)?;
    std::fs::write(secrets.join(".db.age.new"), "half")?;
    own.leaf.back().await?;
    ensure!(own.shown(&web, 2).await? == line("password", &second)?);
    let listed = own.leaf.call(&ListSecrets {}).await?.secrets;
    ensure!(
        listed.len() == 1 && listed[0].secret.generation == 2,
        "{listed:?}"
    );
    ensure!(listed[0].secret.set_by.as_str() == "leafd", "{listed:?}");
    own.leaf.logged("a secret on this host can't be used").await?;
    // Nothing is left to do at the next start.
    own.leaf.restart().await?;
    own.leaf.show().await?;
    own.shown(&web, 2).await?;
    own.leaf.destroy_without_a_trace(&web).await
}

async fn refused() -> anyhow::Result<()> {
    let mut own = secret_leaf().await?;
    let text = content();
    let file = |leaf: &LeafName, name: &str, key: &HostKey| -> anyhow::Result<String> {
        let document = SecretDocument {
            leaf: leaf.clone(),
            name: secret(name),
            made: jiff::Timestamp::now(),
            users: Vec::new(),
            content: text.as_bytes().to_vec().into(),
        };
        Ok(document.encrypt(key)?)
    };
    let directory = tempfile::tempdir()?;
    let (_, another_key) = new_key(directory.path()).await?;
    let another_leaf = LeafName::new("another")?;
    let leaf = own.leaf.name.clone();
    let good = file(&leaf, "db", &own.key)?;
    let mut altered = good.clone().into_bytes();
    let at = altered.len() - 60;
    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
    let by_hand = |text: &[u8]| leaf_trust::age_file::encrypt(std::slice::from_ref(&own.key), text);
    let mut large =
        format!("cim-leaf secret 1\nleaf: {leaf}\nname: db\nmade: 2026-11-30T08:00:00Z\nbytes: 65537\n\n")
            .into_bytes();
    large.resize(large.len() + 64 * 1024, b'x');
    let cases: Vec<(&str, String, ProblemCode, &str)> = vec![
        (
            "another leaf",
            file(&another_leaf, "db", &own.key)?,
            ProblemCode::Invalid,
            "it is for leaf another",
        ),
        (
            "another name",
            file(&leaf, "api", &own.key)?,
            ProblemCode::Invalid,
            "encrypted as the secret api",
        ),
        (
            "another key",
            file(&leaf, "db", &another_key)?,
            ProblemCode::Invalid,
            "not encrypted to this host's key",
        ),
        (
            "altered",
            String::from_utf8(altered)?,
            ProblemCode::Invalid,
            "can't be used",
        ),
        (
            "no document",
            by_hand(b"hunter2"),
            ProblemCode::Invalid,
            "cim-leaf secret 1",
        ),
        ("too large", by_hand(&large), ProblemCode::Invalid, "65537 bytes"),
        (
            "in clear",
            text.clone(),
            ProblemCode::Invalid,
            "never send a secret in clear",
        ),
        (
            "a large file",
            good.clone() + &"A".repeat(128 * 1024),
            ProblemCode::TooLarge,
            "at most 131072",
        ),
    ];
    for (what, age, code, says) in cases {
        is_problem(own.send("db", &age).await, code, says).with_context(|| what.to_owned())?;
    }
    ensure!(own.leaf.call(&ListSecrets {}).await?.secrets.is_empty());
    own.leaf.logged("answered with a problem").await?;
    // The one in clear was in leafd's memory, but not even that is kept.
    own.is_nowhere_on_disk(&text)?;

    // A container that the secret does not name.
    let (web, other) = (name(), name());
    own.set("db", &[&format!("container {other}")], &text).await?;
    own.create(&web, serde_json::json!({ "password": { "secret": "db" } }))
        .await?;
    let failed = own.leaf.in_phase(&web, Phase::Failed).await?;
    let error = failed.error.context("an error")?;
    ensure!(error.contains(&format!("is not for container {web}")), "{error}");
    // One that names nobody is given to nobody.
    own.set("db", &[], &text).await?;
    let start = own.leaf.start_container(&web).await;
    is_problem(start, ProblemCode::Failed, "is not for container")?;
    // Its key is others' as well.
    let key = own._directory.path().join("ssh_host_ed25519_key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    is_problem(
        own.send("db", &good).await,
        ProblemCode::Unsupported,
        "no other user may read",
    )?;
    std::fs::remove_file(&key)?;
    is_problem(
        own.send("db", &good).await,
        ProblemCode::Unsupported,
        "does not exist",
    )?;
    let recipient = own.leaf.call(&ShowRecipient {}).await;
    is_problem(recipient, ProblemCode::Unsupported, "secrets need the host key")?;
    let patch: BTreeMap<&str, serde_json::Value> =
        BTreeMap::from([("secrets", serde_json::json!({ "password": null }))]);
    let set = SetContainer {
        name: web.clone(),
        patch: serde_json::to_value(patch)?,
        if_generation: None,
    };
    own.leaf.call(&set).await?;
    own.leaf.in_phase(&web, Phase::Running).await?;
    own.leaf.destroy_without_a_trace(&web).await
}

impl SecretLeaf {
    fn is_nowhere_on_disk(&self, text: &str) -> anyhow::Result<()> {
        // In a memory there is never more than one text of all.
        let none = content();
        self.is_nowhere(&[&none, text])
    }
}
