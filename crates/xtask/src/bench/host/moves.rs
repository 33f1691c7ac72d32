//! What the witness adds to a change of settings: a leaf that is moved from one hub to another and stays there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testhost::fleet::{SIGNER, hub_url};
use testhost::{Fleet, Host, Programs};

use super::super::numbers::{Row, median, ms};

/// The time limit of the machines, and that of one move.
const LIVES: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(300);

/// Moves the leaf, and prints the microseconds until the command was answered and until the leaf stays: a witness says so, or a person
/// as soon as the leaf takes that. `$1` is the hub's URL, `$2` empty or `--no-witness`.
const MOVE: &str = r#"set -e; export LEAFCTL_SIGN_WITH=$SIGNER; now() { echo ${EPOCHREALTIME/[.,]/}; }
began=$(now)
id=$(leafctl --json --timeout 60s leaf move-to "$1" --within 300s $2 | grep -o '"id": *"[^"]*"' | head -1 | cut -d '"' -f 4)
answered=$(now)
if [ -n "$2" ]; then
  until leafctl leaf confirm "$id" >/dev/null 2>&1; do sleep 0.1; done
else
  until grep -qs confirmed "/var/lib/cim-leaf-change/decided/$id.json"; do sleep 0.02; done
fi
echo $((answered - began)) $(($(now) - began))
until leafctl --json leaf show 2>/dev/null | grep -qs '"connected": *true'; do sleep 0.2; done"#;

/// Measures moves with a witness, alternating with ones that a person confirms.
pub(super) fn rows(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let options = Host::options().with(programs).lives(LIVES);
    let fleet = Fleet::restore(&options, &options, 1)?;
    fleet.connect()?;
    fleet.let_leaves_move()?;
    let leaf = fleet.leaf(1);
    let script = "/root/move.sh";
    leaf.put(MOVE.as_bytes(), script, "0700")?;
    let moved = |hub: usize, flag: &str| -> Result<[f64; 2]> {
        let command = format!("SIGNER={SIGNER} bash {script} {} {flag}", hub_url(hub));
        let output = leaf.run_within(&command, PATIENCE)?;
        ensure!(output.status == 0, "{command}: {output:?}");
        let mut times = output.stdout.split_whitespace().map(str::parse::<f64>);
        let mut next = || {
            let time = times.next().and_then(Result::ok);
            time.map(|microseconds| microseconds / 1e6)
                .context("a move printed two numbers")
        };
        Ok([next()?, next()?])
    };
    let (mut witnessed, mut by_person) = (Vec::new(), Vec::new());
    // The first round fills caches, and waits until the leaf is at a hub.
    for round in 0..=rounds {
        let times = [moved(1, "")?, moved(0, "--no-witness")?];
        if round > 0 {
            witnessed.push(times[0]);
            by_person.push(times[1]);
        }
    }
    let row = |step: usize, what: &str| {
        let of = |times: &[[f64; 2]]| median(&times.iter().map(|time| time[step]).collect::<Vec<_>>());
        let (with, without) = (of(&witnessed), of(&by_person));
        let more = (with - without) * 1e3;
        Row::report(what, format!("{}, {more:.0} ms more", ms(with))).against(ms(without), with / without)
    };
    Ok(vec![
        row(
            0,
            "`leaf.move_to` to another hub until it is answered, its witness asked before, compared with one without a witness",
        ),
        row(
            1,
            "the same until the witness has confirmed it, compared with a person's confirmation as soon as the leaf takes that",
        ),
    ])
}
