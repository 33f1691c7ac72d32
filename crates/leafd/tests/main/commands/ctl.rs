//! `leafctl` against a real leaf, as people and scripts use it.
//!
//! It is another package's program, so it stands beside `leafd` only if it was built (`cargo xtask test` does that
//! first): where it is missing, or older than its own sources, these tests count as ignored.

#[path = "ctl/building.rs"]
mod building;
#[path = "ctl/connecting.rs"]
mod connecting;
#[path = "ctl/developing.rs"]
mod developing;
#[path = "ctl/escapes.rs"]
mod escapes;
#[path = "ctl/fleet.rs"]
mod fleet;
#[path = "ctl/getting.rs"]
mod getting;
#[path = "ctl/hooking.rs"]
mod hooking;
#[path = "ctl/hub.rs"]
mod hub;
#[path = "ctl/hub_sessions.rs"]
mod hub_sessions;
#[path = "ctl/key_faults.rs"]
mod key_faults;
#[path = "ctl/key_files_nixos.rs"]
mod key_files_nixos;
#[path = "ctl/keys.rs"]
mod keys;
#[path = "ctl/labels.rs"]
mod labels;
#[path = "ctl/link_ends.rs"]
mod link_ends;
#[path = "ctl/newer.rs"]
mod newer;
#[path = "ctl/openpgp.rs"]
mod openpgp;
#[path = "ctl/placing.rs"]
mod placing;
#[path = "ctl/provenance.rs"]
mod provenance;
#[path = "ctl/running.rs"]
mod running;
#[path = "ctl/secrets.rs"]
mod secrets;
#[path = "ctl/sending.rs"]
mod sending;
#[path = "ctl/sessions.rs"]
mod sessions;
#[path = "ctl/signing.rs"]
mod signing;
#[path = "ctl/takeover.rs"]
mod takeover;
#[path = "ctl/watching.rs"]
mod watching;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use leaf_bus::identity::{Identity, Permissions};
use leaf_core::id::{Caller, LeafName};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::wire::valid;
use crate::support::{Host, Need, Setup, TestLeaf, until};
use building::{builds, builds_a_flake, collects, derivation, follows, interrupted, repeated, templates};
use connecting::{contexts, errors, group_access, just_ended, several};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let lack = lack();
    if let Some(lack) = &lack {
        eprintln!("the tests of leafctl are skipped: {lack}");
    }
    [
        host.trial("leafctl: every query prints one JSON document that is valid by its schema, and a table without colours", &[], queries),
        host.trial("leafctl: each kind of error has its exit code, its text and its JSON", &[], errors),
        host.trial("leafctl: a context is given by name, by file or by the environment, and flags take precedence", &[], contexts),
        host.trial("leafctl: what leafd writes for its group lets the group in, and needs nothing that the group can't read", &[], group_access),
        host.trial("leafctl: of a leaf that takes no commands and is still listed, the error says why", &[], just_ended),
        host.trial("leafctl: with several leaves one must be named", &[], several),
        host.trial("leafctl: several leaves are asked at once and print one table, and one line of JSON each", &[], fleet::together),
        host.trial("leafctl: of several leaves, those that are gone or hang get a line each and hold up no other", &[], fleet::silent),
        host.trial("leafctl: a thousand leaves are listed by one read, and those that are gone or hang hold up no other", &[], fleet::a_thousand),
        host.trial("leafctl: a leaf that is away is listed and not waited for", &[], fleet::away),
        host.trial("leafctl: a system for several leaves reaches one that is away once it is back, if that is asked for", &[Need::Nix], fleet::awaited),
        host.trial("leafctl: on a hub the list and the description of a leaf have the state of its copy", &[], fleet::copies),
        host.trial("leafctl: of a leaf that is away, the hub says since when and how far its events are copied", &[Need::HubAgent], hub::away),
        host.trial("leafctl: a fleet is made from nothing, and its leaf, its agent and a person work together until the leaf is revoked", &[Need::HubAgent], keys::from_nothing),
        host.trial("leafctl: a revocation cuts an open connection, and holds over restarts, a lost resolver directory and a stale push", &[], keys::revoked),
        host.trial("leafctl: a revoked user is refused also by a server that just starts, amid many who connect", &[], key_faults::revoked_in_a_crowd),
        host.trial("leafctl: a revocation reaches both servers of a hub, and one that hangs is counted", &[], key_faults::two_servers),
        host.trial("leafctl: an account that a stranger signed is replaced by a push, and stops no revocation", &[], key_faults::forged_account),
        host.trial("leafctl: a directory of keys from a backup takes over what was revoked since", &[], keys::from_a_backup),
        host.trial("leafctl: a revocation of all people, made with another program, is kept, and who is given new credentials gets in", &[], keys::revoked_all),
        host.trial("commands from the hub are carried out once each over several ends of the credentials of a leaf's link", &[Need::HubAgent], link_ends::over_several_ends),
        host.trial("a leaf whose credentials ended while the hub was down is back with renewed ones, one that was revoked while it was off is refused, and both work for their own people", &[Need::HubAgent], link_ends::while_cut_off),
        host.trial("leafctl: a user of a fleet is cut and refused at its end, and the key of a role makes no other users", &[], keys::ends),
        host.trial("leafctl: the key of the witness is made with a fleet, told to its leaves, and replaced only where that is asked for", &[], keys::witness),
        host.trial("leafctl: a new key works beside the former one until that is revoked", &[Need::HubAgent], keys::rotated),
        host.trial("leafctl: the hub's server of NixOS takes the accounts of a fleet as they are written, its people and what is pushed", &[Need::Nix], key_files_nixos::hub),
        host.trial("leafctl: the module of a leaf that joins a fleet names its files and the witness", &[Need::Nix], key_files_nixos::leaf),
        host.trial("leafctl: keys that nothing needs may be moved away, and a missing one is named with what works without it", &[], key_faults::moved_away),
        host.trial("leafctl: what is no fleet, no name or no host key is refused and changes nothing", &[], key_faults::refused),
        host.trial("leafctl: on a full disk a fleet is made as a whole or not at all", &[Need::Root], key_faults::full_disk),
        host.trial("leafctl: a change of several leaves whose reply was lost is repeated under one id, and has one effect on each", &[], fleet::repeated),
        host.trial("leafctl: builds for any leaf go where there is room, and the same one asked for twice at once goes to one leaf", &[Need::Nix], placing::spreads),
        host.trial("leafctl: a build for any leaf goes where its features and its system are, and waits there for them", &[Need::Nix], placing::by_what_it_takes),
        host.trial("leafctl: a build for any leaf is not held up by a leaf that hangs", &[Need::Nix], placing::where_one_hangs),
        host.trial("leafctl: a build whose leaf dies is taken over by the one that stands by, within 15 s, and ends there", &[Need::Nix, Need::HubAgent], takeover::dies),
        host.trial("leafctl: a leaf that was only cut off goes on with its build, and only that of the leaf that took it over counts", &[Need::Nix, Need::HubAgent], takeover::cut_off),
        host.trial("leafctl: a build whose leaf is back in time is not taken over, and a cancelled one is cancelled at both leaves", &[Need::Nix, Need::HubAgent], takeover::back_in_time),
        host.trial("leafctl: of a build that has ended while the leaf that stands by is cut off, it says what is not known", &[Need::Nix, Need::HubAgent], takeover::second_is_silent),
        host.trial("leafctl: a leaf that stands by and is rolled back to an older leafd keeps the job, and starts nothing", &[Need::Nix, Need::HubAgent, Need::OldLeafd], takeover::rolled_back),
        host.trial("leafctl: a build is taken over although the hub agent was started again after its leaf had died", &[Need::Nix, Need::HubAgent], takeover::agent_anew),
        host.trial("leafctl: what a leaf has built is verified by its signed statement, by the right key alone", &[Need::Nix], provenance::verified),
        host.trial("leafctl: the statement about a build is verified by another program", &[Need::Securesystemslib], provenance::by_another_program),
        host.trial("leafctl: what follows something names the leaf on each line, or works with one leaf only", &[], fleet::followed),
        host.trial("leafctl: labels of the settings and of commands add up, select leaves, and outlast restarts", &[], labels::kept),
        host.trial("leafctl: a secret is encrypted to a key that a person confirmed, listed and removed, and never printed", &[Need::Root], secrets::set_and_removed),
        host.trial("leafctl: hostile labels command no terminal", &[], labels::hostile),
        host.trial("leafctl: the replies of a newer leaf are printed unchanged", &[], newer::answers_as_they_came),
        host.trial("leafctl: text from outside commands no terminal, whatever the command, and JSON has it exactly", &[], escapes::harmless_everywhere),
        host.trial("leafctl: a build shows progress on standard error only, and its log, job and failure afterwards", &[Need::Nix], builds),
        host.trial("leafctl: nix ci builds all packages and checks of a flake, and says of each what came of it", &[Need::Nix], builds_a_flake),
        host.trial("transfers: a working tree of this machine is built on a leaf, with what Nix takes of it, and sent once", &[Need::Nix], sending::trees),
        host.trial("transfers: a tree is sent with submodules and directories as its reference says, and not where an input leads out of it", &[Need::Nix], sending::references),
        host.trial("transfers: an upload goes on where the client vanished and leafd was killed, and files that change meanwhile change nothing", &[Need::Nix], sending::interrupted),
        host.trial("transfers: a tree is sent through a hub whose link is cut, and with the signature that the leaf wants", &[Need::Nix, Need::HubAgent], sending::through_a_hub),
        host.trial("transfers: a large source is sent in bounded memory", &[Need::Nix], sending::bounded),
        host.trial("transfers: of many questions of one caller at once few are looked into, and where uploads are off nothing is sent", &[Need::Nix], sending::many),
        host.trial("transfers: offsets, hashes, names and uploads that lie put nothing into the store", &[Need::Nix], sending::lies),
        host.trial("transfers: a disk that fills ends the upload and leaves nothing of it", &[Need::Root, Need::Nix], sending::full_disk),
        host.trial("leafctl: what a leaf has built is brought to this machine with all that it needs, if it is signed or that is waived, and linked", &[Need::Nix], getting::closures),
        host.trial("transfers: a download is read at any offset, by its caller alone, until its end, and begun again after a restart", &[Need::Nix], getting::reads),
        host.trial("transfers: a large path is got in bounded memory", &[Need::Nix], getting::bounded),
        host.trial("transfers: a path is got through a hub whose link is cut, and with the signature that the leaf wants", &[Need::Nix, Need::HubAgent], getting::through_a_hub),
        host.trial("transfers: what is damaged in a leaf's store is found where it is added, and is not there then", &[Need::Nix], getting::damaged),
        host.trial("leafctl: a disk of this machine that is too small for what is got is named, and nothing is left there", &[Need::Root, Need::Nix], getting::full_disk),
        host.trial("leafctl: a stock Nix builds on leaves by the build hook, with features and several outputs, and has the outputs and the log", &[Need::Nix], hooking::builds_of_nix),
        host.trial("leafctl: by the build hook, further versions of Nix add outputs whose locks they hold", &[Need::Root, Need::Nix, Need::FurtherNix], hooking::further_versions),
        host.trial("leafctl: the build hook tells Nix that a builder failed, and declines what no leaf has", &[Need::Nix], hooking::refusals),
        host.trial("leafctl: ten derivations are with the leaves at once by the build hook", &[Need::Nix], hooking::parallel),
        host.trial("leafctl: where a leaf dies with a build of the hook, the next one builds it", &[Need::Nix], hooking::dead_builder),
        host.trial("leafctl: where Nix is interrupted or killed, the job of its build hook is cancelled", &[Need::Nix], hooking::cancelled),
        host.trial("leafctl: garbage is collected by age, space and dry run, and never what a job holds", &[Need::Root, Need::Nix], collects),
        host.trial("leafctl: the templates of the checkout are found without a setting", &[Need::Nix], templates),
        host.trial("leafctl: Ctrl-C during a build exits with 130 and says that the job continues and how to cancel it", &[Need::Nix], interrupted),
        host.trial("leafctl: a change whose reply was lost is repeated under its id, and has one effect", &[Need::Nix], repeated),
        host.trial("leafctl: nix attach shows the builds of a job as a tree from any terminal, leaves it alone at Ctrl-C, and ends with its outcome", &[Need::Nix], watching::from_anywhere),
        host.trial("leafctl: the log of a queued job is followed to its end", &[Need::Nix], follows),
        host.trial("leafctl: a program is run with packages under a user of its own, and its output, exit code and time are in the record", &[Need::Root, Need::Nix], running::recorded),
        host.trial("leafctl: a program that hangs, forks without end or leaves something behind is bounded and leaves nothing", &[Need::Root, Need::Nix], running::bounded),
        host.trial("leafctl: nix develop runs a command or a script in the environment of a build, with its functions, hooks and output paths", &[Need::Root, Need::Nix], developing::with_pipes),
        host.trial("leafctl: nix develop with packages has them in PATH, and the caller's variables and hook", &[Need::Root, Need::Nix], developing::with_packages),
        host.trial("leafctl: nix develop on a terminal is an interactive bash, which is left, come back to, and ends with its code", &[Need::Root, Need::Nix], developing::on_a_terminal),
        host.trial("leafctl: nix develop of what has no environment, or too large a one, fails with the reason", &[Need::Root, Need::Nix], developing::refused),
        host.trial("sessions: what goes in and comes out is the same, bytes of all kinds, and the exit code is the program's", &[Need::Root, Need::Nix], sessions::pipes),
        host.trial("sessions: on a terminal a program has one of the size of the person's, is interrupted, resized, left and come back to", &[Need::Root, Need::Nix], sessions::terminals),
        host.trial("sessions: a restart of leafd leaves the program and what it prints alone, and its client comes back by itself", &[Need::Root, Need::Nix], sessions::restarts),
        host.trial("sessions: a hundred megabytes that nobody reads yet are bounded in memory, and all there when they are read", &[Need::Root, Need::Nix], sessions::floods),
        host.trial("sessions: wrong signatures, numbers that were taken and other callers are not answered and change nothing", &[Need::Root, Need::Nix], sessions::forged),
        host.trial("sessions: through a hub whose link is cut, what goes in and comes out arrives once and in order", &[Need::Root, Need::Nix, Need::HubAgent], hub_sessions::pipes),
        host.trial("sessions: a shell of nix develop behind a hub is left, come back to, and outlasts a cut link", &[Need::Root, Need::Nix, Need::HubAgent], hub_sessions::terminal),
        host.trial("sessions: a client that vanishes leaves nothing", &[Need::Root, Need::Nix], sessions::vanishes),
        host.trial("leafctl: events are listed from a sequence number, by type, and followed; a closed pipe is not an error", &[], events),
        host.trial("leafctl: hardware watch says that it waits, and exits with 130 at Ctrl-C", &[], watches),
        host.trial("leafctl: on a terminal headings are bold, and a build that prints does not hang", &[Need::Nix], terminal),
        host.trial("leafctl: it signs by a key file or ssh-agent where a leaf asks for it, and says what is missing", &[], signing::one_leaf),
        host.trial("leafctl: it signs by gpg where leafd was built for that, and a key that is revoked or not allowed does not count", &[Need::OpenPgp], openpgp::signs),
        host.trial("leafctl: it signs for a leaf behind a hub", &[Need::HubAgent], signing::through_a_hub),
        host.trial("leafctl: one signature is for all leaves of a command that let its key sign", &[], signing::several_leaves),
        host.trial("leafctl: a secret for several leaves has a signature for each, over a text that names that leaf alone", &[Need::Root], signing::secrets),
        host.trial("leafctl: each shell can read its completions, and schemas are shown in full", &[], offline),
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

/// Why `leafctl` can't be run.
pub(crate) fn lack() -> Option<String> {
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

fn newest(directory: &Path) -> SystemTime {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let times = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => newest(&entry.path()),
        Ok(meta) => meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        Err(_) => SystemTime::UNIX_EPOCH,
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `leafctl` without anything of this machine's user.
pub(crate) fn command(arguments: &[&str]) -> Command {
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

pub(crate) async fn run(mut command: Command) -> anyhow::Result<Output> {
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

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails unless it ended so and said this.
pub(crate) fn ended(output: &Output, code: i32, says: &str) -> anyhow::Result<()> {
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
    // A leaf that runs no containers says so to people as well.
    let shown = printed(&leaf, &["leaf", "show"]).await?;
    ensure!(
        shown.contains("0 running, 0 in all; refused: containers are not enabled (containers.enable)"),
        "{shown}"
    );
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
        let mut child = spawned(&leaf, arguments)?;
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
        (&["hardware", "watch"][..], "waiting for hardware changes"),
        (&["events", "--follow"], "following the events"),
    ] {
        let mut child = spawned(&leaf, arguments)?;
        let mut lines = said_by(&mut child)?;
        let said = line_with(&mut lines, says).await?;
        ensure!(said.contains("Ctrl-C"), "{said}");
        interrupt(&child)?;
        interrupted_child_ends(&mut child)
            .await
            .with_context(|| format!("{arguments:?}"))?;
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
            let known = leaf_core::schema::Bundle::new().resolve(name);
            ensure!(schema == known.context("a type")?, "{schema}");
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
            super::wire::compile(schema).with_context(|| format!("{name} is no schema"))?;
        }
    }
    Ok(())
}

/// Starts it for a leaf, with its output in pipes.
fn spawned(leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<Child> {
    let mut command = command(arguments);
    command
        .env("LEAFCTL_CONTEXT", leaf.context_file())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// The lines of its standard error.
fn said_by(child: &mut Child) -> anyhow::Result<Lines<BufReader<ChildStderr>>> {
    Ok(BufReader::new(child.stderr.take().context("a pipe")?).lines())
}

/// Fails unless it ends in time, with the status of one that was interrupted.
async fn interrupted_child_ends(child: &mut Child) -> anyhow::Result<()> {
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
    ensure!(status.code() == Some(130), "{status}");
    Ok(())
}

async fn line_with(lines: &mut Lines<BufReader<ChildStderr>>, words: &str) -> anyhow::Result<String> {
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

fn interrupt(child: &Child) -> anyhow::Result<()> {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    Ok(rustix::process::kill_process(
        pid.context("a process")?,
        rustix::process::Signal::INT,
    )?)
}
