//! A change that can cut the leaf off, with the real units: it goes back whatever ends, and stays once it is confirmed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Leaf, quoted};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "a_change_that_nobody_confirms_goes_back_whatever_ends_and_a_confirmed_one_stays",
    changes,
)];

const DIRECTORY: &str = "/var/lib/cim-leaf-change";
/// How much later than its deadline a change may have gone back, in seconds.
const LATE: f64 = 10.0;

fn id(number: u32) -> String {
    format!("01890000-0000-7000-8000-{number:012}")
}

/// A leaf whose changes are asked for at the helper's socket, as leafd does it.
struct Changed(Leaf);

impl Changed {
    /// Calls the helper, and returns what it printed.
    fn call(&self, method: &str, parameters: &Value) -> Result<testhost::Output> {
        let parameters = quoted(&parameters.to_string());
        let socket = "/run/cim-leaf/helper.sock";
        self.0.host.run(&format!(
            "varlinkctl call {socket} cim.leaf.Helper.{method} {parameters}"
        ))
    }

    /// Arms a change of the hub that only a person can confirm.
    fn arm(&self, number: u32, seconds: u32) -> Result<()> {
        let parameters = json!({
            "id": id(number),
            "caller": "ann",
            "seconds": seconds,
            "unwitnessed": true,
            "hub": {
                "url": format!("tls://hub-{number}.example.org:7422"),
                "credentials": "another hub's credentials",
                "section": "0".repeat(64),
            },
        });
        let called = self.call("ArmChange", &parameters)?;
        if called.status != 0 {
            let log = self
                .0
                .host
                .run("journalctl --no-pager -n 60 -u leaf-helper -u leaf-change")?;
            anyhow::bail!("{called:?}\n{}", log.stdout);
        }
        Ok(())
    }

    fn confirm(&self, number: u32) -> Result<testhost::Output> {
        self.call(
            "ConfirmChange",
            &json!({ "id": id(number), "by": { "caller": "ann" } }),
        )
    }

    /// Returns a record in the state directory; null if it is not there.
    fn record(&self, name: &str) -> Result<Value> {
        let text = self
            .0
            .host
            .ok(&format!("cat {DIRECTORY}/{name} 2>/dev/null || echo null"))?;
        serde_json::from_str(&text).with_context(|| format!("{name}: {text}"))
    }

    /// Returns the seconds since boot.
    fn since_boot(&self) -> Result<f64> {
        let uptime = self.0.host.ok("cat /proc/uptime")?;
        let seconds = uptime.split(' ').next().context("two numbers")?;
        seconds.parse().context("a number")
    }

    fn deadline(&self) -> Result<f64> {
        let armed = self.record("armed.json")?;
        let deadline = armed["deadline_boot_ms"]
            .as_f64()
            .with_context(|| armed.to_string())?;
        Ok(deadline / 1000.0)
    }

    /// Waits until leafd was started another time than this.
    fn until_restarted(&self, before: &str) -> Result<()> {
        self.0.until("leafd is restarted", || {
            let now = self.invocation()?;
            Ok(now != before && !now.is_empty())
        })
    }

    fn invocation(&self) -> Result<String> {
        self.0
            .host
            .ok("systemctl show leafd --property=InvocationID --value")
    }

    /// Checks that a change went back, and that nothing of it is left.
    fn went_back(&self, number: u32, because: &str) -> Result<()> {
        let decided = self.record(&format!("decided/{}.json", id(number)))?;
        let outcome = &decided["outcome"];
        ensure!(outcome["decision"] == "back", "{decided}");
        let why = outcome["why"].as_str().context("a reason")?;
        ensure!(why.contains(because), "{why}");
        self.nothing_open()?;
        let of_it = self
            .0
            .host
            .ok(&format!("ls {DIRECTORY} | grep {} || true", id(number)))?;
        ensure!(of_it.is_empty(), "left: {of_it}");
        Ok(())
    }

    fn nothing_open(&self) -> Result<()> {
        for name in ["armed.json", "going-back.json"] {
            let record = self.record(name)?;
            ensure!(record.is_null(), "{name}: {record}");
        }
        Ok(())
    }
}

fn changes() -> Outcome {
    let mut leaf = Changed(Leaf::up_for(Duration::from_secs(25 * 60))?);
    everything_is_killed(&leaf)?;
    leafd_does_not_start(&leaf)?;
    leafd_is_starting(&leaf)?;
    confirmed(&leaf)?;
    power_is_cut(&mut leaf)?;
    Ok(())
}

/// leafd, the helper and the guard are killed, and the wall clock jumps.
fn everything_is_killed(leaf: &Changed) -> Result<()> {
    let host = &leaf.0.host;
    let before = leaf.invocation()?;
    leaf.arm(1, 60)?;
    let deadline = leaf.deadline()?;
    let hub = leaf.record("hub.json")?;
    ensure!(hub["url"] == "tls://hub-1.example.org:7422", "{hub}");
    let modes = host.ok(&format!(
        "stat -c '%U:%G %a' {DIRECTORY} {DIRECTORY}/hub.json {DIRECTORY}/hub-{}.creds",
        id(1)
    ))?;
    ensure!(
        modes == "root:leafd 750\nroot:leafd 640\nleafd:root 400\n",
        "{modes}"
    );
    let readers = "runuser -u leafd -- cat";
    host.ok(&format!(
        "{readers} {DIRECTORY}/armed.json {DIRECTORY}/hub-{}.creds >/dev/null",
        id(1)
    ))?;
    let refused = host.run(&format!("runuser -u leafd -- rm {DIRECTORY}/armed.json"))?;
    ensure!(refused.status != 0, "leafd removed the record: {refused:?}");
    // The guard applies it.
    leaf.until_restarted(&before)?;
    let second = leaf.call(
        "ArmChange",
        &json!({
            "id": id(9), "caller": "ann", "seconds": 60, "unwitnessed": true,
            "hub": { "url": "tls://x", "section": "0".repeat(64) },
        }),
    )?;
    ensure!(
        second.status != 0 && format!("{second:?}").contains("is open"),
        "{second:?}"
    );
    // The wall clock jumps to where the deadline is long over, and back.
    host.ok("date -s '+2 days' && systemctl kill --signal=KILL leaf-change")?;
    ensure!(
        leaf.since_boot()? > deadline || !leaf.record("armed.json")?.is_null(),
        "the wall clock took it back"
    );
    host.ok("date -s '-4 days'")?;
    let ended = leaf.invocation()?;
    let kills = "for unit in leafd leaf-helper leaf-change; do systemctl kill --signal=KILL $unit 2>/dev/null || true; done";
    leaf.0.until("it went back", || {
        // A machine under emulation: the last kills end early enough for a start.
        if leaf.since_boot()? < deadline - 5.0 {
            host.ok(kills)?;
        }
        Ok(!leaf.record(&format!("decided/{}.json", id(1)))?.is_null())
    })?;
    let late = leaf.since_boot()? - deadline;
    ensure!(late < LATE, "it went back {late} s after its deadline");
    eprintln!("it had gone back {late:.1} s after its deadline at the latest");
    leaf.went_back(1, "in time")?;
    ensure!(leaf.record("hub.json")?.is_null(), "there was no hub.json before");
    leaf.until_restarted(&ended)?;
    leaf.0.answers()?;
    leaf.0.until("the guard has ended", || {
        let state = host.ok("systemctl show leaf-change --property=ActiveState --value")?;
        Ok(state.trim() == "inactive")
    })?;
    Ok(())
}

/// leafd does not start with the new settings: nobody can confirm them, and it starts again with the old ones.
fn leafd_does_not_start(leaf: &Changed) -> Result<()> {
    let host = &leaf.0.host;
    let drop_in = "/run/systemd/system/leafd.service.d";
    host.ok(&format!(
        "mkdir -p {drop_in} && printf '[Service]\\nExecStartPre=/usr/bin/test ! -e {DIRECTORY}/armed.json\\n' >{drop_in}/change.conf \
         && systemctl daemon-reload"
    ))?;
    leaf.arm(5, 40)?;
    let deadline = leaf.deadline()?;
    leaf.0.until("leafd has failed", || {
        let failed = host.ok("systemctl show leafd --property=NRestarts --value")?;
        Ok(failed.trim().parse::<u32>().is_ok_and(|failed| failed > 0))
    })?;
    let confirmed = leaf.confirm(5)?;
    ensure!(
        confirmed.status != 0 && format!("{confirmed:?}").contains("not in use yet"),
        "{confirmed:?}"
    );
    leaf.0.until("it went back", || {
        Ok(!leaf.record(&format!("decided/{}.json", id(5)))?.is_null())
    })?;
    let late = leaf.since_boot()? - deadline;
    ensure!(late < LATE, "it went back {late} s after its deadline");
    leaf.went_back(5, "in time")?;
    leaf.0.answers()?;
    host.ok(&format!("rm -r {drop_in} && systemctl daemon-reload"))?;
    Ok(())
}

/// A guard that a helper did not start is started by the next one; and in another boot it restarts a leafd that is starting, which may
/// have read the new settings.
fn leafd_is_starting(leaf: &Changed) -> Result<()> {
    let host = &leaf.0.host;
    leaf.arm(6, 3600)?;
    leaf.0.until("leafd uses it", || {
        Ok(leaf.record("progress.json")?["step"] == "applied")
    })?;
    host.ok("systemctl stop leaf-helper.service leaf-change.service")?;
    let called = leaf.call("ListSecrets", &json!({}))?;
    ensure!(called.status == 0, "{called:?}");
    leaf.0.until("the guard is active", || {
        let state = host.ok("systemctl show leaf-change --property=ActiveState --value")?;
        Ok(state.trim() == "active")
    })?;
    let drop_in = "/run/systemd/system/leafd.service.d";
    host.ok(&format!(
        "mkdir -p {drop_in} && printf '[Service]\\nExecStartPre=/usr/bin/sleep 30\\n' >{drop_in}/change.conf \
         && systemctl daemon-reload && systemctl restart --no-block leafd"
    ))?;
    leaf.0.until("leafd is starting", || {
        let state = host.ok("systemctl show leafd --property=SubState --value")?;
        Ok(state.trim() == "start-pre")
    })?;
    let starting = leaf.invocation()?;
    host.ok(&format!(
        "sed -i 's/\"boot_id\":\"[^\"]*\"/\"boot_id\":\"another\"/' {DIRECTORY}/armed.json"
    ))?;
    leaf.0.until("it went back", || {
        Ok(!leaf.record(&format!("decided/{}.json", id(6)))?.is_null())
    })?;
    leaf.until_restarted(&starting)?;
    host.ok(&format!(
        "rm -r {drop_in} && systemctl daemon-reload && systemctl restart leafd"
    ))?;
    leaf.0.answers()?;
    Ok(())
}

/// What was confirmed stays after its deadline, and after a boot.
fn confirmed(leaf: &Changed) -> Result<()> {
    let host = &leaf.0.host;
    leaf.arm(2, 60)?;
    let deadline = leaf.deadline()?;
    let early = leaf.confirm(2)?;
    ensure!(
        early.status != 0 && format!("{early:?}").contains("not in use yet"),
        "{early:?}"
    );
    leaf.0.until("leafd uses it", || {
        Ok(leaf.record("progress.json")?["step"] == "applied")
    })?;
    let confirmed = leaf.confirm(2)?;
    ensure!(confirmed.status == 0, "{confirmed:?}");
    leaf.nothing_open()?;
    leaf.0
        .until("its deadline is over", || Ok(leaf.since_boot()? > deadline + 3.0))?;
    let decided = leaf.record(&format!("decided/{}.json", id(2)))?;
    ensure!(decided["outcome"]["decision"] == "confirmed", "{decided}");
    ensure!(decided["outcome"]["by"] == "ann", "{decided}");
    let hub = leaf.record("hub.json")?;
    ensure!(hub["url"] == "tls://hub-2.example.org:7422", "{hub}");
    leaf.0.until("the guard has ended", || {
        let state = host.ok("systemctl show leaf-change --property=ActiveState --value")?;
        Ok(state.trim() == "inactive")
    })?;
    Ok(())
}

/// The power is cut while a change is armed, and the host is rebooted while another one is.
fn power_is_cut(leaf: &mut Changed) -> Result<()> {
    for (number, cut) in [(3, true), (4, false)] {
        leaf.0.answers()?;
        leaf.arm(number, 3600)?;
        if cut {
            leaf.0.host.cut_power();
            leaf.0.host.boot()?;
        } else {
            leaf.0.host.reboot()?;
        }
        leaf.0.until("it went back", || {
            Ok(!leaf.record(&format!("decided/{}.json", id(number)))?.is_null())
        })?;
        leaf.went_back(number, "rebooted")?;
        // The one before it, which was confirmed.
        let hub = leaf.record("hub.json")?;
        ensure!(hub["url"] == "tls://hub-2.example.org:7422", "{hub}");
        // Before leafd was started.
        leaf.0.answers()?;
        let times = leaf.0.host.ok(
            "systemctl show leaf-change --property=ExecMainStartTimestampMonotonic --value; \
             systemctl show leafd --property=ExecMainStartTimestampMonotonic --value; \
             systemctl show leafd --property=NRestarts --value",
        )?;
        let times: Vec<u64> = times.lines().map(|line| line.parse().unwrap_or(0)).collect();
        let in_order = matches!(times[..], [guard, leafd, 0] if guard > 0 && guard < leafd);
        ensure!(in_order, "guard, leafd, restarts: {times:?}");
        let late = leaf.confirm(number)?;
        ensure!(
            late.status != 0 && format!("{late:?}").contains("went back"),
            "{late:?}"
        );
    }
    Ok(())
}
