//! Builds one derivation on a leaf: its inputs go there, and its outputs come here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use leaf_bus::client::CallError;
use leaf_core::command::{Build, CancelJob, MAX_COMMAND_BYTES, ReadJobLog, ShowJob};
use leaf_core::error::chain;
use leaf_core::id::{JobId, LeafName, StorePath};
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{Installable, Job, JobPhase, JobResult};
use leaf_core::json::to_json;
use leaf_core::placement::JobKey;
use leaf_core::placement::choice::{ASKED_AT_ONCE, MOST_ASKED, queueing, ready, sort_by_rendezvous};
use leaf_core::transfer::stored::in_order;
use leaf_core::transfer::{MOST_PATHS, SentPath};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::super::place::{goes_on, offer};
use super::known::{Known, KnownLeaf, builders};
use super::protocol::Try;
use super::told::{self, BuilderLog};
use super::{locks, watch_arguments};
use crate::download::{self, Adding, Scope};
use crate::error::Error;
use crate::global::Global;
use crate::leaf::Leaf;
use crate::local_nix::{LocalNix, Work, is_derivation};
use crate::session::Session;
use crate::upload;

/// How many leaves get the build, one after the other, where leaves are lost or refuse.
const MOST_LEAVES: usize = 4;
/// How long a leaf with a job may be silent until the next one gets it: longer than leafd takes to start.
const SILENCE: Duration = Duration::from_secs(20);
/// The limit of each question about a job.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// The pause before a leaf is asked again that did not reply.
const PAUSE: Duration = Duration::from_millis(500);
/// The most bytes of inputs that are sent at once.
const BATCH_BYTES: u64 = 256 << 20;

/// How it has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The outputs are here.
    Built,
    /// The builder failed: another attempt would end so, too.
    BuilderFailed(String),
    /// A time limit was reached.
    TimedOut(String),
    /// Nix is gone, or has ended the hook.
    Cancelled,
    /// It was not built.
    Failed(String),
}

/// One derivation that Nix was told to be built.
pub(super) struct Remote<'a> {
    pub(super) global: &'a Global,
    pub(super) session: &'a Session,
    pub(super) known: &'a Known,
    pub(super) nix: LocalNix,
    /// The directory of the store of this machine.
    pub(super) store: PathBuf,
    pub(super) ask: &'a Try,
    pub(super) derivation: StorePath,
    /// What Nix has of what the derivation needs.
    pub(super) inputs: Vec<StorePath>,
    /// The names of the wanted outputs.
    pub(super) wanted: BTreeSet<String>,
}

/// What came of an attempt at one leaf.
enum Attempt {
    /// It has ended.
    Ended(Ended),
    /// The next leaf may do better.
    Next(String),
}

impl Remote<'_> {
    /// Builds it on a leaf, and adds its outputs to the store.
    pub(super) async fn run(&self) -> Result<Ended, Error> {
        // What goes to each leaf alike. The closure of a derivation has derivations and sources, which are content-addressed.
        let closure = in_order(
            self.nix
                .stored(std::slice::from_ref(&self.derivation), true, true)
                .await?,
        );
        let mut reasons: Vec<String> = Vec::new();
        let leaves = self.leaves(&mut reasons).await?;
        for (leaf, if_room) in leaves.into_iter().take(MOST_LEAVES) {
            let leaf = self.session.alone(leaf);
            match self.attempt(&leaf, &closure, if_room).await {
                Ok(Attempt::Ended(ended)) => return Ok(ended),
                Ok(Attempt::Next(why)) => {
                    told::warning(&format!("leaf {}: {why}", leaf.name));
                    reasons.push(format!("leaf {}: {why}", leaf.name));
                }
                Err(error) => {
                    told::warning(&format!("leaf {}: {}", leaf.name, chain(&error)));
                    reasons.push(format!("leaf {}: {}", leaf.name, chain(&error)));
                }
            }
        }
        let reasons = match reasons.is_empty() {
            true => "no leaf is online that has the system and the features".to_owned(),
            false => reasons.join("\n"),
        };
        Ok(Ended::Failed(format!(
            "no leaf has built {}: {reasons}",
            self.derivation
        )))
    }

    fn build(&self, only_if_room: bool) -> Build {
        let outputs: Vec<&str> = self.wanted.iter().map(String::as_str).collect();
        let installable = match outputs.is_empty() {
            true => Installable::StorePath {
                path: self.derivation.clone(),
            },
            false => Installable::Derivation {
                path: self.derivation.clone(),
                outputs: outputs.join(","),
            },
        };
        Build {
            systems: [self.ask.system.clone()].into(),
            features: self.ask.features.iter().map(|name| (name.clone(), 1)).collect(),
            only_if_room,
            ..Build::of([installable])
        }
    }

    /// Returns the leaves in the order in which they get the build, and whether only if they have room: part 3 of placement.
    async fn leaves(&self, reasons: &mut Vec<String>) -> Result<Vec<(LeafName, bool)>, Error> {
        let now = Timestamp::now();
        let selected = self.session.selected_or_all().await?;
        let read = self.known.write(now, Ok(builders(selected)));
        let suiting = read.leaves.iter().filter(|known| known.suits(self.ask, now));
        let mut names: Vec<LeafName> = suiting.map(|known: &KnownLeaf| known.leaf.clone()).collect();
        let build = self.build(false);
        let key = JobKey::of_build(build.installable.iter().chain(&build.installables));
        sort_by_rendezvous(&key, &mut names, |leaf| leaf);
        names.truncate(MOST_ASKED);
        let mut order = Vec::new();
        let mut offers = Vec::new();
        for asked in names.chunks(ASKED_AT_ONCE) {
            let answers = join_all(asked.iter().map(|leaf| offer(self.session, leaf, &build))).await;
            let before = offers.len();
            for (leaf, answer) in asked.iter().zip(answers) {
                if let Err(why) = &answer {
                    reasons.push(format!("leaf {leaf}: {why}"));
                }
                offers.push(answer.ok());
            }
            let with_room = ready(&offers[before..]).into_iter();
            order.extend(with_room.map(|index| (names[before + index].clone(), true)));
            if order.len() >= MOST_LEAVES {
                return Ok(order);
            }
        }
        order.extend(
            queueing(&offers)
                .into_iter()
                .map(|index| (names[index].clone(), false)),
        );
        Ok(order)
    }

    async fn attempt(&self, leaf: &Leaf, closure: &[SentPath], if_room: bool) -> Result<Attempt, Error> {
        self.send(leaf, closure).await?;
        let accepted = match leaf.call(&self.build(if_room)).await {
            Ok(accepted) => accepted,
            Err(error) if goes_on(&error) || matches!(error, Error::Lost { .. }) => {
                return Ok(Attempt::Next(chain(&error)));
            }
            Err(error) => return Err(error),
        };
        // Whatever ends this process, the other one removes it.
        let work = Work::make()?;
        let mut watch = self.watch(leaf, accepted.job, &work.0)?;
        let ended = self.follow(leaf, accepted.job).await;
        let ended = match ended {
            Ok(Some(job)) => self.outcome(leaf, job, &work.0).await,
            Ok(None) => {
                let _ = leaf
                    .call_briefly(&CancelJob { id: accepted.job }, ASK_WITHIN)
                    .await;
                Ok(Attempt::Ended(Ended::Cancelled))
            }
            Err(why) => Ok(Attempt::Next(why)),
        };
        // The job has ended, or is another leaf's now.
        if let Some(mut input) = watch.stdin.take() {
            let _ = input.write_all(b"d").await;
        }
        let _ = watch.wait().await;
        ended
    }

    /// Starts the process that cancels the job, and removes this directory, if this one is killed: Nix kills its hook's process group.
    fn watch(&self, leaf: &Leaf, job: JobId, work: &Path) -> Result<Child, Error> {
        let program = std::env::current_exe()?;
        let child = Command::new(program)
            .args(watch_arguments(self.global, &leaf.name, job, work))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Ok(child?)
    }

    /// Sends what the leaf lacks of the derivation's closure, and of the inputs what it may take.
    async fn send(&self, leaf: &Leaf, closure: &[SentPath]) -> Result<(), Error> {
        for batch in batches(closure.to_vec()) {
            upload::send(leaf, &self.nix, &batch).await?;
        }
        let sent: BTreeSet<&StorePath> = closure.iter().map(|sent| &sent.path).collect();
        let rest: Vec<StorePath> = self
            .inputs
            .iter()
            .filter(|path| !sent.contains(path) && !is_derivation(path))
            .cloned()
            .collect();
        if rest.is_empty() {
            return Ok(());
        }
        let inputs = self.nix.stored(&rest, false, false).await?;
        for batch in batches(acceptable(in_order(inputs), &sent)) {
            match upload::send(leaf, &self.nix, &batch).await {
                Ok(()) => {}
                // It builds or fetches them itself.
                Err(Error::Problem(problem)) => {
                    told::detail(&format!(
                        "leaf {} takes no signed inputs from here: {}",
                        leaf.name, problem.detail
                    ));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Follows a job to its end; nothing if Nix is gone meanwhile.
    ///
    /// # Errors
    /// Why the leaf is given up.
    async fn follow(&self, leaf: &Leaf, id: JobId) -> Result<Option<Job>, String> {
        let name = derivation_name(&self.derivation);
        let mut log = BuilderLog::open(&name).map_err(|error| {
            format!("file descriptor 4, to which Nix has its hooks write logs, can't be written: {error}")
        })?;
        let mut hints = leaf
            .client
            .job_hints(&leaf.name, id)
            .await
            .map_err(|error| chain(&error))?;
        let (mut offset, mut heard_at) = (0, Instant::now());
        loop {
            let report = leaf.call_briefly(&ShowJob { id }, ASK_WITHIN).await;
            match report {
                Ok(report) => {
                    heard_at = Instant::now();
                    let read = pass_on(leaf, id, &mut offset, &mut log).await;
                    if report.job.phase.is_final() && read.is_ok() {
                        let _ = log.end();
                        return Ok(Some(report.job));
                    }
                }
                Err(Error::Problem(problem)) => return Err(problem.detail),
                Err(error) => {
                    if heard_at.elapsed() > SILENCE {
                        return Err(format!("it is lost with the build: {}", chain(&error)));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if told::nix_is_gone() {
                return Ok(None);
            }
            let now = Timestamp::now();
            if self.known.is_old(now)
                && let Ok(selected) = self.session.selected_or_all().await
            {
                self.known.write(now, Ok(builders(selected)));
            }
            hints.next(leaf.look_again_after()).await;
        }
    }

    async fn outcome(&self, leaf: &Leaf, job: Job, work: &Path) -> Result<Attempt, Error> {
        let id = job.id;
        if let (JobPhase::Succeeded, Some(JobResult::Build(result))) = (job.phase, &job.result) {
            let known = self.nix.outputs(&self.derivation).await?;
            let outputs = wanted_paths(&self.wanted, &result.outputs, &known)
                .map_err(|why| Error::Refused(format!("leaf {} {why}", leaf.name)))?;
            return match self.bring(leaf, &outputs, work).await {
                Ok(()) => Ok(Attempt::Ended(Ended::Built)),
                Err(error @ Error::Refused(_)) => Ok(Attempt::Ended(Ended::Failed(format!(
                    "leaf {} has built it, and the outputs can't be added here: {}",
                    leaf.name,
                    chain(&error)
                )))),
                Err(error) => Err(error),
            };
        }
        let explained = job.explained();
        let kind = explained
            .as_ref()
            .map_or(FailureKind::Unknown, |explained| explained.kind);
        let why = job.error.as_deref().unwrap_or("the reason is unknown");
        let text = format!("job {id} at leaf {}: {why}", leaf.name);
        Ok(match (job.phase, kind) {
            (JobPhase::Failed, FailureKind::BuilderFailed | FailureKind::HashMismatch) => {
                Attempt::Ended(Ended::BuilderFailed(text))
            }
            (_, FailureKind::TimedOut) => Attempt::Ended(Ended::TimedOut(text)),
            (JobPhase::Cancelled, _) => Attempt::Ended(Ended::Failed(text)),
            _ => Attempt::Next(why.to_owned()),
        })
    }

    /// Adds outputs to the store, whose locks Nix holds.
    async fn bring(&self, leaf: &Leaf, outputs: &[StorePath], work: &Path) -> Result<(), Error> {
        let minor = self.nix.minor_version().await;
        let wrap: Option<Vec<OsString>> = match minor {
            Some(minor) if minor < locks::OWN_LOCKS_SINCE => None,
            _ => {
                let mut words: Vec<OsString> = vec![std::env::current_exe()?.into()];
                words.extend(["nix", "build-hook"].map(OsString::from));
                for output in outputs {
                    let lock_file = locks::lock_file(&self.store, output);
                    if lock_file.exists() {
                        words.push("--own-lock".into());
                        words.push(lock_file.into());
                    }
                }
                words.push("--".into());
                Some(words)
            }
        };
        let held: Vec<&str> = outputs.iter().map(StorePath::as_str).collect();
        let adding = Adding {
            nix: &self.nix.with_variable(locks::HELD, held.join(" ")),
            checked: false,
            wrap: wrap.as_deref(),
            within: work,
        };
        let brought = Box::pin(download::bring(leaf, adding, outputs, Scope::Named));
        brought.await.map(drop)
    }
}

/// Returns the paths of the wanted outputs that a leaf has built. It is not believed which they are.
fn wanted_paths(
    wanted: &BTreeSet<String>,
    built: &BTreeMap<String, StorePath>,
    known: &BTreeSet<StorePath>,
) -> Result<Vec<StorePath>, String> {
    if let Some(name) = wanted.iter().find(|name| !built.contains_key(*name)) {
        return Err(format!("has built no output {name}"));
    }
    let of_wanted = built
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.contains(*name));
    let paths: BTreeSet<StorePath> = of_wanted.map(|(_, path)| path.clone()).collect();
    match paths.iter().find(|path| !known.contains(*path)) {
        Some(other) => Err(format!("names {other}, which is no output of the derivation")),
        None => Ok(paths.into_iter().collect()),
    }
}

/// Passes on what the job's log has from an offset on.
async fn pass_on(leaf: &Leaf, id: JobId, offset: &mut u64, log: &mut BuilderLog) -> Result<(), Error> {
    loop {
        let request = ReadJobLog { id, offset: *offset };
        let chunk = leaf.call_briefly(&request, ASK_WITHIN).await?;
        // Nix may have closed it: that is found out elsewhere.
        let _ = log.take(&chunk.text);
        let moved = chunk.next_offset > *offset;
        *offset = chunk.next_offset;
        if chunk.complete || !moved {
            return Ok(());
        }
    }
}

/// Returns a derivation's name, as its log's lines begin.
fn derivation_name(derivation: &StorePath) -> String {
    let base = derivation.as_str().trim_start_matches("/nix/store/");
    let name = base.split_once('-').map_or(base, |(_, name)| name);
    name.trim_end_matches(".drv").to_owned()
}

/// Returns the paths that a leaf may take: content-addressed or signed ones, all of whose references it gets or has been sent.
fn acceptable(paths: Vec<SentPath>, sent: &BTreeSet<&StorePath>) -> Vec<SentPath> {
    let mut accepted: BTreeSet<StorePath> = BTreeSet::new();
    let mut acceptable = Vec::new();
    for mut path in paths {
        let is_provable = path.content_address.is_some() || !path.signatures.is_empty();
        let is_whole = path.references.iter().all(|reference| {
            *reference == path.path || accepted.contains(reference) || sent.contains(reference)
        });
        if is_provable && is_whole {
            accepted.insert(path.path.clone());
            // An older leafd refuses it.
            path.deriver = None;
            acceptable.push(path);
        }
    }
    acceptable
}

/// Returns paths in batches that a `nix.put` takes.
fn batches(paths: Vec<SentPath>) -> Vec<Vec<SentPath>> {
    let room = MAX_COMMAND_BYTES - 4096;
    let mut batches: Vec<Vec<SentPath>> = Vec::new();
    let (mut text, mut bytes) = (0, 0);
    for mut path in paths {
        path.deriver = None;
        let length = to_json(&path).len() + 1;
        match batches.last_mut() {
            Some(batch)
                if batch.len() < MOST_PATHS
                    && text + length <= room
                    && path.nar_size.saturating_add(bytes) <= BATCH_BYTES =>
            {
                text += length;
                bytes += path.nar_size;
                batch.push(path);
            }
            _ => {
                (text, bytes) = (length, path.nar_size);
                batches.push(vec![path]);
            }
        }
    }
    batches
}

/// Cancels a job once its hook is gone.
pub(super) async fn cancel(session: &Session, leaf: LeafName, job: JobId) -> Result<(), Error> {
    let leaf = session.alone(leaf);
    let began = Instant::now();
    loop {
        match leaf.call_briefly(&CancelJob { id: job }, ASK_WITHIN).await {
            Err(Error::NoLeaf(_) | Error::Lost { .. } | Error::Call(CallError::NoLeaf(_)))
                if began.elapsed() < SILENCE =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            ended => return ended.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
    }

    fn sent(name: &str, references: &[&str], signatures: usize) -> SentPath {
        SentPath {
            path: path(name),
            nar_hash: String::new(),
            nar_size: 100,
            references: references.iter().map(|name| path(name)).collect(),
            content_address: None,
            signatures: vec!["k:s".to_owned(); signatures],
            deriver: Some(path("x.drv")),
        }
    }

    #[test]
    fn of_the_inputs_those_go_to_a_leaf_that_are_signed_with_all_that_they_refer_to() {
        let source = path("source");
        let paths = vec![
            sent("lib", &["lib"], 1),
            sent("built-here", &[], 0),
            sent("tool", &["lib", "source", "tool"], 1),
            sent("on-top", &["built-here"], 1),
        ];
        let accepted = acceptable(paths, &[&source].into());
        let names: Vec<&str> = accepted.iter().map(|sent| sent.path.as_str()).collect();
        assert_eq!(names, [path("lib").as_str(), path("tool").as_str()]);
        assert!(accepted.iter().all(|sent| sent.deriver.is_none()));
    }

    #[test]
    fn a_leaf_is_not_believed_which_paths_are_the_outputs() {
        let names =
            |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let known: BTreeSet<StorePath> = [path("a"), path("a-doc")].into();
        let built: BTreeMap<String, StorePath> =
            [("out".to_owned(), path("a")), ("doc".to_owned(), path("a-doc"))].into();
        assert_eq!(
            wanted_paths(&names(&["out"]), &built, &known),
            Ok(vec![path("a")])
        );
        let absent = wanted_paths(&names(&["out", "dev"]), &built, &known).expect_err("absent");
        assert!(absent.contains("no output dev"), "{absent}");
        let other: BTreeMap<String, StorePath> = [("out".to_owned(), path("bash"))].into();
        let refused = wanted_paths(&names(&["out"]), &other, &known).expect_err("another path");
        assert!(refused.contains("no output of the derivation"), "{refused}");
    }

    #[test]
    fn batches_fit_into_a_command() {
        let long = "x".repeat(150);
        let many: Vec<SentPath> = (0..2000)
            .map(|number| sent(&format!("{long}{number}"), &["a", "b", "c"], 1))
            .collect();
        let batches = batches(many);
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 2000);
        for batch in &batches {
            assert!(batch.len() <= MOST_PATHS && to_json(batch).len() < MAX_COMMAND_BYTES);
        }
    }

    #[test]
    fn a_derivation_has_the_name_that_begins_the_lines_of_its_log() {
        assert_eq!(derivation_name(&path("hello-2.12.drv")), "hello-2.12");
    }
}
