//! Commands and their replies, one module a noun, one type each. Unknown fields of a command are refused, so a misspelt
//! one is noticed.
//!
//! A command's noun and verb stand in its [subject](crate::subject), its arguments in a JSON body; an empty body is
//! `{}`. No header is needed: `nats req leaf.v1.cmd.edge-1.admin.leaf.show ''` works. With the header `ce-id` the
//! sender gives the command an id, and may send it again without harm.
//!
//! All that is so about a command stands in its [`Declaration`], beside the type of its request; [`COMMANDS`] lists them
//! all. A new command is declared in the module of its noun, a new noun is one more line in the list of [`nouns!`].

pub mod container;
mod declare;
pub mod hardware;
pub mod job;
pub mod leaf;
pub mod nix;

pub use container::*;
pub use declare::{CommandKind, Declaration, Disk, IfGeneration, Need, Request, Success, WhileStuck};
pub use hardware::*;
pub use job::*;
pub use leaf::*;
pub use nix::*;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::aggregate::Aggregate;
use crate::problem::{Problem, ProblemCode};

/// The largest body of a command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 256 * 1024;

/// The header of a command with its id; replies and events name it as `ce-causationid`.
pub const COMMAND_ID_HEADER: &str = crate::event::header::ID;

macro_rules! nouns {
    ($($(#[$doc:meta])* $variant:ident = $module:ident,)*) => {
        /// Everything that a leaf can be told, by noun.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "a command is decided once and never stored in a collection")]
        pub enum Command { $($(#[$doc])* $variant($module::Command),)* }

        $(impl From<$module::Command> for Command {
            fn from(command: $module::Command) -> Self {
                Self::$variant(command)
            }
        })*

        /// What is so about each command, by noun.
        const NOUNS: &[&[Declaration]] = &[$($module::DECLARATIONS,)*];

        impl Command {
            /// All that is so about the command beside its arguments.
            #[must_use]
            pub fn declaration(&self) -> &'static Declaration {
                match self { $(Self::$variant(command) => command.declaration(),)* }
            }

            /// What it is about.
            #[must_use]
            pub fn about(&self) -> Aggregate<'_> {
                match self { $(Self::$variant(command) => command.about(),)* }
            }

            fn to_body(&self) -> Vec<u8> {
                match self { $(Self::$variant(command) => command.to_body(),)* }
            }

            fn from_body(noun: &str, verb: &str, body: &[u8]) -> Option<Result<Self, serde_json::Error>> {
                match noun {
                    $($module::NOUN => Some($module::Command::parse(verb, body)?.map(Self::$variant)),)*
                    _ => None,
                }
            }
        }
    };
}

nouns! {
    /// About the leaf itself.
    Leaf = leaf,
    /// About hardware.
    Hardware = hardware,
    /// About containers.
    Container = container,
    /// For Nix.
    Nix = nix,
    /// About jobs.
    Job = job,
}

/// What is so about each command, in the order of the nouns.
pub static COMMANDS: [Declaration; number_of_commands()] = {
    let mut all = [NOUNS[0][0]; number_of_commands()];
    let (mut noun, mut at) = (0, 0);
    while noun < NOUNS.len() {
        let mut verb = 0;
        while verb < NOUNS[noun].len() {
            all[at] = NOUNS[noun][verb];
            verb += 1;
            at += 1;
        }
        noun += 1;
    }
    all
};

const fn number_of_commands() -> usize {
    let (mut noun, mut count) = (0, 0);
    while noun < NOUNS.len() {
        count += NOUNS[noun].len();
        noun += 1;
    }
    count
}

/// Returns the declaration of the command that records and logs name so (`container.start`), if this version knows it.
#[must_use]
pub fn declaration_of(noun_verb: &str) -> Option<&'static Declaration> {
    COMMANDS
        .iter()
        .find(|declaration| declaration.noun_verb == noun_verb)
}

impl Command {
    /// Reads a command. An empty body is `{}`.
    ///
    /// # Errors
    /// A [`Problem`]: `too_large`, `unknown_command`, or `malformed` with the place in the body.
    pub fn parse(noun: &str, verb: &str, body: &[u8]) -> Result<Self, Problem> {
        if body.len() > MAX_COMMAND_BYTES {
            return Err(Problem::new(
                ProblemCode::TooLarge,
                format!(
                    "the body has {} bytes, at most {MAX_COMMAND_BYTES} are allowed",
                    body.len()
                ),
            ));
        }
        let body = if body.iter().all(u8::is_ascii_whitespace) {
            b"{}"
        } else {
            body
        };
        // Serde would read the fields from a list, too, by their order.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(Problem::new(
                ProblemCode::Malformed,
                format!("the body of {noun}.{verb} is a list, and has to be an object"),
            ));
        }
        match Self::from_body(noun, verb, body) {
            Some(command) => command.map_err(|e| {
                Problem::new(
                    ProblemCode::Malformed,
                    format!("the body of {noun}.{verb} can't be read: {e}"),
                )
            }),
            None => Err(Problem::new(
                ProblemCode::UnknownCommand,
                format!("this leaf knows no command {noun}.{verb}; it may be of another version"),
            )),
        }
    }

    /// Whether it changes something or begins a job.
    #[must_use]
    pub fn kind(&self) -> CommandKind {
        self.declaration().kind
    }

    /// Returns what tells this command from another: a SHA-256 over its noun, verb and arguments, as hexadecimal.
    /// Blanks and the order of fields in the body that was sent do not count.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}\n", self.declaration().noun_verb));
        hash.update(self.to_body());
        HEXLOWER.encode(&hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_is_an_empty_object() {
        assert_eq!(
            Command::parse("leaf", "show", b" \n"),
            Ok(Command::from(ShowLeaf {}))
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        let parse = |noun, verb, body: &[u8]| Command::parse(noun, verb, body).expect_err("refused");
        assert_eq!(parse("leaf", "show", b"{").code, ProblemCode::Malformed);
        assert!(
            parse("leaf", "show", br#"{"sudo":true}"#)
                .detail
                .contains("unknown field `sudo`")
        );
        for list in [&b"[]"[..], br#" ["web", null]"#] {
            let problem = parse("container", "start", list);
            assert_eq!(problem.code, ProblemCode::Malformed);
            assert!(problem.detail.contains("has to be an object"), "{problem}");
        }
        assert!(
            parse("container", "start", br#"{"name":7}"#)
                .detail
                .contains("invalid type")
        );
        assert!(
            parse("container", "start", br#"{"name":"../x"}"#)
                .detail
                .contains("container name")
        );
        assert_eq!(parse("leaf", "eat", b"").code, ProblemCode::UnknownCommand);
        assert_eq!(
            parse("leaf", "show", &vec![b' '; MAX_COMMAND_BYTES + 1]).code,
            ProblemCode::TooLarge
        );
    }

    #[test]
    fn the_fingerprint_counts_the_meaning_and_not_the_blanks() {
        let parse = |body: &[u8]| {
            Command::parse("container", "create", body)
                .expect("a command")
                .fingerprint()
        };
        let one = parse(br#"{"name":"web","source":{"type":"template","name":"minimal"}}"#);
        let same =
            parse(br#"{ "source": {"name":"minimal","type":"template"}, "name":"web", "start":false }"#);
        let other = parse(br#"{"name":"web2","source":{"type":"template","name":"minimal"}}"#);
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
