//! `leafd` on the command line: settings files, reports, flags.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &'static str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || {
            test().map_err(|error| Failed::from(format!("{error:?}")))
        })
    };
    let mut trials = vec![
        trial(
            "a report that is truncated, not JSON, a directory, missing or of the wrong shape is refused with its name",
            bad_reports,
        ),
        trial(
            "the inventory of this host lists devices with ids, as JSON and as a table",
            inventory,
        ),
        trial(
            "check-config says of a leaf on an external server without a signing key that it runs no containers, where that is left open",
            notes,
        ),
        trial(
            "check-config --files names each file that can't be used, with its setting",
            files,
        ),
        trial("leafd run with conflicting flags says which are valid", bad_flags),
        trial("what leafd prints about a file commands no terminal", escapes),
        trial(
            "a closed pipe of the inventory's reader is not an error",
            closed_pipe,
        ),
    ];
    for (directory, good) in [("valid", true), ("invalid", false)] {
        let files = configs(directory);
        assert!(!files.is_empty(), "there are samples of settings");
        for file in files {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = format!("check-config: {directory}/{}", name.unwrap_or_default());
            trials.push(Trial::test(name, move || {
                check(&file, good).map_err(|error| Failed::from(format!("{error:?}")))
            }));
        }
    }
    trials
}

fn configs(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/configs")
        .join(directory);
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

fn leafd(arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_leafd"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let settings = directory.path().join("leafd.toml");
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(
        &settings,
        format!(
            "name = 'edge-1'\n[nats.embedded.hub]\nurl = 'tls://hub.example:7422'\ncredentials = '{}'\nca = '{}'\n",
            at("seed"),
            at("ca")
        ),
    )?;
    let file = settings.display().to_string();
    let output = leafd(&["check-config", &file])?;
    ensure!(
        output.status.success(),
        "no file is looked at: {}",
        stderr(&output)
    );
    std::fs::write(at("ca"), "nonsense")?;
    let output = leafd(&["check-config", "--files", &file])?;
    let said = stderr(&output);
    ensure!(
        output.status.code() == Some(1) && output.stdout.is_empty(),
        "{said}"
    );
    let missing = format!(
        "nats.embedded.hub.credentials: {} can't be read by this user",
        at("seed")
    );
    let nonsense = format!("nats.embedded.hub.ca: {} is not a file of certificates", at("ca"));
    ensure!(said.contains(&missing) && said.contains(&nonsense), "{said}");
    Ok(())
}

/// The first line of an invalid sample is `# ` and the words that the error must have.
fn check(file: &Path, good: bool) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
    let output = leafd(&["check-config", &file.display().to_string()])?;
    let said = stderr(&output);
    ensure!(output.status.success() == good, "{}: {said}", output.status);
    if !good {
        let words = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "))
            .context("the first line says what is expected")?;
        ensure!(said.contains(words), "{said:?} lacks {words:?}");
        ensure!(
            said.starts_with("leafd: ") && !said.contains("panicked"),
            "{said}"
        );
    }
    Ok(())
}

fn notes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("leafd.toml");
    let external = "name = 'edge-1'\n[nats]\nurl = 'tls://hub.example:4222'\n";
    for (text, says) in [
        (external.to_owned(), true),
        (format!("{external}[containers]\nenable = false\n"), false),
        (
            format!(
                "{external}credentials = '/c'\nstream_credentials = '/s'\ncontainer_signing_key = '/k'\n"
            ),
            false,
        ),
        ("name = 'edge-1'\n[nats.embedded]\n".to_owned(), false),
    ] {
        std::fs::write(&file, &text)?;
        let output = leafd(&["check-config", &file.display().to_string()])?;
        ensure!(output.status.success(), "{}", stderr(&output));
        let said = String::from_utf8(output.stdout)?;
        ensure!(said.contains("is valid"), "{said}");
        ensure!(
            said.contains(
                "note: a leaf that connects to an external NATS server (nats.url) runs containers only with nats.container_signing_key"
            ) == says,
            "{text}: {said}"
        );
    }
    Ok(())
}

fn bad_reports() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let good = br#"{"version":1,"system":"x86_64-linux","virtualisation":"none","hardware":{}}"#;
    std::fs::write(path("good"), good)?;
    let output = leafd(&["inventory", "--facter", &path("good"), "--json"])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    ensure!(serde_json::from_slice::<Value>(&output.stdout)?["devices"].is_array());
    std::fs::write(path("cut"), &good[..40])?;
    std::fs::write(path("text"), "this is not JSON")?;
    std::fs::write(path("empty"), "")?;
    std::fs::write(path("bytes"), [0xff, 0, 0xfe])?;
    std::fs::write(path("list"), "[]")?;
    std::fs::write(path("deep"), "[".repeat(100_000))?;
    std::fs::create_dir(path("directory"))?;
    // Sparse: as large as it says, and no disk is used.
    std::fs::File::create(path("huge"))?.set_len(20 << 30)?;
    for name in [
        "cut",
        "text",
        "empty",
        "bytes",
        "list",
        "deep",
        "directory",
        "missing",
        "huge",
    ] {
        let output = leafd(&["inventory", "--facter", &path(name), "--json"])?;
        let said = stderr(&output);
        ensure!(
            output.status.code() == Some(1),
            "{name}: {}: {said}",
            output.status
        );
        ensure!(output.stdout.is_empty(), "{name} printed something");
        ensure!(
            said.contains(&path(name)) && !said.contains("panicked"),
            "{name}: {said}"
        );
        ensure!(said.len() < 1000, "{name}: {said}");
    }
    Ok(())
}

fn inventory() -> anyhow::Result<()> {
    let output = leafd(&["inventory", "--json"])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let devices = document["devices"].as_array().context("devices")?;
    ensure!(
        document.as_object().map(|object| object.len()) == Some(1),
        "{document}"
    );
    super::wire::valid(&document, "reply.hardware.list")?;
    let table = leafd(&["inventory"])?;
    let table = String::from_utf8(table.stdout)?;
    ensure!(table.lines().count() == devices.len() + 1, "{table}");
    for device in devices {
        let id = device["id"].as_str().context("an id")?;
        ensure!(
            table.lines().any(|line| line.starts_with(id)),
            "{id} is not in {table}"
        );
    }
    ensure!(!table.contains('\u{1b}'), "colours without a terminal");
    Ok(())
}

fn bad_flags() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state").display().to_string();
    let file = dir.path().join("missing.toml").display().to_string();
    for (arguments, code, says) in [
        (&["run", "--state-dir", &state][..], 1, "--embedded-nats"),
        (
            &["run", "--state-dir", &state, "--nats-port", "0"],
            1,
            "--embedded-nats",
        ),
        (&["run", "--config", &file], 1, "missing.toml"),
        (
            &["run", "--name", "Not A Name", "--embedded-nats"],
            2,
            "is not a leaf name",
        ),
        (&["run", "--embedded-nats", "--nats-port", "70000"], 2, "70000"),
        (
            &[
                "run",
                "--embedded-nats",
                "--state-dir",
                "/dev/null/x",
                "--name",
                "a",
            ],
            1,
            "/dev/null/x",
        ),
        (&["run", "extra"], 2, "extra"),
        (&["walk"], 2, "walk"),
        (&[], 2, "Usage"),
        (&["check-config"], 2, "FILE"),
        (&["check-config", &file], 1, "missing.toml"),
        (&["check-config", "/"], 1, "can't read the settings file /"),
    ] {
        let output = leafd(arguments)?;
        let said = stderr(&output);
        ensure!(
            output.status.code() == Some(code),
            "{arguments:?}: {}: {said}",
            output.status
        );
        ensure!(
            said.contains(says) && !said.contains("panicked"),
            "{arguments:?}: {said}"
        );
    }
    ensure!(!dir.path().join("state").exists(), "a state directory was made");
    Ok(())
}

fn closed_pipe() -> anyhow::Result<()> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_leafd"))
        .args(["inventory", "--json"])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()?;
    ensure!(output.status.success(), "{}: {}", output.status, stderr(&output));
    Ok(())
}

fn escapes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir
        .path()
        .join("\u{1b}]0;owned\u{7}\u{202e}.toml")
        .display()
        .to_string();
    std::fs::write(&file, "name = \"\\u001b[2J\"")?;
    for arguments in [
        &["check-config", &file][..],
        &["run", "--config", &file],
        &["inventory", "--facter", &file],
    ] {
        let output = leafd(arguments)?;
        let said = stderr(&output);
        ensure!(!output.status.success(), "{said}");
        ensure!(said.contains(r"\u{1b}]0;owned\u{7}\u{202e}.toml"), "{said:?}");
        ensure!(!said.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{said:?}");
    }
    Ok(())
}
