//! `leafctl nix build-hook`: what a stock Nix starts to build on leaves, as docs/protocol/placement.md has it in part 5.

mod known;
mod locks;
mod protocol;
mod remote;
mod told;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use leaf_core::error::chain;
use leaf_core::id::{JobId, LeafName, StorePath};

use crate::error::Error;
use crate::global::Global;
use crate::local_nix::LocalNix;
use crate::session::Session;
use known::{Answer, Known, Slot, answer, builders};
use protocol::{Settings, Try, texts};
use remote::{Ended, Remote};

/// The exit codes that Nix knows of a hook.
const BUILDER_FAILED: u8 = 100;
const TIMED_OUT: u8 = 101;
const OTHERWISE: u8 = 1;
/// How long Nix waits at most while leaves are read.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// The settings of the Nix that has started the hook with which the Nix of the hook is started.
const PASSED_ON: [&str; 2] = ["build-users-group", "sandbox-fallback"];

/// Build on leaves what Nix on this machine is to build. Nix starts it, by its setting build-hook, and speaks to it on standard input.
#[derive(Debug, Args)]
pub(crate) struct BuildHook {
    /// The verbosity of Nix, which Nix appends.
    #[arg(value_name = "VERBOSITY")]
    verbosity: Option<String>,
    /// The program nix; by default the one that has started the hook, or else that of the PATH.
    #[arg(long, value_name = "FILE")]
    nix: Option<PathBuf>,
    /// Cancel this job of this leaf, and remove this directory, once standard input ends without a byte.
    #[arg(long, hide = true, num_args = 3, value_names = ["LEAF", "JOB", "DIRECTORY"])]
    watch: Vec<String>,
    /// Become the program behind `--`, with another file as this lock file.
    #[arg(long, hide = true, value_name = "FILE")]
    own_lock: Vec<PathBuf>,
    #[arg(last = true, hide = true)]
    program: Vec<OsString>,
}

impl BuildHook {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Error> {
        if !self.program.is_empty() {
            return Err(locks::become_program(&self.own_lock, &self.program));
        }
        if let [leaf, job, directory] = self.watch.as_slice() {
            return watch(global, leaf, job, Path::new(directory)).await;
        }
        self.serve(global).await
    }

    /// Answers Nix until a derivation is accepted, and builds that one.
    async fn serve(self, global: &Global) -> Result<(), Error> {
        let mut input = std::io::stdin().lock();
        let by_nix = |error: std::io::Error| {
            Error::Usage(format!(
                "Nix starts this command, as its setting build-hook says, and writes to its standard input: {error}"
            ))
        };
        let settings = Settings::read(&mut input).map_err(by_nix)?;
        let known = Known::open(global);
        let mut session = None;
        let (ask, slot) = loop {
            let Some(ask) = Try::read(&mut input).map_err(by_nix)? else {
                return Ok(());
            };
            match try_build(global, &known, &settings, &ask, &mut session).await {
                Answer::Accept(slot) => break (ask, slot),
                Answer::Decline => told::line("# decline"),
                Answer::Postpone => told::line("# postpone"),
            }
        };
        told::line("# accept");
        told::line("cim-leaf");
        let inputs = texts(&mut input).map_err(by_nix)?;
        let wanted = texts(&mut input).map_err(by_nix)?;
        let ended = self
            .build(global, &known, &settings, &ask, (inputs, wanted), session)
            .await;
        drop::<Slot>(slot);
        let (code, why) = match ended {
            Ok(Ended::Built) => return Ok(()),
            Ok(Ended::Cancelled) => (OTHERWISE, None),
            Ok(Ended::BuilderFailed(why)) => (BUILDER_FAILED, Some(why)),
            Ok(Ended::TimedOut(why)) => (TIMED_OUT, Some(why)),
            Ok(Ended::Failed(why)) => (OTHERWISE, Some(why)),
            Err(error) => (OTHERWISE, Some(chain(&error))),
        };
        if let Some(why) = why {
            told::error(&format!("leafctl nix build-hook: {why}"));
        }
        Err(Error::Exited(code))
    }

    async fn build(
        &self,
        global: &Global,
        known: &Known,
        settings: &Settings,
        ask: &Try,
        (inputs, wanted): (Vec<String>, Vec<String>),
        session: Option<Session>,
    ) -> Result<Ended, Error> {
        let session = match session {
            Some(session) => session,
            None => Session::open(global).await?,
        };
        let store_path = |text: &String| {
            StorePath::new(text.clone())
                .map_err(|error| Error::Refused(format!("Nix names {text:?} as a store path: {error}")))
        };
        let store = settings.get("store");
        let options = PASSED_ON.iter().filter_map(|name| {
            let value = settings.get(name);
            (settings.has(name)).then(|| ((*name).to_owned(), value.to_owned()))
        });
        let remote = Remote {
            global,
            session: &session,
            known,
            nix: LocalNix::new(
                self.nix.clone().unwrap_or_else(nix_of_parent),
                (!matches!(store, "" | "auto")).then(|| store.to_owned()),
                options.collect(),
            ),
            store: locks::real_store(store),
            ask,
            derivation: store_path(&ask.derivation)?,
            inputs: inputs.iter().map(store_path).collect::<Result<_, _>>()?,
            wanted: wanted.into_iter().collect::<BTreeSet<String>>(),
        };
        Box::pin(remote.run()).await
    }
}

/// Returns what Nix is answered. Only where nothing was read of the leaves not long ago, they are read.
async fn try_build(
    global: &Global,
    known: &Known,
    settings: &Settings,
    ask: &Try,
    session: &mut Option<Session>,
) -> Answer {
    let now = Timestamp::now();
    let read = match known.read(now) {
        Some(read) => read,
        None => {
            let reading = tokio::time::timeout(READ_WITHIN, leaves(global, session)).await;
            let leaves = match reading {
                Ok(Ok(leaves)) => Ok(leaves),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!("no reply within {} s", READ_WITHIN.as_secs())),
            };
            if let Err(why) = &leaves {
                told::warning(&format!(
                    "leafctl nix build-hook: the leaves can't be read: {why}"
                ));
            }
            known.write(now, leaves)
        }
    };
    let here = ask.can_be_built_here(settings);
    answer(known, &read.leaves, ask, here, now)
}

async fn leaves(global: &Global, session: &mut Option<Session>) -> Result<Vec<known::KnownLeaf>, Error> {
    let opened = match session.take() {
        Some(opened) => opened,
        None => Session::open(global).await?,
    };
    let opened = session.insert(opened);
    Ok(builders(opened.selected_or_all().await?))
}

/// Returns the program nix that has started this process, if it is one, or else its name.
fn nix_of_parent() -> PathBuf {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero());
    let program = parent.and_then(|parent| std::fs::read_link(format!("/proc/{parent}/exe")).ok());
    program
        .filter(|program| program.file_name().is_some_and(|name| name == "nix"))
        .unwrap_or_else(|| "nix".into())
}

/// Returns the arguments of the process that cancels a job once this one is killed.
fn watch_arguments(global: &Global, leaf: &LeafName, job: JobId, work: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            words.extend([name.into(), value]);
        }
    };
    option("--context", global.context.clone().map(OsString::from));
    option("--server", global.server.clone().map(OsString::from));
    option("--creds", global.creds.clone().map(OsString::from));
    option("--sign-with", global.sign_with.clone().map(OsString::from));
    words.extend(["nix", "build-hook", "--watch"].map(OsString::from));
    words.extend([leaf.to_string().into(), job.to_string().into(), work.into()]);
    words
}

/// Cancels a job and removes a directory, if standard input ends without a byte.
async fn watch(global: &Global, leaf: &str, job: &str, work: &Path) -> Result<(), Error> {
    let leaf = LeafName::new(leaf).map_err(|error| Error::Usage(error.to_string()))?;
    let job = job
        .parse()
        .map_err(|_| Error::Usage("--watch LEAF JOB DIRECTORY".to_owned()))?;
    let mut byte = [0];
    if std::io::stdin().read(&mut byte)? > 0 {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(work);
    let session = Session::open(global).await?;
    remote::cancel(&session, leaf, job).await
}
