use clap::Args;
use leaf_core::command;
use leaf_core::job::DevelopTask;

use super::build::seconds;
use super::installables::several;
use super::local::Local;
use super::run::{in_session, recorded, session_task, variable};
use crate::attach::{Begin, new_key, terminal};
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Open a bash on a leaf in the environment of a build, or with packages, under a user of its own; or run one command there.
///
/// On a terminal it is interactive, and after a newline `~d` leaves it running, `~.` ends it, and `~~` is a tilde. Without a terminal
/// and a command it runs the commands of its standard input.
#[derive(Debug, Args)]
pub(crate) struct Develop {
    /// The installable: a flake reference such as `.#hello`, a derivation, or with `--file` an attribute.
    #[arg(required_unless_present_any = ["file", "packages"])]
    installable: Option<String>,
    /// Packages, as installables, in the place of an installable: their bin directories are the beginning of PATH.
    #[arg(long, short, value_name = "PACKAGE", num_args = 1.., conflicts_with = "installable")]
    packages: Vec<String>,
    /// Take the installable or the packages from a Nix file on the leaf: they are its attributes.
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    local: Local,
    /// Bash commands that are run last. The job's record has them: pass no secret this way.
    #[arg(long, value_name = "TEXT")]
    shell_hook: Option<String>,
    /// A variable of its environment. The job's record has it: pass no secret this way.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Leave the host's programs out of its PATH.
    #[arg(long)]
    pure: bool,
    /// Evaluate a flake impurely. The leaf refuses it unless nix.policy.impure in its settings has it.
    #[arg(long, conflicts_with = "packages")]
    impure: bool,
    /// The time limit of what is built first, and with --record again of the command, such as 30m; by default the leaf's setting.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
    /// Give the command no input, and print the end of its output from the job's record when it has ended.
    #[arg(long, requires = "command")]
    record: bool,
    /// The command that is run in the shell's place, and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Develop {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let key = new_key()?;
        let has_terminal = terminal::is_terminal() && !self.record;
        let texts = match &self.installable {
            Some(installable) => vec![installable.clone()],
            None => self.packages.clone(),
        };
        let leaf = session.leaf().await?;
        let mut given = self
            .local
            .installables(&leaf, self.file.as_deref(), texts)
            .await?;
        let (installable, packages) = match given.len() {
            1 if self.packages.is_empty() => (given.pop(), Vec::new()),
            _ => (None, given),
        };
        let request = command::Develop {
            installable,
            packages,
            command: self.command,
            shell_hook: self.shell_hook,
            environment: self.env.into_iter().collect(),
            pure: self.pure,
            impure: self.impure,
            timeout_seconds: seconds(self.time_limit)?,
            session: (!self.record).then(|| session_task(&key, has_terminal)),
        };
        let accepted = leaf.call(&request).await?;
        if self.record {
            return recorded(&leaf, accepted.job, output).await;
        }
        let begin = Begin {
            job: accepted.job,
            key,
            terminal: has_terminal,
            is_resumed: false,
        };
        in_session(&leaf, begin, output).await
    }
}

/// Returns what a shell is of, for a list.
pub(super) fn text(task: &DevelopTask) -> String {
    let of = several(task.installable.iter().chain(&task.packages));
    let command = match task.command.join(" ") {
        command if command.is_empty() => command,
        command => format!(" -- {command}"),
    };
    format!("develop {of}{command}")
}
