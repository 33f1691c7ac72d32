//! `leafctl` signs where a leaf asks for it.

use std::os::unix::fs::PermissionsExt as _;

use leaf_trust::ssh_signature::SignerKey;

use super::fleet::Fleet;
use super::*;
use crate::support::{HubSite, ssh_key};

/// Keys of `ssh-keygen`, and an `ssh-agent` of the test's own.
pub(super) struct Person {
    directory: tempfile::TempDir,
    agent: Option<Child>,
}

impl Person {
    pub(super) async fn with_keys(names: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let person = Self {
            directory,
            agent: None,
        };
        for name in names {
            ssh_key(&person.path(name)).await?;
        }
        Ok(person)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn public(&self, name: &str) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.path(&format!("{name}.pub")))?;
        Ok(text.trim().to_owned())
    }

    fn fingerprint(&self, name: &str) -> anyhow::Result<String> {
        Ok(self.public(name)?.parse::<SignerKey>()?.fingerprint())
    }

    /// Writes who may sign, for the caller of the test's contexts.
    pub(super) fn allow(&self, file: &str, keys: &[&str]) -> anyhow::Result<PathBuf> {
        self.allow_as("admin", file, keys)
    }

    /// The same, for another caller.
    pub(super) fn allow_as(&self, caller: &str, file: &str, keys: &[&str]) -> anyhow::Result<PathBuf> {
        let lines: Result<Vec<String>, _> = keys.iter().map(|name| self.public(name)).collect();
        let lines = lines?.into_iter().map(|key| format!("{caller} {key}\n"));
        let file = self.path(file);
        std::fs::write(&file, lines.collect::<String>())?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
        Ok(file)
    }

    /// Starts the agent, with this key.
    async fn start_agent(&mut self, key: &str) -> anyhow::Result<()> {
        let socket = self.path("agent");
        let mut agent = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        // It prints where it listens once it does.
        let out = agent.stdout.take().context("piped")?;
        BufReader::new(out).lines().next_line().await?.context("a line")?;
        self.agent = Some(agent);
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(self.path(key)).env("SSH_AUTH_SOCK", socket);
        ensure!(add.status().await?.success(), "ssh-add adds no key");
        Ok(())
    }

    /// Runs `leafctl` as this person.
    pub(super) async fn ctl(&self, leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = command(arguments);
        command
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env_remove("LEAFCTL_SIGN_WITH")
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", self.directory.path());
        if self.agent.is_some() {
            command.env("SSH_AUTH_SOCK", self.path("agent"));
        }
        run(command).await
    }
}

pub(super) fn requiring(setup: Setup, allowed: &Path, commands: &[&str]) -> Setup {
    let require: Vec<&str> = ["runs-code", "cuts-off"]
        .iter()
        .chain(commands)
        .copied()
        .collect();
    setup
        .set("trust.allowed_signers", allowed.display().to_string())
        .set("trust.require_signature", require)
}

pub(super) async fn one_leaf() -> anyhow::Result<()> {
    let mut person = Person::with_keys(&["ann", "other"]).await?;
    let allowed = person.allow("allowed", &["ann"])?;
    let mut leaf = requiring(Setup::new(), &allowed, &["leaf.label"]).start().await?;
    let site = async |leaf: &mut TestLeaf| anyhow::Ok(leaf.show().await?.labels.get("site").cloned());
    let label = |value: &str| format!("site={value}");
    let none = person.ctl(&leaf, &["leaf", "label", &label("0")]).await?;
    ended(&none, 6, "none of them is at hand")?;
    ended(&none, 6, &person.fingerprint("ann")?)?;
    let other = person.path("other").display().to_string();
    let refused = person
        .ctl(&leaf, &["--sign-with", &other, "leaf", "label", &label("0")])
        .await?;
    ended(&refused, 6, "does not let the key")?;
    let absent = person
        .ctl(&leaf, &["--sign-with", "/nowhere", "leaf", "label", &label("0")])
        .await?;
    ended(&absent, 6, "can't read the key /nowhere")?;
    ensure!(site(&mut leaf).await?.is_none());
    // A private key, named by the flag.
    let ann = person.path("ann").display().to_string();
    let signed = person
        .ctl(&leaf, &["--sign-with", &ann, "leaf", "label", &label("1")])
        .await?;
    ended(&signed, 0, "")?;
    ensure!(site(&mut leaf).await?.as_deref() == Some("1"));
    // A public one has its private part in ssh-agent.
    let public = format!("{ann}.pub");
    let alone = person
        .ctl(&leaf, &["--sign-with", &public, "leaf", "label", &label("2")])
        .await?;
    ended(&alone, 6, "SSH_AUTH_SOCK names no ssh-agent")?;
    person.start_agent("ann").await?;
    for (number, arguments) in [("3", &["--sign-with", &public][..]), ("4", &[])] {
        let label = label(number);
        let arguments = [arguments, &["leaf", "label", &label]].concat();
        ended(&person.ctl(&leaf, &arguments).await?, 0, "")?;
        ensure!(site(&mut leaf).await?.as_deref() == Some(number), "{arguments:?}");
    }
    // The usual file, where the agent has no key that may sign.
    std::fs::create_dir(person.path(".ssh"))?;
    std::fs::copy(person.path("other"), person.path(".ssh/id_ed25519"))?;
    person.allow("allowed", &["other"])?;
    let signed = person
        .ctl(&leaf, &["leaf", "label", &label("5"), "--json"])
        .await?;
    ended(&signed, 0, "")?;
    ensure!(text(&signed.stderr).is_empty(), "{}", text(&signed.stderr));
    ensure!(site(&mut leaf).await?.as_deref() == Some("5"));
    // A repeat of a change is signed anew under its id, and carried out once.
    for _ in 0..2 {
        let arguments = ["leaf", "label", &label("6"), "--command-id", "again-1"];
        ended(&person.ctl(&leaf, &arguments).await?, 0, "")?;
    }
    leaf.published().await?;
    let labelled = leaf.events().await?;
    let labelled: Vec<&str> = labelled
        .iter()
        .map(|event| event.subject.as_str())
        .filter(|subject| subject.ends_with(".labelled"))
        .collect();
    ensure!(labelled.len() == 5, "not one for each label: {labelled:?}");
    std::fs::remove_file(&allowed)?;
    let refused = person.ctl(&leaf, &["leaf", "label", &label("7")]).await?;
    ended(&refused, 6, "accepts none: trust.allowed_signers")?;
    Ok(())
}

pub(super) async fn several_leaves() -> anyhow::Result<()> {
    let mut person = Person::with_keys(&["ann", "other"]).await?;
    let both = person.allow("both", &["ann", "other"])?;
    let other = person.allow("other-only", &["other"])?;
    let commands = ["hardware.rescan", "hardware.list"];
    // The first two let both keys sign, and the third only one of them.
    let fleet = Fleet::start_with(3, |number, setup| {
        requiring(setup, if number < 2 { &both } else { &other }, &commands)
    })
    .await?;
    let names: Vec<&str> = (0..3).map(|number| fleet.name(number)).collect();
    let two = names[..2].join(",");
    person.start_agent("ann").await?;
    let first = &fleet.leaves[0];
    for (arguments, command) in [
        (["hardware", "rescan", "--leaf", &two], "hardware.rescan"),
        (["hardware", "list", "--leaf", &two], "hardware.list"),
    ] {
        let signed = person.ctl(first, &arguments).await?;
        ended(
            &signed,
            0,
            &format!("signing {command} for 2 of 2 leaves: {}", names[..2].join(", ")),
        )?;
        let signatures = text(&signed.stderr).matches("signing ").count();
        ensure!(signatures == 1, "{}", text(&signed.stderr));
        let shown = text(&signed.stdout);
        ensure!(names[..2].iter().all(|name| shown.contains(name)), "{shown}");
    }
    // The third leaf does not let the agent's key sign, and there is no other.
    let some = person.ctl(first, &["hardware", "rescan", "-A"]).await?;
    ended(
        &some,
        6,
        &format!(
            "signing hardware.rescan for 2 of 3 leaves: {}",
            names[..2].join(", ")
        ),
    )?;
    ended(&some, 6, "none of them is at hand")?;
    // One key that all of them let sign comes before the others.
    std::fs::create_dir(person.path(".ssh"))?;
    std::fs::copy(person.path("other"), person.path(".ssh/id_ed25519"))?;
    let all = person.ctl(first, &["hardware", "rescan", "-A", "--json"]).await?;
    ended(&all, 0, "")?;
    ensure!(text(&all.stdout).lines().count() == 3, "{}", text(&all.stdout));
    let all = person.ctl(first, &["hardware", "rescan", "-A"]).await?;
    ended(&all, 0, "signing hardware.rescan for 3 of 3 leaves")?;
    // A pattern that one leaf meets, and the repeat of a command to several.
    let pattern = format!("{}*", names[2]);
    ended(
        &person
            .ctl(first, &["hardware", "rescan", "--leaf", &pattern])
            .await?,
        0,
        "",
    )?;
    for _ in 0..2 {
        let arguments = ["hardware", "rescan", "-A", "--command-id", "all-1"];
        ended(&person.ctl(first, &arguments).await?, 0, "")?;
    }
    Ok(())
}

pub(super) async fn through_a_hub() -> anyhow::Result<()> {
    let mut hub = HubSite::start().await?;
    hub.start_agent()?;
    let wire = hub.wire().await?;
    let person = Person::with_keys(&["ann"]).await?;
    let allowed = person.allow_as("ann", "allowed", &["ann"])?;
    let setup = requiring(hub.setup(&wire), &allowed, &["leaf.label", "hardware.list"]);
    let mut leaf = setup.start().await?;
    let context = hub.context()?;
    let name = leaf.name.to_string();
    let key = person.path("ann").display().to_string();
    let ctl = async |arguments: &[&str]| {
        let mut command = command(arguments);
        command
            .env("LEAFCTL_CONTEXT", &context)
            .env_remove("LEAFCTL_SIGN_WITH")
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", "/nonexistent");
        run(command).await
    };
    let unsigned = ["leaf", "label", &name, "site=hub"];
    until("the leaf hears its hub", async || {
        let output = ctl(&unsigned).await?;
        Ok(text(&output.stderr)
            .contains("none of them is at hand")
            .then_some(()))
    })
    .await?;
    let signed = ["--sign-with", &key, "leaf", "label", &name, "site=hub"];
    ended(&ctl(&signed).await?, 0, "")?;
    ensure!(leaf.show().await?.labels["site"] == "hub");
    let listed = ["--sign-with", &key, "--leaf", &name, "hardware", "list"];
    let listed = ctl(&listed).await?;
    ended(&listed, 0, "")?;
    ensure!(
        text(&listed.stdout).contains("DEVICE"),
        "{}",
        text(&listed.stdout)
    );
    Ok(())
}

/// The body of a secret is another for each leaf, and so is what is signed.
pub(super) async fn secrets() -> anyhow::Result<()> {
    let person = Person::with_keys(&["ann", "host-0", "host-1"]).await?;
    let allowed = person.allow("allowed", &["ann"])?;
    let fleet = Fleet::start_with(2, |number, setup| {
        let key = person.path(&format!("host-{number}"));
        requiring(setup, &allowed, &["secret.*"]).set("containers.host_key", key.display().to_string())
    })
    .await?;
    let known = person.path("known_leaves");
    let lines: Result<Vec<String>, _> = (0..2)
        .map(|number| {
            let key = person.public(&format!("host-{number}"))?;
            anyhow::Ok(format!("{} {key}", fleet.name(number)))
        })
        .collect();
    std::fs::write(&known, lines?.join("\n"))?;
    let content = person.path("content");
    std::fs::write(&content, "s3cret")?;
    let [ann, known, content] = [person.path("ann"), known, content].map(|path| path.display().to_string());
    let both = [fleet.name(0), fleet.name(1)].join(",");
    let set = [
        "secret",
        "set",
        "db",
        "--container",
        "web",
        "--from-file",
        &content,
    ];
    let more = ["--known-leaves", &known, "--sign-with", &ann, "--leaf", &both];
    let done = person
        .ctl(&fleet.leaves[0], &[&set[..], &more[..]].concat())
        .await?;
    ended(&done, 0, "")?;
    for number in 0..2 {
        let said = format!("signing secret.set for 1 of 2 leaves: {}\n", fleet.name(number));
        ended(&done, 0, &said)?;
    }
    let signatures = text(&done.stderr).matches("signing ").count();
    ensure!(signatures == 2, "{}", text(&done.stderr));
    // What is the same for all leaves still has one signature.
    let remove = ["secret", "remove", "db", "--sign-with", &ann, "--leaf", &both];
    let done = person.ctl(&fleet.leaves[0], &remove).await?;
    ended(&done, 0, "signing secret.remove for 2 of 2 leaves")
}
