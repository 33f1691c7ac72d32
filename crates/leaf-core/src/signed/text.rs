//! The text that is signed for a command: built, parsed, and compared with a message.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::nonce::Nonce;
use crate::id::{Caller, CommandId, LeafName};
use crate::subject::{CommandSubject, command_to_any};

/// The largest signed text, in bytes: room for about a thousand leaves.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// The first line of the text. Another form of it gets another number.
const FIRST_LINE: &str = "cim-leaf signed command 1";

/// What is signed for a command: one text may be for several leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedText {
    /// The caller.
    pub caller: Caller,
    /// The noun: `container`.
    pub noun: String,
    /// The verb: `start`.
    pub verb: String,
    /// The leaves that it is for, at least one, each with the nonce that it gave.
    pub leaves: BTreeMap<LeafName, Option<Nonce>>,
    /// The [hash](body_hash) of the message's body.
    pub body: String,
    /// The command id. Where the text is for several leaves, the message to each has its [own](id_at).
    pub id: CommandId,
    /// From when on it holds, in whole seconds.
    pub time: Timestamp,
    /// Until when it holds, in whole seconds.
    pub expires: Timestamp,
}

/// A message with a command, as it arrived at a leaf.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// The leaf.
    pub leaf: &'a LeafName,
    /// The caller, of its subject.
    pub caller: &'a Caller,
    /// The noun, of its subject.
    pub noun: &'a str,
    /// The verb, of its subject.
    pub verb: &'a str,
    /// Its command id.
    pub id: Option<&'a CommandId>,
    /// Its body.
    pub body: &'a [u8],
}

/// Why a text can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It is too long.
    #[error("the signed text has {bytes} bytes, at most {MAX_TEXT_BYTES} are allowed")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// It is of another version, or no signed text.
    #[error("the signed text does not begin with the line {FIRST_LINE:?}: this leaf reads no other version")]
    Version,
    /// A line is not the one that has to be there.
    #[error("line {line} of the signed text must be {expected}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What has to be there.
        expected: &'static str,
    },
    /// It has everything, written in another way than the one that is signed.
    #[error(
        "the signed text is not written in the one form that there is: lines in order, leaves sorted and each once, times in \
        whole seconds and UTC, a line feed after each line and nothing behind the last"
    )]
    Form,
}

/// Why a text is not that of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It is for another command or caller.
    #[error("the signed text is for {signed}, and the message is {sent}")]
    Subject {
        /// The subject in the text.
        signed: String,
        /// That of the message, in the same form.
        sent: String,
    },
    /// It is for other leaves.
    #[error("the signed text is not for leaf {0}")]
    Leaf(LeafName),
    /// It is for another body.
    #[error("the body of the message is not the one that was signed")]
    Body,
    /// The message has no id.
    #[error("a signed command needs the header ce-id, with the id {0} here")]
    NoId(CommandId),
    /// It is for another command id.
    #[error("the header ce-id must be {expected} by the signed text, and is {found}")]
    Id {
        /// The id that the message must have.
        expected: CommandId,
        /// The one that it has.
        found: CommandId,
    },
}

/// Returns the hash of a message's body, as it stands in the text: SHA-256, in hexadecimal.
#[must_use]
pub fn body_hash(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

/// Returns the command id of the message to one of these leaves: the text's id if the text is for one leaf, and else that of
/// [`CommandId::for_leaf`]. So each leaf takes one id of a text, and no other.
#[must_use]
pub fn id_at(id: &CommandId, leaf: &LeafName, leaves: usize) -> CommandId {
    if leaves == 1 {
        id.clone()
    } else {
        id.for_leaf(leaf)
    }
}

impl SignedText {
    /// Parses a text. There is one text for each value: `parse(text)?.to_string() == text`.
    ///
    /// # Errors
    /// [`TextError`], for anything else than such a text.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TextError::TooLong { bytes: text.len() });
        }
        let mut lines = Lines { text, number: 0 };
        if lines.next() != Some(FIRST_LINE) {
            return Err(TextError::Version);
        }
        let subject = lines.field(
            "subject: ",
            "`subject: leaf.v1.cmd.*.<caller>.<noun>.<verb>`",
            |text| {
                let (before, after) = text.split_once('*')?;
                // Any leaf's name makes it the subject of a command.
                CommandSubject::parse(&format!("{before}x{after}")).ok()
            },
        )?;
        let mut leaves = BTreeMap::new();
        while leaves.is_empty() || lines.text.starts_with("leaf: ") {
            let (leaf, nonce) =
                lines.field("leaf: ", "`leaf: <name>`, or `leaf: <name> <nonce>`", |text| {
                    let (name, nonce) = match text.split_once(' ') {
                        Some((name, nonce)) => (name, Some(nonce.parse().ok()?)),
                        None => (text, None),
                    };
                    Some((LeafName::new(name).ok()?, nonce))
                })?;
            leaves.insert(leaf, nonce);
        }
        let body = lines.field("body: ", "`body: <64 hexadecimal digits>`", |text| {
            let is_hash = HEXLOWER
                .decode(text.as_bytes())
                .is_ok_and(|hash| hash.len() == 32);
            is_hash.then(|| text.to_owned())
        })?;
        let id = lines.field("id: ", "`id: <command id>`", |text| CommandId::new(text).ok())?;
        let time = |text: &str| text.parse::<Timestamp>().ok();
        let signed = Self {
            caller: subject.caller,
            noun: subject.noun,
            verb: subject.verb,
            leaves,
            body,
            id,
            time: lines.field("time: ", "`time: <time>`, such as 2026-11-30T08:00:00Z", time)?,
            expires: lines.field(
                "expires: ",
                "`expires: <time>`, such as 2026-11-30T08:05:00Z",
                time,
            )?,
        };
        if signed.to_string() != text {
            return Err(TextError::Form);
        }
        Ok(signed)
    }

    /// Compares the text with the message that it came with, and returns the nonce that it has for this leaf.
    ///
    /// # Errors
    /// [`Mismatch`], if it is the text of another message.
    pub fn check(&self, sent: Sent<'_>) -> Result<Option<&Nonce>, Mismatch> {
        if (&self.caller, self.noun.as_str(), self.verb.as_str()) != (sent.caller, sent.noun, sent.verb) {
            return Err(Mismatch::Subject {
                signed: self.subject(),
                sent: command_to_any(sent.caller, sent.noun, sent.verb),
            });
        }
        let nonce = self.leaves.get(sent.leaf);
        let nonce = nonce.ok_or_else(|| Mismatch::Leaf(sent.leaf.clone()))?;
        if body_hash(sent.body) != self.body {
            return Err(Mismatch::Body);
        }
        let expected = id_at(&self.id, sent.leaf, self.leaves.len());
        match sent.id {
            Some(id) if *id == expected => Ok(nonce.as_ref()),
            Some(id) => Err(Mismatch::Id {
                expected,
                found: id.clone(),
            }),
            None => Err(Mismatch::NoId(expected)),
        }
    }

    fn subject(&self) -> String {
        command_to_any(&self.caller, &self.noun, &self.verb)
    }
}

impl fmt::Display for SignedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}\nsubject: {}", self.subject())?;
        for (leaf, nonce) in &self.leaves {
            match nonce {
                Some(nonce) => writeln!(f, "leaf: {leaf} {nonce}")?,
                None => writeln!(f, "leaf: {leaf}")?,
            }
        }
        writeln!(f, "body: {}\nid: {}", self.body, self.id)?;
        writeln!(f, "time: {}\nexpires: {}", self.time, self.expires)
    }
}

/// The lines of a text, each with a line feed at its end.
struct Lines<'a> {
    text: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (line, rest) = self.text.split_once('\n')?;
        self.text = rest;
        self.number += 1;
        Some(line)
    }

    /// Takes a line with this name, and returns its value.
    fn field<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, TextError> {
        let line = self.number + 1;
        let value = self.next().and_then(|line| line.strip_prefix(name));
        value.and_then(parse).ok_or(TextError::Line { line, expected })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "cim-leaf signed command 1\n\
        subject: leaf.v1.cmd.*.ann.container.destroy\n\
        leaf: edge-1\n\
        leaf: edge-2 pFV0qv7yQKq0mA2kq3XbPQ\n\
        body: 0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f0b2f\n\
        id: 0193f6b0-4c1e-7000-8000-000000000000\n\
        time: 2026-11-30T08:00:00Z\n\
        expires: 2026-11-30T08:05:00Z\n";

    fn text() -> impl Strategy<Value = SignedText> {
        let second = -3_000_000_000..20_000_000_000_i64;
        (
            "[a-z0-9_][a-z0-9_-]{0,20}",
            "[a-z0-9_-]{1,9}",
            "[a-z0-9_-]{1,9}",
            prop::collection::btree_map("[a-z0-9_][a-z0-9_-]{0,31}", any::<Option<[u8; 16]>>(), 1..8),
            any::<[u8; 32]>(),
            "[a-zA-Z0-9_.:][a-zA-Z0-9_.:-]{0,63}",
            second.clone(),
            second,
        )
            .prop_map(|(caller, noun, verb, leaves, body, id, time, expires)| {
                let leaf = |(name, nonce): (String, Option<[u8; 16]>)| {
                    (LeafName::new(name).expect("a leaf"), nonce.map(Nonce::from))
                };
                SignedText {
                    caller: Caller::new(caller).expect("a caller"),
                    noun,
                    verb,
                    leaves: leaves.into_iter().map(leaf).collect(),
                    body: HEXLOWER.encode(&body),
                    id: CommandId::new(id).expect("an id"),
                    time: Timestamp::from_second(time).expect("a time"),
                    expires: Timestamp::from_second(expires).expect("a time"),
                }
            })
    }

    proptest! {
        #[test]
        fn a_text_is_parsed_as_it_was_built(signed in text()) {
            let written = signed.to_string();
            prop_assert_eq!(SignedText::parse(&written), Ok(signed));
        }

        /// Whatever is parsed is written byte for byte as it was read: two texts never mean the same.
        #[test]
        fn a_text_with_any_byte_altered_is_refused_or_another_text(
            signed in text(), at in any::<prop::sample::Index>(), byte in 0..0x80_u8, form in 0..3,
        ) {
            let written = signed.to_string();
            let at = at.index(written.len());
            let mut altered = written.clone().into_bytes();
            match form {
                0 => altered[at] = byte,
                1 => altered.insert(at, byte),
                _ => { altered.remove(at); }
            }
            let altered = String::from_utf8(altered).expect("it is ASCII");
            if let Ok(parsed) = SignedText::parse(&altered) {
                prop_assert_eq!(parsed.to_string(), altered.clone());
                prop_assert_eq!(parsed == signed, altered == written);
            }
        }

        #[test]
        fn any_lines_are_read_as_they_are_written_or_refused(
            lines in prop::collection::vec(prop::sample::select(EXAMPLE.lines().collect::<Vec<_>>()), 0..10),
            end in prop::sample::select(vec!["\n", "\r\n", "", " \n", "\n\n"]),
        ) {
            let written: String = lines.iter().map(|line| format!("{line}{end}")).collect();
            if let Ok(parsed) = SignedText::parse(&written) {
                prop_assert_eq!(parsed.to_string(), written);
            }
        }
    }

    #[test]
    fn the_text_of_the_document_is_one() {
        let signed = SignedText::parse(EXAMPLE).expect("a signed text");
        assert_eq!(signed.leaves.len(), 2);
        assert_eq!(signed.to_string(), EXAMPLE);
    }

    #[test]
    fn what_is_written_in_another_way_is_refused_with_the_line() {
        let parse = |from: &str, to: &str| SignedText::parse(&EXAMPLE.replace(from, to)).expect_err(to);
        assert_eq!(parse("command 1", "command 2"), TextError::Version);
        assert_eq!(SignedText::parse(""), Err(TextError::Version));
        for (from, to, line) in [
            ("leaf.v1", "leaf.v2", 2),
            (".*.", ".edge-1.", 2),
            ("edge-2 pFV0", "edge-2  pFV0", 4),
            ("3XbPQ", "3XbPR", 4),
            ("body: 0b", "body: 0B", 5),
            ("id: 0193", "id: 01 93", 6),
            ("time: 2026-11-30T08:00:00Z", "time: soon", 7),
            ("expires: ", "expire: ", 8),
        ] {
            assert!(
                matches!(parse(from, to), TextError::Line { line: found, .. } if found == line),
                "{to}: {:?}",
                parse(from, to)
            );
        }
        for (from, to) in [
            ("T08:00:00Z", "T08:00:00.0Z"),
            ("T08:00:00Z", "T09:00:00+01:00"),
            ("T08:00:00Z", "t08:00:00z"),
            ("leaf: edge-1", "leaf: edge-3"),
            ("leaf: edge-1", "leaf: edge-2"),
            ("08:05:00Z\n", "08:05:00Z\n\n"),
        ] {
            assert_eq!(parse(from, to), TextError::Form, "{to}");
        }
        assert!(matches!(
            SignedText::parse(&"x".repeat(MAX_TEXT_BYTES + 1)),
            Err(TextError::TooLong { .. })
        ));
    }

    #[test]
    fn a_text_is_that_of_one_message_at_each_of_its_leaves() {
        let body = br#"{"name":"web"}"#;
        let mut signed = SignedText::parse(EXAMPLE).expect("a signed text");
        signed.body = body_hash(body);
        let [one, two, three] =
            ["edge-1", "edge-2", "edge-3"].map(|name| LeafName::new(name).expect("a leaf"));
        let [ann, bob] = ["ann", "bob"].map(|name| Caller::new(name).expect("a caller"));
        let (id, other) = (signed.id.for_leaf(&one), signed.id.clone());
        let sent = Sent {
            leaf: &one,
            caller: &ann,
            noun: "container",
            verb: "destroy",
            id: Some(&id),
            body,
        };
        assert_eq!(signed.check(sent), Ok(None));
        let at_two = signed.id.for_leaf(&two);
        let at_the_other = Sent {
            leaf: &two,
            id: Some(&at_two),
            ..sent
        };
        assert!(signed.check(at_the_other).is_ok_and(|nonce| nonce.is_some()));
        assert_eq!(
            signed.check(Sent { leaf: &three, ..sent }),
            Err(Mismatch::Leaf(three.clone()))
        );
        for elsewhere in [
            Sent { caller: &bob, ..sent },
            Sent { noun: "leaf", ..sent },
            Sent { verb: "stop", ..sent },
        ] {
            assert!(matches!(signed.check(elsewhere), Err(Mismatch::Subject { .. })));
        }
        assert_eq!(signed.check(Sent { body: b"{}", ..sent }), Err(Mismatch::Body));
        assert!(matches!(
            signed.check(Sent { id: None, ..sent }),
            Err(Mismatch::NoId(_))
        ));
        // With several leaves it is the id of the leaf, and never that of all.
        let as_if_alone = Sent {
            id: Some(&other),
            ..sent
        };
        assert!(matches!(signed.check(as_if_alone), Err(Mismatch::Id { .. })));
        signed.leaves.remove(&two);
        assert_eq!(signed.check(as_if_alone), Ok(None));
        assert!(matches!(signed.check(sent), Err(Mismatch::Id { .. })));
    }
}
