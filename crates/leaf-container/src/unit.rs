//! Interprets the state of a container's unit: `org.freedesktop.systemd1(5)`.

use jiff::Timestamp;
use leaf_core::container::{Exit, ObservedRun};
use leaf_host::contract::RunStatus;
use leaf_host::systemd::Properties;

/// The stage of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is not running, and systemd will not start it by itself.
    Down,
    /// It was started, and its container is not ready yet.
    Starting,
    /// Its container is ready.
    Up,
    /// It is ending: its container is, or the cleanup after it.
    Ending,
    /// It has ended, and systemd will start it again.
    Waiting,
}

impl Stage {
    /// Returns the stage for `ActiveState` and `SubState`.
    pub(crate) fn of(active: &str, sub: &str) -> Self {
        match active {
            // Includes the states before the wait: `dead-before-auto-restart`, `failed-before-auto-restart`.
            _ if sub.contains("auto-restart") => Self::Waiting,
            "active" | "reloading" | "refreshing" => Self::Up,
            "activating" => Self::Starting,
            "deactivating" => Self::Ending,
            _ => Self::Down,
        }
    }

    /// Returns whether it is in transition, given the status of the last run. systemd sends no signal at the end of it.
    pub(crate) fn is_moving(self, status: Option<&RunStatus>) -> bool {
        match self {
            Self::Starting | Self::Ending => true,
            // Its end is recorded, and the cleanup is in progress.
            Self::Up => status.is_some_and(|status| status.exit.is_some()),
            Self::Down | Self::Waiting => false,
        }
    }
}

/// The state of a unit at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) stage: Stage,
    /// When its main process was started; `None` if it was not since the unit was loaded.
    started_at: Option<Timestamp>,
    /// The same on the monotonic clock, in microseconds.
    started: u64,
    /// When it last became ready, on the monotonic clock, in microseconds.
    ready: u64,
    /// Its main process, also after its end.
    main_pid: u32,
    /// How its main process ended, if it has.
    exit: Option<Exit>,
    /// Its cgroup, below the mount.
    pub(crate) group: Option<String>,
}

impl Unit {
    /// Returns the state from the unit's properties.
    pub(crate) fn of(properties: &Properties) -> Self {
        Self {
            stage: Stage::of(properties.text("ActiveState"), properties.text("SubState")),
            started_at: properties.time("ExecMainStartTimestamp"),
            started: properties.unsigned("ExecMainStartTimestampMonotonic"),
            ready: properties.unsigned("ActiveEnterTimestampMonotonic"),
            main_pid: u32::try_from(properties.unsigned("ExecMainPID")).unwrap_or(0),
            exit: exit_of(
                properties.signed("ExecMainCode"),
                properties.signed("ExecMainStatus"),
            ),
            group: Some(properties.text("ControlGroup").trim_start_matches('/').to_owned())
                .filter(|group| !group.is_empty()),
        }
    }

    /// Returns whether it became ready after its last start.
    pub(crate) fn was_ready(&self) -> bool {
        self.started > 0 && self.ready >= self.started
    }
}

/// Returns the end for a code of waitid(2): `CLD_EXITED`, `CLD_KILLED`, `CLD_DUMPED`.
fn exit_of(code: i32, status: i32) -> Option<Exit> {
    match code {
        1 => Some(Exit::Code { code: status }),
        2 | 3 => Some(Exit::Signal { signal: status }),
        _ => None,
    }
}

/// Returns the run state of a container, from its unit (`None` if not loaded), the status of its last run, and its
/// leader.
pub(crate) fn run_of(unit: Option<&Unit>, status: Option<&RunStatus>, leader: Option<u32>) -> ObservedRun {
    // The status is ahead of the unit: the helper records the end before systemd notices it.
    let ended = status.and_then(|status| status.exit);
    let seen = unit.and_then(|unit| unit.exit);
    match unit.map_or(Stage::Down, |unit| unit.stage) {
        Stage::Down => match (status, ended.or(seen)) {
            (_, Some(exit)) => ObservedRun::Exited(exit),
            (Some(_), None) => ObservedRun::Exited(Exit::Lost),
            (None, None) => ObservedRun::Stopped,
        },
        Stage::Waiting => ObservedRun::Restarting(ended.or(seen).unwrap_or(Exit::Lost)),
        Stage::Starting => ObservedRun::Starting,
        Stage::Up | Stage::Ending => match unit {
            Some(unit) if unit.was_ready() => {
                let before = (unit.ready - unit.started) / 1000;
                ObservedRun::Running {
                    // While it is ending there may be no leader any more.
                    leader_pid: leader.unwrap_or(unit.main_pid),
                    started_at: unit.started_at.unwrap_or(Timestamp::UNIX_EPOCH),
                    ready_after_ms: before,
                    start_digest: status
                        .filter(|status| status.exit.is_none() && !status.start_digest.is_empty())
                        .map(|status| status.start_digest.clone()),
                    last_update: status.and_then(|status| status.last_update.clone().map(Box::new)),
                }
            }
            _ => ObservedRun::Starting,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use leaf_host::systemd::{OwnedVariant, Variant};

    use super::*;

    fn unit(active: &str, sub: &str, more: &[(&str, Variant<'static>)]) -> Unit {
        let mut properties: BTreeMap<String, OwnedVariant> = BTreeMap::new();
        let defaults = [
            ("ActiveState", Variant::from(active.to_owned())),
            ("SubState", Variant::from(sub.to_owned())),
            ("ExecMainStartTimestamp", Variant::U64(1_763_668_800_000_000)),
            ("ExecMainStartTimestampMonotonic", Variant::U64(5_000_000)),
            ("ActiveEnterTimestampMonotonic", Variant::U64(5_250_900)),
            ("ExecMainPID", Variant::U32(4711)),
            ("ExecMainCode", Variant::I32(0)),
            ("ExecMainStatus", Variant::I32(0)),
            (
                "ControlGroup",
                Variant::from("/machine.slice/container@web.service".to_owned()),
            ),
        ];
        for (key, value) in defaults.into_iter().chain(more.iter().cloned()) {
            let value = OwnedVariant::try_from(value).expect("a value");
            properties.insert(key.to_owned(), value);
        }
        Unit::of(&Properties::new(properties))
    }

    fn status(exit: Option<Exit>) -> RunStatus {
        RunStatus {
            supervisor_pid: 4711,
            started_at: Timestamp::UNIX_EPOCH,
            start_digest: "0123".into(),
            last_update: None,
            leader_pid: None,
            ready_at: None,
            exit,
            oom_kills: 0,
            error: None,
        }
    }

    const CODE: Exit = Exit::Code { code: 7 };

    #[test]
    fn a_unit_that_is_up_runs_with_the_leader_that_was_found() {
        let up = unit("active", "running", &[]);
        assert_eq!(up.group.as_deref(), Some("machine.slice/container@web.service"));
        let started_at = Timestamp::from_second(1_763_668_800).expect("a time");
        let running = |leader_pid, start_digest: Option<&str>| ObservedRun::Running {
            leader_pid,
            started_at,
            ready_after_ms: 250,
            start_digest: start_digest.map(str::to_owned),
            last_update: None,
        };
        assert_eq!(
            run_of(Some(&up), Some(&status(None)), Some(99)),
            running(99, Some("0123"))
        );
        // An adopted one has no record of its start, or the record of an earlier run.
        assert_eq!(run_of(Some(&up), None, Some(99)), running(99, None));
        assert_eq!(
            run_of(Some(&up), Some(&status(Some(CODE))), Some(99)),
            running(99, None)
        );
        // It is ending, and its leader has ended.
        let ending = unit("deactivating", "stop-post", &[]);
        assert_eq!(
            run_of(Some(&ending), Some(&status(None)), None),
            running(4711, Some("0123"))
        );
    }

    #[test]
    fn a_unit_that_is_not_ready_since_its_start_is_starting() {
        for sub in ["start-pre", "start", "start-post"] {
            let starting = unit("activating", sub, &[]);
            assert_eq!(
                run_of(Some(&starting), Some(&status(None)), Some(99)),
                ObservedRun::Starting
            );
        }
        // It is stopped before it was ready: `ActiveEnterTimestamp` is from an earlier run.
        let before = [("ActiveEnterTimestampMonotonic", Variant::U64(4_000_000))];
        let ending = unit("deactivating", "stop-sigterm", &before);
        assert_eq!(
            run_of(Some(&ending), Some(&status(None)), Some(99)),
            ObservedRun::Starting
        );
    }

    #[test]
    fn a_unit_that_waits_is_restarting_with_the_recorded_or_else_observed_exit() {
        let killed = [
            ("ExecMainCode", Variant::I32(2)),
            ("ExecMainStatus", Variant::I32(9)),
        ];
        for (active, sub) in [
            ("activating", "auto-restart"),
            ("activating", "auto-restart-queued"),
            ("failed", "failed-before-auto-restart"),
            ("inactive", "dead-before-auto-restart"),
        ] {
            let waiting = unit(active, sub, &killed);
            assert_eq!(
                run_of(Some(&waiting), Some(&status(Some(CODE))), None),
                ObservedRun::Restarting(CODE)
            );
            assert_eq!(
                run_of(Some(&waiting), Some(&status(None)), None),
                ObservedRun::Restarting(Exit::Signal { signal: 9 })
            );
        }
    }

    #[test]
    fn a_unit_that_is_down_has_exited_was_lost_or_never_ran() {
        let failed = unit("failed", "failed", &[]);
        assert_eq!(
            run_of(Some(&failed), Some(&status(Some(CODE))), None),
            ObservedRun::Exited(CODE)
        );
        assert_eq!(
            run_of(Some(&failed), Some(&status(None)), None),
            ObservedRun::Exited(Exit::Lost)
        );
        assert_eq!(
            run_of(None, Some(&status(None)), None),
            ObservedRun::Exited(Exit::Lost)
        );
        assert_eq!(run_of(None, None, None), ObservedRun::Stopped);
        let dumped = [
            ("ExecMainCode", Variant::I32(3)),
            ("ExecMainStatus", Variant::I32(6)),
        ];
        assert_eq!(
            run_of(Some(&unit("failed", "failed", &dumped)), None, None),
            ObservedRun::Exited(Exit::Signal { signal: 6 })
        );
        assert_eq!(
            run_of(Some(&unit("inactive", "dead", &[])), None, None),
            ObservedRun::Stopped
        );
    }

    #[test]
    fn a_unit_that_is_up_is_in_transition_once_an_end_is_recorded() {
        assert!(!Stage::Up.is_moving(Some(&status(None))));
        assert!(!Stage::Up.is_moving(None));
        assert!(Stage::Up.is_moving(Some(&status(Some(CODE)))));
        assert!(Stage::Ending.is_moving(Some(&status(Some(CODE)))));
        assert!(Stage::Starting.is_moving(None));
        assert!(!Stage::Down.is_moving(Some(&status(None))));
        assert!(!Stage::Waiting.is_moving(Some(&status(Some(CODE)))));
    }

    #[test]
    fn a_unit_without_properties_is_down() {
        let unit = Unit::of(&Properties::default());
        assert_eq!(unit.stage, Stage::Down);
        assert!(!unit.was_ready());
        assert_eq!(run_of(Some(&unit), None, None), ObservedRun::Stopped);
    }
}
