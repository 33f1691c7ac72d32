//! The link between a leaf and the hub is cut, or bad.

use std::time::{Duration, Instant};

use super::Hubbed;
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[(
    "a_leaf_that_is_cut_off_obeys_its_own_people_and_then_the_hub_again_and_the_others_go_on",
    cut,
)];

fn cut() -> Outcome {
    let hubbed = Hubbed::up(2)?;
    let network = &hubbed.fleet.network;
    network.cut("leaf-1")?;
    let began = Instant::now();
    let unreached = hubbed.at_hub("leaf-1", "--timeout 2s leaf show")?;
    ensure(unreached.status == 4, format!("no reply is 4: {unreached:?}"))?;
    ensure(
        began.elapsed() < Duration::from_secs(30),
        format!("leafctl waited {:?} with --timeout 2s", began.elapsed()),
    )?;
    let other = hubbed.at_hub("leaf-2", "leaf show")?;
    ensure(other.status == 0, format!("{other:?}"))?;
    let own = hubbed
        .fleet
        .leaf(1)
        .run("leafctl --timeout 60s leaf label site=cut-off")?;
    ensure(own.status == 0, format!("{own:?}"))?;

    network.mend("leaf-1")?;
    hubbed.until_reached("leaf-1")?;

    network.delay("leaf-1", Duration::from_millis(50))?;
    network.loss("leaf-1", 0.1)?;
    for _ in 0..5 {
        let reply = hubbed.at_hub("leaf-1", "--timeout 60s leaf show")?;
        ensure(reply.status == 0, format!("on a bad link: {reply:?}"))?;
    }
    Ok(())
}
