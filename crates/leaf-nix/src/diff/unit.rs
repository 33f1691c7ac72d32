//! Unit files, and what `switch-to-configuration` does with a unit whose file differs.
//!
//! Source: `compare_units` and `handle_modified_unit` of nixpkgs' `nixos/modules/system/activation/switch-to-configuration.pl`.

use std::collections::{BTreeMap, BTreeSet};

use leaf_core::job::diff::UnitEffect;

/// The keys of `[Unit]` whose change has no effect.
const IGNORED: &[&str] = &[
    "X-Reload-Triggers",
    "Description",
    "Documentation",
    "OnFailure",
    "OnSuccess",
    "OnFailureJobMode",
    "IgnoreOnIsolate",
    "StopWhenUnneeded",
    "RefuseManualStart",
    "RefuseManualStop",
    "AllowIsolate",
    "CollectMode",
    "SourcePath",
];
/// Units that a switch never stops.
const KEPT: &[&str] = &[
    "sysinit.target",
    "basic.target",
    "multi-user.target",
    "graphical.target",
    "dbus.service",
    "dbus-broker.service",
];
/// The types of units that a switch leaves as they are.
const KEPT_TYPES: &[&str] = &["path", "slice", "socket"];

/// A unit: its file and what overrides it, without `[Install]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl Unit {
    /// Adds a file: the unit's own, or a later one that overrides it.
    pub(super) fn add(&mut self, text: &str) {
        let mut section = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut line = line.trim().to_owned();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            while line.ends_with('\\') {
                line.pop();
                line.push(' ');
                line.push_str(lines.next().unwrap_or_default().trim());
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                name.clone_into(&mut section);
            } else if let Some((key, value)) = line.split_once('=')
                && section != "Install"
            {
                let values = self.0.entry(section.clone()).or_default();
                // An empty value takes back those before.
                if value.trim().is_empty() {
                    values.remove(key.trim());
                } else {
                    let values = values.entry(key.trim().to_owned()).or_default();
                    values.push(value.trim().to_owned());
                }
            }
        }
        self.0.retain(|_, values| !values.is_empty());
    }

    fn is(&self, section: &str, key: &str, otherwise: bool) -> bool {
        let value = self.0.get(section).and_then(|values| values.get(key)?.last());
        match value.map(|value| value.to_ascii_lowercase()) {
            Some(value) => ["1", "yes", "true", "on"].contains(&value.as_str()),
            None => otherwise,
        }
    }
}

/// How two units differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// Only what a reload makes good: reload triggers, or the options of a mount.
    Reload,
    Other,
}

fn change(old: &Unit, new: &Unit) -> Change {
    let keys = |unit: &Unit| -> BTreeSet<(String, String)> {
        let sections = unit.0.iter();
        sections
            .flat_map(|(section, values)| values.keys().map(|key| (section.clone(), key.clone())))
            .collect()
    };
    let mut found = Change::None;
    for (section, key) in keys(old).union(&keys(new)) {
        let of = |unit: &'_ Unit| unit.0.get(section).and_then(|values| values.get(key)).cloned();
        let (old, new) = (of(old), of(new));
        if old == new {
            continue;
        }
        match (section.as_str(), key.as_str()) {
            // A reload trigger that is gone has no effect.
            ("Unit", "X-Reload-Triggers") if new.is_some() => found = Change::Reload,
            ("Mount", "Options") if old.is_some() && new.is_some() => found = Change::Reload,
            ("Unit", key) if IGNORED.contains(&key) => {}
            _ => return Change::Other,
        }
    }
    found
}

/// Returns what a switch does with an active unit that both systems have; `None` if nothing.
pub(super) fn effect(name: &str, old: &Unit, new: &Unit) -> Option<UnitEffect> {
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    let keeps = KEPT.contains(&name) || KEPT_TYPES.contains(&kind);
    match change(old, new) {
        Change::None => None,
        Change::Reload => Some(UnitEffect::Reloads),
        Change::Other if kind == "mount" => Some(match name {
            "-.mount" | "nix.mount" => UnitEffect::Reloads,
            _ => UnitEffect::Restarts,
        }),
        Change::Other if keeps => Some(UnitEffect::Keeps),
        Change::Other if new.is("Service", "X-ReloadIfChanged", false) => Some(UnitEffect::Reloads),
        Change::Other
            if !new.is("Service", "X-RestartIfChanged", true)
                || new.is("Unit", "RefuseManualStop", false)
                || new.is("Unit", "X-OnlyManualStart", false) =>
        {
            Some(UnitEffect::Keeps)
        }
        Change::Other => Some(UnitEffect::Restarts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Unit {
        let mut unit = Unit::default();
        unit.add(text);
        unit
    }

    #[test]
    fn a_switch_does_what_the_units_say() {
        let base =
            "[Unit]\nDescription=a\n[Service]\nExecStart=/bin/a \\\n  b\n[Install]\nWantedBy=x.target\n";
        let of = |name: &str, new: &str| effect(name, &unit(base), &unit(new));
        for (name, new, expected) in [
            ("a.service", base.to_owned(), None),
            // What differs has no effect.
            ("a.service", base.replace("Description=a", "Description=b"), None),
            ("a.service", base.replace("x.target", "y.target"), None),
            ("a.service", base.replace("\\\n  b", " b"), None),
            ("a.service", format!("# more\n; more\n{base}"), None),
            (
                "a.service",
                base.replace("/bin/a", "/bin/c"),
                Some(UnitEffect::Restarts),
            ),
            (
                "a.timer",
                format!("{base}[Timer]\nOnCalendar=daily\n"),
                Some(UnitEffect::Restarts),
            ),
            (
                "a.socket",
                base.replace("/bin/a", "/bin/c"),
                Some(UnitEffect::Keeps),
            ),
            (
                "dbus.service",
                base.replace("/bin/a", "/bin/c"),
                Some(UnitEffect::Keeps),
            ),
            (
                "a.service",
                base.replace("[Unit]", "[Unit]\nX-Reload-Triggers=/nix/store/x"),
                Some(UnitEffect::Reloads),
            ),
            (
                "a.service",
                base.replace("/bin/a", "/bin/c")
                    .replace("[Service]", "[Service]\nX-ReloadIfChanged=true"),
                Some(UnitEffect::Reloads),
            ),
            (
                "a.service",
                base.replace("/bin/a", "/bin/c")
                    .replace("[Service]", "[Service]\nX-RestartIfChanged=false"),
                Some(UnitEffect::Keeps),
            ),
            (
                "a.service",
                base.replace("/bin/a", "/bin/c")
                    .replace("[Unit]", "[Unit]\nRefuseManualStop=yes"),
                Some(UnitEffect::Keeps),
            ),
        ] {
            assert_eq!(of(name, &new), expected, "{name}: {new}");
        }
        let mount = |options: &str| unit(&format!("[Mount]\nWhat=a\nOptions={options}\n"));
        assert_eq!(
            effect("m.mount", &mount("ro"), &mount("rw")),
            Some(UnitEffect::Reloads)
        );
        let other = unit("[Mount]\nWhat=b\nOptions=ro\n");
        assert_eq!(
            effect("m.mount", &mount("ro"), &other),
            Some(UnitEffect::Restarts)
        );
        assert_eq!(effect("-.mount", &mount("ro"), &other), Some(UnitEffect::Reloads));
    }

    #[test]
    fn a_later_file_adds_values_and_takes_back_those_before_by_an_empty_one() {
        let mut overridden = unit("[Service]\nExecStart=a\nEnvironment=A=1\n");
        overridden.add("[Service]\nExecStart=\nExecStart=b\nEnvironment=B=2\n");
        let expected = unit("[Service]\nExecStart=b\nEnvironment=A=1\nEnvironment=B=2\n");
        assert_eq!(overridden, expected);
    }
}
