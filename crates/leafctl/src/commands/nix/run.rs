use std::collections::BTreeMap;

use clap::Args;
use data_encoding::BASE64;
use leaf_core::command;
use leaf_core::id::JobId;
use leaf_core::job::{JobResult, ProgramExit, RunResult};
use leaf_core::session::{SessionTask, Terminal};
use leaf_trust::session_key::SessionKey;

use super::build::{follow, seconds};
use super::local::Local;
use crate::attach::{self, Begin, Ended, new_key, terminal};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, name_of};
use crate::session::Session;

/// Run a program on a leaf, with packages that are built there first, under a user of its own. Its exit code is leafctl's.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The packages, as installables: their bin directories are the beginning of the program's PATH.
    #[arg(required_unless_present = "file")]
    packages: Vec<String>,
    /// Take the packages from a Nix file on the leaf: they are its attributes.
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    local: Local,
    /// A variable of the program's environment. The job's record has it: pass no secret this way.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Leave the host's programs out of its PATH.
    #[arg(long)]
    pure: bool,
    /// The time limit of the build, and again of the program, such as 30m; by default the leaf's setting.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
    /// Give the program no input, and print the end of its output from the job's record when it has ended.
    #[arg(long)]
    record: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Returns the name and the value of a variable.
pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no =")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Run {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let key = new_key()?;
        // Standard output alone may be a terminal, as that of `leafctl … < file`.
        let has_terminal = terminal::is_terminal() && !self.record;
        let leaf = session.leaf().await?;
        let file = self.file.as_deref();
        let packages = self.local.installables(&leaf, file, self.packages).await?;
        let request = command::Run {
            session: (!self.record).then(|| session_task(&key, has_terminal)),
            packages,
            command: self.command,
            environment: self.env.into_iter().collect::<BTreeMap<_, _>>(),
            pure: self.pure,
            timeout_seconds: seconds(self.time_limit)?,
        };
        let accepted = leaf.call(&request).await?;
        if !self.record {
            let begin = Begin {
                job: accepted.job,
                key,
                terminal: has_terminal,
                is_resumed: false,
            };
            return in_session(&leaf, begin, output).await;
        }
        recorded(&leaf, accepted.job, output).await
    }
}

/// Waits for the end of a program without a session, prints what its record has, and ends as it did.
pub(super) async fn recorded(leaf: &Leaf, job: JobId, output: Output) -> Result<(), Error> {
    let job = follow(leaf, job, output).await?;
    let Some(JobResult::Run(result)) = &job.result else {
        return output.document(&job, |job| job.id.to_string());
    };
    if output.is_json() {
        output.document(&job, |job| job.id.to_string())?;
    } else {
        note_left_out(output, result);
        output.of_program(&result.stdout.bytes(), &result.stderr.bytes())?;
    }
    ended(&result.exit)
}

/// Returns a session for the client with this key.
pub(super) fn session_task(key: &SessionKey, has_terminal: bool) -> SessionTask {
    SessionTask {
        key: BASE64.encode(&key.public()),
        terminal: has_terminal.then(own_terminal),
        linger_seconds: None,
        detached_seconds: None,
    }
}

/// Returns the terminal that leafctl has.
fn own_terminal() -> Terminal {
    let (columns, rows) = terminal::size();
    let term = std::env::var("TERM").unwrap_or_default();
    let is_name = (1..=32).contains(&term.len())
        && term
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
    Terminal {
        term: if is_name { term } else { "dumb".to_owned() },
        columns,
        rows,
    }
}

/// Is the client of a session, and ends as its program did.
pub(crate) async fn in_session(leaf: &Leaf, begin: Begin, output: Output) -> Result<(), Error> {
    let job = begin.job;
    match attach::run(leaf, begin).await? {
        Ended::Exit(exit) => ended(&exit),
        Ended::Detached => {
            output.note(&format!(
                "job {job} runs on; `leafctl session attach {job}` comes back to it"
            ));
            Ok(())
        }
        Ended::Replaced => Err(Error::Refused(format!(
            "another client has taken over the session of job {job}"
        ))),
        Ended::Job(job) => match &job.result {
            Some(JobResult::Run(result)) => ended(&result.exit),
            _ => Err(Error::Job {
                job: job.id,
                phase: name_of(&job.phase),
                reason: format!(
                    "{}\n`leafctl nix why {}` explains it",
                    job.error.as_deref().unwrap_or("the reason is unknown"),
                    job.id
                ),
            }),
        },
    }
}

/// Says what the record has not of the outputs.
fn note_left_out(output: Output, result: &RunResult) {
    for (name, tail) in [("output", &result.stdout), ("error output", &result.stderr)] {
        if tail.left_out_bytes > 0 {
            output.note(&format!(
                "the job's record has the end of the {name}: {} bytes before it are left out",
                tail.left_out_bytes
            ));
        }
    }
}

/// Returns the end of a program as leafctl's: a shell gives a signal a code as well.
pub(super) fn ended(exit: &ProgramExit) -> Result<(), Error> {
    match exit {
        ProgramExit::Code(0) => Ok(()),
        ProgramExit::Code(code) => Err(Error::Exited(u8::try_from(*code).unwrap_or(255))),
        ProgramExit::Signal(name) => Err(Error::Exited(128 + number_of(name))),
    }
}

/// Returns the number of a signal on Linux.
fn number_of(name: &str) -> u8 {
    let numbers = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("SYS", 31),
    ];
    let number = numbers
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number);
    number.or_else(|| name.parse().ok()).unwrap_or(127)
}

/// Returns the end of a program as text.
pub(super) fn exit_text(exit: &ProgramExit) -> String {
    match exit {
        ProgramExit::Code(code) => format!("ended with code {code}"),
        ProgramExit::Signal(name) => format!("ended by SIG{name}"),
    }
}
