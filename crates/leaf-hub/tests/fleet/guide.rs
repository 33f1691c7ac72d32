//! The guide of `docs/fleet.md`: each command in it, and in `docs/keys.md`, `docs/deploy.md` and the README, exists with its flags, and what its blocks make is valid. leafctl's own tests
//! read its command lines in all documents to the last word. The blocks are carried out as a whole on test hosts (`testhost::Fleet::connect`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use testhost::fleet::Guide;
use tokio::process::Command;

use crate::servers;

/// The programs whose commands are tried. Those of other packages are beside this package's.
const PROGRAMS: [&str; 3] = ["leaf-hub", "leafctl", "leafd"];

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_leaf-hub")).with_file_name(name)
}

/// Returns the words of each command in a document's blocks and inline code. `a b c | d` stands for two commands, `a b c` and `a b d`;
/// square brackets enclose what may be left out, and upper-case words stand for values.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut take = |code: &str| {
        for part in code.split(['\n', ';', '(']).flat_map(|line| line.split("&&")) {
            let part = part.split(['>', ')', '#', '&']).next().unwrap_or_default();
            let mut alternatives = part
                .split(" | ")
                .map(|alternative| alternative.split_whitespace().map(word).collect::<Vec<_>>());
            let first = alternatives.next().unwrap_or_default();
            if first.len() > 1 && PROGRAMS.contains(&first[0].as_str()) {
                let group = first[..2].to_vec();
                found.push(first);
                found.extend(alternatives.map(|more| [group.clone(), more].concat()));
            }
        }
    };
    for (number, part) in text.split("\n```").enumerate() {
        if number % 2 == 1 {
            take(part);
        } else {
            part.split('`').skip(1).step_by(2).for_each(&mut take);
        }
    }
    found
}

/// Returns a word as it is typed.
fn word(text: &str) -> String {
    let text = text.trim_matches(['[', ']', '…', '\'']);
    match text {
        "SEQ" => "1".to_owned(),
        "TIME" => "1h".to_owned(),
        "SHELL" => "bash".to_owned(),
        "JOB" | "ID" | "WORK" => "01a1fa19-3499-7075-b997-19a0d15c7240".to_owned(),
        "PATH" => "/nix/store/krvm1bsdn8riwzm1qlm6imcgkw1a7if3-leaf-minimal".to_owned(),
        value if value.starts_with(|letter: char| letter.is_ascii_uppercase()) => value.to_lowercase(),
        given => given.replace("$PWD", "/srv"),
    }
}

pub(crate) async fn exist() -> anyhow::Result<()> {
    let document = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    let (readme, keys) = (document("README.md"), document("docs/keys.md"));
    let deploy = document("docs/deploy.md");
    let documents = [
        ("docs/fleet.md", Guide::read()?.text().to_owned(), 15),
        ("docs/keys.md", std::fs::read_to_string(keys)?, 10),
        ("docs/deploy.md", std::fs::read_to_string(deploy)?, 10),
        ("README.md", std::fs::read_to_string(readme)?, 40),
    ];
    for (document, text, least) in documents {
        let commands = commands(&text);
        ensure!(
            commands.len() >= least,
            "the commands of {document} were not recognised: {commands:?}"
        );
        for command in commands {
            // The help is printed after the words before it were parsed; behind `--` it would be a program's.
            let own = command
                .iter()
                .position(|word| word == "--")
                .unwrap_or(command.len());
            let output = Command::new(program(&command[0]))
                .args(&command[1..own])
                .arg("--help")
                .output()
                .await
                .with_context(|| format!("can't run {}", command[0]))?;
            ensure!(
                output.status.success(),
                "{command:?} of {document}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}

/// Carries out lines of a block, with another directory in place of those below /etc.
async fn carry_out(directory: &Path, block: &str) -> anyhow::Result<()> {
    let directory_text = directory.to_str().context("a path is text")?;
    let commands: String = block
        .replace("/etc/", &format!("{directory_text}/"))
        .replace("leaf-hub accounts", "leaf-hub accounts --config leaf-hub.toml")
        .replace("&& systemctl", "# ")
        .lines()
        // What needs root or systemd.
        .filter(|line| {
            !["useradd", "chown", "systemctl"]
                .iter()
                .any(|own| line.starts_with(own))
        })
        .map(|line| format!("{}\n", line.replace(" -g leafd", "")))
        .collect();
    let nats_server = servers::program().await?;
    let directories = [
        program("").as_path(),
        nats_server.parent().context("a program is in a directory")?,
    ]
    .map(|path| path.display().to_string());
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-euc", &commands])
        .env("PATH", format!("{}:{path}", directories.join(":")))
        .current_dir(directory)
        .output()
        .await?;
    ensure!(output.status.success(), "{commands}\n{output:?}");
    Ok(())
}

pub(crate) async fn valid() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    let guide = Guide::read()?;
    for needed in ["systemd/system", "cim-leaf"] {
        std::fs::create_dir_all(place.join(needed))?;
    }
    // As it is installed.
    std::fs::write(place.join("cim-leaf/leafd.toml"), "[nats.embedded]\n")?;
    let keys = guide.block("On the hub: the keys, the accounts, the certificate")?;
    carry_out(place, keys).await?;
    let hub = place.join("cim-hub");
    let server = guide.block("On the hub: its server and its agent")?;
    carry_out(place, &format!("cd {}\n{server}", hub.display())).await?;
    for file in ["edge-1.seed", "hub.pem"] {
        std::fs::copy(hub.join(file), place.join(file))?;
    }
    carry_out(place, guide.block("On a leaf: its link to the hub")?).await?;
    let added = guide.block("On the hub: a new leaf")?;
    carry_out(place, &added.replace("&& systemctl", "# ")).await?;
    let accounts = std::fs::read_to_string(hub.join("accounts.conf"))?;
    ensure!(
        accounts.contains("leaf.v1.up.edge-4.*.>"),
        "edge-4 is in {accounts}"
    );
    Ok(())
}
