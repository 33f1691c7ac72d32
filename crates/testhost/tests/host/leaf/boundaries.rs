//! A part that is killed at each step of what the leaf does: what was done by then is found, and the rest is done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::sample::Sample;
use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    ("leafd_killed_at_each_step_continues_from_there", leafd),
    (
        "a_helper_killed_at_each_step_does_not_prevent_the_outcome",
        helper,
    ),
];

/// `killer UNIT COUNT COMMAND…` runs a command, and kills a unit when it and the helper have logged so many steps. It prints
/// the step, or `over` if there were fewer.
const KILLER: &str = r#"#!/bin/bash
unit=$1 count=$2
shift 2
pid=$(systemctl show --property=MainPID --value "$unit")
cursor=$(journalctl --lines=0 --show-cursor | sed -n 's/^-- cursor: //p')
exec 3< <(exec journalctl --follow --no-tail --after-cursor="$cursor" --output=cat --unit=leafd --unit=leaf-helper)
follower=$!
timeout 60 "$@" >/var/tmp/answer 2>&1 &
asked=$!
seen=0
quiet=0
while [ $quiet -lt 2 ]; do
  if read -r -t 1 line <&3; then
    case $line in
      *": accepted"* | *": recorded"* | *": step "* | *": begins"* | *": done"*) seen=$((seen + 1)) ;;
      *) continue ;;
    esac
    if [ $seen -eq "$count" ]; then
      # The helper is started by the first call, maybe since.
      [ "$pid" != 0 ] || pid=$(systemctl show --property=MainPID --value "$unit")
      [ "$pid" = 0 ] || kill -KILL "$pid"
      echo "$line"
      break
    fi
  elif ! kill -0 $asked 2>/dev/null; then
    quiet=$((quiet + 1))
  fi
done
[ $seen -eq "$count" ] || echo over
kill $follower $asked 2>/dev/null
wait $asked
exit 0
"#;

/// The longest that the machine of a whole sweep lives, beside others that want its processor.
const A_WHOLE_SWEEP: Duration = Duration::from_secs(3 * 60 * 60);

fn leafd() -> Outcome {
    at_each_step("leafd")
}

fn helper() -> Outcome {
    at_each_step("leaf-helper")
}

fn at_each_step(unit: &str) -> Outcome {
    let began = Instant::now();
    let sample = Sample::from_environment()?;
    let leaf = match sample {
        Sample::All => Leaf::up_for(A_WHOLE_SWEEP)?,
        Sample::Seed(_) => Leaf::up()?,
    };
    eprintln!("{unit} is killed at {}", sample.of("step"));
    leaf.host.put(KILLER.as_bytes(), "/var/tmp/killer", "0755")?;
    let (one, two) = (leaf.system("one", WAITS)?, leaf.system("two", WAITS)?);
    let commands = [
        format!("create web --toplevel {one} --start"),
        format!("update web --toplevel {two}"),
        "stop web".to_owned(),
        "destroy web".to_owned(),
    ];
    let mut kills = 0;
    for count in (1..).filter(|count| sample.takes(*count)) {
        let mut over = 0;
        for command in &commands {
            let there = leaf.run("container show web")?.status == 0;
            if there == command.starts_with("create") {
                // The one before it was not even accepted, or it was the last.
                leaf.ctl(&format!(
                    "container {}",
                    if there { "destroy web" } else { &commands[0] }
                ))?;
            }
            let step = leaf.host.ok(&format!(
                "/var/tmp/killer {unit} {count} leafctl --json --context /var/lib/cim-leaf/context.json container {command}"
            ))?;
            if step.trim() == "over" {
                over += 1;
            } else {
                kills += 1;
                leaf.host
                    .ok("systemctl reset-failed leafd leaf-helper 2>/dev/null; systemctl start leafd")?;
                leaf.answers()?;
            }
            leaf.settled("web")
                .with_context(|| format!("{unit} was killed in {command} at step {count}: {step}"))?;
        }
        leaf.agrees()
            .with_context(|| format!("{unit} was killed at step {count} of each command"))?;
        if over == commands.len() {
            break;
        }
        ensure!(count < 60, "{unit} makes no end of steps");
    }
    // Create, update and destroy have several steps each.
    let least = if sample == Sample::All { 13 } else { 2 };
    ensure!(kills >= least, "{unit} was killed {kills} times only");
    if leaf.run("container show web")?.status == 0 {
        leaf.ctl("container destroy web")?;
    }
    leaf.nothing_left("web")?;
    super::cycles::report(&serde_json::json!({
        "what": format!("kills of {unit} at the steps of create, update, stop and destroy"),
        "times": kills,
        "seconds": began.elapsed().as_secs_f64(),
        "found": "the rest is done without a person; state and host agree after each",
    }))?;
    Ok(())
}
