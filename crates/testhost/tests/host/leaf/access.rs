//! `leafctl` on the leaf itself, by users who may command it and by one who may not.

use anyhow::ensure;

use super::Leaf;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "root_and_the_group_leafd_command_the_local_leaf_without_a_context",
    local,
)];

fn local() -> Outcome {
    let leaf = Leaf::up()?;
    let host = &leaf.host;
    host.ok("env -u LEAFCTL_CONTEXT leafctl leaf show")?;
    host.ok("useradd alice && useradd --groups leafd bob")?;
    host.ok("runuser -u bob -- env -u LEAFCTL_CONTEXT leafctl hardware list")?;
    for (what, says) in [
        ("", "/run/cim-leaf/access/context.json"),
        ("systemctl stop leafd; ", "/var/lib/cim-leaf/context.json"),
    ] {
        let refused = host.run(&format!(
            "{what}runuser -u alice -- env -u LEAFCTL_CONTEXT leafctl leaf show"
        ))?;
        ensure!(refused.status == 3, "{refused:?}");
        for words in [says, "Permission denied", "LEAFCTL_CONTEXT", "the group leafd"] {
            ensure!(
                refused.stderr.contains(words),
                "{words:?} is missing: {refused:?}"
            );
        }
    }
    host.ok("test ! -e /run/cim-leaf/access")?;
    Ok(())
}
