//! Labels of leaves, through `leafctl`.

use super::fleet::{Fleet, publish_beat};
use super::*;

pub(super) async fn kept() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(2).await?;
    let (first, second) = (fleet.name(0).to_owned(), fleet.name(1).to_owned());
    let set = fleet
        .printed(&["leaf", "label", &second, "rack=7", "gpu=yes"])
        .await?;
    ensure!(
        set == "labels  gpu=yes rack=7 site=odd (in the settings: site)\n",
        "{set:?}"
    );
    // The list has them at once, from the stream of leases alone.
    let labels = async |fleet: &Fleet| {
        let list = document(&fleet.leaves[0], &["leaf", "list"]).await?;
        anyhow::Ok(list["leaves"][1]["labels"].clone())
    };
    let all = serde_json::json!({ "gpu": "yes", "rack": "7", "site": "odd" });
    until("the beat has the labels", async || {
        Ok((labels(&fleet).await? == all).then_some(()))
    })
    .await?;
    for (selector, leaf) in [("rack=7", &second), ("!gpu", &first), ("gpu,site=odd", &second)] {
        let listed = fleet.printed(&["leaf", "list", "-l", selector]).await?;
        ensure!(
            listed.lines().count() == 2
                && listed
                    .lines()
                    .nth(1)
                    .is_some_and(|line| line.starts_with(&format!("{leaf} "))),
            "{selector}: {listed}"
        );
    }
    let shown = document(&fleet.leaves[0], &["leaf", "show", &second]).await?;
    valid(&shown, "reply.leaf.show")?;
    ensure!(
        shown["labels"] == all && shown["labels_of_settings"] == serde_json::json!(["site"]),
        "{shown}"
    );
    // Those of the settings are not for commands, nor what breaks the rules.
    for (change, code, says) in [
        (
            "site=x",
            6,
            "stand in the leaf's settings and can only be changed there ([labels] in leafd.toml",
        ),
        ("site-", 6, "services.cim-leaf.labels on NixOS): site"),
        ("Rack=8", 2, "is not the key of a label"),
        ("rack=", 2, "is empty"),
        ("rack=a,b", 2, "comma"),
        ("rack", 2, "neither KEY=VALUE nor KEY-"),
    ] {
        let (output, _) = fleet.ctl(&["leaf", "label", &second, change]).await?;
        ended(&output, code, says).with_context(|| change.to_owned())?;
    }
    // They outlast a restart in order, and one after a SIGKILL, and are in the first beat.
    fleet.leaves[1].restart().await?;
    ensure!(labels(&fleet).await? == all);
    fleet.leaves[1].kill().await?;
    fleet.leaves[1].start_again().await?;
    ensure!(labels(&fleet).await? == all);
    let events = fleet
        .printed(&["events", "--leaf", &second, "--type", "leaf.labelled", "--json"])
        .await?;
    let event: Value = serde_json::from_str(&events)?;
    valid(&event["data"], "cim.leaf.leaf.labelled.v1")?;
    ensure!(event["data"]["caller"] == "admin", "{event}");
    // A change of several leaves.
    let removed = fleet
        .printed(&["leaf", "label", "--leaf", &format!("{first},{second}"), "gpu-"])
        .await?;
    let lines: Vec<&str> = removed
        .lines()
        .filter(|line| line.starts_with("labels"))
        .collect();
    ensure!(
        lines
            == [
                "labels  site=even (in the settings: site)",
                "labels  rack=7 site=odd (in the settings: site)"
            ],
        "{removed}"
    );
    // A leaf of its own beside one that flags select.
    let (refused, _) = fleet
        .ctl(&["leaf", "label", &first, "--leaf", &second, "x=1"])
        .await?;
    ended(&refused, 2, &format!("leaf {first} is named beside --leaf"))?;
    let (listed, _) = fleet.ctl(&["leaf", "list", "--leaf", &second]).await?;
    ended(&listed, 0, "")?;
    ensure!(text(&listed.stdout).lines().count() == 2, "{listed:?}");
    let (listed, _) = fleet.ctl(&["leaf", "list", "--leaf", "nobody"]).await?;
    ended(&listed, 5, "not listed: nobody")
}

pub(super) async fn hostile() -> anyhow::Result<()> {
    const HOSTILE: &str = "\u{1b}]52;c;cm0gLXJm\u{7}\u{1b}[2J\nx\u{202e}";
    let fleet = Fleet::start(1).await?;
    let thief = LeafName::new(format!("{}-thief", fleet.name(0)))?;
    let listed: Value = document(&fleet.leaves[0], &["leaf", "list"]).await?["leaves"][0].clone();
    let mut beat = listed.clone();
    beat["leaf"] = thief.as_str().into();
    beat["labels"] = serde_json::json!({ "key\u{1b}[1m\r": HOSTILE });
    publish_beat(&fleet, &thief, &beat).await?;
    let table = fleet.printed(&["leaf", "list"]).await?;
    ensure!(table.lines().count() == 3, "a label is no line: {table:?}");
    let (nothing, _) = fleet.ctl(&["leaf", "show", "-l", "none"]).await?;
    ended(&nothing, 5, "no leaf is selected")?;
    for printed in [table, text(&nothing.stderr)] {
        let commands = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        ensure!(!printed.contains(commands), "{printed:?}");
        ensure!(printed.contains(r"\u{1b}]52;c;cm0gLXJm\u{7}"), "{printed:?}");
    }
    let json = document(&fleet.leaves[0], &["leaf", "list"]).await?;
    ensure!(json["leaves"][1]["labels"]["key\u{1b}[1m\r"] == HOSTILE, "{json}");
    // A beat that is none, or another leaf's, hides no other.
    beat["leaf"] = fleet.name(0).into();
    beat["hostname"] = "forged".into();
    publish_beat(&fleet, &thief, &beat).await?;
    let output = ctl(&fleet.leaves[0], &["leaf", "list"]).await?;
    ended(
        &output,
        0,
        &format!("leaf {thief} is not listed: its last beat can't be read"),
    )?;
    let table = text(&output.stdout);
    ensure!(table.lines().count() == 2 && !table.contains("forged"), "{table}");
    Ok(())
}
