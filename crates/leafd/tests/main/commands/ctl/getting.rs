//! Store paths of a leaf that are brought to this machine: `leafctl nix get`, `nix build --get`, and what is below.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_core::command::GetPaths;
use leaf_core::id::StorePath;
use leaf_core::problem::ProblemCode;
use leaf_core::transfer::stored::Stored;
use serde_json::Value;
use tokio::process::Command;

use super::sending::{NIX_CONFIG, Site, WITHIN, client_of, nar, peak, refused};
use super::signing::{Person, requiring};
use super::{ended, run, text};
use crate::support::{HubSite, Setup, until};

/// Two derivations, of which the second refers to the first.
fn write_expression(site: &Site, name: &str) -> anyhow::Result<String> {
    let file = site.place.path().join(format!("{name}.nix"));
    let system = format!("{}-linux", std::env::consts::ARCH);
    let text = format!(
        "let make = name: script: derivation {{ inherit name; system = \"{system}\"; builder = \"/bin/sh\"; \
         leaf = \"{}\"; args = [ \"-c\" script ]; }}; \
         in make \"{name}\" \"echo ${{make \"{name}-lib\" \"echo lib > $out\"}} > $out\"",
        site.leaf.name
    );
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

impl Site {
    /// `leafctl` of a person with a store of their own.
    fn person(&self, config: &str, arguments: &[&str]) -> Command {
        let store = self.place.path().join("persons-store").display().to_string();
        let mut command = self.command(&self.tree(), arguments);
        command.env("NIX_CONFIG", format!("{NIX_CONFIG}store = {store}\n{config}"));
        command
    }

    async fn of_person(&self, config: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        run(self.person(config, arguments)).await
    }

    /// A path as the person's store has it.
    fn persons(&self, path: &str) -> std::path::PathBuf {
        let store = self.place.path().join("persons-store");
        store.join(path.trim_start_matches('/'))
    }

    /// Adds a file to the leaf's store.
    fn add(&self, name: &str, content: &[u8]) -> anyhow::Result<StorePath> {
        let file = self.place.path().join(name);
        std::fs::write(&file, content)?;
        let path = self.leafs_nix(&["--add", &file.display().to_string()])?;
        Ok(StorePath::new(path.trim())?)
    }

    fn leafs_nix(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let store = self.place.path().join("store").display().to_string();
        let output = std::process::Command::new("nix-store")
            .args(["--store", &store])
            .args(arguments)
            .env("NIX_CONFIG", NIX_CONFIG)
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }
}

pub(super) async fn closures() -> anyhow::Result<()> {
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    let nix = |arguments: &[&str], input: &Path| -> anyhow::Result<String> {
        let output = std::process::Command::new("nix")
            .args(arguments)
            .env("NIX_CONFIG", NIX_CONFIG)
            .stdin(std::fs::File::open(input)?)
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    };
    let secret = nix(
        &["key", "generate-secret", "--key-name", "leaf-1"],
        Path::new("/dev/null"),
    )?;
    std::fs::write(&key, secret)?;
    let public = nix(&["key", "convert-secret-to-public"], &key)?;
    let setup = Setup::new().set("nix.options.secret-key-files", key.display().to_string());
    let site = Site::with(setup).await?;
    let file = write_expression(&site, "tool")?;
    let job = site.printed(&["--json", "nix", "build", "--file", &file]).await?;
    let job: Value = serde_json::from_str(&job)?;
    let out = job["result"]["store_path"].as_str().context("a path")?;

    // Without a key that is trusted it is refused, and the error says what to do.
    let get = ["nix", "get", out];
    let output = site.of_person("", &get).await?;
    ended(&output, 6, "trusts no key that has signed it")?;
    ended(&output, 6, "--no-check-sigs")?;
    ensure!(!site.persons(out).exists(), "it is there without a signature");
    // With it, all that it needs comes along.
    let trust = format!("trusted-public-keys = {}\n", public.trim());
    let output = site.of_person(&trust, &["--json", "nix", "get", out]).await?;
    ended(&output, 0, "getting")?;
    let got: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(got["added"].as_array().context("paths")?.len() == 2, "{got}");
    ensure!(
        got["added"][1] == out,
        "what it refers to is not before it: {got}"
    );
    let there = std::fs::read_to_string(site.persons(out))?;
    ensure!(there == std::fs::read_to_string(site.in_store(out))?, "{there:?}");
    ensure!(std::fs::read_to_string(site.persons(there.trim()))? == "lib\n");
    let again = site.of_person(&trust, &get).await?;
    ended(&again, 0, "")?;
    ensure!(text(&again.stdout).contains("in this store already"));

    // What is built is brought along, and linked.
    let file = write_expression(&site, &format!("linked-{}", site.leaf.name))?;
    let link = site.place.path().join("result");
    let arguments = [
        "nix",
        "build",
        "--file",
        &file,
        "--get",
        "--no-check-sigs",
        "--out-link",
        &link.display().to_string(),
    ];
    let output = site.ctl(&arguments).await?;
    ended(&output, 0, "")?;
    ensure!(
        std::fs::read_to_string(&link)?.contains("-lib"),
        "{}",
        link.display()
    );
    let without = site
        .ctl(&["nix", "build", "--file", &file, "--no-check-sigs"])
        .await?;
    ended(&without, 2, "--get")?;

    // What the leaf has not.
    let absent = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent";
    let output = site.of_person("", &["nix", "get", absent]).await?;
    ensure!(!output.status.success());
    ensure!(
        text(&output.stderr).contains("not in the leaf's store"),
        "{}",
        text(&output.stderr)
    );
    Ok(())
}

struct Reader {
    client: Client,
    leaf: leaf_core::id::LeafName,
}

impl Reader {
    async fn get(&self, path: &StorePath) -> Result<Stored, CallError> {
        let request = GetPaths {
            paths: vec![path.clone()],
            closure: false,
        };
        let options = CallOptions {
            timeout: WITHIN,
            ..CallOptions::default()
        };
        self.client.call(&self.leaf, &request, options).await
    }

    async fn read(&self, stored: &Stored, offset: u64) -> Result<Vec<u8>, CallError> {
        let download = stored.download.expect("a download of paths");
        self.client
            .download_request(&self.leaf, download, offset, WITHIN)
            .await
    }
}

pub(super) async fn reads() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let content = site.leaf.name.to_string().repeat(60_000);
    let path = site.add("long", content.as_bytes())?;
    let bytes = nar(content.as_bytes());
    let end = bytes.len() as u64;
    let reader = Reader {
        client: site.leaf.client().await?,
        leaf: site.leaf.name.clone(),
    };
    let stored = reader.get(&path).await?;
    let chunk = stored.chunk_bytes;
    let [info] = stored.paths.as_slice() else {
        anyhow::bail!("{stored:?}");
    };
    ensure!(info.path == path && info.nar_size == end, "{info:?}");
    ensure!(info.content_address.is_some(), "{info:?}");
    // At any offset, and more than once.
    for offset in [0, chunk, 7, bytes.len() - 3, chunk] {
        let read = reader.read(&stored, offset as u64).await?;
        ensure!(
            read == bytes[offset..bytes.len().min(offset + chunk)],
            "{} bytes at {offset}",
            read.len()
        );
    }
    // It is nobody else's.
    let stranger = Reader {
        client: client_of(&site, "somebody").await?,
        leaf: site.leaf.name.clone(),
    };
    refused(
        stranger.read(&stored, 0).await,
        ProblemCode::NotFound,
        "no such download",
    )?;
    // Read to its end, it is over.
    ensure!(reader.read(&stored, end).await?.is_empty());
    refused(
        reader.read(&stored, 0).await,
        ProblemCode::NotFound,
        "no such download",
    )?;
    // A caller has a few of them, and whoever vanishes keeps nobody else from theirs.
    for _ in 0..8 {
        reader.get(&path).await?;
    }
    refused(reader.get(&path).await, ProblemCode::Overloaded, "8 of a caller")?;
    let theirs = stranger.get(&path).await?;
    ensure!(stranger.read(&theirs, 0).await?.len() == chunk);
    // What was collected after it was promised.
    let gone = site.add("gone", b"soon")?;
    let promised = stranger.get(&gone).await?;
    let sent = site.leaf.state_dir.join("sent");
    std::fs::remove_dir_all(&sent)?;
    site.leafs_nix(&["--delete", gone.as_str()])?;
    refused(
        stranger.read(&promised, 0).await,
        ProblemCode::NotFound,
        "can't read",
    )?;
    refused(
        stranger.get(&gone).await,
        ProblemCode::NotFound,
        "not in the leaf's store",
    )?;
    // After a restart it is begun again, from where it was.
    site.leaf.restart().await?;
    site.leaf.forget_client();
    let reader = Reader {
        client: site.leaf.client().await?,
        leaf: site.leaf.name.clone(),
    };
    refused(
        reader.read(&theirs, 0).await,
        ProblemCode::NotFound,
        "no such download",
    )?;
    let stored = reader.get(&path).await?;
    ensure!(reader.read(&stored, chunk as u64).await? == bytes[chunk..2 * chunk]);
    Ok(())
}

pub(super) async fn bounded() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let path = site.add("huge", &vec![7; 200 << 20])?;
    let leafd = site.leaf.pid().context("it runs")?;
    let before = peak(leafd)?;
    let output = site.of_person("", &["nix", "get", path.as_str()]).await?;
    // Its name follows from its content: no signature is needed.
    ended(&output, 0, "getting")?;
    let more = peak(leafd)? - before;
    // It would be 204,800 with all of it.
    ensure!(more < 40_000, "leafd took {more} KiB more for a download");
    ensure!(std::fs::metadata(site.persons(path.as_str()))?.len() == 200 << 20);
    Ok(())
}

pub(super) async fn through_a_hub() -> anyhow::Result<()> {
    let mut hub = HubSite::start().await?;
    hub.start_agent()?;
    let wire = hub.wire().await?;
    let person = Person::with_keys(&["ann"]).await?;
    let allowed = person.allow_as("ann", "allowed", &["ann"])?;
    let setup = requiring(hub.setup(&wire), &allowed, &["builds"]);
    let site = Site {
        context: hub.context()?,
        ..Site::with(setup).await?
    };
    let path = site.add("through-a-hub", &vec![7; 24 << 20])?;
    let leaf = site.leaf.name.to_string();
    let is_heard = async || {
        let shown = site.ctl(&["leaf", "show", &leaf, "--timeout", "1s"]).await?;
        anyhow::Ok(shown.status.success())
    };
    until("the hub hears the leaf", async || {
        Ok(is_heard().await?.then_some(()))
    })
    .await?;
    let get = ["--leaf", &leaf, "nix", "get", path.as_str()];
    let mut unsigned = site.person("", &get);
    unsigned
        .env_remove("LEAFCTL_SIGN_WITH")
        .env_remove("SSH_AUTH_SOCK")
        .env("HOME", "/nonexistent");
    ended(&run(unsigned).await?, 6, "none of them is at hand")?;
    let spool = site.place.path().join("spool");
    std::fs::create_dir(&spool)?;
    let arrived = || -> u64 {
        let works = std::fs::read_dir(&spool).into_iter().flatten().flatten();
        let nars = works.filter_map(|work| work.path().join("0.nar").metadata().ok());
        nars.map(|nar| nar.len()).sum()
    };
    let key = person.path("ann").display().to_string();
    let mut signed = site.person("", &[&get[..], &["--sign-with", &key]].concat());
    let going_on = signed
        .env("TMPDIR", &spool)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    until("a part has arrived", async || {
        Ok((arrived() > 1 << 20).then_some(()))
    })
    .await?;
    wire.cut();
    until("the hub does not hear the leaf", async || {
        Ok((!is_heard().await?).then_some(()))
    })
    .await?;
    ensure!(arrived() < 24 << 20, "all had arrived");
    wire.mend();
    let output = tokio::time::timeout(Duration::from_secs(120), going_on.wait_with_output()).await??;
    ended(&output, 0, "getting")?;
    ensure!(std::fs::metadata(site.persons(path.as_str()))?.len() == 24 << 20);
    ensure!(arrived() == 0, "what was on its way is still there");
    Ok(())
}

pub(super) async fn damaged() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let change = |path: &StorePath, content: &[u8]| -> anyhow::Result<()> {
        let file = site.in_store(path.as_str());
        std::fs::remove_file(&file)?;
        Ok(std::fs::write(&file, content)?)
    };
    // Other bytes of the same length, fewer of them, and more.
    for (name, content, says) in [
        ("other", "the one thinG", "hash mismatch"),
        ("shorter", "x", "the leaf's store is damaged"),
        (
            "longer",
            "the one thing and much more of it",
            "the leaf's store is damaged",
        ),
    ] {
        let path = site.add(name, b"the one thing")?;
        change(&path, content.as_bytes())?;
        let output = site.of_person("", &["nix", "get", path.as_str()]).await?;
        let said = text(&output.stderr);
        ensure!(!output.status.success() && said.contains(says), "{name}: {said}");
        let there = std::process::Command::new("nix-store")
            .args(["--check-validity", path.as_str(), "--store"])
            .arg(site.place.path().join("persons-store"))
            .env("NIX_CONFIG", NIX_CONFIG)
            .output()?;
        ensure!(!there.status.success(), "{name} is valid");
    }
    // What is no store path, or would be a flag or a terminal's command, is not asked for.
    for path in [
        "--all",
        "/etc/passwd",
        "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-\u{1b}[31m",
    ] {
        let output = site.of_person("", &["nix", "get", "--", path]).await?;
        ended(&output, 2, "")?;
        ensure!(!text(&output.stderr).contains('\u{1b}'));
    }
    Ok(())
}

pub(super) async fn full_disk() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let path = site.add("huge", &vec![7; 40 << 20])?;
    let small = site.place.path().join("small");
    std::fs::create_dir(&small)?;
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "cim-leaf-test"])
        .arg(&small)
        .status()?;
    ensure!(mount.success(), "{mount}");
    let mut command = site.person("", &["nix", "get", path.as_str()]);
    command.env("TMPDIR", &small);
    let output = run(command).await;
    let left = std::fs::read_dir(&small)?.count();
    let _ = std::process::Command::new("umount").arg(&small).status();
    let output = output?;
    ended(&output, 6, "TMPDIR names another directory")?;
    ensure!(left == 0, "it leaves {left} directories");
    ensure!(!site.persons(path.as_str()).exists());
    // With room it comes.
    ended(&site.of_person("", &["nix", "get", path.as_str()]).await?, 0, "")
}
