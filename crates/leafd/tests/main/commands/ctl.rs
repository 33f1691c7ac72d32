//! `leafctl` against a real leaf, as people and scripts use it.
//!
//! It is another package's program, so it stands beside `leafd` only if it was built (`cargo xtask test` does that
//! first): where it is missing, or older than its own sources, these tests count as ignored.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use leaf_bus::identity::{Identity, Permissions};
use leaf_core::id::{Caller, LeafName};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::wire::valid;
use crate::support::{Host, Need, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let lack = lack();
    if let Some(lack) = &lack {
        eprintln!("the tests of leafctl are skipped: {lack}");
    }
    [
        host.trial("leafctl: every query prints one JSON document that is valid by its schema, and a table without colours", &[], queries),
        host.trial("leafctl: each kind of error has its exit code, its words and its JSON", &[], errors),
        host.trial("leafctl: a context is taken by name, by file, from the environment, and flags go before it", &[], contexts),
        host.trial("leafctl: of several leaves one must be named", &[], several),
        host.trial("leafctl: a build shows progress on standard error only, and its log, job and failure afterwards", &[Need::Nix], builds),
        host.trial("leafctl: Ctrl-C while a build runs ends with 130 and says that it goes on and how to end it", &[Need::Nix], interrupted),
        host.trial("leafctl: the log of a job that waits is followed to its end", &[Need::Nix], follows),
        host.trial("leafctl: events are listed from a number, by type, and followed; a reader that goes is no error", &[], events),
        host.trial("leafctl: hardware watch says that it waits, and Ctrl-C ends it with 130", &[], watches),
        host.trial("leafctl: on a terminal headings are bold, and a build that prints does not hang", &[Need::Nix], terminal),
        host.trial("leafctl: completions of each shell can be read by it, and schemas are shown whole", &[], offline),
    ]
    .into_iter()
    .map(|trial| {
        let ignored = lack.is_some() || trial.has_ignored_flag();
        trial.with_ignored_flag(ignored)
    })
    .collect()
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_leafd")).with_file_name("leafctl")
}

fn lack() -> Option<String> {
    let made = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let Some(built) = made(&program()) else {
        return Some(format!(
            "{} is missing (cargo build -p leafctl)",
            program().display()
        ));
    };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../leafctl/src");
    (newest(&sources) > built).then(|| {
        format!(
            "{} is older than its sources (cargo build -p leafctl)",
            program().display()
        )
    })
}

fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let times = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => newest(&entry.path()),
        Ok(meta) => meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        Err(_) => SystemTime::UNIX_EPOCH,
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `leafctl` without anything of this machine's user.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .env_remove("LEAFCTL_CONTEXT")
        .env_remove("LEAFCTL_LEAF")
        .env_remove("NO_COLOR")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> anyhow::Result<Output> {
    let what = format!("{command:?}");
    tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .with_context(|| format!("{what} does not end"))?
        .context(what)
}

/// Runs it for a leaf.
async fn ctl(leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = command(arguments);
    command.env("LEAFCTL_CONTEXT", leaf.context_file());
    run(command).await
}

/// Runs it for a leaf, with success, and returns what it prints; nothing else may be said.
async fn printed(leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<String> {
    let output = ctl(leaf, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

async fn document(leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<Value> {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let printed = printed(leaf, &all).await?;
    serde_json::from_str(&printed).with_context(|| format!("{arguments:?}: {printed}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails unless it ended so and said this.
fn ended(output: &Output, code: i32, says: &str) -> anyhow::Result<()> {
    let said = text(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{} and not {code}: {said}",
        output.status
    );
    ensure!(
        said.contains(says) && !said.contains("panicked"),
        "{said:?} lacks {says:?}"
    );
    Ok(())
}

async fn queries() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    leaf.published().await?;
    let devices = until("the hardware is known", async || {
        let list = document(&leaf, &["hardware", "list"]).await?;
        valid(&list, "reply.hardware.list")?;
        Ok(list["devices"]
            .as_array()
            .filter(|devices| !devices.is_empty())
            .cloned())
    })
    .await?;
    let id = devices[0]["id"].as_str().context("an id")?;
    for (arguments, schema) in [
        (&["leaf", "show"][..], "reply.leaf.show"),
        (&["leaf", "show", leaf.name.as_str()], "reply.leaf.show"),
        (&["hardware", "show", id], "reply.hardware.show"),
        (&["hardware", "rescan"], "reply.hardware.rescan"),
        (&["container", "list"], "reply.container.list"),
        (&["nix", "jobs"], "reply.job.list"),
    ] {
        valid(&document(&leaf, arguments).await?, schema).with_context(|| format!("{arguments:?}"))?;
        let table = printed(&leaf, arguments).await?;
        ensure!(
            !table.contains('\u{1b}'),
            "{arguments:?}: colours without a terminal: {table}"
        );
        ensure!(
            table.lines().all(|line| line.trim_end() == line),
            "{arguments:?}: blanks at the end: {table:?}"
        );
    }
    let list = document(&leaf, &["leaf", "list"]).await?;
    valid(&list["leaves"][0], "beat")?;
    ensure!(list["leaves"][0]["leaf"] == leaf.name.as_str(), "{list}");
    let table = printed(&leaf, &["hardware", "list"]).await?;
    ensure!(
        table.starts_with("DEVICE") && table.contains("INPUTS") && table.contains("OUTPUTS"),
        "{table}"
    );
    ensure!(table.lines().count() == devices.len() + 1, "{table}");
    Ok(())
}

async fn errors() -> anyhow::Result<()> {
    let leaf = Setup::new()
        .set("nix.program", "/nonexistent/nix")
        .start()
        .await?;
    let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (arguments, code, says) in [
        (&["lef", "show"][..], 2, "similar"),
        (&["leaf", "show", "Bad"], 2, "is not a leaf name"),
        (&["leaf", "show", "--timeout", "5"], 2, "time unit needed"),
        (&["container", "create", "a"], 2, "--template"),
        (
            &["container", "create", "a", "--toplevel", "/etc"],
            2,
            "is not a store path",
        ),
        (&["container", "show", "../x"], 2, "is not a container name"),
        (&["events", "--type", "["], 2, "is not a pattern"),
        (&["nix", "build"], 2, "INSTALLABLE"),
        (&["leaf", "show", "nobody"], 4, "no leaf nobody answers"),
        (&["container", "health", "nobody"], 4, "does not answer"),
        (&["hardware", "show", "nothing"], 5, "there is no device nothing"),
        (&["container", "start", "nobody"], 6, "containers.enable"),
        (&["container", "show", "nobody"], 5, "container.list"),
        (&["nix", "log", nobody], 5, "job.list"),
        (&["nix", "cancel", nobody], 5, nobody),
        (&["events", "--leaf", "nobody"], 5, "leafctl leaf list"),
        (&["schema", "show", "nothing"], 5, "leafctl schema list"),
        (&["nix", "build", "/a#b"], 6, "/nonexistent/nix"),
    ] {
        let output = ctl(&leaf, arguments).await?;
        ended(&output, code, says).with_context(|| format!("{arguments:?}"))?;
        ensure!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            text(&output.stdout)
        );
        if code != 2 {
            let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
            let output = ctl(&leaf, &all).await?;
            let said: Value = serde_json::from_slice(&output.stderr)
                .with_context(|| format!("{all:?}: {}", text(&output.stderr)))?;
            ensure!(
                said["exit_code"] == code
                    && said["detail"]
                        .as_str()
                        .is_some_and(|detail| detail.contains(says)),
                "{all:?}: {said}"
            );
        }
    }
    // No server; credentials of another server; a server that is silent.
    ended(
        &run(command(&["leaf", "list", "--server", "nats://127.0.0.1:1"])).await?,
        3,
        "no NATS server answers",
    )?;
    let other = tempfile::tempdir()?;
    let stranger = Identity::open_or_create(&other.path().join("identity"), &LeafName::new("stranger")?)?;
    let creds = stranger.admin_credentials_file().display().to_string();
    ended(
        &ctl(&leaf, &["leaf", "show", "--creds", &creds]).await?,
        3,
        "refuses the credentials",
    )?;
    ended(
        &ctl(&leaf, &["leaf", "show", "--creds", "/nonexistent"]).await?,
        3,
        "/nonexistent",
    )?;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("nats://{}", silent.local_addr()?);
    ended(
        &run(command(&[
            "leaf",
            "list",
            "--timeout",
            "300ms",
            "--server",
            &address,
        ]))
        .await?,
        3,
        "does not answer within 0.3 s",
    )?;
    let url = leaf_bus::context::load(leaf.context_file().to_str())?
        .servers
        .join(",");
    // TLS that is asked for, with authorities that can't be read.
    let (context, ca) = (other.path().join("tls.json"), other.path().join("ca.pem"));
    std::fs::write(&ca, "no certificate")?;
    let tls = url.replace("nats://", "tls://");
    std::fs::write(&context, serde_json::json!({ "url": tls, "ca": ca }).to_string())?;
    ended(
        &run(command(&[
            "leaf",
            "list",
            "--context",
            &context.display().to_string(),
        ]))
        .await?,
        3,
        "TLS",
    )?;
    // A person who may command nobody.
    let caller = Caller::new("guest")?;
    let mut few = Permissions::person(&caller);
    few.publish.retain(|subject| !subject.starts_with("leaf.v1.cmd"));
    let creds = other.path().join("guest.creds");
    std::fs::write(&creds, leaf.identity()?.user_credentials(&caller, &few).expose())?;
    let guest = other.path().join("guest.json");
    std::fs::write(
        &guest,
        serde_json::json!({ "url": url, "creds": creds, "inbox_prefix": "_INBOX.guest" }).to_string(),
    )?;
    ended(
        &run(command(&[
            "leaf",
            "show",
            "--context",
            &guest.display().to_string(),
        ]))
        .await?,
        6,
        "may not send this command",
    )?;
    Ok(())
}

async fn contexts() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let config = tempfile::tempdir()?;
    let folder = config.path().join("nats/context");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(leaf.context_file(), folder.join("edge.json"))?;
    std::fs::write(folder.join("broken.json"), "{")?;
    let show = async |arguments: &[&str]| {
        let mut command = command(&["leaf", "show"]);
        command.args(arguments).env("XDG_CONFIG_HOME", config.path());
        run(command).await
    };
    ended(&show(&["--context", "edge"]).await?, 0, "")?;
    let file = leaf.context_file().display().to_string();
    ended(&show(&["--context", &file]).await?, 0, "")?;
    ended(
        &show(&["--context", "edg"]).await?,
        3,
        "there is no context \"edg\"",
    )?;
    ended(&show(&["--context", "broken"]).await?, 3, "broken.json")?;
    ended(&show(&["--context", "../edge"]).await?, 3, "../edge")?;
    std::fs::write(config.path().join("nats/context.txt"), "edge")?;
    ended(&show(&[]).await?, 0, "")?;
    ended(
        &show(&["--server", "nats://127.0.0.1:1"]).await?,
        3,
        "127.0.0.1:1",
    )?;
    // Nothing says where: the hint does.
    let hinted = run(command(&["leaf", "show", "--creds", "/nonexistent"])).await?;
    ended(
        &hinted,
        3,
        "hint: a leaf with its own NATS server writes context.json",
    )?;
    let context = leaf_bus::context::load(Some(&file))?;
    let (server, creds) = (
        context.servers.join(","),
        leaf.identity()?.admin_credentials_file().display().to_string(),
    );
    let mut by_environment = command(&["leaf", "show", leaf.name.as_str()]);
    by_environment.env("LEAFCTL_CONTEXT", &file);
    ended(&run(by_environment).await?, 0, "")?;
    // Credentials without a context: the caller is the user that they name.
    for what in ["list", "show"] {
        let flags = run(command(&["leaf", what, "--server", &server, "--creds", &creds])).await?;
        ended(&flags, 0, "")?;
    }
    Ok(())
}

async fn several() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    // A second lease, as another leaf on the same server holds one.
    let second = LeafName::new(format!("{}-b", leaf.name))?;
    let first: Value = document(&leaf, &["leaf", "list"]).await?["leaves"][0].clone();
    let mut beat = first.clone();
    beat["leaf"] = second.as_str().into();
    let account = leaf.identity()?;
    let permissions = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let caller = Caller::new("second")?;
    let client = leaf
        .nats(&account.user_credentials(&caller, &permissions), &caller)
        .await?;
    let stored = client
        .request(format!("leaf.v1.beat.{second}"), beat.to_string().into())
        .await?;
    ensure!(
        !text(&stored.payload).contains("error"),
        "{}",
        text(&stored.payload)
    );
    let output = ctl(&leaf, &["leaf", "show"]).await?;
    ended(&output, 2, "name one with --leaf")?;
    let said = text(&output.stderr);
    ensure!(
        said.contains(leaf.name.as_str()) && said.contains(second.as_str()),
        "{said}"
    );
    printed(&leaf, &["--leaf", leaf.name.as_str(), "leaf", "show"]).await?;
    printed(&leaf, &["hardware", "list", "--leaf", leaf.name.as_str()]).await?;
    let list = document(&leaf, &["leaf", "list"]).await?;
    ensure!(list["leaves"].as_array().map(Vec::len) == Some(2), "{list}");
    ended(
        &ctl(&leaf, &["leaf", "show", "--leaf", second.as_str()]).await?,
        4,
        second.as_str(),
    )
}

/// Writes a derivation and returns the file.
fn derivation(leaf: &TestLeaf, name: &str, script: &str) -> anyhow::Result<String> {
    let file = leaf.state_dir.join(format!("{name}.nix"));
    std::fs::write(
        &file,
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; leaf = \"{}\"; args = [ \"-c\" ''{script}'' ]; }}",
            leaf.name
        ),
    )?;
    Ok(file.display().to_string())
}

const ENDLESS: &str = "echo it began; while :; do read -t 1 line < /dev/zero; done";

async fn builds() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let good = derivation(&leaf, "good", "echo hello from the builder; echo x > $out")?;
    let bad = derivation(&leaf, "bad", "echo oh no; exit 3")?;
    let output = ctl(&leaf, &["nix", "build", "--file", &good]).await?;
    ended(&output, 0, "hello from the builder")?;
    let result = text(&output.stdout);
    ensure!(
        result.starts_with("store path  /nix/store/") && !result.contains("hello"),
        "{result}"
    );
    let job = document(&leaf, &["nix", "build", "--file", &good]).await?;
    ensure!(
        job["phase"] == "succeeded" && job["result"]["store_path"].is_string(),
        "{job}"
    );
    let output = ctl(&leaf, &["nix", "build", "--file", &bad]).await?;
    ended(&output, 7, "failed with exit code 3")?;
    ended(&output, 7, "leafctl nix log")?;
    // The same under --json used to hang as soon as the builder printed something.
    let output = ctl(&leaf, &["nix", "build", "--file", &bad, "--json"]).await?;
    let said: Value = serde_json::from_slice(&output.stderr)?;
    ensure!(output.stdout.is_empty() && said["exit_code"] == 7, "{said}");
    let list = document(&leaf, &["nix", "jobs"]).await?;
    let jobs = list["jobs"].as_array().context("jobs")?;
    ensure!(jobs.len() == 4, "{list}");
    let last = jobs[0]["id"].as_str().context("an id")?;
    let log = printed(&leaf, &["nix", "log", last]).await?;
    ensure!(log.contains("oh no"), "{log}");
    let chunks = printed(&leaf, &["nix", "log", last, "--json"]).await?;
    for line in chunks.lines() {
        valid(&serde_json::from_str(line)?, "reply.job.log")?;
    }
    let detached = printed(&leaf, &["nix", "build", "--detach", "--file", &good]).await?;
    detached.trim().parse::<leaf_core::id::JobId>()?;
    // What is already over can be cancelled as often as one likes.
    printed(&leaf, &["nix", "cancel", last]).await?;
    ended(
        &ctl(&leaf, &["nix", "build", "--time-limit", "0s", "--file", &good]).await?,
        6,
        "seconds",
    )
}

async fn interrupted() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let endless = derivation(&leaf, "endless", ENDLESS)?;
    let mut command = command(&["nix", "build", "--file", &endless]);
    let mut child = command
        .env("LEAFCTL_CONTEXT", leaf.context_file())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("a pipe")?).lines();
    line_with(&mut lines, "it began").await?;
    interrupt(&child)?;
    let said = line_with(&mut lines, "goes on").await?;
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
    ensure!(status.code() == Some(130), "{status}");
    let list = document(&leaf, &["nix", "jobs"]).await?;
    let job = list["jobs"][0]["id"].as_str().context("an id")?;
    ensure!(list["jobs"][0]["phase"] == "running", "{list}");
    ensure!(
        said.contains(&format!("leafctl nix cancel {job}")) && said.contains("nix log --follow"),
        "{said}"
    );
    let ended = document(&leaf, &["nix", "cancel", job]).await?;
    ensure!(ended["phase"] == "cancelled", "{ended}");
    Ok(())
}

async fn follows() -> anyhow::Result<()> {
    let leaf = Setup::new().set("nix.max_jobs", 1).start().await?;
    let endless = derivation(&leaf, "endless", ENDLESS)?;
    let after = derivation(&leaf, "after", "echo the second has its turn; echo x > $out")?;
    let first = printed(&leaf, &["nix", "build", "--detach", "--file", &endless]).await?;
    let second = printed(&leaf, &["nix", "build", "--detach", "--file", &after]).await?;
    let mut command = command(&["nix", "log", "--follow", second.trim()]);
    let follower = command
        .env("LEAFCTL_CONTEXT", leaf.context_file())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let log = printed(&leaf, &["nix", "log", second.trim()]).await?;
    ensure!(log.is_empty(), "{log}");
    printed(&leaf, &["nix", "cancel", first.trim()]).await?;
    let output = tokio::time::timeout(Duration::from_secs(60), follower.wait_with_output())
        .await
        .context("the log ends")??;
    ended(&output, 0, "")?;
    ensure!(
        text(&output.stdout).contains("the second has its turn"),
        "{}",
        text(&output.stdout)
    );
    Ok(())
}

async fn events() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    until("the hardware is known", async || {
        Ok(leaf.published().await.ok().filter(|last| *last > 1))
    })
    .await?;
    let last = leaf.published().await?;
    let lines = printed(&leaf, &["events", "--json"]).await?;
    for (number, line) in (1..).zip(lines.lines()) {
        let event: Value = serde_json::from_str(line)?;
        ensure!(
            event["specversion"] == "1.0" && event["sequence"] == format!("{number:020}"),
            "{event}"
        );
        let kind = event["type"].as_str().context("a type")?;
        valid(&event["data"], kind)?;
    }
    ensure!(lines.lines().count() as u64 == last);
    let some = printed(&leaf, &["events", "--since", &last.to_string()]).await?;
    ensure!(
        some.lines().count() == 1 && some.trim_start().starts_with(&last.to_string()),
        "{some}"
    );
    ensure!(
        printed(&leaf, &["events", "--since", &(last + 1).to_string()])
            .await?
            .is_empty()
    );
    let started = printed(&leaf, &["events", "--type", "leaf.*"]).await?;
    ensure!(
        !started.is_empty() && started.lines().all(|line| line.contains("leaf.")),
        "{started}"
    );
    ensure!(
        printed(&leaf, &["events", "--type", "volcano.*"])
            .await?
            .is_empty()
    );
    // A reader that takes the first line and goes: also of a log that has no end.
    for arguments in [&["events"][..], &["events", "--follow", "--since", "1"]] {
        let mut command = command(arguments);
        let mut child = command
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut reader = BufReader::with_capacity(16, child.stdout.take().context("a pipe")?);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        drop(reader);
        if arguments.len() > 1 {
            // What comes next finds nobody.
            leaf.stop().await?;
            leaf.start_again().await?;
        }
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .with_context(|| format!("{arguments:?} ends"))??;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}: {}",
            output.status,
            text(&output.stderr)
        );
    }
    Ok(())
}

async fn watches() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    for (arguments, says) in [
        (&["hardware", "watch"][..], "waiting for changes"),
        (&["events", "--follow"], "following the events"),
    ] {
        let mut command = command(arguments);
        let mut child = command
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("a pipe")?).lines();
        let said = line_with(&mut lines, says).await?;
        ensure!(said.contains("Ctrl-C"), "{said}");
        interrupt(&child)?;
        let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
        ensure!(status.code() == Some(130), "{arguments:?}: {status}");
    }
    Ok(())
}

async fn terminal() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let bad = derivation(&leaf, "bad", "echo oh no; exit 3")?;
    let on_terminal = async |arguments: &str, no_color: &str| {
        // util-linux's script runs it on a terminal of its own.
        let mut command = Command::new("script");
        command
            .args([
                "--quiet",
                "--return",
                "--command",
                &format!("{} {arguments}", program().display()),
                "/dev/null",
            ])
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env("NO_COLOR", no_color)
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        run(command).await
    };
    let coloured = on_terminal("leaf list", "").await?;
    ensure!(
        text(&coloured.stdout).contains("\u{1b}[1m"),
        "{:?}",
        text(&coloured.stdout)
    );
    let plain = on_terminal("leaf list", "1").await?;
    ensure!(
        !text(&plain.stdout).contains('\u{1b}'),
        "{:?}",
        text(&plain.stdout)
    );
    let json = on_terminal("leaf list --json", "").await?;
    ensure!(!text(&json.stdout).contains('\u{1b}'), "{:?}", text(&json.stdout));
    let built = on_terminal(&format!("nix build --file {bad}"), "").await?;
    ensure!(built.status.code() == Some(7), "{}", built.status);
    let said = text(&built.stdout);
    ensure!(said.contains("oh no") && said.contains("error:"), "{said:?}");
    Ok(())
}

async fn offline() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for (shell, check) in [
        ("bash", Some("-n")),
        ("zsh", Some("-n")),
        ("fish", Some("--no-execute")),
        ("elvish", None),
        ("powershell", None),
    ] {
        let output = run(command(&["completions", shell])).await?;
        ensure!(
            output.status.success() && text(&output.stdout).contains("rescan"),
            "{shell}"
        );
        let file = dir.path().join(shell);
        std::fs::write(&file, &output.stdout)?;
        let Some(check) = check else { continue };
        match Command::new(shell).arg(check).arg(&file).output().await {
            Ok(read) => ensure!(read.status.success(), "{shell}: {}", text(&read.stderr)),
            // bash is everywhere; the others where their people are.
            Err(error) => ensure!(shell != "bash", "{shell}: {error}"),
        }
    }
    let list = run(command(&["schema", "list", "--json"])).await?;
    let list: Value = serde_json::from_slice(&list.stdout)?;
    let types = list["types"].as_array().context("types")?;
    ensure!(types.len() == leaf_core::schema::catalogue().len());
    for entry in types {
        let name = entry["name"].as_str().context("a name")?;
        ensure!(
            entry["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{entry}"
        );
        if !["cmd.nix.build", "problem", "cim.leaf.container.started.v1"].contains(&name) {
            continue;
        }
        for arguments in [&["schema", "show", name][..], &["schema", "show", name, "--json"]] {
            let shown = run(command(arguments)).await?;
            let schema: Value = serde_json::from_slice(&shown.stdout)?;
            let known = leaf_core::schema::catalogue()
                .into_iter()
                .find(|message| message.name == name);
            ensure!(schema == known.context("a type")?.document(), "{schema}");
            ensure!(
                schema["$id"]
                    .as_str()
                    .is_some_and(|id| id.starts_with("urn:cim-leaf:") && id.ends_with(name)),
                "{schema}"
            );
            ensure!(
                schema["$schema"] == "https://json-schema.org/draft/2020-12/schema",
                "{schema}"
            );
            jsonschema::meta::validate(&schema).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        }
    }
    Ok(())
}

async fn line_with(
    lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    words: &str,
) -> anyhow::Result<String> {
    let found = async {
        let mut all = String::new();
        while let Some(line) = lines.next_line().await? {
            if line.contains(words) {
                return Ok(line);
            }
            all += &format!("{line}\n");
        }
        anyhow::bail!("it ended without {words:?}: {all}")
    };
    tokio::time::timeout(Duration::from_secs(60), found)
        .await
        .with_context(|| format!("waiting for {words:?}"))?
}

fn interrupt(child: &tokio::process::Child) -> anyhow::Result<()> {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    Ok(rustix::process::kill_process(
        pid.context("a process")?,
        rustix::process::Signal::INT,
    )?)
}
