//! A leaf is moved to another hub, by commands of people at the hubs and at the leaf: it stays where its witness, or a person, says so,
//! and comes back from everywhere else.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testhost::fleet::{HUB_PORTS, SIGNER, hub_url as url};
use testhost::{Host, Output};

use super::{Hubbed, events};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_leaf_that_is_moved_stays_where_its_witness_reaches_it_and_comes_back_from_a_dead_address_and_from_behind_a_firewall",
        witnessed,
    ),
    (
        "a_leaf_whose_hub_is_gone_is_moved_by_a_person_and_a_power_cut_takes_back_what_is_not_confirmed",
        by_a_person,
    ),
];

const LEAF: &str = "leaf-1";
const DIRECTORY: &str = "/var/lib/cim-leaf-change";
/// How much later than its deadline a change may have gone back, in seconds.
const LATE: f64 = 10.0;

/// A fleet of one leaf that may be moved, and of two hubs with the same keys.
struct Moves(Hubbed);

impl Moves {
    fn up() -> Result<Self> {
        let moves = Self(Hubbed::up(1)?);
        moves.0.fleet.let_leaves_move()?;
        moves.until_at(0)?;
        Ok(moves)
    }

    fn hub(&self) -> &Host {
        &self.0.fleet.hub
    }

    fn leaf(&self) -> &Host {
        self.0.fleet.leaf(1)
    }

    /// Runs `leafctl` at a hub, for the leaf.
    fn at_hub(&self, hub: usize, arguments: &str) -> Result<Output> {
        let context = ["hub", "hub-b"][hub];
        self.hub().run(&format!(
            "LEAFCTL_SIGN_WITH={SIGNER} leafctl --json --context {context} --leaf {LEAF} --timeout 60s {arguments}"
        ))
    }

    /// Runs `leafctl` at the leaf.
    fn at_leaf(&self, arguments: &str) -> Result<Output> {
        self.leaf().run(&format!(
            "LEAFCTL_SIGN_WITH={SIGNER} leafctl --json --timeout 60s {arguments}"
        ))
    }

    /// Waits until the leaf is connected to a hub, of whose people one reaches it.
    fn until_at(&self, hub: usize) -> Result<()> {
        let url = url(hub);
        self.0.until(&format!("the leaf is reached at {url}"), |_| {
            let shown = self.at_hub(hub, "leaf show")?;
            Ok(shown.status == 0 && document(&shown)?["hub"]["url"] == *url)
        })
    }

    /// Returns a record in the state directory of changes; null if it is not there.
    fn record(&self, name: &str) -> Result<Value> {
        let text = self
            .leaf()
            .ok(&format!("cat {DIRECTORY}/{name} 2>/dev/null || echo null"))?;
        serde_json::from_str(&text).with_context(|| format!("{name}: {text}"))
    }

    fn until_decided(&self, change: &Value) -> Result<Value> {
        let name = format!("decided/{}.json", id(change)?);
        self.until_says(&name, "outcome")?;
        Ok(self.record(&name)?["outcome"].clone())
    }

    fn until_applied(&self) -> Result<()> {
        self.until_says("progress.json", "applied")
    }

    /// Waits until a record has this word. An emulated machine that is asked without a pause takes a whole processor.
    fn until_says(&self, record: &str, word: &str) -> Result<()> {
        self.0.until(&format!("{record} says {word:?}"), |_| {
            let looks = format!("until grep -qs {word} {DIRECTORY}/{record}; do sleep 0.2; done");
            Ok(self.leaf().run(&format!("timeout 10 bash -c '{looks}'"))?.status == 0)
        })
    }

    /// Returns the seconds until the armed change goes back.
    fn left(&self) -> Result<f64> {
        Ok(self.deadline()? - self.since_boot()?)
    }

    fn deadline(&self) -> Result<f64> {
        let armed = self.record("armed.json")?;
        let deadline = armed["deadline_boot_ms"].as_f64();
        Ok(deadline.with_context(|| format!("a change is armed: {armed}"))? / 1000.0)
    }

    fn since_boot(&self) -> Result<f64> {
        let uptime = self.leaf().ok("cat /proc/uptime")?;
        let seconds = uptime.split(' ').next().context("two numbers")?;
        seconds.parse().context("a number")
    }

    /// Waits until a change has gone back, for this reason, in its time.
    fn until_back(&self, change: &Value, deadline: f64, why: &str) -> Result<()> {
        let outcome = self.until_decided(change)?;
        let late = self.since_boot()? - deadline;
        ensure!(outcome["decision"] == "back", "{outcome}");
        ensure!(outcome["why"].to_string().contains(why), "{outcome}");
        ensure!(late < LATE, "it went back {late} s after its deadline");
        Ok(())
    }

    /// Returns the leaf's events of changes that the second hub has a copy of, as `KIND ID`. The leaf's own stream may have lost some to a
    /// power cut.
    fn told(&self) -> Result<Vec<String>> {
        let all = events(self.hub(), &format!("--context hub-b --leaf {LEAF}"))?;
        let told = all.iter().filter_map(|event| {
            let kind = event["type"]
                .as_str()?
                .strip_prefix("cim.leaf.leaf.")?
                .strip_suffix(".v1")?;
            let id = event["data"]["change"].as_str()?;
            Some(format!("{kind} {id}"))
        });
        Ok(told.collect())
    }

    fn until_told(&self, expected: &[String]) -> Result<()> {
        let mut last = Vec::new();
        let told = self.0.until("the leaf's events tell of its changes", |_| {
            last = self.told()?;
            Ok(last == expected)
        });
        told.with_context(|| format!("{last:?} instead of {expected:?}"))
    }
}

fn document(output: &Output) -> Result<Value> {
    ensure!(output.status == 0, "{output:?}");
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn id(change: &Value) -> Result<&str> {
    change["id"].as_str().with_context(|| format!("no id: {change}"))
}

fn armed(output: &Output) -> Result<Value> {
    let change = document(output)?;
    ensure!(change["kind"] == "hub", "{change}");
    Ok(change)
}

fn witnessed() -> Outcome {
    let moves = Moves::up()?;
    let confirmed = only_one_port_is_open(&moves)?;
    let dead = dead_address(&moves)?;
    let old = the_old_connection_lives(&moves)?;
    moves.until_told(&[
        format!("change_armed {confirmed}"),
        format!("change_confirmed {confirmed}"),
        format!("change_armed {dead}"),
        format!("change_went_back {dead}"),
        format!("change_armed {old}"),
        format!("change_went_back {old}"),
    ])
}

/// Where a firewall lets nothing through but the hubs' ports for leaves, the witness confirms.
fn only_one_port_is_open(moves: &Moves) -> Result<String> {
    let [first, second] = HUB_PORTS;
    moves.leaf().ok(&format!(
        "nft add table inet guard
nft 'add chain inet guard output {{ type filter hook output priority 0; }}'
nft 'add chain inet guard input {{ type filter hook input priority 0; }}'
nft 'add rule inet guard output ip daddr 10.77.0.0/24 tcp dport {{ {first}, {second} }} accept'
nft 'add rule inet guard output ip daddr 10.77.0.0/24 drop'
nft 'add rule inet guard input ip saddr 10.77.0.0/24 tcp sport {{ {first}, {second} }} accept'
nft 'add rule inet guard input ip saddr 10.77.0.0/24 drop'"
    ))?;
    let began = Instant::now();
    let change = armed(&moves.at_hub(0, &format!("leaf move-to {} --within 300s", url(1)))?)?;
    let answered = began.elapsed();
    let outcome = moves.until_decided(&change)?;
    eprintln!(
        "the command was answered after {answered:.1?}, the change was confirmed after {:.1?}",
        began.elapsed()
    );
    ensure!(outcome["decision"] == "confirmed", "{outcome}");
    ensure!(outcome["by"].to_string().contains("SHA256:"), "{outcome}");
    moves.until_at(1)?;
    let shown = document(&moves.at_leaf("leaf show")?)?;
    ensure!(shown["hub_in_place"]["url"] == *url(1), "{shown}");
    ensure!(shown["change"].is_null(), "{shown}");
    moves.leaf().ok("nft delete table inet guard")?;
    Ok(id(&change)?.to_owned())
}

/// An address where nothing is, while leafd is killed: the leaf is back in time, and connected.
fn dead_address(moves: &Moves) -> Result<String> {
    let change = armed(&moves.at_hub(1, "leaf move-to tls://10.77.0.99:7422 --within 30s")?)?;
    let deadline = moves.deadline()?;
    moves.until_applied()?;
    moves.leaf().ok("systemctl kill --signal=KILL leafd")?;
    moves.until_back(&change, deadline, "in time")?;
    moves.until_at(1)?;
    Ok(id(&change)?.to_owned())
}

/// A firewall that lets the leaf's connection live and no new one begin: the hub's people reach the leaf, and it goes back all the same.
fn the_old_connection_lives(moves: &Moves) -> Result<String> {
    // Until the firewall is there, nobody signs.
    moves.hub().ok("systemctl stop leaf-hub")?;
    let change = armed(&moves.at_hub(1, &format!("leaf move-to {} --within 60s", url(0)))?)?;
    let deadline = moves.deadline()?;
    moves.until_at(0)?;
    moves.until_applied()?;
    let rule = format!(
        "ip daddr 10.77.0.0/24 tcp dport {} ct state new reject with tcp reset",
        HUB_PORTS[0]
    );
    moves.leaf().ok(&format!(
        "nft add table inet guard
nft 'add chain inet guard output {{ type filter hook output priority 0; }}'
nft 'add rule inet guard output {rule}'"
    ))?;
    moves.hub().ok("systemctl start leaf-hub")?;
    moves.0.until("the witness is refused a connection", |_| {
        let log = moves
            .leaf()
            .run("journalctl --no-pager --boot --output cat --lines 3 --unit leaf-change-witness")?;
        Ok(log.stdout.contains("refused"))
    })?;
    // The connection from before the firewall is there; the leaf knows it once the agent, which has just begun, has answered a claim.
    moves.0.until("the leaf is heard over its connection", |_| {
        let shown = document(&moves.at_hub(0, "leaf show")?)?;
        ensure!(shown["change"]["id"] == change["id"], "{shown}");
        Ok(shown["hub"]["connected"] == true)
    })?;
    ensure!(moves.left()? > 0.0, "all this was in its time");
    moves.until_back(&change, deadline, "in time")?;
    moves.until_at(1)?;
    Ok(id(&change)?.to_owned())
}

fn by_a_person() -> Outcome {
    let mut moves = Moves::up()?;
    let confirmed = without_a_witness(&moves)?;
    let cut = power_is_cut(&mut moves)?;
    moves.until_told(&[
        format!("change_armed {confirmed}"),
        format!("change_confirmed {confirmed}"),
        format!("change_armed {cut}"),
        format!("change_went_back {cut}"),
    ])
}

/// Where the present hub is gone, only a person can confirm, who reaches the leaf at the other one.
fn without_a_witness(moves: &Moves) -> Result<String> {
    moves.hub().ok("systemctl stop leaf-hub nats")?;
    let other = url(1);
    let refused = moves.at_leaf(&format!("leaf move-to {other}"))?;
    ensure!(
        refused.status != 0 && refused.stderr.contains("--no-witness"),
        "{refused:?}"
    );
    ensure!(moves.record("armed.json")?.is_null() && moves.record("hub.json")?.is_null());
    let change = armed(&moves.at_leaf(&format!("leaf move-to {other} --no-witness --within 120s"))?)?;
    let deadline = moves.deadline()?;
    moves.until_at(1)?;
    moves.until_applied()?;
    let confirm = format!("leaf confirm {}", id(&change)?);
    let confirmed = document(&moves.at_hub(1, &confirm)?)?;
    ensure!(confirmed["id"] == change["id"], "{confirmed}");
    let outcome = moves.until_decided(&change)?;
    ensure!(
        outcome["decision"] == "confirmed" && outcome["by"] == "ann",
        "{outcome}"
    );
    ensure!(moves.since_boot()? < deadline, "all this was in its time");
    Ok(id(&change)?.to_owned())
}

/// The power is cut while a change is armed: the leaf is at the hub of before, which was confirmed.
fn power_is_cut(moves: &mut Moves) -> Result<String> {
    moves.hub().ok("systemctl start nats")?;
    let change = armed(&moves.at_hub(1, &format!("leaf move-to {} --within 1h", url(0)))?)?;
    moves.until_applied()?;
    moves.until_at(0)?;
    let leaf = &mut moves.0.fleet.leaves[0];
    leaf.cut_power();
    leaf.boot()?;
    let outcome = moves.until_decided(&change)?;
    ensure!(
        outcome["decision"] == "back" && outcome["why"].to_string().contains("rebooted"),
        "{outcome}"
    );
    moves.until_at(1)?;
    let hub = moves.record("hub.json")?;
    ensure!(hub["url"] == *url(1), "{hub}");
    Ok(id(&change)?.to_owned())
}
