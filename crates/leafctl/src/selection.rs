//! Which leaves a command is for, as docs/command-line.md describes it.

use leaf_bus::client::{Heard, Leaves};
use leaf_core::id::LeafName;
use leaf_core::labels;
use leaf_core::printable::printable_line;
use leaf_core::selector::{NamePattern, Selector};

use crate::error::Error;
use crate::global::Global;
use crate::output::tell;

/// The variable that names the leaf.
const VARIABLE: &str = "LEAFCTL_LEAF";

/// The leaves that a command is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// The only leaf.
    Only,
    /// One leaf, by its name.
    One(LeafName),
    /// Any number of leaves.
    Several(Several),
}

/// A selection of any number of leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Several {
    /// The names and patterns, one of which a leaf must match. Without any, each leaf does.
    names: Vec<NamePattern>,
    /// The labels that a leaf must have.
    selector: Option<Selector>,
}

/// A selected leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Its name.
    pub leaf: LeafName,
    /// Its last beat; `None` if it is named and not listed, or its beat can't be read.
    pub heard: Option<Heard>,
}

impl Selection {
    /// Returns the selection by the flags, or else by the variable, which names one leaf.
    pub(crate) fn of(global: &Global) -> Result<Self, Error> {
        let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let variable = variable.map(|value| value.to_string_lossy().into_owned());
        Self::from_flags(global, variable.as_deref())
    }

    fn from_flags(global: &Global, variable: Option<&str>) -> Result<Self, Error> {
        let Global {
            leaf: names,
            selector,
            all_leaves,
            ..
        } = global;
        if *all_leaves && (!names.is_empty() || selector.is_some()) {
            return Err(Error::Usage(
                "--all-leaves selects all leaves: leave out --leaf and --selector".to_owned(),
            ));
        }
        match (names.as_slice(), selector, variable) {
            ([], None, _) if *all_leaves => Ok(Self::Several(Several::default())),
            ([], None, None) => Ok(Self::Only),
            ([], None, Some(name)) => LeafName::new(name).map(Self::One).map_err(|error| {
                Error::Usage(format!(
                    "{VARIABLE} names one leaf; select several with --leaf, --selector or --all-leaves: {error}"
                ))
            }),
            ([NamePattern::Exact(name)], None, _) => Ok(Self::One(name.clone())),
            _ => Ok(Self::Several(Several {
                names: names.clone(),
                selector: selector.clone(),
            })),
        }
    }
}

impl Several {
    /// Selects one leaf by its name.
    pub(crate) fn named(leaf: LeafName) -> Self {
        Self {
            names: vec![NamePattern::Exact(leaf)],
            selector: None,
        }
    }

    /// Returns the selected leaves, sorted by name: of the listed ones, and those that are named without being listed. Without a
    /// selector that includes those whose beat can't be read; with one, a note names them, since nobody knows their labels.
    ///
    /// # Errors
    /// [`Error::NotFound`] with all leaves and their labels if none is selected.
    pub(crate) fn select(&self, leaves: Leaves) -> Result<Vec<Selected>, Error> {
        let is_named =
            |leaf: &LeafName| self.names.is_empty() || self.names.iter().any(|name| name.matches(leaf));
        let is_meant = |Heard { beat, .. }: &Heard| {
            let labels = &beat.labels;
            is_named(&beat.leaf) && self.selector.as_ref().is_none_or(|terms| terms.matches(labels))
        };
        let (selected, other): (Vec<Heard>, Vec<Heard>) = leaves.heard.into_iter().partition(is_meant);
        let mut selected: Vec<Selected> = selected
            .into_iter()
            .map(|heard| Selected {
                leaf: heard.beat.leaf.clone(),
                heard: Some(heard),
            })
            .collect();
        for leaf in leaves.unreadable.into_iter().filter(is_named) {
            if self.selector.is_some() {
                tell(format!(
                    "leaf {leaf} is left out: its last beat, which has its labels, can't be read, or names another leaf"
                ));
            } else {
                selected.push(Selected { leaf, heard: None });
            }
        }
        for name in &self.names {
            if let NamePattern::Exact(leaf) = name
                && self.selector.is_none()
                && selected.iter().all(|other| other.leaf != *leaf)
            {
                selected.push(Selected {
                    leaf: leaf.clone(),
                    heard: None,
                });
            }
        }
        selected.sort_by(|a, b| a.leaf.cmp(&b.leaf));
        if selected.is_empty() {
            return Err(Error::NotFound(nothing(&other)));
        }
        Ok(selected)
    }
}

/// Returns the error text for a selection that no leaf meets.
fn nothing(leaves: &[Heard]) -> String {
    if leaves.is_empty() {
        return "no leaf is selected: the server lists none; is leafd running?".to_owned();
    }
    let leaves: Vec<String> = leaves
        .iter()
        .map(
            |Heard { beat, .. }| match printable_line(&labels::text(&beat.labels)) {
                labels if labels.is_empty() => format!("{} (no labels)", beat.leaf),
                labels => format!("{} ({labels})", beat.leaf),
            },
        )
        .collect();
    format!("no leaf is selected; the leaves are {}", leaves.join(", "))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use leaf_core::beat::Beat;
    use serde_json::json;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
    }

    fn selection(flags: &[&str], variable: Option<&str>) -> Result<Selection, String> {
        let line = ["leafctl"].iter().chain(flags);
        let line = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        Selection::from_flags(&line.global, variable).map_err(|error| error.to_string())
    }

    fn leaves() -> Leaves {
        let heard = |leaf: &str, labels: serde_json::Value| {
            let beat = json!({
                "leaf": leaf,
                "instance": "01890a5d-ac96-774b-bcce-b302099a8057",
                "hostname": leaf,
                "version": "0.1.0",
                "started_at": "2026-11-20T16:00:00Z",
                "sequence": 1,
                "time": "2026-11-20T16:00:00Z",
                "interval_seconds": 10,
                "labels": labels,
            });
            let beat: Beat = serde_json::from_value(beat).expect("a beat");
            Heard { at: beat.time, beat }
        };
        Leaves {
            heard: vec![
                heard("edge-1", json!({"site": "a"})),
                heard("edge-2", json!({"site": "b", "gpu": "yes"})),
                heard("hub", json!({})),
            ],
            unreadable: Vec::new(),
        }
    }

    fn selected(flags: &[&str]) -> Result<Vec<String>, String> {
        match selection(flags, None)? {
            Selection::Several(several) => several
                .select(leaves())
                .map(|all| all.into_iter().map(|one| one.leaf.to_string()).collect())
                .map_err(|error| error.to_string()),
            other => panic!("{flags:?} is {other:?}"),
        }
    }

    #[test]
    fn one_leaf_is_selected_by_name_and_the_variable_names_only_one() {
        let edge = || Ok(Selection::One(LeafName::new("edge-1").expect("a name")));
        assert_eq!(selection(&[], None), Ok(Selection::Only));
        assert_eq!(selection(&["--leaf", "edge-1"], None), edge());
        assert_eq!(selection(&["--leaf", "edge-1"], Some("hub")), edge());
        assert_eq!(selection(&[], Some("edge-1")), edge());
        let refused = selection(&[], Some("edge-*")).expect_err("a pattern");
        assert!(refused.contains("LEAFCTL_LEAF names one leaf"), "{refused}");
        for flags in [
            &["-A"][..],
            &["-l", "site"],
            &["--leaf", "edge-*"],
            &["--leaf", "a,b"],
        ] {
            let several = selection(flags, Some("edge-*"));
            assert!(
                matches!(several, Ok(Selection::Several(_))),
                "{flags:?}: {several:?}"
            );
        }
        for flags in [&["-A", "--leaf", "a"][..], &["-A", "-l", "site"]] {
            assert!(selection(flags, None).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn several_leaves_are_selected_by_pattern_label_and_name() {
        for (flags, leaves) in [
            (&["-A"][..], &["edge-1", "edge-2", "hub"][..]),
            (&["--leaf", "edge-*"], &["edge-1", "edge-2"]),
            (&["--leaf", "*-1,hub"], &["edge-1", "hub"]),
            (
                &["--leaf", "hub", "--leaf", "edge-?"],
                &["edge-1", "edge-2", "hub"],
            ),
            (&["--leaf", "zebra,edge-1,edge-1"], &["edge-1", "zebra"]),
            (&["-l", "site"], &["edge-1", "edge-2"]),
            (&["-l", "site!=a"], &["edge-2", "hub"]),
            (&["--leaf", "edge-*", "-l", "!gpu"], &["edge-1"]),
            (&["--leaf", "edge-1", "-l", "site=a"], &["edge-1"]),
        ] {
            let leaves: Vec<String> = leaves.iter().map(|leaf| (*leaf).to_owned()).collect();
            assert_eq!(selected(flags), Ok(leaves), "{flags:?}");
        }
    }

    #[test]
    fn a_leaf_whose_beat_cannot_be_read_is_left_out_by_a_selector_only() {
        let mut leaves = leaves();
        leaves.unreadable.push(LeafName::new("edge-9").expect("a name"));
        for (flags, is_selected) in [
            (&["-A"][..], true),
            (&["--leaf", "edge-*"], true),
            (&["--leaf", "edge-9,hub"], true),
            (&["--leaf", "hub*"], false),
            (&["-l", "!none"], false),
        ] {
            let Ok(Selection::Several(several)) = selection(flags, None) else {
                panic!("{flags:?} selects several")
            };
            let selected = several.select(leaves.clone()).expect("some");
            let of_it = selected.iter().filter(|one| one.leaf.as_str() == "edge-9");
            assert_eq!(of_it.count(), usize::from(is_selected), "{flags:?}");
        }
    }

    #[test]
    fn an_empty_selection_names_the_leaves_and_their_labels() {
        for flags in [
            &["--leaf", "x*"][..],
            &["-l", "site=c"],
            &["--leaf", "zebra", "-l", "site"],
        ] {
            let error = selected(flags).expect_err("nothing");
            assert!(
                error.contains("edge-2 (gpu=yes site=b), hub (no labels)"),
                "{flags:?}: {error}"
            );
        }
    }
}
