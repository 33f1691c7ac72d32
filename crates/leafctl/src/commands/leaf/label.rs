use clap::Args;
use leaf_core::command::{LabelLeaf, LeafLabels};
use leaf_core::id::LeafName;
use leaf_core::labels;

use super::show::label_text;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Set and remove labels of leaves, by which --selector selects them.
///
/// For example: `leafctl leaf label edge-1 site=hall-2 rack-`, or for several leaves: `leafctl leaf label -l site=hall-2
/// stage=canary`
#[derive(Debug, Args)]
pub(crate) struct Label {
    /// The leaf's name, unless --leaf, --selector or --all-leaves selects leaves or there is only one; then KEY=VALUE sets
    /// a label, and KEY- removes one.
    #[arg(required = true, value_name = "[NAME] KEY=VALUE|KEY-")]
    changes: Vec<String>,
}

impl Label {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let (leaf, request) = parse(&self.changes).map_err(Error::Usage)?;
        let session = session.named(leaf)?;
        session.show(&request, output, text).await
    }
}

fn text(reply: &LeafLabels) -> crate::text::Fields {
    fields(&[("labels", label_text(&reply.labels, &reply.of_settings))])
}

/// Returns the leaf if it is named, and the changes.
fn parse(words: &[String]) -> Result<(Option<LeafName>, LabelLeaf), String> {
    let is_change = |word: &String| word.contains('=') || word.ends_with('-');
    let (leaf, changes) = match words {
        [name, changes @ ..] if !is_change(name) => (
            Some(LeafName::new(name.as_str()).map_err(|e| e.to_string())?),
            changes,
        ),
        changes => (None, changes),
    };
    if changes.is_empty() {
        return Err("there is no label to set or remove: give KEY=VALUE or KEY-".to_owned());
    }
    let mut request = LabelLeaf {
        set: labels::Labels::new(),
        remove: std::collections::BTreeSet::new(),
    };
    for change in changes {
        let is_new = match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => {
                labels::check_label(key, value).map_err(|e| e.to_string())?;
                request.set.insert(key.to_owned(), value.to_owned()).is_none()
                    && !request.remove.contains(key)
            }
            (None, Some(key)) => {
                labels::check_key(key).map_err(|e| e.to_string())?;
                request.remove.insert(key.to_owned()) && !request.set.contains_key(key)
            }
            (None, None) => return Err(format!("{change:?} is neither KEY=VALUE nor KEY-")),
        };
        if !is_new {
            return Err(format!(
                "{change:?} is about a label that another change is about"
            ));
        }
    }
    Ok((leaf, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<(Option<LeafName>, LabelLeaf), String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&words)
    }

    #[test]
    fn labels_are_set_and_removed_with_or_without_a_name_before_them() {
        let (leaf, request) = parsed(&["edge-1", "site=a=b", "rack--", "gpu-"]).expect("changes");
        assert_eq!(leaf.map(|leaf| leaf.to_string()).as_deref(), Some("edge-1"));
        assert_eq!(request.set, [("site".to_owned(), "a=b".to_owned())].into());
        assert_eq!(request.remove, ["gpu".to_owned(), "rack-".to_owned()].into());
        let (leaf, request) = parsed(&["rack-"]).expect("a change");
        assert_eq!((leaf, request.set.len(), request.remove.len()), (None, 0, 1));
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for (words, says) in [
            (&["edge-1"][..], "no label to set"),
            (&["Edge", "a=b"], "not a leaf name"),
            (&["edge-1", "a"], "neither KEY=VALUE nor KEY-"),
            (&["a="], "is empty"),
            (&["A=b"], "key of a label"),
            (&["a=b", "a-"], "another change"),
            (&["a=b", "a=c"], "another change"),
            (&["a=\u{1b}[2J"], "do not print"),
        ] {
            let error = parsed(words).expect_err(says);
            assert!(
                error.contains(says) && !error.contains('\u{1b}'),
                "{words:?}: {error}"
            );
        }
    }
}
