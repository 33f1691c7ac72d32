//! The encoding of records. Every stored value is its fields followed by a CRC-32 of table, key and fields, which
//! detects a flipped bit, a truncation and a value under the wrong key. Reading never panics.

use jiff::Timestamp;
use leaf_core::event::{EventRecord, Headers, header};
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::signed::Marks;
use serde_json::Value;

use leaf_core::command::{CommandOutcome, CommandRecord};

/// The version of the file's format that this program writes, and the newest that it reads.
pub const FORMAT: u64 = 1;

/// A stored value is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DecodeError(&'static str);

/// The table of a value; part of its checksum.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Table {
    Format = 0,
    Head = 1,
    Event = 2,
    Entry = 3,
    Command = 4,
    Signer = 5,
    Marks = 6,
}

/// What the journal remembers of the time, and the transaction that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredMarks {
    pub marks: Marks,
    /// [`Head::transactions`] of the same transaction: an older program writes the head only.
    pub transactions: u64,
}

/// The head of the file: one record, rewritten by each transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The leaf that the journal belongs to.
    pub leaf: LeafName,
    /// The epoch of the history that its events belong to.
    pub epoch: u64,
    /// The number of transactions; tells whether one that failed is in the file.
    pub transactions: u64,
    /// The oldest event still held; one more than the last if none is.
    pub first_sequence: u64,
    /// The newest event; 0 before the first.
    pub last_sequence: u64,
    /// The number of entries of the state.
    pub entries: u64,
    /// The number of commands.
    pub commands: u64,
}

/// The header names of events, each stored as its index here in one byte. Only append to it.
const NAMES: [&str; 10] = [
    header::SPECVERSION,
    header::ID,
    header::SOURCE,
    header::TYPE,
    header::SUBJECT,
    header::TIME,
    header::SEQUENCE,
    header::CAUSATION_ID,
    header::CORRELATION_ID,
    header::DATA_CONTENT_TYPE,
];

struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n.to_le_bytes()[0] | 0x80);
            n >>= 7;
        }
        self.0.push(n.to_le_bytes()[0]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn seal(mut self, table: Table, key: &[u8]) -> Vec<u8> {
        let sum = checksum(table, key, &self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0
    }
}

fn checksum(table: Table, key: &[u8], fields: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[table as u8]);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(fields);
    hasher.finalize()
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    /// Verifies the checksum and returns a reader of the fields.
    fn open(table: Table, key: &[u8], value: &'a [u8]) -> Result<Self, DecodeError> {
        let (fields, sum) = value
            .split_last_chunk::<4>()
            .ok_or(DecodeError("it is too short for a checksum"))?;
        if checksum(table, key, fields) != u32::from_le_bytes(*sum) {
            return Err(DecodeError("its checksum does not match"));
        }
        Ok(Self(fields))
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.0.split_first().ok_or(DecodeError("it ends early"))?;
        self.0 = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            n |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(DecodeError("a number in it is too large"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length =
            usize::try_from(self.number()?).map_err(|_| DecodeError("a length in it is too large"))?;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError("it ends early"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError("a text in it is not UTF-8"))
    }

    /// Reads a time, at a fixed length.
    fn time(&mut self) -> Result<Timestamp, DecodeError> {
        let (time, rest) = self
            .0
            .split_first_chunk::<16>()
            .ok_or(DecodeError("it ends early"))?;
        self.0 = rest;
        Timestamp::from_nanosecond(i128::from_le_bytes(*time))
            .map_err(|_| DecodeError("its time is out of range"))
    }

    fn done(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError("it has trailing bytes"))
        }
    }
}

const FORMAT_KEY: &[u8] = b"format";
const HEAD_KEY: &[u8] = b"head";
const MARKS_KEY: &[u8] = b"marks";

/// Encodes the format's version; every version reads this record.
pub(crate) fn encode_format(version: u64) -> Vec<u8> {
    Out(version.to_le_bytes().to_vec()).seal(Table::Format, FORMAT_KEY)
}

pub(crate) fn decode_format(value: &[u8]) -> Result<u64, DecodeError> {
    let fields = In::open(Table::Format, FORMAT_KEY, value)?;
    let bytes = fields
        .0
        .try_into()
        .map_err(|_| DecodeError("a version has 8 bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn encode_head(head: &Head) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(64));
    out.bytes(head.leaf.as_str().as_bytes());
    for number in [
        head.epoch,
        head.transactions,
        head.first_sequence,
        head.last_sequence,
        head.entries,
        head.commands,
    ] {
        out.number(number);
    }
    out.seal(Table::Head, HEAD_KEY)
}

pub(crate) fn decode_head(value: &[u8]) -> Result<Head, DecodeError> {
    let mut fields = In::open(Table::Head, HEAD_KEY, value)?;
    let head = Head {
        leaf: LeafName::new(fields.text()?).map_err(|_| DecodeError("it has no leaf's name"))?,
        epoch: fields.number()?,
        transactions: fields.number()?,
        first_sequence: fields.number()?,
        last_sequence: fields.number()?,
        entries: fields.number()?,
        commands: fields.number()?,
    };
    fields.done()?;
    Ok(head)
}

pub(crate) fn encode_marks(stored: StoredMarks) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(48));
    for time in [stored.marks.floor, stored.marks.seen] {
        out.0.push(u8::from(time.is_some()));
        if let Some(time) = time {
            out.0.extend_from_slice(&time.as_nanosecond().to_le_bytes());
        }
    }
    out.number(stored.transactions);
    out.seal(Table::Marks, MARKS_KEY)
}

pub(crate) fn decode_marks(value: &[u8]) -> Result<StoredMarks, DecodeError> {
    let mut fields = In::open(Table::Marks, MARKS_KEY, value)?;
    let mut time = || match fields.byte()? {
        0 => Ok(None),
        1 => fields.time().map(Some),
        _ => Err(DecodeError("a time in it is of an unknown form")),
    };
    let marks = Marks {
        floor: time()?,
        seen: time()?,
    };
    let transactions = fields.number()?;
    fields.done()?;
    Ok(StoredMarks { marks, transactions })
}

/// Encodes an event, which is stored under its sequence number.
pub(crate) fn encode_event(event: &EventRecord) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(event.wire_bytes() + 24));
    out.bytes(event.subject.as_bytes());
    out.number(event.headers.len() as u64);
    for (name, value) in event.headers.iter() {
        match NAMES.iter().position(|known| *known == name) {
            Some(place) => out.number(place as u64 + 1),
            None => {
                out.number(0);
                out.bytes(name.as_bytes());
            }
        }
        out.bytes(value.as_bytes());
    }
    out.bytes(&event.body);
    out.seal(Table::Event, &event.sequence.to_le_bytes())
}

pub(crate) fn decode_event(sequence: u64, value: &[u8]) -> Result<EventRecord, DecodeError> {
    let mut fields = In::open(Table::Event, &sequence.to_le_bytes(), value)?;
    let subject = fields.text()?.to_owned();
    let count = fields.number()?;
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = match fields.number()? {
            0 => fields.text()?,
            place => usize::try_from(place - 1)
                .ok()
                .and_then(|place| NAMES.get(place))
                .ok_or(DecodeError("a header's name in it is unknown"))?,
        };
        headers.push(name, fields.text()?);
    }
    let body = fields.bytes()?.to_vec();
    fields.done()?;
    Ok(EventRecord {
        sequence,
        subject,
        headers,
        body,
    })
}

/// Verifies an event's checksum only.
pub(crate) fn verify_event(sequence: u64, value: &[u8]) -> Result<(), DecodeError> {
    In::open(Table::Event, &sequence.to_le_bytes(), value).map(|_| ())
}

/// Encodes an entry, which is JSON, stored under its key.
pub(crate) fn encode_entry(key: &str, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 4);
    out.extend_from_slice(json);
    Out(out).seal(Table::Entry, key.as_bytes())
}

pub(crate) fn decode_entry(key: &str, value: &[u8]) -> Result<Value, DecodeError> {
    let fields = In::open(Table::Entry, key.as_bytes(), value)?;
    serde_json::from_slice(fields.0).map_err(|_| DecodeError("it is not JSON"))
}

/// Returns the key of a command; neither part can contain a `/`.
pub(crate) fn command_key(caller: &Caller, id: &CommandId) -> String {
    format!("{caller}/{id}")
}

/// Encodes the signer of a command, which is stored beside it: an older program reads no other fields of a command than its own.
pub(crate) fn encode_signer(key: &str, signer: &str) -> Vec<u8> {
    Out(signer.as_bytes().to_vec()).seal(Table::Signer, key.as_bytes())
}

pub(crate) fn decode_signer(key: &str, value: &[u8]) -> Result<String, DecodeError> {
    let fields = In::open(Table::Signer, key.as_bytes(), value)?;
    let signer = std::str::from_utf8(fields.0).map_err(|_| DecodeError("a text in it is not UTF-8"))?;
    Ok(signer.to_owned())
}

/// Encodes a command, without its signer.
pub(crate) fn encode_command(command: &CommandRecord) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(
        128 + command.outcome.as_ref().map_or(0, |outcome| outcome.body.len()),
    ));
    // The time is first, at a fixed place: see `command_time`.
    out.0
        .extend_from_slice(&command.accepted_at.as_nanosecond().to_le_bytes());
    out.bytes(command.caller.as_str().as_bytes());
    out.bytes(command.id.as_str().as_bytes());
    out.bytes(command.noun_verb.as_bytes());
    out.bytes(command.fingerprint.as_bytes());
    match &command.target {
        None => out.0.push(0),
        Some(target) => {
            out.0.push(1);
            out.bytes(target.as_bytes());
        }
    }
    match &command.outcome {
        None => out.0.push(0),
        Some(outcome) => {
            out.0.push(if outcome.problem { 2 } else { 1 });
            out.bytes(&outcome.body);
        }
    }
    let key = command_key(&command.caller, &command.id);
    out.seal(Table::Command, key.as_bytes())
}

/// Decodes a command, without its signer.
pub(crate) fn decode_command(key: &str, value: &[u8]) -> Result<CommandRecord, DecodeError> {
    let mut fields = In::open(Table::Command, key.as_bytes(), value)?;
    let command = CommandRecord {
        accepted_at: fields.time()?,
        caller: Caller::new(fields.text()?).map_err(|_| DecodeError("it has no caller"))?,
        id: CommandId::new(fields.text()?).map_err(|_| DecodeError("it has no command id"))?,
        noun_verb: fields.text()?.to_owned(),
        fingerprint: fields.text()?.to_owned(),
        target: match fields.byte()? {
            0 => None,
            1 => Some(fields.text()?.to_owned()),
            _ => return Err(DecodeError("its target is of an unknown form")),
        },
        signer: None,
        outcome: match fields.byte()? {
            0 => None,
            form @ (1 | 2) => Some(CommandOutcome {
                body: fields.bytes()?.to_vec(),
                problem: form == 2,
            }),
            _ => return Err(DecodeError("its outcome is of an unknown form")),
        },
    };
    fields.done()?;
    if command_key(&command.caller, &command.id) != key {
        return Err(DecodeError("it is under another command's key"));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = EventRecord> {
        let name = prop_oneof![
            proptest::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
            ".{0,12}"
        ];
        (
            any::<u64>(),
            ".{0,80}",
            proptest::collection::vec((name, ".{0,40}"), 0..12),
            proptest::collection::vec(any::<u8>(), 0..600),
        )
            .prop_map(|(sequence, subject, headers, body)| EventRecord {
                sequence,
                subject,
                headers: headers.into_iter().collect(),
                body,
            })
    }

    fn command() -> impl Strategy<Value = CommandRecord> {
        (
            "[a-z0-9_][a-z0-9_-]{0,20}",
            "[a-zA-Z0-9_.:]{1,64}",
            "[a-z]{1,9}\\.[a-z]{1,9}",
            "[0-9a-f]{64}",
            -377_705_023_201i64..253_402_207_200,
            proptest::option::of(".{0,40}"),
            proptest::option::of((proptest::collection::vec(any::<u8>(), 0..300), any::<bool>())),
        )
            .prop_map(|(caller, id, noun_verb, fingerprint, second, target, outcome)| {
                CommandRecord {
                    caller: Caller::new(caller).expect("a caller"),
                    id: CommandId::new(id).expect("an id"),
                    noun_verb,
                    fingerprint,
                    accepted_at: Timestamp::from_second(second).expect("in range"),
                    target,
                    signer: None,
                    outcome: outcome.map(|(body, problem)| CommandOutcome { body, problem }),
                }
            })
    }

    proptest! {
        #[test]
        fn an_event_is_decoded_as_it_was_encoded(event in event()) {
            let bytes = encode_event(&event);
            prop_assert_eq!(decode_event(event.sequence, &bytes), Ok(event));
        }

        #[test]
        fn a_command_is_decoded_as_it_was_encoded(command in command()) {
            let key = command_key(&command.caller, &command.id);
            prop_assert_eq!(decode_command(&key, &encode_command(&command)), Ok(command));
        }

        #[test]
        fn a_head_is_decoded_as_it_was_encoded(numbers in any::<[u64; 6]>()) {
            let [epoch, transactions, first_sequence, last_sequence, entries, commands] = numbers;
            let leaf = LeafName::new("leaf").expect("a name");
            let head = Head { leaf, epoch, transactions, first_sequence, last_sequence, entries, commands };
            prop_assert_eq!(decode_head(&encode_head(&head)), Ok(head));
        }

        #[test]
        fn marks_and_a_signer_are_decoded_as_they_were_encoded(
            floor in proptest::option::of(-377_705_023_201i64..253_402_207_200),
            seen in proptest::option::of(-377_705_023_201i64..253_402_207_200),
            transactions: u64, key in ".{0,40}", signer in ".{0,60}",
        ) {
            let time = |second| Timestamp::from_second(second).expect("in range");
            let marks = Marks { floor: floor.map(time), seen: seen.map(time) };
            let stored = StoredMarks { marks, transactions };
            prop_assert_eq!(decode_marks(&encode_marks(stored)), Ok(stored));
            let bytes = encode_signer(&key, &signer);
            prop_assert_eq!(decode_signer(&key, &bytes), Ok(signer));
            prop_assert!(decode_signer("another", &bytes).is_err());
        }

        #[test]
        fn a_flipped_bit_a_truncation_and_another_key_are_detected(event in event(), place in any::<prop::sample::Index>(), bit in 0..8u8) {
            let bytes = encode_event(&event);
            let mut flipped = bytes.clone();
            flipped[place.index(bytes.len())] ^= 1 << bit;
            prop_assert!(decode_event(event.sequence, &flipped).is_err());
            prop_assert!(decode_event(event.sequence, &bytes[..place.index(bytes.len())]).is_err());
            prop_assert!(decode_event(event.sequence ^ 1, &bytes).is_err());
        }

        #[test]
        fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // With a valid checksum, so that the fields are read.
            let sealed = Out(bytes.clone()).seal(Table::Event, &7u64.to_le_bytes());
            if let Ok(event) = decode_event(7, &sealed) {
                prop_assert_eq!(event.sequence, 7);
            }
            let sealed = Out(bytes).seal(Table::Command, b"a/b");
            if let Ok(command) = decode_command("a/b", &sealed) {
                prop_assert_eq!(command.caller.as_str(), "a");
            }
        }
    }
}
