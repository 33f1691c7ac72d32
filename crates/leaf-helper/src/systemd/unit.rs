//! The text of a container's unit, `container@NAME.service`, with only what systemd itself must know. Everything else
//! is read from `spec.json` at the start.
//!
//! systemd interprets specifiers (`%`), variables (`$`), quotes and line ends in a unit. So every value here is a
//! number, a word of a closed set, a validated name, or a path without any of those.

use std::path::Path;

use leaf_core::host_op::RunSpec;
use leaf_core::runtime::Runtime;
use leaf_core::spec::{RestartPolicy, RestartWhen};
use leaf_host::contract::conf_marker;

use crate::error::{Error, Result};
use crate::nspawn::RESTARTS;

/// The time limit of a start, after which systemd ends it, in seconds; `leafd`'s may be shorter.
pub(crate) const START_SECONDS: u32 = 600;
/// The time limit of a stop, after which systemd ends it, in seconds; `leafd`'s may be shorter.
pub(crate) const STOP_SECONDS: u32 = 120;
/// The default limit of tasks for a container and its supervisor, as in systemd-nspawn@.service.
const TASKS: u64 = 16_384;

/// Returns the text of a container's unit.
///
/// # Errors
/// [`Error::Refused`] for a path that systemd could misinterpret.
pub(crate) fn text(spec: &RunSpec, program: &Path, record: &Path, root: &Path) -> Result<String> {
    let RunSpec {
        leaf, name, options, ..
    } = spec;
    let program = word(program)?;
    let record = word(record)?;
    let root = word(root)?;
    let after: String = options
        .after
        .iter()
        .map(|other| format!(" {}", Runtime::unit(other)))
        .collect();
    // Includes the supervisor's tasks; the spec's limit is set on the payload.
    let tasks = TASKS.max(u64::from(options.limits.tasks.unwrap_or(0)) + 64);
    let restart = restart(&options.restart);
    Ok(format!(
        "{marker}
# It is replaced at the next change.
[Unit]
Description=Container {name} of leaf {leaf}
After=network.target nftables.service firewall.service{after}
RequiresMountsFor={root}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
ExecStart={program} run {name} --record {record}
ExecReload={program} switch {name} --record {record}
{restart}RestartForceExitStatus={RESTARTS}
SuccessExitStatus={RESTARTS}
TimeoutStartSec={START_SECONDS}
TimeoutStopSec={STOP_SECONDS}
KillMode=mixed
Slice=machine.slice
Delegate=yes
DelegateSubgroup=supervisor
OOMPolicy=continue
TasksMax={tasks}
DevicePolicy=closed
DeviceAllow=/dev/net/tun rwm
SyslogIdentifier=container {name}
",
        marker = conf_marker(leaf),
    ))
}

/// Returns the lines of a restart policy, with a delay that doubles from the first to the longest.
fn restart(policy: &RestartPolicy) -> String {
    let RestartPolicy {
        when,
        delay_seconds,
        max_delay_seconds,
    } = policy;
    let when = match when {
        RestartWhen::Never => "no",
        RestartWhen::OnFailure => "on-failure",
        RestartWhen::Always => "always",
    };
    let mut text = format!("Restart={when}\nRestartSec={delay_seconds}\n");
    if max_delay_seconds > delay_seconds {
        let doublings = (f64::from(*max_delay_seconds) / f64::from(*delay_seconds)).log2();
        text.push_str(&format!(
            "RestartSteps={}\nRestartMaxDelaySec={max_delay_seconds}\n",
            doublings.ceil().max(1.0)
        ));
    }
    text
}

/// Returns a path as one word of a unit's line.
fn word(path: &Path) -> Result<String> {
    let text = path.to_str().unwrap_or_default();
    leaf_core::spec::check_path("a unit", text).map_err(Error::Refused)?;
    Ok(format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use leaf_core::address_pool::AddressPool;
    use leaf_core::id::{ContainerName, LeafName, StorePath};
    use leaf_core::spec::ContainerOptions;

    use super::*;

    fn spec(options: &str) -> RunSpec {
        RunSpec {
            leaf: LeafName::new("edge").expect("a leaf"),
            name: ContainerName::new("web").expect("a name"),
            toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-system").expect("a path"),
            network: AddressPool::default().link(1),
            options: serde_json::from_str::<ContainerOptions>(options).expect("options"),
            secrets: std::collections::BTreeMap::new(),
        }
    }

    fn of(options: &str) -> String {
        text(
            &spec(options),
            Path::new("/opt/leaf helper/bin"),
            Path::new("/var/lib/x/helper.json"),
            Path::new("/var/lib/nixos-containers/web"),
        )
        .expect("a unit")
    }

    fn lines<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(k, _)| *k == key)
            .map(|(_, value)| value)
            .collect()
    }

    #[test]
    fn a_unit_names_its_leaf_and_starts_the_helper_with_its_container() {
        let text = of("{}");
        assert_eq!(text.lines().next(), Some("# cim-leaf: made by leaf edge"));
        assert_eq!(
            lines(&text, "ExecStart"),
            ["\"/opt/leaf helper/bin\" run web --record \"/var/lib/x/helper.json\""]
        );
        assert_eq!(lines(&text, "Restart"), ["no"]);
        assert_eq!(lines(&text, "Delegate"), ["yes"]);
    }

    #[test]
    fn the_restart_delay_grows_up_to_the_maximum() {
        let text = of(r#"{"restart":{"when":"on_failure","delay_seconds":2,"max_delay_seconds":60}}"#);
        assert_eq!(lines(&text, "Restart"), ["on-failure"]);
        assert_eq!(lines(&text, "RestartSec"), ["2"]);
        assert_eq!(lines(&text, "RestartSteps"), ["5"]);
        assert_eq!(lines(&text, "RestartMaxDelaySec"), ["60"]);
        let text = of(r#"{"restart":{"when":"always","delay_seconds":5,"max_delay_seconds":5}}"#);
        assert_eq!(lines(&text, "Restart"), ["always"]);
        assert_eq!(lines(&text, "RestartSteps"), [""; 0]);
    }

    #[test]
    fn only_order_restarts_and_tasks_are_taken_from_a_spec() {
        let text = of(
            r#"{"after":["db","cache"],"limits":{"tasks":100000,"memory_bytes":"1G"},
                "environment":{"EVIL":"%h $PATH\nExecStart=/bin/sh"},"labels":{"x":"\n[Service]"}}"#,
        );
        assert_eq!(
            lines(&text, "After"),
            ["network.target nftables.service firewall.service container@db.service container@cache.service"]
        );
        assert_eq!(lines(&text, "TasksMax"), ["100064"]);
        assert!(!text.contains("EVIL") && !text.contains("/bin/sh"), "{text}");
        assert_eq!(lines(&text, "ExecStart").len(), 1);
    }

    #[test]
    fn a_path_that_systemd_would_misinterpret_is_refused() {
        for path in [
            "/a%h",
            "/a$HOME",
            "/a\"",
            "/a\\",
            "/a\nExecStart=/b",
            "a",
            "/a/../b",
            "/a'",
        ] {
            for bad in 0..3 {
                let paths = [0, 1, 2].map(|n| Path::new(if n == bad { path } else { "/good" }));
                let refused = text(&spec("{}"), paths[0], paths[1], paths[2]);
                assert!(matches!(refused, Err(Error::Refused(_))), "{path:?}");
            }
        }
    }
}
