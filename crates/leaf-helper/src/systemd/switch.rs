//! The result of a run of NixOS's `switch-to-configuration`, from its exit code and its output.
//!
//! Its exit code tells too little: it is 4 as soon as any unit is failed at the end, also one that failed at the
//! container's start already, and it hides that the activation failed (2). The lines of the output that are read here are
//! the same in both implementations: nixpkgs' `nixos/modules/system/activation/switch-to-configuration.pl`, and
//! `pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs`.

use std::collections::BTreeSet;

use leaf_core::container::LastUpdate;
use leaf_core::spec::Users;

/// The end of a switch.
#[derive(Debug)]
pub(crate) struct Switch<'a> {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output and its standard error.
    pub(crate) output: &'a str,
    /// The units that were failed before.
    pub(crate) failed_before: &'a BTreeSet<String>,
    /// The container's users.
    pub(crate) users: Users,
    /// Whether the activation reached its last step, which makes the new system the current one.
    pub(crate) is_activated: bool,
}

/// The activation script's part that mounts `/dev`, `/proc` and the like, which a user namespace does not permit: it
/// fails at each start of the container as well.
const SPECIAL_MOUNTS: &str = "specialfs";
/// The longest name of a unit, in bytes (systemd.unit(5)).
const NAME_BYTES: usize = 255;
/// The maximum size of each list of units, in bytes.
const LIST_BYTES: usize = 1024;
/// How many failures a switch's error names.
const NAMED: usize = 8;

impl Switch<'_> {
    /// Returns what the switch did with the units, in `update`, whose other fields are not changed. Units that were
    /// failed before may be failed again.
    ///
    /// # Errors
    /// What failed.
    pub(crate) fn judge(&self, mut update: LastUpdate) -> Result<LastUpdate, String> {
        let listed = |start: &str| units_after(self.output, start);
        let (stopping, starting) = (
            listed("stopping the following units: "),
            listed("starting the following units: "),
        );
        let mut restarted = listed("restarting the following units: ");
        restarted.extend(stopping.intersection(&starting).cloned());
        let mut started = listed("the following new units were started: ");
        started.extend(starting);
        let failed = listed("warning: the following units failed: ");
        let without = |units: BTreeSet<String>, others: &BTreeSet<String>| {
            units.difference(others).cloned().collect::<BTreeSet<_>>()
        };
        update.started_units = Vec::from_iter(without(without(started, &restarted), &failed));
        update.stopped_units = Vec::from_iter(without(stopping, &restarted));
        update.reloaded_units = Vec::from_iter(listed("reloading the following units: "));
        update.restarted_units = Vec::from_iter(restarted);
        update.failed_units = Vec::from_iter(failed.iter().cloned());
        update.shorten(LIST_BYTES);

        let mut mounts_failed = false;
        let mut wrong: BTreeSet<String> = self.new_failures(&failed).collect();
        for snippet in self.output.lines().filter_map(failed_snippet) {
            if snippet == SPECIAL_MOUNTS && self.users == Users::Private {
                mounts_failed = true;
            } else {
                wrong.insert(format!("its activation script failed at {snippet}"));
            }
        }
        let is_explained = match self.code {
            Some(0) => return Ok(update),
            Some(2) => mounts_failed,
            Some(4) => !failed.is_empty(),
            _ => false,
        };
        match (wrong.is_empty(), self.code) {
            (true, _) if is_explained && self.is_activated => Ok(update),
            (true, _) if is_explained => Err("its activation script did not reach its end".to_owned()),
            (false, Some(2 | 4)) => {
                let named: Vec<_> = wrong.iter().take(NAMED).map(String::as_str).collect();
                let more = wrong.len() - named.len();
                let more = (more > 0).then(|| format!(", and {more} more"));
                Err(named.join(", ") + &more.unwrap_or_default())
            }
            (_, Some(100)) => {
                Err("the new system's init is not compatible with the running one (exit code 100)".to_owned())
            }
            (_, Some(code)) => Err(format!("switch-to-configuration ended with exit code {code}")),
            (_, None) => Err("switch-to-configuration was ended by a signal".to_owned()),
        }
    }

    /// Returns what failed and was not failed before: units, jobs of units, and systemd's own reload.
    fn new_failures<'b>(&'b self, failed: &'b BTreeSet<String>) -> impl Iterator<Item = String> + 'b {
        let jobs = self.output.lines().filter_map(failed_job);
        let is_new = |unit: &&str| !self.failed_before.contains(*unit);
        let units = failed.iter().map(String::as_str).chain(jobs);
        let users = self.output.lines().filter_map(|line| {
            line.strip_prefix("warning: user activation for ")?
                .strip_suffix(" failed")
        });
        units
            .filter(is_new)
            .map(|unit| format!("unit {unit} failed"))
            .chain(users.map(|user| format!("the activation of user {user} failed")))
    }
}

/// Returns the unit of a job that failed: from a line of switch-to-configuration-ng, or of systemctl, which the script
/// in Perl starts. `daemon` is systemd itself.
fn failed_job(line: &str) -> Option<&str> {
    let name = if let Some(rest) = line.strip_prefix("Failed to ") {
        let (verb, rest) = rest.split_once(' ')?;
        if !matches!(verb, "start" | "restart" | "reload" | "stop" | "reexecute") {
            return None;
        }
        rest.split([' ', ':']).next()?
    } else {
        let rest = line
            .strip_prefix("Job for ")
            .or_else(|| line.strip_prefix("A dependency job for "))?;
        rest.split(' ').next()?
    };
    (name == "daemon" || is_unit(name)).then_some(name)
}

/// Returns the name of the part of an activation script that failed, from its line.
fn failed_snippet(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Activation script snippet '")?;
    let (name, rest) = rest.split_once('\'')?;
    let is_short = name.len() <= NAME_BYTES;
    rest.starts_with(" failed")
        .then_some(if is_short { name } else { "a part with a long name" })
}

/// Returns the units that the lines with this beginning name.
fn units_after(output: &str, start: &str) -> BTreeSet<String> {
    let lists = output.lines().filter_map(|line| line.strip_prefix(start));
    let names = lists.flat_map(|list| list.split(", "));
    names.filter(|name| is_unit(name)).map(str::to_owned).collect()
}

/// Returns whether a text is a unit's name (systemd.unit(5)). It may come from a program of the container.
fn is_unit(name: &str) -> bool {
    name.len() <= NAME_BYTES
        && name.contains('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
}

/// Returns the units that `systemctl list-units --plain --no-legend` lists.
pub(crate) fn listed_units(output: &str) -> BTreeSet<String> {
    let names = output.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| is_unit(name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSCTL: &str = "systemd-sysctl.service";
    /// The output for a stock NixOS container in a user namespace, of which one service has changed.
    const STOCK: &str = "\
stopping the following units: speaker.service
activating the configuration...
mount: /dev: permission denied.
Activation script snippet 'specialfs' failed (32)
restarting sysinit-reactivation.target
reloading the following units: dbus.service
restarting the following units: systemd-sysctl.service
Job for systemd-sysctl.service failed because the control process exited with error code.
See \"systemctl status systemd-sysctl.service\" and \"journalctl -xeu systemd-sysctl.service\" for details.
starting the following units: speaker.service
the following new units were started: new.service
warning: the following units failed: systemd-sysctl.service
";

    fn judged(code: i32, output: &str, before: &[&str], users: Users) -> Result<LastUpdate, String> {
        let failed_before = before.iter().map(|&name| name.to_owned()).collect();
        let switch = Switch {
            code: Some(code),
            output,
            failed_before: &failed_before,
            users,
            is_activated: true,
        };
        switch.judge(LastUpdate::at(jiff::Timestamp::UNIX_EPOCH))
    }

    fn refused(code: i32, output: &str, before: &[&str]) -> String {
        judged(code, output, before, Users::Private).expect_err(output)
    }

    #[test]
    fn units_that_were_failed_before_may_fail_again_and_the_others_are_listed() {
        let update = judged(4, STOCK, &[SYSCTL], Users::Private).expect("nothing new failed");
        assert_eq!(update.restarted_units, ["speaker.service", SYSCTL]);
        assert_eq!(update.started_units, ["new.service"]);
        assert_eq!(update.reloaded_units, ["dbus.service"]);
        assert_eq!(update.failed_units, [SYSCTL]);
        assert!(update.stopped_units.is_empty());
    }

    #[test]
    fn a_unit_that_was_not_failed_before_fails_the_switch_and_is_named() {
        assert_eq!(refused(4, STOCK, &[]), "unit systemd-sysctl.service failed");
        let both = STOCK.replace(
            "failed: systemd-sysctl.service\n",
            "failed: speaker.service, systemd-sysctl.service\n",
        );
        assert_eq!(refused(4, &both, &[SYSCTL]), "unit speaker.service failed");
    }

    #[test]
    fn a_job_that_failed_counts_though_its_unit_is_not_failed() {
        for line in [
            "Job for web.service failed because the control process exited with error code.",
            "A dependency job for web.service failed. See 'journalctl -xe' for details.",
            "Failed to restart web.service: Unit web.service not found.",
            // switch-to-configuration-ng
            "Failed to reload web.service",
        ] {
            let output = format!("{STOCK}{line}\n");
            assert_eq!(
                refused(4, &output, &[SYSCTL]),
                "unit web.service failed",
                "{line}"
            );
        }
        let output = format!("{STOCK}Failed to reload daemon: Connection timed out\n");
        assert_eq!(refused(4, &output, &[SYSCTL]), "unit daemon failed");
        let output = format!("{STOCK}warning: user activation for ann failed\n");
        assert_eq!(
            refused(4, &output, &[SYSCTL]),
            "the activation of user ann failed"
        );
        // The log of a unit, as `systemctl status` prints it.
        let output = format!("{STOCK}Nov 29 12:00:00 guest systemd[1]: Failed to start web.service - Web.\n");
        judged(4, &output, &[SYSCTL], Users::Private).expect("it is a line of a log");
    }

    #[test]
    fn only_the_special_mounts_of_a_user_namespace_may_fail_in_an_activation() {
        let special = "Activation script snippet 'specialfs' failed (32)\n";
        judged(2, special, &[], Users::Private).expect("it failed at the start too");
        let why = judged(2, special, &[], Users::Host).expect_err("they are permitted there");
        assert_eq!(why, "its activation script failed at specialfs");
        let other = format!("{STOCK}Activation script snippet 'users' failed (1)\n");
        assert_eq!(
            refused(4, &other, &[SYSCTL]),
            "its activation script failed at users"
        );
        let broken_off = Switch {
            code: Some(4),
            output: STOCK,
            failed_before: &[SYSCTL.to_owned()].into(),
            users: Users::Private,
            is_activated: false,
        };
        let why = broken_off.judge(LastUpdate::at(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(
            why.expect_err("it was broken off"),
            "its activation script did not reach its end"
        );
    }

    #[test]
    fn what_is_not_explained_is_a_failure() {
        for (code, output, reason) in [
            (1, STOCK, "exit code 1"),
            (2, "", "exit code 2"),
            (3, STOCK, "exit code 3"),
            (4, "", "exit code 4"),
            (
                4,
                "Activation script snippet 'specialfs' failed (32)\n",
                "exit code 4",
            ),
            (100, "", "init is not compatible"),
            (127, "", "exit code 127"),
        ] {
            let why = refused(code, output, &[SYSCTL]);
            assert!(why.contains(reason), "{code}: {why}");
        }
        judged(0, "", &[], Users::Private).expect("it succeeded");
    }

    #[test]
    fn names_that_no_unit_has_are_left_out_and_lists_are_bounded() {
        let names: Vec<_> = (0..100).map(|n| format!("unit-{n:02}.service")).collect();
        let output = format!(
            "restarting the following units: a\u{1b}]0;x.service, no-unit, {}\n",
            names.join(", ")
        );
        let update = judged(0, &output, &[], Users::Private).expect("it succeeded");
        assert_eq!(update.restarted_units, names[..update.restarted_units.len()]);
        assert!((50..100).contains(&update.restarted_units.len()));
        let listed = listed_units("web.service loaded failed failed Web\n\u{25cf} x.service loaded\n");
        assert_eq!(listed, ["web.service".to_owned()].into());
    }
}
