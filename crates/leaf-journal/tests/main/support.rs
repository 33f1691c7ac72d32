//! What the tests share.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::command::{CommandOutcome, CommandRecord};
use leaf_core::event::EventRecord;
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_journal::{Batch, FILE, Journal, LockError, OpenError, Opened, Options};
use serde_json::{Value, json};

pub(crate) type Test = (&'static str, fn());

pub(crate) const EPOCH: u64 = 1_760_000_000_000;

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await })
        .expect("within two minutes")
}

/// How large the journal in a directory is.
pub(crate) fn file_bytes(directory: &Path) -> u64 {
    std::fs::metadata(directory.join(FILE)).expect("a journal").len()
}

pub(crate) fn options() -> Options {
    Options {
        leaf: LeafName::new("edge-1").expect("a name"),
        epoch_if_new: EPOCH,
        cache_bytes: 8 << 20,
        holder: "a test".to_owned(),
    }
}

/// Opens a journal. A child that another test starts just now holds a copy of every open file until it runs its program,
/// and so for a moment a lock that was let go of already.
pub(crate) fn open(directory: &Path) -> Result<(Journal, Opened), OpenError> {
    let mut tries = 0;
    loop {
        match Journal::open(directory, &options()) {
            Err(OpenError::Lock(LockError::Held { .. })) if tries < 200 => {
                tries += 1;
                std::thread::park_timeout(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

pub(crate) fn event_of(epoch: u64, sequence: u64) -> EventRecord {
    EventRecord {
        sequence,
        subject: format!("leaf.v1.evt.edge-1.device.usb-{}.changed", sequence % 7),
        headers: [
            ("ce-id", format!("edge-1/{epoch}/{sequence}")),
            ("ce-sequence", format!("{sequence:020}")),
            ("ce-type", "cim.leaf.device.changed.v1".to_owned()),
            ("x-odd", "ü".to_owned()),
        ]
        .into_iter()
        .collect(),
        body: format!("{{\"n\":{sequence},\"pad\":\"{}\"}}", "x".repeat(260)).into_bytes(),
    }
}

pub(crate) fn event(sequence: u64) -> EventRecord {
    event_of(EPOCH, sequence)
}

pub(crate) fn caller() -> Caller {
    Caller::new("admin").expect("a caller")
}

pub(crate) fn command(number: u64, done: bool) -> CommandRecord {
    CommandRecord {
        caller: caller(),
        id: CommandId::new(format!("c-{number}")).expect("an id"),
        noun_verb: "container.start".to_owned(),
        fingerprint: "5f".repeat(32),
        accepted_at: Timestamp::from_second(1_760_000_000 + i64::try_from(number).expect("small"))
            .expect("in range"),
        target: Some(format!("container.c{number}")),
        signer: number.is_multiple_of(3).then(|| format!("SHA256:{number}")),
        outcome: done.then(|| CommandOutcome {
            body: b"{\"ok\":true}".to_vec(),
            problem: number % 2 == 1,
        }),
    }
}

/// An entry of the state, as a batch has it.
pub(crate) fn entry(key: &str, value: &Value) -> (String, Option<Bytes>) {
    (key.to_owned(), Some(value.to_string().into()))
}

/// One event, the entry `n` with its number, and every tenth time a command.
pub(crate) fn step(sequence: u64) -> Batch {
    Batch {
        events: vec![event(sequence)],
        entries: vec![
            entry("n", &json!(sequence)),
            entry(&format!("device.{}", sequence % 7), &json!({ "n": sequence })),
        ],
        commands: (sequence.is_multiple_of(10))
            .then(|| command(sequence, sequence.is_multiple_of(20)))
            .into_iter()
            .collect(),
    }
}

/// Reads all events that are held, and asserts that they are what was written and without a gap.
pub(crate) fn assert_whole(journal: &Journal) -> u64 {
    let (mut from, last) = (journal.first_sequence(), journal.last_sequence());
    let mut count = 0;
    while from <= last {
        let events = journal.read(from, 256 << 10).expect("readable");
        assert!(!events.is_empty(), "nothing at {from} of {last}");
        for found in events {
            assert_eq!(found, event(from));
            from += 1;
            count += 1;
        }
    }
    assert_eq!(from, last + 1, "nothing after the last");
    count
}
