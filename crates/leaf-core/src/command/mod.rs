//! Commands and their replies: one module per noun, one type per message. Unknown fields of a command are refused, so
//! that a misspelt one is noticed.
//!
//! A command's noun and verb are in its [subject](crate::subject), its arguments in a JSON body; an empty body means
//! `{}`. No header is needed: `nats req leaf.v1.cmd.edge-1.admin.leaf.show ''` works. With the header `ce-id` the
//! sender gives the command an id, and may send it again without harm.
//!
//! Everything that is true of a command is in its [`Declaration`], beside the type of its request; [`COMMANDS`] lists
//! them all. A new command is declared in the module of its noun; a new noun is one more line in the list of
//! [`nouns!`].

pub mod container;
mod declare;
pub mod hardware;
pub mod job;
pub mod leaf;
pub mod nix;
mod record;
pub mod secret;
pub mod system;

pub use container::*;
pub use declare::{CommandKind, Declaration, Disk, IfGeneration, Need, Power, Request, Success, WhileStuck};
pub use hardware::*;
pub use job::*;
pub use leaf::*;
pub use nix::*;
pub use record::{CommandOutcome, CommandRecord};
pub use secret::*;
pub use system::*;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::aggregate::Aggregate;
use crate::problem::{Problem, ProblemCode};

/// The largest body of a command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 256 * 1024;

/// The header with a command's id; replies and events carry that id as `ce-causationid`.
pub const COMMAND_ID_HEADER: &str = crate::event::header::ID;

macro_rules! nouns {
    ($($(#[$doc:meta])* $variant:ident = $module:ident,)*) => {
        /// A command, by noun.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "a command is decided once and never stored in a collection")]
        pub enum Command { $($(#[$doc])* $variant($module::Command),)* }

        $(impl From<$module::Command> for Command {
            fn from(command: $module::Command) -> Self {
                Self::$variant(command)
            }
        })*

        /// The declarations of all commands, by noun.
        const NOUNS: &[&[Declaration]] = &[$($module::DECLARATIONS,)*];

        impl Command {
            /// Returns the command's declaration.
            #[must_use]
            pub fn declaration(&self) -> &'static Declaration {
                match self { $(Self::$variant(command) => command.declaration(),)* }
            }

            /// Returns the aggregate that the command is about.
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
    /// About Nix.
    Nix = nix,
    /// About jobs.
    Job = job,
    /// About secrets.
    Secret = secret,
    /// About the leaf's own system.
    System = system,
}

/// The declarations of all commands, in the order of the nouns.
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

/// Returns the declaration of the command with this name (`container.start`), if this version knows it.
#[must_use]
pub fn declaration_of(noun_verb: &str) -> Option<&'static Declaration> {
    COMMANDS
        .iter()
        .find(|declaration| declaration.noun_verb == noun_verb)
}

impl Command {
    /// Parses a command. An empty body means `{}`.
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
        // Serde would also accept a list, as the fields in order.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(Problem::new(
                ProblemCode::Malformed,
                format!("the body of {noun}.{verb} is a list, but must be an object"),
            ));
        }
        match Self::from_body(noun, verb, body) {
            Some(command) => command.map_err(|e| {
                Problem::new(
                    ProblemCode::Malformed,
                    format!("can't parse the body of {noun}.{verb}: {e}"),
                )
            }),
            None => Err(Problem::new(
                ProblemCode::UnknownCommand,
                format!("this leaf knows no command {noun}.{verb}; it may be of another version"),
            )),
        }
    }

    /// Returns whether the command changes something or begins a job.
    #[must_use]
    pub fn kind(&self) -> CommandKind {
        self.declaration().kind
    }

    /// Returns whether the decision on it depends on the pressure of the host.
    #[must_use]
    pub fn depends_on_pressure(&self) -> bool {
        match self {
            Self::Nix(nix::Command::Offer(_)) => true,
            Self::Nix(nix::Command::Build(build)) => build.only_if_room,
            _ => false,
        }
    }

    /// Returns the fingerprint of the command: a SHA-256 over its noun, verb and arguments, as hexadecimal. White space
    /// and the order of fields in the body make no difference.
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
    fn an_unreadable_command_is_refused_with_the_reason() {
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
            assert!(problem.detail.contains("must be an object"), "{problem}");
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
    fn the_fingerprint_ignores_white_space_and_the_order_of_fields() {
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
