use clap::Args;
use leaf_core::change::SystemMode;
use leaf_core::command::{Generation, ListGenerations, SystemReport};

use super::batches::Batches;
use super::switch::{Change, How};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;

/// Switch a leaf to an earlier generation of its system; it is confirmed as any other switch.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The generation, as listed by `system generations`; by default the latest before the present one whose system differs.
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    batches: Batches,
    /// As that of `system switch`.
    #[arg(long)]
    uncounted: bool,
}

impl Rollback {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let change = Change {
            mode: SystemMode::Switch,
            how: Some(self.how),
            uncounted: self.uncounted,
        };
        let work = async |leaf: &Leaf| {
            let report = leaf.call(&ListGenerations {}).await?;
            let generation = chosen(&report, self.to)
                .map_err(|why| Error::NotFound(format!("leaf {}: {why}", leaf.name)))?;
            output.note(&format!(
                "leaf {}: generation {} is {}",
                leaf.name, generation.number, generation.toplevel
            ));
            change
                .of(session, leaf, generation.toplevel.clone(), output)
                .await
        };
        self.batches.each(session, output, work).await
    }
}

/// Returns the generation that is meant.
fn chosen(report: &SystemReport, to: Option<u64>) -> Result<&Generation, String> {
    let mut generations = report.generations.iter();
    if let Some(number) = to {
        return generations
            .find(|generation| generation.number == number)
            .ok_or_else(|| {
                format!("there is no generation {number}: `leafctl system generations` lists them")
            });
    }
    let present = report
        .profile
        .ok_or_else(|| "the host has no profile of a system".to_owned())?;
    let of = |number| {
        report
            .generations
            .iter()
            .find(|generation| generation.number == number)
    };
    let system = of(present).map(|generation| &generation.toplevel);
    generations
        .find(|generation| generation.number < present && Some(&generation.toplevel) != system)
        .ok_or_else(|| format!("there is no earlier system than that of generation {present}"))
}

#[cfg(test)]
mod tests {
    use leaf_core::id::StorePath;

    use super::*;

    fn report(profile: u64, generations: &[(u64, u8)]) -> SystemReport {
        SystemReport {
            profile: Some(profile),
            generations: generations
                .iter()
                .map(|&(number, system)| Generation {
                    number,
                    toplevel: StorePath::new(format!("/nix/store/{system:032}-nixos")).expect("a path"),
                    made_at: None,
                })
                .collect(),
            ..SystemReport::default()
        }
    }

    #[test]
    fn the_latest_earlier_system_that_differs_is_chosen_or_the_one_that_is_named() {
        let seen = report(7, &[(8, 4), (7, 3), (6, 3), (4, 2), (3, 1)]);
        let number = |to| chosen(&seen, to).map(|generation| generation.number);
        assert_eq!(number(None), Ok(4));
        assert_eq!(number(Some(8)), Ok(8));
        assert!(number(Some(5)).expect_err("none").contains("no generation 5"));
        let only = report(7, &[(7, 3), (6, 3)]);
        assert!(
            chosen(&only, None)
                .expect_err("none")
                .contains("no earlier system")
        );
    }
}
