//! Flakes of the caller's machine that are sent to a leaf (`--local`), and what else may be sent.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::BASE64;
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_bus::connect::Credentials;
use leaf_bus::context;
use leaf_core::command::PutPaths;
use leaf_core::id::StorePath;
use leaf_core::problem::ProblemCode;
use leaf_core::subject;
use leaf_core::transfer::{Lacking, Received, SentPath, UploadState};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::signing::{Person, requiring};
use super::*;
use crate::support::HubSite;

pub(super) const WITHIN: Duration = Duration::from_secs(20);

/// A leaf with a store of its own, and a directory of the caller's.
pub(super) struct Site {
    pub(super) leaf: TestLeaf,
    /// The context with which the person connects.
    pub(super) context: PathBuf,
    pub(super) place: tempfile::TempDir,
}

impl Site {
    pub(super) async fn start() -> anyhow::Result<Self> {
        Self::with(Setup::new()).await
    }

    pub(super) async fn with(setup: Setup) -> anyhow::Result<Self> {
        let place = tempfile::tempdir()?;
        let store = place.path().join("store").display().to_string();
        let leaf = setup.set("nix.options.store", store).start().await?;
        std::fs::create_dir(place.path().join("tree"))?;
        let context = leaf.context_file();
        Ok(Self { leaf, context, place })
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.place.path().join("tree")
    }

    /// A path as the leaf's store has it.
    pub(super) fn in_store(&self, path: &str) -> PathBuf {
        self.place.path().join("store").join(path.trim_start_matches('/'))
    }

    /// The store paths of the leaf whose name ends so.
    fn stored(&self, end: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.in_store("/nix/store"));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.to_string_lossy().ends_with(end))
            .collect()
    }

    pub(super) fn command(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command
            .env("LEAFCTL_CONTEXT", &self.context)
            .env("NIX_CONFIG", NIX_CONFIG)
            .envs(GIT)
            .current_dir(directory);
        command
    }

    pub(super) async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        run(self.command(&self.tree(), arguments)).await
    }

    pub(super) async fn printed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.ctl(arguments).await?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// Whether the leaf's store has a path.
    fn is_valid(&self, path: &StorePath) -> anyhow::Result<bool> {
        let store = self.place.path().join("store").display().to_string();
        let output = std::process::Command::new("nix-store")
            .args(["--store", &store, "--check-validity", path.as_str()])
            .env("NIX_CONFIG", NIX_CONFIG)
            .output()?;
        Ok(output.status.success())
    }

    /// How many bytes of uploads are on the leaf's disk.
    fn spooled(&self) -> u64 {
        let uploads = std::fs::read_dir(self.leaf.state_dir.join("transfers"));
        let uploads = uploads.into_iter().flatten().flatten();
        let nars = uploads.filter_map(|upload| upload.path().join("0.nar").metadata().ok());
        nars.map(|nar| nar.len()).sum()
    }

    async fn leaves_nothing(&self) -> anyhow::Result<()> {
        until("the bytes of the upload are removed", async || {
            let uploads = std::fs::read_dir(self.leaf.state_dir.join("transfers"))?;
            Ok((uploads.count() == 0).then_some(()))
        })
        .await
    }
}

pub(super) const NIX_CONFIG: &str =
    "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group =\nflake-registry =\n";
/// git as it is without anybody's settings, and with submodules of this machine.
const GIT: [(&str, &str); 5] = [
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_SYSTEM", "/dev/null"),
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "protocol.file.allow"),
    ("GIT_CONFIG_VALUE_0", "always"),
];

fn git(directory: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
        .args(arguments)
        .envs(GIT)
        .current_dir(directory)
        .output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    Ok(())
}

/// A flake whose `hello` prints a file of it, and whose `value` is what it knows of itself.
fn flake(name: &str) -> String {
    let system = format!("{}-linux", std::env::consts::ARCH);
    format!(
        "{{ outputs = {{ self }}: {{ value = {{ rev = self.rev or \"none\"; at = self.lastModified; }}; \
         files = builtins.attrNames (builtins.readDir self); packages.{system}.default = self.hello; \
         hello = derivation {{ name = \"{name}\"; system = \"{system}\"; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"read x < ${{./a}}; echo $x > $out\" ]; }}; }}; }}"
    )
}

pub(super) async fn trees() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let tree = site.tree();
    git(&tree, &["init", "-q", "."])?;
    std::fs::write(tree.join("flake.nix"), flake("hello"))?;
    std::fs::write(tree.join("a"), "committed")?;
    std::os::unix::fs::symlink("/etc/passwd", tree.join("out-of-the-tree"))?;
    git(&tree, &["add", "."])?;
    git(&tree, &["commit", "-qm", "x"])?;
    std::fs::write(tree.join("untracked"), "a secret")?;
    let job = site
        .printed(&["--json", "nix", "build", "--local", ".#hello"])
        .await?;
    let job: Value = serde_json::from_str(&job)?;
    let out = job["result"]["store_path"].as_str().context("a path")?;
    ensure!(
        std::fs::read_to_string(site.in_store(out))? == "committed\n",
        "{job}"
    );
    let [source] =
        <[PathBuf; 1]>::try_from(site.stored("-source")).map_err(|sources| anyhow::anyhow!("{sources:?}"))?;
    ensure!(!source.join("untracked").exists(), "what is not tracked is sent");
    ensure!(std::fs::read_link(source.join("out-of-the-tree"))? == Path::new("/etc/passwd"));
    // What the leaf has is not sent again, and what the flake knows of itself is the same as here.
    let again = site.ctl(&["nix", "build", "--local", ".#hello"]).await?;
    ended(&again, 0, "")?;
    ensure!(
        !text(&again.stderr).contains("sending"),
        "{}",
        text(&again.stderr)
    );
    let here = std::process::Command::new("nix")
        .args(["eval", "--json", ".#value"])
        .env("NIX_CONFIG", NIX_CONFIG)
        .envs(GIT)
        .current_dir(&tree)
        .output()?;
    let here: Value = serde_json::from_slice(&here.stdout)?;
    let there = site.printed(&["nix", "eval", "--local", ".#value"]).await?;
    let there: Value = serde_json::from_str(&there)?;
    ensure!(here == there && there["rev"] != "none", "{here} {there}");
    // With a change that is not committed.
    std::fs::write(tree.join("a"), "changed")?;
    let output = site
        .ctl(&["--json", "nix", "build", "--local", ".#hello"])
        .await?;
    ended(&output, 0, "is dirty")?;
    ended(&output, 0, "sending")?;
    let job: Value = serde_json::from_slice(&output.stdout)?;
    let out = job["result"]["store_path"].as_str().context("a path")?;
    ensure!(
        std::fs::read_to_string(site.in_store(out))? == "changed\n",
        "{job}"
    );
    // All commands that take an installable.
    for arguments in [
        &["nix", "ci", "--local", "."][..],
        &["nix", "check", "--local", ".#hello"],
        &["nix", "build", "--local", ".", ".#hello"],
    ] {
        site.printed(arguments).await?;
    }
    // What was sent is held when garbage is collected.
    site.printed(&["nix", "gc"]).await?;
    ensure!(source.exists(), "the source is collected");
    for (arguments, code, says) in [
        (
            &["nix", "build", "--local", "--file", "a.nix"][..],
            2,
            "a --file is none",
        ),
        (&["nix", "build", "--local", "--any", "."], 2, "to one leaf"),
        (
            &["nix", "build", "--local", "./nothing"],
            6,
            "nix on this machine",
        ),
    ] {
        ended(&site.ctl(arguments).await?, code, says)?;
    }
    let mut without_nix = site.command(&tree, &["nix", "build", "--local", "."]);
    without_nix.env("PATH", "/nonexistent");
    ended(&run(without_nix).await?, 6, "nix can't be run")?;
    site.leaves_nothing().await
}

pub(super) async fn references() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let (tree, other) = (site.tree(), site.place.path().join("other"));
    std::fs::create_dir(&other)?;
    git(&other, &["init", "-q", "."])?;
    std::fs::write(other.join("flake.nix"), "{ outputs = _: { of = \"other\"; }; }")?;
    git(&other, &["add", "."])?;
    git(&other, &["commit", "-qm", "x"])?;
    git(&tree, &["init", "-q", "."])?;
    git(&tree, &["submodule", "add", "../other", "module"])?;
    std::fs::write(
        tree.join("flake.nix"),
        "{ outputs = { self }: { module = builtins.pathExists ./module/flake.nix; }; }",
    )?;
    git(&tree, &["add", "."])?;
    git(&tree, &["commit", "-qm", "x"])?;
    let of_git = |more: &str| format!("git+file://{}{more}#module", tree.display());
    for (reference, value) in [
        (of_git("?submodules=1"), "true\n"),
        (of_git(""), "false\n"),
        (".?submodules=1#module".to_owned(), "true\n"),
    ] {
        let printed = site.printed(&["nix", "eval", "--local", &reference]).await?;
        ensure!(printed == value, "{reference}: {printed}");
    }
    std::fs::create_dir_all(tree.join("some-dir"))?;
    std::fs::write(
        tree.join("some-dir/flake.nix"),
        "{ outputs = { self }: { above = builtins.pathExists ../.gitmodules; at = self.lastModified; }; }",
    )?;
    git(&tree, &["add", "."])?;
    git(&tree, &["commit", "-qm", "y"])?;
    let above = site
        .printed(&["nix", "eval", "--local", "./some-dir#above"])
        .await?;
    ensure!(above == "true\n", "{above}");
    let at = site
        .printed(&["nix", "eval", "--local", ".?dir=some-dir#at"])
        .await?;
    ensure!(at.trim().parse::<u64>()? > 1, "{at}");
    // Inputs by the lock file, and none that leads out of the tree.
    std::fs::write(
        tree.join("flake.nix"),
        "{ inputs.other.url = \"path:../other\"; outputs = { self, other }: { inherit (other) of; }; }",
    )?;
    git(&tree, &["add", "."])?;
    let output = site.ctl(&["nix", "eval", "--local", ".#of"]).await?;
    ended(&output, 6, "nix on this machine")?;
    Ok(())
}

/// A tree whose upload takes a while.
fn large(site: &Site, bytes: usize) -> anyhow::Result<()> {
    let tree = site.tree();
    std::fs::write(tree.join("flake.nix"), flake(site.leaf.name.as_str()))?;
    std::fs::write(tree.join("a"), "before")?;
    let mut noise = vec![0; bytes];
    let mut state = u64::from(std::process::id());
    for part in noise.chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
    }
    std::fs::write(tree.join("noise"), noise)?;
    Ok(())
}

pub(super) async fn interrupted() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    large(&site, 48 << 20)?;
    let begin = |site: &Site| {
        let arguments = ["--json", "nix", "build", "--local", "path:.#hello"];
        let mut command = site.command(&site.tree(), &arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn()
    };
    // The client vanishes amid its upload, and another one goes on with it.
    let mut vanishing = begin(&site)?;
    until("a part has arrived", async || {
        Ok((site.spooled() > 4 << 20).then_some(()))
    })
    .await?;
    vanishing.kill().await?;
    let arrived = site.spooled();
    ensure!(arrived < 48 << 20, "all had arrived");
    let going_on = begin(&site)?;
    until("more has arrived", async || {
        Ok((site.spooled() > arrived + (1 << 20)).then_some(()))
    })
    .await?;
    // leafd is killed, a file changes, and the same upload goes on.
    let uploads = || -> anyhow::Result<Vec<std::ffi::OsString>> {
        let uploads = std::fs::read_dir(site.leaf.state_dir.join("transfers"))?;
        Ok(uploads
            .map(|upload| Ok(upload?.file_name()))
            .collect::<std::io::Result<_>>()?)
    };
    let before = uploads()?;
    ensure!(before.len() == 1, "{before:?}");
    site.leaf.kill().await?;
    let arrived = site.spooled();
    ensure!(arrived < 48 << 20, "all had arrived");
    std::fs::write(site.tree().join("a"), "after")?;
    site.leaf.start_again().await?;
    let output = tokio::time::timeout(Duration::from_secs(120), going_on.wait_with_output()).await??;
    ended(&output, 0, "")?;
    let job: Value = serde_json::from_slice(&output.stdout)?;
    let out = job["result"]["store_path"].as_str().context("a path")?;
    ensure!(
        std::fs::read_to_string(site.in_store(out))? == "before\n",
        "{job}"
    );
    site.leaves_nothing().await
}

/// A person at a hub, whose link is cut amid the upload, and a leaf behind it that wants a signature for each thing that is built.
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
    large(&site, 24 << 20)?;
    let leaf = site.leaf.name.to_string();
    let is_heard = async || {
        let shown = site.ctl(&["leaf", "show", &leaf, "--timeout", "1s"]).await?;
        anyhow::Ok(shown.status.success())
    };
    until("the hub hears the leaf", async || {
        Ok(is_heard().await?.then_some(()))
    })
    .await?;
    let build = [
        "--json",
        "--leaf",
        &leaf,
        "nix",
        "build",
        "--local",
        "path:.#hello",
    ];
    let mut unsigned = site.command(&site.tree(), &build);
    unsigned
        .env_remove("LEAFCTL_SIGN_WITH")
        .env_remove("SSH_AUTH_SOCK")
        .env("HOME", "/nonexistent");
    ended(&run(unsigned).await?, 6, "none of them is at hand")?;
    ensure!(site.spooled() == 0, "bytes were sent without a signature");
    let key = person.path("ann").display().to_string();
    let mut signed = site.command(&site.tree(), &[&build[..], &["--sign-with", &key]].concat());
    let going_on = signed.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    until("a part has arrived", async || {
        Ok((site.spooled() > 2 << 20).then_some(()))
    })
    .await?;
    wire.cut();
    until("the hub does not hear the leaf", async || {
        Ok((!is_heard().await?).then_some(()))
    })
    .await?;
    let arrived = site.spooled();
    ensure!(arrived < 24 << 20, "all had arrived");
    wire.mend();
    let output = tokio::time::timeout(Duration::from_secs(120), going_on.wait_with_output()).await??;
    ended(&output, 0, "")?;
    let job: Value = serde_json::from_slice(&output.stdout)?;
    let out = job["result"]["store_path"].as_str().context("a path")?;
    ensure!(
        std::fs::read_to_string(site.in_store(out))? == "before\n" && job["owner"] == "ann",
        "{job}"
    );
    site.leaves_nothing().await
}

/// The most memory that a process has had, in KiB.
pub(super) fn peak(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().split(' ').next());
    Ok(number.context("VmHWM")?.parse()?)
}

pub(super) async fn bounded() -> anyhow::Result<()> {
    let site = Site::start().await?;
    large(&site, 256 << 20)?;
    let leafd = site.leaf.pid().context("it runs")?;
    let before = peak(leafd)?;
    let mut child = site
        .command(&site.tree(), &["nix", "eval", "--local", "path:.#files"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id().context("it runs")?;
    let mut of_client = 0;
    let ended = loop {
        of_client = peak(pid).unwrap_or_default().max(of_client);
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(50), child.wait()).await {
            break ended?;
        }
    };
    ensure!(ended.success(), "{ended}");
    let more = peak(leafd)? - before;
    // It would be 262,144 with all of the source.
    ensure!(more < 40_000, "leafd took {more} KiB more for an upload");
    ensure!((1..60_000).contains(&of_client), "leafctl took {of_client} KiB");
    Ok(())
}

/// A NAR of one file with this text.
pub(super) fn nar(content: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    for part in [
        &b"nix-archive-1"[..],
        b"(",
        b"type",
        b"regular",
        b"contents",
        content,
        b")",
    ] {
        nar.extend((part.len() as u64).to_le_bytes());
        nar.extend(part);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

/// What `nix-store` says of a file that it adds to a store of its own: the path and the content address.
fn added(site: &Site, name: &str, content: &[u8]) -> anyhow::Result<SentPath> {
    let file = site.place.path().join(name);
    std::fs::write(&file, content)?;
    let store = site.place.path().join("callers-store").display().to_string();
    let nix = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = std::process::Command::new("nix-store")
            .args(arguments)
            .args(["--store", &store])
            .env("NIX_CONFIG", NIX_CONFIG)
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout).trim().to_owned())
    };
    let path = nix(&["--add", &file.display().to_string()])?;
    let hash = nix(&["--query", "--hash", &path])?;
    let nar = nar(content);
    Ok(SentPath {
        path: StorePath::new(path)?,
        nar_hash: format!("sha256-{}", BASE64.encode(&Sha256::digest(&nar))),
        nar_size: nar.len() as u64,
        references: Vec::new(),
        content_address: Some(format!("fixed:r:{hash}")),
        signatures: Vec::new(),
        deriver: None,
    })
}

struct Sender {
    client: Client,
    leaf: LeafName,
}

impl Sender {
    async fn put(&self, paths: &[SentPath]) -> Result<Lacking, CallError> {
        let request = PutPaths {
            paths: paths.to_vec(),
        };
        self.client
            .call(&self.leaf, &request, CallOptions::default())
            .await
    }

    async fn begin(&self, paths: &[SentPath]) -> anyhow::Result<Uuid> {
        let lacking = self.put(paths).await?;
        lacking.upload.context("an upload")
    }

    async fn write(&self, upload: Uuid, offset: u64, bytes: &[u8]) -> Result<Received, CallError> {
        let body = (Some(offset), Bytes::copy_from_slice(bytes));
        self.client
            .upload_request(&self.leaf, "write", upload, body, WITHIN)
            .await
    }

    /// Waits until the upload is added, or has failed.
    async fn end(&self, upload: Uuid) -> Result<(), CallError> {
        loop {
            let show = self
                .client
                .upload_request(&self.leaf, "show", upload, (None, Bytes::new()), WITHIN);
            if show.await?.state == UploadState::Added {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Connects as another caller.
pub(super) async fn client_of(site: &Site, caller: &str) -> anyhow::Result<Client> {
    let caller = Caller::new(caller)?;
    let credentials = site
        .leaf
        .identity()?
        .user_credentials(&caller, &Permissions::person(&caller));
    let mut settings = context::load(site.leaf.context_file().to_str())?;
    settings.credentials = Credentials::Text(credentials);
    settings.inbox_prefix = subject::inbox_prefix(&caller);
    Ok(Client::connect(&settings, WITHIN).await?)
}

pub(super) fn refused<T: std::fmt::Debug>(
    result: Result<T, CallError>,
    code: ProblemCode,
    says: &str,
) -> anyhow::Result<()> {
    match result {
        Err(CallError::Problem(problem)) if problem.code == code && problem.detail.contains(says) => Ok(()),
        other => anyhow::bail!("not {code:?} with {says:?}, but {other:?}"),
    }
}

pub(super) async fn lies() -> anyhow::Result<()> {
    let mut site = Site::with(Setup::new().set("nix.max_upload_bytes", 100_000)).await?;
    let name = site.leaf.name.clone();
    let sender = Sender {
        client: site.leaf.client().await?,
        leaf: name.clone(),
    };
    let content = site.leaf.name.to_string().repeat(20);
    let (sent, bytes) = (
        added(&site, "honest", content.as_bytes())?,
        nar(content.as_bytes()),
    );
    let end = bytes.len() as u64;

    // Offsets that lie.
    let upload = sender.begin(std::slice::from_ref(&sent)).await?;
    for (offset, received) in [(7, 0), (end, 0), (u64::MAX, 0)] {
        ensure!(
            sender.write(upload, offset, &bytes).await?.received == received,
            "{offset}"
        );
    }
    ensure!(sender.write(upload, 0, &bytes[..100]).await?.received == 100);
    ensure!(sender.write(upload, 0, &[1; 100]).await?.received == 100);
    // Another client of the caller has the same upload, another caller none of it.
    ensure!(sender.put(std::slice::from_ref(&sent)).await?.received == 100);
    let stranger = Sender {
        client: client_of(&site, "somebody").await?,
        leaf: name.clone(),
    };
    refused(
        stranger.write(upload, 100, &bytes[100..]).await,
        ProblemCode::NotFound,
        "no such upload",
    )?;
    let theirs = stranger.begin(std::slice::from_ref(&sent)).await?;
    // Both are added, and the path is there once.
    let (first, second) = tokio::join!(
        sender.write(upload, 90, &bytes[90..]),
        stranger.write(theirs, 0, &bytes)
    );
    ensure!(first?.received == end && second?.received == end);
    sender.end(upload).await?;
    stranger.end(theirs).await?;
    ensure!(site.stored("-honest").len() == 1);
    ensure!(std::fs::read(site.in_store(sent.path.as_str()))? == content.as_bytes());
    ensure!(sender.put(std::slice::from_ref(&sent)).await?.lacks.is_empty());
    site.leaves_nothing().await?;

    // Bytes that are not those of the hash, and a name that does not follow from them.
    let other = added(&site, "other", b"the one thing")?;
    let upload = sender.begin(std::slice::from_ref(&other)).await?;
    let wrong = nar(b"another thing");
    refused(
        sender.write(upload, 0, &wrong).await,
        ProblemCode::Invalid,
        "have the hash",
    )?;
    let forged = SentPath {
        nar_hash: format!("sha256-{}", BASE64.encode(&Sha256::digest(&wrong))),
        ..other.clone()
    };
    let upload = sender.begin(std::slice::from_ref(&forged)).await?;
    sender.write(upload, 0, &wrong).await?;
    refused(sender.end(upload).await, ProblemCode::Invalid, "can't add")?;
    // Without a content address, nobody knows that it is what its name says.
    let unsigned = SentPath {
        content_address: None,
        ..forged.clone()
    };
    let upload = sender.begin(std::slice::from_ref(&unsigned)).await?;
    sender.write(upload, 0, &wrong).await?;
    refused(
        sender.end(upload).await,
        ProblemCode::Invalid,
        // 2.8 and 2.26 have words of their own.
        "because it lacks a ",
    )?;
    // Nix may leave bytes on the disk until garbage is collected, but no valid path.
    ensure!(!site.is_valid(&other.path)?, "{} is valid", other.path);
    ensure!(site.is_valid(&sent.path)?, "{} is not valid", sent.path);

    // What is too large, too much, or no path.
    let huge = SentPath {
        nar_size: 100_001,
        ..other.clone()
    };
    refused(
        sender.put(&[huge]).await,
        ProblemCode::TooLarge,
        "nix.max_upload_bytes",
    )?;
    refused(sender.put(&[]).await, ProblemCode::Invalid, "1 to 512 paths")?;
    refused(
        sender.write(Uuid::nil(), 0, b"x").await,
        ProblemCode::NotFound,
        "no such upload",
    )?;
    let several = |number: u8| SentPath {
        nar_size: 1000 + u64::from(number),
        ..other.clone()
    };
    for number in 0..4 {
        sender.begin(&[several(number)]).await?;
    }
    refused(
        sender.put(&[several(4)]).await,
        ProblemCode::Overloaded,
        "4 of a caller",
    )?;
    stranger.begin(&[several(4)]).await?;
    Ok(())
}

pub(super) async fn many() -> anyhow::Result<()> {
    let mut site = Site::with(Setup::new().set("nix.max_upload_bytes", 0)).await?;
    let sender = Sender {
        client: site.leaf.client().await?,
        leaf: site.leaf.name.clone(),
    };
    let sent = added(&site, "any", b"anything")?;
    // Nothing may be sent where the setting is 0.
    let paths = std::slice::from_ref(&sent);
    refused(
        sender.put(paths).await,
        ProblemCode::TooLarge,
        "nix.max_upload_bytes",
    )?;
    // Of many questions of a caller at once two are looked into, and the others are told so.
    let answers = futures::future::join_all((0..40).map(|_| sender.put(paths))).await;
    let of = |code: ProblemCode| {
        let is = |answer: &&Result<Lacking, CallError>| matches!(answer, Err(CallError::Problem(problem)) if problem.code == code);
        answers.iter().filter(is).count()
    };
    let (looked_into, refused) = (of(ProblemCode::TooLarge), of(ProblemCode::Overloaded));
    ensure!(
        looked_into + refused == 40 && looked_into > 0 && refused > 0,
        "{looked_into} and {refused}: {answers:?}"
    );
    Ok(())
}

pub(super) async fn full_disk() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let transfers = state.path().join("state/transfers");
    std::fs::create_dir_all(&transfers)?;
    let mount = |arguments: &[&str]| -> anyhow::Result<()> {
        let status = std::process::Command::new("mount")
            .args(arguments)
            .arg(&transfers)
            .status()?;
        ensure!(status.success(), "{arguments:?}: {status}");
        Ok(())
    };
    mount(&["-t", "tmpfs", "-o", "size=64m,mode=0700", "cim-leaf-test"])?;
    let setup = Setup::new()
        .state_dir(&state.path().join("state"))
        .set("nix.min_free_bytes", 1 << 20);
    let mut site = Site::with(setup).await?;
    let outcome = fills(&mut site, &transfers).await;
    site.leaf.kill().await?;
    let _ = std::process::Command::new("umount").arg(&transfers).status();
    outcome
}

async fn fills(site: &mut Site, transfers: &Path) -> anyhow::Result<()> {
    let leaf = site.leaf.name.clone();
    let sender = Sender {
        client: site.leaf.client().await?,
        leaf,
    };
    let bytes = nar(&vec![7; 40 << 20]);
    let mut sent = added(site, "large", b"x")?;
    sent.nar_size = bytes.len() as u64;
    sent.nar_hash = format!("sha256-{}", BASE64.encode(&Sha256::digest(&bytes)));
    // Two of them do not fit, and that is said before a byte is sent.
    let upload = sender.begin(std::slice::from_ref(&sent)).await?;
    let second = SentPath {
        nar_size: sent.nar_size + 8,
        ..sent.clone()
    };
    refused(
        sender.put(&[second]).await,
        ProblemCode::DiskFull,
        "nix.min_free_bytes keeps",
    )?;
    // Somebody else fills the disk.
    let ballast = transfers.join("ballast");
    std::fs::write(&ballast, vec![7; 30 << 20])?;
    let mut offset = 0;
    let refusal = loop {
        let chunk = &bytes[offset..(offset + (128 << 10)).min(bytes.len())];
        match sender.write(upload, offset as u64, chunk).await {
            Ok(reply) => offset = usize::try_from(reply.received)?,
            Err(error) => break error,
        }
        ensure!(offset < bytes.len(), "all fitted");
    };
    refused(Err::<(), _>(refusal), ProblemCode::DiskFull, "")?;
    until("its bytes are removed", async || {
        let left = std::fs::read_dir(transfers)?.count();
        Ok((left == 1).then_some(()))
    })
    .await?;
    // There is room again, and the leaf takes it.
    std::fs::remove_file(ballast)?;
    sender.begin(&[sent]).await?;
    Ok(())
}
