//! The guide of `docs/fleet.md`: each command in it exists with its flags, and what its blocks make is valid. The blocks are carried
//! out as a whole on test hosts (`testhost::Fleet::connect`).

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

/// Returns the words of each command in a document's block or inline code; upper-case words stand for a leaf.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut take = |code: &str| {
        for part in code.split(['\n', ';', '(']).flat_map(|line| line.split("&&")) {
            let part = part.split(['>', ')', '#', '|', '…']).next().unwrap_or_default();
            let words: Vec<&str> = part.split_whitespace().collect();
            if words.len() > 1 && PROGRAMS.contains(&words[0]) {
                let given = |word: &&str| word.chars().any(|letter| !letter.is_ascii_uppercase());
                found.push(
                    words
                        .iter()
                        .map(|word| if given(word) { *word } else { "edge-1" }.to_owned())
                        .collect(),
                );
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

pub(crate) async fn exist() -> anyhow::Result<()> {
    let guide = Guide::read()?;
    let commands = commands(guide.text());
    ensure!(
        commands.len() > 15,
        "the commands were not recognised: {commands:?}"
    );
    for command in commands {
        // The help is printed after the words before it were parsed.
        let output = Command::new(program(&command[0]))
            .args(&command[1..])
            .arg("--help")
            .output()
            .await
            .with_context(|| format!("can't run {}", command[0]))?;
        ensure!(
            output.status.success(),
            "{command:?} of docs/fleet.md: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Carries out lines of a block, with another directory in place of those below /etc.
async fn carry_out(directory: &Path, block: &str) -> anyhow::Result<()> {
    let directory_text = directory.to_str().context("a path is text")?;
    let commands: String = block
        .replace("/etc/", &format!("{directory_text}/"))
        .replace("leaf-hub accounts", "leaf-hub accounts --config leaf-hub.toml")
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
        accounts.contains("leaf.v1.evt.edge-4.>"),
        "edge-4 is in {accounts}"
    );
    Ok(())
}
