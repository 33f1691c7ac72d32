//! Chooses the leaf that carries out a build, and sends it there: docs/protocol/placement.md, part 3.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use leaf_bus::client::{CallError, CallOptions, Heard};
use leaf_core::beat::Builds;
use leaf_core::command::{Build, JobAccepted, OfferBuild};
use leaf_core::error::chain;
use leaf_core::id::{LeafName, WorkId};
use leaf_core::job::Installable;
use leaf_core::placement::JobKey;
use leaf_core::placement::choice::{ASKED_AT_ONCE, MOST_ASKED, queueing, ready, sort_by_rendezvous};
use leaf_core::placement::demand::{Features, Priority, check_features};
use leaf_core::placement::offer::{Offer, Verdict};
use leaf_core::placement::work::Work;
use leaf_core::printable::printable_line;
use leaf_core::problem::ProblemCode;

use uuid::Uuid;

use super::work::Standby;
use crate::error::Error;
use crate::leaf::{Leaf, away_since};
use crate::output::tell;
use crate::session::Session;

/// The time limit of an offer.
const OFFER_WITHIN: Duration = Duration::from_secs(2);
/// The maximum number of leaves whose reasons an error has.
const MOST_REASONS: usize = 8;

/// Where a build may go, and what it takes there.
#[derive(Debug, Args)]
pub(super) struct Placement {
    /// Build on any leaf that can, where there is room: of those that --leaf and --selector select, or of all.
    #[arg(long, conflicts_with_all = ["file", "template", "all_leaves"])]
    any: bool,
    /// The systems for which it may be built, such as aarch64-linux, separated by commas. With --any by default that of this machine.
    #[arg(long, value_name = "SYSTEM,…", value_delimiter = ',')]
    system: Vec<String>,
    /// A feature of the leaf that the build takes while it runs: NAME, or NAME=COUNT.
    #[arg(long, value_name = "NAME[=COUNT]", value_parser = feature)]
    feature: Vec<(String, u16)>,
    /// The priority among the jobs that wait at the leaf: low, normal or high.
    #[arg(long, value_name = "PRIORITY", value_parser = priority, default_value = "normal")]
    priority: Priority,
    /// With --any: have no second leaf stand by, which takes the build over if the first one is lost.
    #[arg(long, requires = "any")]
    no_takeover: bool,
}

fn feature(text: &str) -> Result<(String, u16), String> {
    let (name, count) = text.split_once('=').unwrap_or((text, "1"));
    let count = count
        .parse()
        .map_err(|_| format!("{count:?} is not a count from 1 to 1000"))?;
    let feature = (name.to_owned(), count);
    check_features(&[feature.clone()].into())?;
    Ok(feature)
}

fn priority(text: &str) -> Result<Priority, String> {
    match text {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err("it is low, normal or high".to_owned()),
    }
}

/// A build that a leaf has accepted.
pub(super) struct Placed {
    /// The leaf.
    pub leaf: Leaf,
    /// Its job.
    pub accepted: JobAccepted,
    /// The leaf that takes it over if this one is lost.
    pub standby: Option<Standby>,
}

impl Placement {
    /// Returns whether any leaf may build.
    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Sends a build to the selected leaf or, with `--any`, to the one that the rule chooses.
    pub(super) async fn send(self, session: &Session, build: Build) -> Result<Placed, Error> {
        let mut systems: BTreeSet<String> = self.system.into_iter().collect();
        if self.any && systems.is_empty() {
            systems.insert(format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS));
        }
        let build = Build {
            systems,
            features: self.feature.into_iter().collect(),
            priority: self.priority,
            ..build
        };
        if self.any {
            return place(session, build, !self.no_takeover).await;
        }
        let leaf = session.leaf().await?;
        let accepted = leaf.call(&build).await?;
        Ok(Placed {
            leaf,
            accepted,
            standby: None,
        })
    }
}

/// Sends a build to the leaf that the rule chooses.
async fn place(session: &Session, build: Build, stands_by: bool) -> Result<Placed, Error> {
    let installables: Vec<&Installable> = build.installable.iter().chain(&build.installables).collect();
    if let Some(local) = installables
        .iter()
        .find(|installable| is_of_one_machine(installable))
    {
        return Err(Error::Usage(format!(
            "{local} is on one machine, and --any takes what each leaf can fetch: name the leaf with --leaf"
        )));
    }
    let key = JobKey::of_build(installables);
    let (mut candidates, others) = candidates(session, &build).await?;
    sort_by_rendezvous(&key, &mut candidates, |leaf| leaf);
    candidates.truncate(MOST_ASKED);
    let if_room = Build {
        only_if_room: true,
        ..build.clone()
    };
    let mut offers: Vec<Option<Offer>> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    for names in candidates.chunks(ASKED_AT_ONCE) {
        let asked = join_all(names.iter().map(|leaf| offer(session, leaf, &build))).await;
        let before = offers.len();
        for (leaf, answer) in names.iter().zip(asked) {
            let why = match &answer {
                Ok(Offer {
                    verdict: Verdict::Never,
                    why,
                    ..
                }) => why.clone(),
                Ok(_) => None,
                Err(error) => Some(error.clone()),
            };
            reasons.extend(why.map(|why| format!("{leaf}: {}", printable_line(&why))));
            offers.push(answer.ok());
        }
        for index in ready(&offers[before..]) {
            let leaf = session.alone(names[index].clone());
            let second = second(stands_by, &candidates, &offers, before + index);
            let attempt = with_second(&if_room, &leaf, second);
            match leaf.call(&attempt).await {
                Ok(accepted) => return Ok(placed(session, leaf, accepted, &attempt).await),
                Err(error) if goes_on(&error) => reasons.push(format!("{}: {}", leaf.name, chain(&error))),
                Err(error) => return Err(error),
            }
        }
    }
    for index in queueing(&offers) {
        let leaf = session.alone(candidates[index].clone());
        let second = second(stands_by, &candidates, &offers, index);
        let attempt = with_second(&build, &leaf, second);
        match leaf.call(&attempt).await {
            Ok(accepted) => return Ok(placed(session, leaf, accepted, &attempt).await),
            Err(error) if goes_on(&error) => reasons.push(format!("{}: {}", leaf.name, chain(&error))),
            Err(error) => return Err(error),
        }
    }
    Err(Error::NotFound(nobody(&candidates, others, &reasons)))
}

/// Returns the leaf that stands by for a build at another leaf: the first that would get it next, if both know how.
fn second<'a>(
    stands_by: bool,
    leaves: &'a [LeafName],
    offers: &[Option<Offer>],
    first: usize,
) -> Option<&'a LeafName> {
    let can = |index: usize| offers[index].as_ref().is_some_and(|offer| offer.works);
    if !stands_by || !can(first) {
        return None;
    }
    let mut others = ready(offers).into_iter().chain(queueing(offers));
    let index = others.find(|index| *index != first && can(*index))?;
    leaves.get(index)
}

/// Returns the build as an attempt of a work of these two leaves.
fn with_second(build: &Build, first: &Leaf, second: Option<&LeafName>) -> Build {
    let work = second.map(|second| Work {
        id: WorkId(Uuid::now_v7()),
        first: first.name.clone(),
        second: second.clone(),
    });
    Build {
        work,
        ..build.clone()
    }
}

/// Has the second leaf of a build stand by, once the first one has accepted it. That none does is no reason not to build.
async fn placed(session: &Session, leaf: Leaf, accepted: JobAccepted, build: &Build) -> Placed {
    tell(format!("job {} is at leaf {}", accepted.job, leaf.name));
    let mut standby = None;
    if let Some(work) = &build.work {
        let second = session.alone(work.second.clone());
        match second.call(build).await {
            Ok(accepted) => {
                tell(format!(
                    "leaf {} stands by with job {}: `leafctl nix work {}` shows both",
                    second.name, accepted.job, work.id
                ));
                standby = Some(Standby {
                    leaf: second,
                    job: accepted.job,
                });
            }
            Err(error) => tell(format!(
                "no leaf stands by for it: {}: {}",
                second.name,
                printable_line(&chain(&error))
            )),
        }
    }
    Placed {
        leaf,
        accepted,
        standby,
    }
}

/// Returns whether an installable means something only on the machine that has it.
fn is_of_one_machine(installable: &Installable) -> bool {
    match installable {
        Installable::Flake { reference } => {
            let is_path = |text: &str| text.starts_with(['/', '.']);
            let schemes = [
                "path:",
                "git+file:",
                "file:",
                "hg+file:",
                "tarball+file:",
                "file+file:",
            ];
            is_path(reference) || schemes.iter().any(|scheme| reference.starts_with(scheme))
        }
        Installable::StorePath { path } => path.as_str().ends_with(".drv"),
        Installable::Derivation { .. } | Installable::File { .. } | Installable::Template { .. } => true,
    }
}

/// Returns the leaves that can carry out the build, by their beats, and the number of the others that are selected.
async fn candidates(session: &Session, build: &Build) -> Result<(Vec<LeafName>, usize), Error> {
    let listed = session.selected_or_all().await?;
    let selected = listed.len();
    let can = |Heard { beat, .. }: &Heard| {
        let builds = beat.nix.as_deref();
        builds
            .is_some_and(|builds| has_system(builds, &build.systems) && has_features(builds, &build.features))
    };
    let candidates: Vec<LeafName> = listed
        .into_iter()
        .filter_map(|selected| selected.heard)
        .filter(|heard| away_since(heard).is_none() && can(heard))
        .map(|heard| heard.beat.leaf)
        .collect();
    let others = selected - candidates.len();
    Ok((candidates, others))
}

fn has_system(builds: &Builds, systems: &BTreeSet<String>) -> bool {
    systems.is_empty() || systems.contains(&builds.system) || !systems.is_disjoint(&builds.more_systems)
}

fn has_features(builds: &Builds, features: &Features) -> bool {
    let has = |(name, count): (&String, &u16)| builds.features.get(name).is_some_and(|has| has >= count);
    features.iter().all(has)
}

/// Asks a leaf for its offer. One that wants a signature for the question gets the build without one, which it judges as well.
pub(super) async fn offer(session: &Session, leaf: &LeafName, build: &Build) -> Result<Offer, String> {
    let options = CallOptions {
        timeout: OFFER_WITHIN,
        ..CallOptions::default()
    };
    let request = OfferBuild { build: build.clone() };
    match session.client.call(leaf, &request, options).await {
        Ok(offer) => Ok(offer),
        Err(CallError::Problem(problem)) if problem.code == ProblemCode::SignatureRequired => Ok(Offer {
            verdict: Verdict::Room,
            why: None,
            running: 0,
            queued: 0,
            max_jobs: 1,
            features_free: Features::new(),
            pressure: None,
            works: false,
        }),
        Err(error) => Err(chain(&error)),
    }
}

/// Returns whether an error of one leaf leaves the build to another: nothing was accepted there.
pub(super) fn goes_on(error: &Error) -> bool {
    match error {
        Error::Problem(problem) => !matches!(
            problem.code,
            ProblemCode::Malformed
                | ProblemCode::Invalid
                | ProblemCode::TooLarge
                | ProblemCode::CommandIdReused
                | ProblemCode::Failed
                | ProblemCode::TimedOut
        ),
        Error::NoLeaf(_) | Error::Call(CallError::NoLeaf(_)) => true,
        _ => false,
    }
}

/// Returns the text of the error that no leaf takes the build.
fn nobody(asked: &[LeafName], others: usize, reasons: &[String]) -> String {
    let rest = match others {
        0 => String::new(),
        1 => "1 other leaf is away, or lacks Nix, the system or a feature".to_owned(),
        _ => format!("{others} other leaves are away, or lack Nix, the system or a feature"),
    };
    if asked.is_empty() {
        let rest = if rest.is_empty() {
            "there are no leaves".to_owned()
        } else {
            rest
        };
        return format!("no leaf can carry out the build: {rest} (`leafctl leaf list`)");
    }
    let more = reasons.len().saturating_sub(MOST_REASONS);
    let mut lines: Vec<String> = reasons.iter().take(MOST_REASONS).cloned().collect();
    if more > 0 {
        lines.push(format!("{more} more, not listed"));
    }
    lines.extend((!rest.is_empty()).then_some(rest));
    format!(
        "none of {} leaves takes the build:\n{}",
        asked.len(),
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_one_machine_is_told_from_what_each_can_fetch() {
        let flake = |reference: &str| Installable::Flake {
            reference: reference.to_owned(),
        };
        for reference in ["/srv/x#a", "path:/srv/x", "git+file:///srv/x", "file:///x.tar.gz"] {
            assert!(is_of_one_machine(&flake(reference)), "{reference}");
        }
        for reference in [
            "github:o/r#a",
            "git+https://x.example/r",
            "nixpkgs#hello",
            "https://x.example/r.tar.gz",
        ] {
            assert!(!is_of_one_machine(&flake(reference)), "{reference}");
        }
    }

    #[test]
    fn features_are_read_with_and_without_a_count() {
        assert_eq!(feature("kvm"), Ok(("kvm".to_owned(), 1)));
        assert_eq!(feature("kvm=2"), Ok(("kvm".to_owned(), 2)));
        for text in ["kvm=0", "kvm=x", "kvm=-1", "=1", "a b", "kvm=99999"] {
            assert!(feature(text).is_err(), "{text}");
        }
    }
}
