//! A container is brought to another system: by a switch inside where it can do that, else by a restart.

use serde_json::json;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[(
    "a_system_that_can_switch_is_switched_to_in_place_and_any_other_by_a_restart",
    updates,
)];

fn updates() -> Outcome {
    let leaf = Leaf::new()?;
    let first = leaf.system("first", WAITS)?;
    let switch = "echo $1 as $($b id -u) in $($b hostname), $($b cat /proc/self/cgroup) >/switched";
    let second = leaf.system_with_switch("second", WAITS, Some(switch))?;
    let third = leaf.system_with_switch("third", WAITS, Some("exit 4"))?;
    leaf.create("web", &first, 1, json!({}))?;
    leaf.start("web")?;
    let started = leaf.unit("web", "MainPID")?;
    let digest = leaf.status("web")?["start_digest"].clone();
    leaf.create("web", &second, 1, json!({}))?;
    leaf.update("web")?;
    ensure(leaf.unit("web", "MainPID")? == started, "switched inside")?;
    let said = leaf.host.ok("cat /var/lib/nixos-containers/web/switched")?;
    ensure(
        said.trim() == "test as 0 in web, 0::/",
        format!("as NixOS does it, and within its limits: {said}"),
    )?;
    let switched = leaf.status("web")?["start_digest"].clone();
    ensure(switched != digest, "what it runs now is told")?;
    let done = leaf.status("web")?["last_update"].clone();
    ensure(
        done.is_object() && done["restarted"].is_null(),
        format!("it is told that this was in place: {done}"),
    )?;
    leaf.update("web")?;
    ensure(leaf.unit("web", "MainPID")? == started, "again is no change")?;
    // A switch that fails.
    leaf.create("web", &third, 1, json!({}))?;
    leaf.update("web")?;
    let restarted = leaf.unit("web", "MainPID")?;
    ensure(restarted != started, "started anew after a failed switch")?;
    let why = leaf.status("web")?["last_update"]["restarted"].clone();
    let told = "the switch in place failed: switch-to-configuration ended with exit code 4";
    ensure(why == told, format!("why it was started anew: {why}"))?;
    // More than the system is another.
    leaf.create("web", &second, 1, json!({"environment": {"A": "b"}}))?;
    leaf.update("web")?;
    ensure(
        leaf.unit("web", "MainPID")? != restarted,
        "started anew for its environment",
    )?;
    let why = leaf.status("web")?["last_update"]["restarted"].clone();
    ensure(
        why == "more than its system has changed, which needs a restart",
        format!("why it was started anew: {why}"),
    )?;
    leaf.stop("web", 20)?;
    leaf.update("web")?;
    ensure(
        leaf.unit("web", "ActiveState")? == "active",
        "one that stands still is started",
    )?;
    leaf.stop("web", 20)?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}
