//! Which commands need a signature, and which a caller who is named for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::command::{COMMANDS, CommandKind, Declaration, Power};
use crate::id::Caller;
use crate::problem::{Problem, ProblemCode};

use super::provenance::Provenance;

/// The command that says what a signature must have: it never needs one itself.
const CHALLENGE: &str = "leaf.challenge";

/// What a person at the machine can always do, beside seeing what is there.
const ALWAYS_LOCAL: [&str; 3] = ["container.start", "container.stop", "container.rollback"];
/// The caller that a person at the machine is.
const AT_THE_MACHINE: &str = "admin";

/// What a leaf's settings say about signatures and callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRules {
    require_signature: Vec<Subject>,
    callers: BTreeMap<Caller, BTreeSet<Power>>,
    /// Whether no key may sign.
    without_signers: bool,
}

/// A part of the commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Those of a power: `runs-code`.
    Power(Power),
    /// One command: `container.destroy`.
    Command(String),
    /// The changes and jobs of a noun: `container.*`.
    Noun(String),
}

/// Why rules can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// It names no command.
    #[error(
        "{0:?} is neither a power ({powers}), nor a command of this leaf such as container.destroy, nor the changes and jobs of a noun such as container.*",
        powers = Power::ALL.map(Power::as_str).join(", ")
    )]
    Unknown(String),
    /// The command that signatures begin with can't need one.
    #[error("{CHALLENGE} can't need a signature: it says what a signature must have")]
    Challenge,
    /// A power that always needs one is left out.
    #[error("{0} is missing: its commands always need a signature")]
    Missing(&'static str),
    /// A caller is named for a power that every caller has.
    #[error(
        "{caller} is named for {power:?}, but only runs-code and cuts-off need that: the others are open to callers, whom NATS gives their rights"
    )]
    NotNamed {
        /// The caller.
        caller: Caller,
        /// The power, or what stands in its place.
        power: String,
    },
}

impl Default for CommandRules {
    fn default() -> Self {
        Self {
            require_signature: [Power::RunsCode, Power::CutsOff].map(Subject::Power).to_vec(),
            callers: BTreeMap::new(),
            without_signers: false,
        }
    }
}

impl CommandRules {
    /// Returns the rules of settings: the commands that need a signature (by default those of the powers that always do), and
    /// callers with the powers that they are named for.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn new(
        require_signature: Option<&[String]>,
        callers: &BTreeMap<Caller, Vec<String>>,
    ) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        if let Some(listed) = require_signature {
            rules.require_signature = listed
                .iter()
                .map(|text| Subject::parse(text))
                .collect::<Result<_, _>>()?;
        }
        for power in Power::ALL
            .into_iter()
            .filter(|power| power.is_for_named_callers())
        {
            if !rules.require_signature.contains(&Subject::Power(power)) {
                return Err(RulesError::Missing(power.as_str()));
            }
        }
        for (caller, powers) in callers {
            for text in powers {
                let power = Power::ALL.into_iter().find(|power| power.as_str() == text);
                let power = power.filter(|power| power.is_for_named_callers());
                let power = power.ok_or_else(|| RulesError::NotNamed {
                    caller: caller.clone(),
                    power: text.clone(),
                })?;
                rules.callers.entry(caller.clone()).or_default().insert(power);
            }
        }
        Ok(rules)
    }

    /// Returns the rules of a leaf where no key may sign.
    #[must_use]
    pub fn without_signers(self) -> Self {
        Self {
            without_signers: true,
            ..self
        }
    }

    /// Returns whether a caller is named for any power.
    #[must_use]
    pub fn name(&self, caller: &Caller) -> bool {
        self.callers.contains_key(caller)
    }

    /// Returns whether a command needs a signature.
    #[must_use]
    pub fn requires_signature(&self, command: &Declaration) -> bool {
        command.noun_verb != CHALLENGE && self.require_signature.iter().any(|part| part.holds(command))
    }

    /// Returns whether a command of this caller is accepted only with a signature. `is_local` is as in [`CommandRules::refuse`].
    #[must_use]
    pub fn needs_signature(&self, command: &Declaration, caller: &Caller, is_local: bool) -> bool {
        self.requires_signature(command) && !(is_local && is_always_local(command, caller))
    }

    /// Returns the problem for which a command of this caller is refused; `None` if it may be sent so. `is_local` says that it arrived
    /// at the leaf's own server from a client of that server.
    #[must_use]
    pub fn refuse(
        &self,
        command: &Declaration,
        caller: &Caller,
        provenance: &Provenance,
        is_local: bool,
    ) -> Option<Problem> {
        let what = command.noun_verb;
        if let Provenance::Refused(refused) = provenance {
            return Some(Problem::new(
                ProblemCode::SignatureInvalid,
                refused.reason.clone(),
            ));
        }
        let power = command.power;
        let is_named = self
            .callers
            .get(caller)
            .is_some_and(|powers| powers.contains(&power));
        if power.is_for_named_callers() && !is_named {
            let detail = format!(
                "{what} is of the power {}, and {caller} is not named for it in [trust.callers] of the leaf's settings",
                power.as_str()
            );
            return Some(Problem::new(ProblemCode::Forbidden, detail));
        }
        let is_signed = matches!(provenance, Provenance::Signed { .. });
        if is_signed || !self.needs_signature(command, caller, is_local) {
            return None;
        }
        Some(if self.without_signers {
            let detail = format!(
                "{what} needs a signature on this leaf, whose settings name no file of allowed signers (trust.allowed_signers): nobody \
                 can send it"
            );
            Problem::new(ProblemCode::Forbidden, detail)
        } else {
            let detail = format!(
                "{what} needs a signature on this leaf: leafctl makes one with --sign-with or ssh-agent, and leaf.challenge says \
                 what it must have"
            );
            Problem::new(ProblemCode::SignatureRequired, detail)
        })
    }
}

/// Returns whether a person at the machine can send a command in any case: what is there can always be seen, started, stopped and
/// rolled back.
fn is_always_local(command: &Declaration, caller: &Caller) -> bool {
    let is_always = command.power == Power::Reads || ALWAYS_LOCAL.contains(&command.noun_verb);
    is_always && caller.as_str() == AT_THE_MACHINE
}

impl Subject {
    fn parse(text: &str) -> Result<Self, RulesError> {
        if let Some(power) = Power::ALL.into_iter().find(|power| power.as_str() == text) {
            return Ok(Self::Power(power));
        }
        if text == CHALLENGE {
            return Err(RulesError::Challenge);
        }
        let part = match text.strip_suffix(".*") {
            Some(noun) => Self::Noun(noun.to_owned()),
            None => Self::Command(text.to_owned()),
        };
        if COMMANDS.iter().any(|command| part.holds(command)) {
            Ok(part)
        } else {
            Err(RulesError::Unknown(text.to_owned()))
        }
    }

    fn holds(&self, command: &Declaration) -> bool {
        match self {
            Self::Power(power) => command.power == *power,
            Self::Command(noun_verb) => command.noun_verb == noun_verb,
            Self::Noun(noun) => command.noun == noun && command.kind != CommandKind::Query,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Power(power) => f.write_str(power.as_str()),
            Self::Command(noun_verb) => f.write_str(noun_verb),
            Self::Noun(noun) => write!(f, "{noun}.*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::declaration_of;
    use crate::signed::provenance::RefusedSignature;

    fn caller(name: &str) -> Caller {
        Caller::new(name).expect("a caller")
    }

    fn rules(listed: &[&str], callers: &[(&str, &[&str])]) -> Result<CommandRules, RulesError> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let callers = callers.iter().map(|(name, powers)| (caller(name), texts(powers)));
        CommandRules::new(Some(&texts(listed)), &callers.collect())
    }

    const ALWAYS: [&str; 2] = ["runs-code", "cuts-off"];
    /// The commands of these powers.
    const ALWAYS_SIGNED: [&str; 8] = [
        "leaf.move_to",
        "leaf.confirm",
        "nix.run",
        "nix.develop",
        "job.take",
        "system.switch",
        "system.test",
        "system.boot",
    ];

    /// A declaration of a power that no command has yet.
    fn of_power(power: Power) -> Declaration {
        Declaration {
            power,
            ..*declaration_of("nix.build").expect("declared")
        }
    }

    fn code(
        rules: &CommandRules,
        command: &Declaration,
        name: &str,
        provenance: &Provenance,
        is_local: bool,
    ) -> Option<ProblemCode> {
        rules
            .refuse(command, &caller(name), provenance, is_local)
            .map(|problem| problem.code)
    }

    #[test]
    fn what_runs_code_takes_a_named_caller_and_a_signature_by_default() {
        let by_default = CommandRules::default();
        let signed = Provenance::Signed {
            signer: "SHA256:x".to_owned(),
        };
        let required = COMMANDS
            .iter()
            .filter(|command| by_default.requires_signature(command));
        let required: Vec<&str> = required.map(|command| command.noun_verb).collect();
        assert_eq!(required, ALWAYS_SIGNED);
        let named = rules(&ALWAYS, &[("ann", &["runs-code"])]).expect("rules");
        for power in [Power::RunsCode, Power::CutsOff] {
            let command = of_power(power);
            for provenance in [&Provenance::Unsigned, &signed] {
                for is_local in [false, true] {
                    let refused = code(&by_default, &command, "admin", provenance, is_local);
                    assert_eq!(refused, Some(ProblemCode::Forbidden));
                }
            }
        }
        let command = of_power(Power::RunsCode);
        let required = Some(ProblemCode::SignatureRequired);
        assert_eq!(
            code(&named, &command, "ann", &Provenance::Unsigned, true),
            required
        );
        assert_eq!(code(&named, &command, "ann", &signed, false), None);
        assert_eq!(
            code(&named, &of_power(Power::CutsOff), "ann", &signed, false),
            Some(ProblemCode::Forbidden)
        );
    }

    #[test]
    fn powers_commands_and_nouns_are_listed_and_the_challenge_never_needs_a_signature() {
        let listed = |more: &[&str]| rules(&[&ALWAYS, more].concat(), &[]).expect("rules");
        let require = |more: &[&str]| -> Vec<&str> {
            let rules = listed(more);
            let required = COMMANDS
                .iter()
                .filter(|command| rules.requires_signature(command));
            let always = |command: &&Declaration| ALWAYS_SIGNED.contains(&command.noun_verb);
            let required = required.filter(|command| !always(command));
            required.map(|command| command.noun_verb).collect()
        };
        assert_eq!(require(&["leaf.*"]), ["leaf.label"]);
        assert_eq!(
            require(&["leaf.show", "hardware.*"]),
            ["leaf.show", "hardware.rescan"]
        );
        let reads = require(&["reads"]);
        assert!(
            reads.contains(&"container.logs") && !reads.contains(&CHALLENGE),
            "{reads:?}"
        );
        assert!(!require(&["container.*"]).contains(&"container.list"));
        let without = listed(&["leaf.*"]).without_signers();
        let label = declaration_of("leaf.label").expect("declared");
        let forbidden = Some(ProblemCode::Forbidden);
        assert_eq!(
            code(&without, label, "admin", &Provenance::Unsigned, false),
            forbidden
        );
    }

    #[test]
    fn a_person_at_the_machine_always_sees_starts_stops_and_rolls_back() {
        let all = ["reads", "changes", "builds", "runs-code", "cuts-off"];
        let rules = rules(&all, &[]).expect("rules");
        let required = Some(ProblemCode::SignatureRequired);
        for (noun_verb, is_always) in [
            ("container.start", true),
            ("container.stop", true),
            ("container.rollback", true),
            ("leaf.show", true),
            ("container.logs", true),
            ("container.destroy", false),
            ("container.create", false),
            ("leaf.label", false),
        ] {
            let command = declaration_of(noun_verb).expect("declared");
            let unsigned = Provenance::Unsigned;
            let expected = if is_always { None } else { required };
            assert_eq!(
                code(&rules, command, "admin", &unsigned, true),
                expected,
                "{noun_verb}"
            );
            assert_eq!(
                code(&rules, command, "admin", &unsigned, false),
                required,
                "{noun_verb}"
            );
            assert_eq!(
                code(&rules, command, "ann", &unsigned, true),
                required,
                "{noun_verb}"
            );
            // A signature that is there is not passed over.
            let refused = Provenance::Refused(RefusedSignature {
                signer: None,
                reason: "altered".to_owned(),
                is_named: false,
            });
            let invalid = Some(ProblemCode::SignatureInvalid);
            assert_eq!(
                code(&rules, command, "admin", &refused, true),
                invalid,
                "{noun_verb}"
            );
        }
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for (listed, says) in [
            (&["runs-code"][..], "cuts-off is missing"),
            (&["runs-code", "cuts-off", "container.eat"], "neither a power"),
            (&["runs-code", "cuts-off", "dog.*"], "neither a power"),
            (&["runs-code", "cuts-off", "*"], "neither a power"),
            (&["runs-code", "cuts-off", CHALLENGE], "can't need a signature"),
        ] {
            let error = rules(listed, &[]).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = rules(&ALWAYS, &[("ann", &["reads"])])
            .expect_err("it is open")
            .to_string();
        assert!(error.contains("ann is named for \"reads\""), "{error}");
    }
}
