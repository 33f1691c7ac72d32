//! `leafctl` with several leaves on one server.

use std::time::Instant;

use leaf_bus::identity::daemon_caller;
use leaf_core::subject;
use rustix::process::Signal;

use super::*;
use crate::support::Hub;

/// Leaves that share a server, sorted by name: the first is the one whose context all commands use.
pub(super) struct Fleet {
    pub(super) leaves: Vec<TestLeaf>,
    /// It lives as long as they do.
    _hub: Hub,
}

impl Fleet {
    /// Starts this many leaves. Each has the label `site`: `even` or `odd` by its number.
    pub(super) async fn start(count: usize) -> anyhow::Result<Self> {
        Self::start_with(count, |_, setup| setup).await
    }

    /// Starts this many leaves, with more settings by their number.
    pub(super) async fn start_with(
        count: usize,
        settings: impl Fn(usize, Setup) -> Setup,
    ) -> anyhow::Result<Self> {
        let hub = Hub::start().await?;
        let mut leaves = Vec::new();
        for number in 0..count {
            let setup = match number {
                0 => hub.setup(),
                _ => hub.setup_of(&LeafName::new(format!("{}-{number}", hub.leaf))?)?,
            };
            let site = if number % 2 == 0 { "even" } else { "odd" };
            let setup = settings(number, setup.set("labels.site", site));
            leaves.push(setup.launch().await?);
        }
        for leaf in &mut leaves {
            leaf.ready().await?;
        }
        Ok(Self { leaves, _hub: hub })
    }

    pub(super) fn name(&self, number: usize) -> &str {
        self.leaves[number].name.as_str()
    }

    /// Runs a command, and returns how it ended and how long it took.
    pub(super) async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<(Output, Duration)> {
        let began = Instant::now();
        let output = ctl(&self.leaves[0], arguments).await?;
        Ok((output, began.elapsed()))
    }

    /// Runs a command with success, and returns its output.
    pub(super) async fn printed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        printed(&self.leaves[0], arguments).await
    }
}

/// Returns the lines of JSON, each with its leaf.
fn lines(output: &Output) -> anyhow::Result<Vec<(String, Value)>> {
    let text = text(&output.stdout);
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let leaf = value["leaf"].as_str().context("a leaf")?.to_owned();
        anyhow::Ok((leaf, value))
    };
    text.lines().map(line).collect()
}

/// Returns the first word of each line.
fn first_words(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

pub(super) async fn together() -> anyhow::Result<()> {
    let fleet = Fleet::start(3).await?;
    let names: Vec<&str> = (0..3).map(|number| fleet.name(number)).collect();
    let (first, pattern) = (names[0], format!("{}*", names[0]));
    // Tables: a column, sorted by leaf.
    for selection in [
        &["-A"][..],
        &["--all-leaves"],
        &["--leaf", &pattern],
        &["-l", "site"],
    ] {
        let arguments: Vec<&str> = ["hardware", "list"].iter().chain(selection).copied().collect();
        let table = until("the hardware of all is known", async || {
            let table = fleet.printed(&arguments).await?;
            Ok(names
                .iter()
                .all(|name| table.contains(&format!("\n{name} ")))
                .then_some(table))
        })
        .await?;
        let words = first_words(&table);
        ensure!(words[0] == "LEAF" && words[1..].is_sorted(), "{table}");
        let heading = table.lines().next().unwrap_or_default();
        ensure!(
            heading.contains("  DEVICE") && table.matches("DEVICE").count() == 1,
            "{table}"
        );
        ensure!(table.lines().all(|line| line.trim_end() == line), "{table:?}");
    }
    // A selection by name or of one leaf prints as ever; the same by label has the leaf.
    let alone = fleet.printed(&["nix", "jobs", "--leaf", first]).await?;
    ensure!(alone.starts_with("JOB"), "{alone}");
    let odd = fleet.printed(&["nix", "jobs", "-l", "site=odd"]).await?;
    ensure!(odd.starts_with("LEAF  JOB"), "{odd}");
    let even = fleet.printed(&["leaf", "show", "-l", "site!=odd"]).await?;
    let shown: Vec<&str> = even.lines().filter(|line| line.starts_with("leaf ")).collect();
    ensure!(
        shown.len() == 2
            && shown[0].ends_with(first)
            && shown[1].ends_with(names[2])
            && !even.contains(names[1]),
        "{even}"
    );
    // JSON: one line per leaf.
    let two = format!("{},{}", names[2], names[0]);
    let (output, _) = fleet.ctl(&["leaf", "show", "--json", "--leaf", &two]).await?;
    ended(&output, 0, "")?;
    let replies = lines(&output)?;
    ensure!(
        replies.len() == 2 && replies[0].0 == names[0] && replies[1].0 == names[2],
        "{replies:?}"
    );
    for (leaf, line) in &replies {
        valid(&line["reply"], "reply.leaf.show")?;
        ensure!(
            line["reply"]["name"] == leaf.as_str() && line.get("error").is_none(),
            "{line}"
        );
    }
    // What each of them refuses has a line for each, and one exit code.
    let (output, _) = fleet.ctl(&["container", "show", "nobody", "-A"]).await?;
    ended(&output, 5, "3 of 3 leaves did not carry out the command")?;
    ensure!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let said = text(&output.stderr);
    for name in &names {
        ensure!(said.contains(&format!("error: {name}: ")), "{said}");
    }
    let (output, _) = fleet
        .ctl(&["container", "show", "nobody", "-A", "--json"])
        .await?;
    ended(&output, 5, "")?;
    for ((leaf, line), name) in lines(&output)?.iter().zip(&names) {
        ensure!(leaf == name && line["error"]["code"] == "not_found", "{line}");
        ensure!(line["error"]["exit_code"] == 5, "{line}");
    }
    for line in text(&output.stderr).lines() {
        serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?;
    }
    // Nothing selected: what there is.
    for selection in [&["-l", "site=none"][..], &["--leaf", "zebra*"]] {
        let arguments: Vec<&str> = ["hardware", "list"].iter().chain(selection).copied().collect();
        let (output, _) = fleet.ctl(&arguments).await?;
        ended(&output, 5, "no leaf is selected; the leaves are ")?;
        ended(&output, 5, &format!("{} (site=odd)", names[1]))?;
    }
    for (arguments, says) in [
        (
            &["leaf", "show", "-A", "-l", "site"][..],
            "leave out --leaf and --selector",
        ),
        (&["leaf", "show", first, "-A"], "leave one of the two out"),
        (&["leaf", "show", "-l", "Site=x"], "is none of KEY=VALUE"),
        (
            &["leaf", "show", "--leaf", "Edge*"],
            "is not a pattern of leaf names",
        ),
        (&["leaf", "show"], "--all-leaves"),
    ] {
        let (output, _) = fleet.ctl(arguments).await?;
        ended(&output, 2, says).with_context(|| format!("{arguments:?}"))?;
    }
    // The variable names one leaf: several are selected on the command line only.
    for (value, code, says) in [
        (names[1], 0, ""),
        (pattern.as_str(), 2, "LEAFCTL_LEAF names one leaf"),
    ] {
        let mut command = command(&["leaf", "show"]);
        command
            .env("LEAFCTL_CONTEXT", fleet.leaves[0].context_file())
            .env("LEAFCTL_LEAF", value);
        ended(&run(command).await?, code, says)?;
    }
    Ok(())
}

pub(super) async fn silent() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(4).await?;
    let names: Vec<String> = fleet.leaves.iter().map(|leaf| leaf.name.to_string()).collect();
    // One that has given its lease back, one that was killed and is listed still, one that hangs.
    fleet.leaves[1].stop().await?;
    fleet.leaves[2].kill().await?;
    let both = format!("{},{}", names[0], names[1]);
    let (output, took) = fleet.ctl(&["hardware", "list", "--leaf", &both]).await?;
    ended(
        &output,
        4,
        &format!("error: {}: leaf {} does not reply", names[1], names[1]),
    )?;
    ensure!(
        first_words(&text(&output.stdout)).last() == Some(&names[0].as_str()),
        "{output:?}"
    );
    ensure!(took < Duration::from_secs(5), "it waited for {took:?}");

    let (output, took) = fleet.ctl(&["leaf", "show", "-A"]).await?;
    ended(
        &output,
        4,
        &format!("error: {}: leaf {} takes no commands", names[2], names[2]),
    )?;
    let shown = text(&output.stdout);
    ensure!(shown.contains(&names[3]) && !shown.contains(&names[1]), "{shown}");
    ensure!(took < Duration::from_secs(5), "it waited for {took:?}");

    fleet.leaves[3].signal(Signal::STOP)?;
    let all = names.join(",");
    let arguments = ["leaf", "show", "--json", "--timeout", "3s", "--leaf", &all];
    let (output, took) = fleet.ctl(&arguments).await?;
    fleet.leaves[3].signal(Signal::CONT)?;
    ended(&output, 4, "3 of 4 leaves")?;
    ensure!(
        took > Duration::from_millis(2900) && took < Duration::from_secs(6),
        "it took {took:?}, and the limit is 3 s for all"
    );
    let lines = lines(&output)?;
    let leaves: Vec<&str> = lines.iter().map(|(leaf, _)| leaf.as_str()).collect();
    ensure!(leaves == names, "{leaves:?}");
    valid(&lines[0].1["reply"], "reply.leaf.show")?;
    for (_, line) in &lines[1..] {
        ensure!(
            line["error"]["exit_code"] == 4 && line.get("reply").is_none(),
            "{line}"
        );
    }
    // An interruption keeps what has been replied.
    fleet.leaves[3].signal(Signal::STOP)?;
    let both_there = format!("{},{}", names[0], names[3]);
    let arguments = [
        "leaf",
        "label",
        "rack=7",
        "--leaf",
        &both_there,
        "--timeout",
        "1m",
    ];
    let child = spawned(&fleet.leaves[0], &arguments)?;
    until("the first has its label", async || {
        let shown = document(&fleet.leaves[0], &["leaf", "show", &names[0]]).await?;
        Ok((shown["labels"]["rack"] == "7").then_some(()))
    })
    .await?;
    interrupt(&child)?;
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await??;
    fleet.leaves[3].signal(Signal::CONT)?;
    let says = format!(
        "error: {}: interrupted: it may still be carried out; repeat",
        names[3]
    );
    ended(&output, 130, &says)?;
    ended(&output, 130, "1 of 2 leaves")?;
    ensure!(text(&output.stdout).contains("rack=7"), "{output:?}");
    // Different failures have a code of their own.
    let (output, _) = fleet
        .ctl(&["container", "show", "nobody", "--leaf", &both])
        .await?;
    ended(&output, 9, "2 of 2 leaves")
}

/// A stream of leases that forgets no leaf, as a hub has it. A leaf that is away has no responder, or one that hangs.
pub(super) async fn away() -> anyhow::Result<()> {
    let fleet = Fleet::start(1).await?;
    let here = fleet.name(0).to_owned();
    let identity = fleet.leaves[0].identity()?;
    remember_leaves(&fleet).await?;
    let gone = LeafName::new(format!("{here}-gone"))?;
    let listed: Value = document(&fleet.leaves[0], &["leaf", "list"]).await?["leaves"][0].clone();
    ensure!(
        listed["state"] == "online" && listed["labels"]["site"] == "even",
        "{listed}"
    );
    valid(&listed, "beat")?;
    let mut beat = listed.clone();
    beat["leaf"] = gone.as_str().into();
    // The time by its own clock counts for nothing.
    beat["time"] = "2042-01-02T03:04:05.678Z".into();
    publish_beat(&fleet, &gone, &beat).await?;
    let listed = fleet.printed(&["leaf", "list"]).await?;
    ensure!(listed.matches("online").count() == 2, "{listed}");

    let table = until("the leaf is away", async || {
        let table = fleet.printed(&["leaf", "list"]).await?;
        Ok(table.contains("away since ").then_some(table))
    })
    .await?;
    let lines: Vec<&str> = table.lines().collect();
    ensure!(
        lines.len() == 3
            && lines[0].starts_with("LEAF")
            && lines[1].contains(" online ")
            && lines[1].contains("site=even")
            && lines[2].starts_with(gone.as_str())
            && lines[2].contains(" away since 20"),
        "{table}"
    );
    let list = document(&fleet.leaves[0], &["leaf", "list"]).await?;
    ensure!(list["leaves"][1]["state"] == "away", "{list}");
    let says = format!("error: {gone}: leaf {gone} is away since 20");
    let (output, took) = fleet.ctl(&["leaf", "show", "-A"]).await?;
    ended(&output, 4, &says)?;
    ensure!(text(&output.stdout).contains(&here), "{output:?}");
    ensure!(took < Duration::from_secs(3), "it waited for {took:?}");

    let caller = Caller::new("silent")?;
    let everything = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let silent = fleet.leaves[0]
        .nats(&identity.user_credentials(&caller, &everything), &caller)
        .await?;
    let _heard = silent.subscribe(subject::commands_of(&gone)).await?;
    silent.flush().await?;
    let (output, took) = fleet.ctl(&["leaf", "show", "-A"]).await?;
    ended(
        &output,
        4,
        &format!("leaf {gone} did not reply within 1 s and is away since"),
    )?;
    ensure!(took < Duration::from_secs(5), "it waited for {took:?}");
    Ok(())
}

/// Has the stream of leases forget no leaf, as a hub has it.
async fn remember_leaves(fleet: &Fleet) -> anyhow::Result<()> {
    let context = async_nats::jetstream::new(fleet.leaves[0].nats_as_leafd().await?);
    let mut leases = context.get_stream("LEASES").await?.cached_info().config.clone();
    leases.max_age = Duration::ZERO;
    context.update_stream(leases).await?;
    Ok(())
}

/// No system is switched here, since these hosts have none: what is shown is which leaf is asked when.
pub(super) async fn awaited() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(2).await?;
    remember_leaves(&fleet).await?;
    let gone = fleet.name(1).to_owned();
    fleet.leaves[1].kill().await?;
    until("the leaf is away", async || {
        let table = fleet.printed(&["leaf", "list"]).await?;
        Ok(table.contains("away since ").then_some(()))
    })
    .await?;
    let nowhere = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-nowhere";
    let boot = ["system", "boot", "--uncounted", "-A", "--keep-going", nowhere];
    let (output, _) = fleet.ctl(&boot).await?;
    ended(&output, 7, &format!("leaf {gone} is away, and left out"))?;
    ensure!(!text(&output.stdout).contains(&gone), "{output:?}");
    let awaiting = [&boot[..], &["--await-absent", "2s"]].concat();
    let (output, _) = fleet.ctl(&awaiting).await?;
    ended(&output, 9, &format!("leaf {gone} was away for all of 2s"))?;
    let table = text(&output.stdout);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    ensure!(lines[1][1] == "failed" && lines[2] == [&*gone, "away"], "{table}");
    // After a failure it is not waited for.
    let strict: Vec<&str> = awaiting
        .iter()
        .filter(|word| **word != "--keep-going")
        .copied()
        .collect();
    let (output, _) = fleet.ctl(&strict).await?;
    ensure!(text(&output.stdout).contains("not begun"), "{output:?}");

    let awaiting = [&boot[..], &["--await-absent", "1m"]].concat();
    let mut child = spawned(&fleet.leaves[0], &awaiting)?;
    let mut lines = said_by(&mut child)?;
    line_with(&mut lines, &format!("are away, and awaited: {gone}")).await?;
    fleet.leaves[1].start_again().await?;
    line_with(&mut lines, &format!("{gone}: ")).await?;
    let output = child.wait_with_output().await?;
    let table = text(&output.stdout);
    let last = table.lines().last().context("a row")?;
    let words: Vec<&str> = last.split_whitespace().take(2).collect();
    ensure!(words == [&*gone, "failed"], "{table}");
    Ok(())
}

/// Publishes a beat into the stream of leases, as the leaf itself may.
pub(super) async fn publish_beat(fleet: &Fleet, leaf: &LeafName, beat: &Value) -> anyhow::Result<()> {
    let identity = fleet.leaves[0].identity()?;
    let credentials = identity.trusted_credentials(&daemon_caller(), &Permissions::keeper(leaf));
    let client = fleet.leaves[0].nats(&credentials, &daemon_caller()).await?;
    let stored = client
        .request(subject::beat(leaf), beat.to_string().into())
        .await?;
    let stored = text(&stored.payload);
    ensure!(!stored.contains("error"), "{stored}");
    Ok(())
}

pub(super) async fn repeated() -> anyhow::Result<()> {
    let fleet = Fleet::start(3).await?;
    let label = ["leaf", "label", "-A", "stage=canary"];
    fleet.leaves[2].signal(Signal::STOP)?;
    let arguments: Vec<&str> = label.iter().chain(&["--timeout", "1s"]).copied().collect();
    let (output, _) = fleet.ctl(&arguments).await?;
    ended(&output, 4, "1 of 3 leaves")?;
    let said = text(&output.stderr);
    let id = said
        .split_once("--command-id ")
        .and_then(|(_, rest)| rest.split([',', ' ', '\n']).next())
        .with_context(|| said.clone())?;
    fleet.leaves[2].signal(Signal::CONT)?;
    let arguments: Vec<&str> = label.iter().chain(&["--command-id", id]).copied().collect();
    let again = fleet.printed(&arguments).await?;
    ensure!(again.matches("stage=canary").count() == 3, "{again}");
    let mut causes = Vec::new();
    for leaf in &fleet.leaves {
        let name = leaf.name.as_str();
        let labelled = until("the event is published", async || {
            let arguments = ["events", "--json", "--type", "leaf.labelled", "--leaf", name];
            let lines = fleet.printed(&arguments).await?;
            Ok((!lines.is_empty()).then_some(lines))
        })
        .await?;
        ensure!(
            labelled.lines().count() == 1,
            "it has its effect once: {labelled}"
        );
        let event: Value = serde_json::from_str(&labelled)?;
        causes.push(event["causationid"].as_str().context("a cause")?.to_owned());
    }
    causes.sort();
    causes.dedup();
    ensure!(causes.len() == 3, "each leaf has an id of its own: {causes:?}");
    Ok(())
}

pub(super) async fn followed() -> anyhow::Result<()> {
    let fleet = Fleet::start(2).await?;
    let names = [fleet.name(0), fleet.name(1)];
    let events = fleet.printed(&["events", "-A", "--type", "leaf.started"]).await?;
    ensure!(first_words(&events) == names, "{events}");
    let events = fleet
        .printed(&["events", "-A", "--type", "leaf.started", "--json"])
        .await?;
    for (line, name) in events.lines().zip(names) {
        let event: Value = serde_json::from_str(line)?;
        ensure!(event["source"] == format!("urn:cim-leaf:{name}"), "{event}");
    }
    let alone = fleet
        .printed(&["events", "--leaf", names[0], "--type", "leaf.started"])
        .await?;
    ensure!(
        !alone.contains(&format!("{}  ", names[0])) || alone.trim_start().starts_with('1'),
        "{alone}"
    );

    let mut child = spawned(
        &fleet.leaves[0],
        &["events", "-A", "--follow", "--type", "leaf.labelled"],
    )?;
    let mut said = said_by(&mut child)?;
    line_with(&mut said, "following the events of 2 leaves").await?;
    fleet.printed(&["leaf", "label", "-A", "rack=7"]).await?;
    let mut printed = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let mut found = Vec::new();
    while found.len() < 2 {
        let line = tokio::time::timeout(Duration::from_secs(60), printed.next_line()).await??;
        found.push(line.context("it goes on")?);
    }
    found.sort();
    for (line, name) in found.iter().zip(names) {
        ensure!(
            line.starts_with(&format!("{name}  ")) && line.contains("leaf.labelled"),
            "{line}"
        );
    }
    interrupt(&child)?;
    interrupted_child_ends(&mut child).await?;

    let (output, _) = fleet
        .ctl(&["events", "--leaf", &format!("{},nobody", names[0])])
        .await?;
    ended(&output, 5, "error: nobody: no events of leaf nobody found")?;
    ensure!(text(&output.stdout).contains("leaf.started"), "{output:?}");
    for arguments in [
        &["container", "logs", "web", "--follow", "-A"][..],
        &["container", "stats", "web", "--follow", "-A"],
        &["nix", "build", "--template", "minimal", "-A"],
        &["nix", "log", "01890a5d-ac96-774b-bcce-b302099a8057", "-A"],
    ] {
        let (output, _) = fleet.ctl(arguments).await?;
        let says = format!(
            "works with one leaf at a time, and several are selected; name one with --leaf: {}",
            names.join(", ")
        );
        ended(&output, 2, &says).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

/// As on a hub of a large fleet: the list is one read, and leaves that are gone or hang hold up no other.
pub(super) async fn a_thousand() -> anyhow::Result<()> {
    let fleet = Fleet::start(1).await?;
    let here = fleet.name(0).to_owned();
    let listed: Value = document(&fleet.leaves[0], &["leaf", "list"]).await?["leaves"][0].clone();
    let caller = Caller::new("many")?;
    let everything = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let identity = fleet.leaves[0].identity()?;
    let streams = identity.trusted_credentials(&caller, &everything);
    let streams = fleet.leaves[0].nats(&streams, &caller).await?;
    for number in 0..999 {
        let leaf = LeafName::new(format!("many-{number:03}"))?;
        let mut beat = listed.clone();
        beat["leaf"] = leaf.as_str().into();
        beat["time"] = jiff::Timestamp::now().to_string().into();
        beat["labels"] = serde_json::json!({ "row": (number % 10).to_string() });
        let stored = streams
            .request(subject::beat(&leaf), beat.to_string().into())
            .await?;
        let stored = text(&stored.payload);
        ensure!(!stored.contains("error"), "{stored}");
    }
    let (output, took) = fleet.ctl(&["leaf", "list"]).await?;
    ended(&output, 0, "")?;
    let lines = text(&output.stdout).lines().count();
    ensure!(lines == 1001, "{lines}");
    eprintln!("leaf list over 1,000 leaves: {took:?}");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    let some = fleet.printed(&["leaf", "list", "-l", "row=7"]).await?;
    ensure!(some.lines().count() == 101, "{some}");

    // None of them is there.
    let (output, took) = fleet.ctl(&["leaf", "show", "-A"]).await?;
    ended(&output, 4, "999 of 1000 leaves")?;
    ensure!(text(&output.stdout).contains(&here), "{output:?}");
    eprintln!("leaf show of 1,000 leaves, 999 gone: {took:?}");
    ensure!(took < Duration::from_secs(5), "{took:?}");

    // All of them hang.
    let callers = identity.user_credentials(&caller, &everything);
    let callers = fleet.leaves[0].nats(&callers, &caller).await?;
    let _heard = callers.subscribe("leaf.v1.cmd.*.admin.>").await?;
    callers.flush().await?;
    let (output, took) = fleet
        .ctl(&["leaf", "show", "--leaf", "many-*", "--timeout", "4s"])
        .await?;
    ended(&output, 4, "999 of 999 leaves")?;
    eprintln!("leaf show of 999 leaves that hang, --timeout 4s: {took:?}");
    ensure!(took < Duration::from_secs(9), "{took:?}");
    Ok(())
}

/// The document of the agent about a copy, as the golden message has it.
pub(super) async fn copies() -> anyhow::Result<()> {
    let fleet = Fleet::start(2).await?;
    let names = [fleet.name(0), fleet.name(1)];
    let list = fleet.printed(&["leaf", "list"]).await?;
    ensure!(!list.contains("COPY"), "this server is no hub: {list}");
    let caller = Caller::new("agent")?;
    let everything = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let identity = fleet.leaves[0].identity()?;
    let agent = identity.trusted_credentials(&caller, &everything);
    let agent = async_nats::jetstream::new(fleet.leaves[0].nats(&agent, &caller).await?);
    let bucket = async_nats::jetstream::stream::Config {
        name: format!("KV_{}", subject::FLEET_BUCKET),
        subjects: vec![subject::copy_statuses()],
        max_messages_per_subject: 1,
        allow_direct: true,
        ..Default::default()
    };
    agent.create_stream(bucket).await?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1/fleet.copy.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden)?)?;
    let mut status = golden["body"].clone();
    status["leaf"] = names[1].into();
    let to = subject::copy_status(&fleet.leaves[1].name);
    agent.publish(to, status.to_string().into()).await?.await?;
    let list = fleet.printed(&["leaf", "list"]).await?;
    let says = "5 events missing: the leaf does not answer requests for its events";
    ensure!(
        list.lines().next().is_some_and(|line| line.ends_with("COPY"))
            && list.matches(says).count() == 1
            && list
                .lines()
                .last()
                .is_some_and(|line| line.contains(names[1]) && line.ends_with(says)),
        "{list}"
    );
    let list = document(&fleet.leaves[0], &["leaf", "list"]).await?;
    ensure!(list["leaves"][0].get("copy").is_none(), "{list}");
    valid(&list["leaves"][1]["copy"], "fleet.copy")?;
    let shown = fleet.printed(&["leaf", "show", "-A"]).await?;
    ensure!(shown.matches(says).count() == 1, "{shown}");
    Ok(())
}
