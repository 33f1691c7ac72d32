use std::time::Duration;

use clap::Args;
use leaf_core::change::SystemMode;
use leaf_core::command::{BootSystem, OpenChange, SwitchSystem, TestSystem};
use leaf_core::id::StorePath;

use super::batches::Batches;
use super::follow::{Switched, follow};
use super::toplevel::built;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;

/// Switch a leaf to another system; it goes back by itself unless that is confirmed in time.
///
/// The leaf builds the system, or substitutes it, activates it, and checks its health. Then its witness confirms it over a new
/// connection, and the system is installed for the next boot. For example: `leafctl --leaf edge-1 system switch github:acme/fleet`
#[derive(Debug, Args)]
pub(crate) struct Switch {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    how: How,
    /// Take another kernel, initrd, kernel parameters or systemd than those of the booted system, or a next boot that is not of the
    /// running system: that is not tried before it is needed.
    #[arg(long)]
    uncounted: bool,
}

/// Switch a leaf to another system until the next boot; it goes back by itself unless that is confirmed in time.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    how: How,
}

/// Install another system for a leaf's next boot, without activating it now.
#[derive(Debug, Args)]
pub(crate) struct Boot {
    #[command(flatten)]
    what: What,
    /// That you know that nobody guards that boot; without it the leaf refuses.
    #[arg(long)]
    uncounted: bool,
}

/// The system.
#[derive(Debug, Clone, Args)]
pub(super) struct What {
    /// The system: a flake with NixOS configurations, `FLAKE#NAME` for one of another name than the leaf's, or a store path.
    installable: String,
    /// The time limit of the build, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
    #[command(flatten)]
    batches: Batches,
}

/// How a switch is confirmed.
#[derive(Debug, Clone, Args)]
pub(super) struct How {
    /// The time in which it must be confirmed: 30s to 1h.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = humantime::parse_duration)]
    within: Duration,
    /// Confirm it from here, over a new connection, once it is in use; the witness is not asked.
    #[arg(long)]
    confirm: bool,
    /// Don't ask the witness: only a person can confirm it.
    #[arg(long)]
    no_witness: bool,
    /// A unit whose failure is no reason to go back; may be given more than once.
    #[arg(long, value_name = "UNIT")]
    allow_failed: Vec<String>,
    /// Print the change's id without waiting for its end.
    #[arg(long, conflicts_with = "confirm")]
    detach: bool,
}

/// A change of the system, whatever its system is.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) mode: SystemMode,
    /// How it is confirmed; nothing is confirmed of a system for the next boot.
    pub(super) how: Option<How>,
    pub(super) uncounted: bool,
}

impl Switch {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let change = Change {
            mode: SystemMode::Switch,
            how: Some(self.how),
            uncounted: self.uncounted,
        };
        self.what.change(session, output, &change).await
    }
}

impl Test {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let change = Change {
            mode: SystemMode::Test,
            how: Some(self.how),
            uncounted: false,
        };
        self.what.change(session, output, &change).await
    }
}

impl Boot {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let change = Change {
            mode: SystemMode::Boot,
            how: None,
            uncounted: self.uncounted,
        };
        self.what.change(session, output, &change).await
    }
}

impl What {
    async fn change(self, session: &Session, output: Output, change: &Change) -> Result<(), Error> {
        let work = async |leaf: &Leaf| {
            let toplevel = built(leaf, &self.installable, self.time_limit, output).await?;
            change.of(session, leaf, toplevel, output).await
        };
        self.batches.each(session, output, work).await
    }
}

impl Change {
    /// Changes the system of a leaf to one that its store has, and waits for the end.
    pub(super) async fn of(
        &self,
        session: &Session,
        leaf: &Leaf,
        toplevel: StorePath,
        output: Output,
    ) -> Result<Switched, Error> {
        let open = leaf
            .waiting(
                "waiting for the witness and the way back",
                self.arm(leaf, toplevel),
            )
            .await?;
        let (by_me, detach) = self
            .how
            .as_ref()
            .map_or((false, false), |how| (how.confirm, how.detach));
        if detach {
            return Ok(Switched::open(open));
        }
        if leaf.is_alone() {
            output.note(&format!(
                "change {}: the leaf goes back unless it is confirmed within {} s",
                open.id, open.seconds_left
            ));
        }
        let followed = Box::pin(follow(session, leaf, open, by_me, output));
        leaf.waiting("waiting until the switch is decided", followed)
            .await
    }

    async fn arm(&self, leaf: &Leaf, toplevel: StorePath) -> Result<OpenChange, Error> {
        let Some(how) = &self.how else {
            let request = BootSystem {
                toplevel,
                uncounted: self.uncounted,
            };
            return leaf.call_slow_with_own_body(&request).await;
        };
        let seconds = Some(u32::try_from(how.within.as_secs()).unwrap_or(u32::MAX));
        let no_witness = how.no_witness || how.confirm;
        let allow_failed = how.allow_failed.clone();
        if self.mode == SystemMode::Test {
            let request = TestSystem {
                toplevel,
                seconds,
                no_witness,
                allow_failed,
            };
            return leaf.call_slow_with_own_body(&request).await;
        }
        let request = SwitchSystem {
            toplevel,
            seconds,
            no_witness,
            allow_failed,
            uncounted: self.uncounted,
        };
        leaf.call_slow_with_own_body(&request).await
    }
}
