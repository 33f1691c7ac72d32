//! A file that is not what was written: a clear error, or all of the data. Never wrong data, never a panic.

use std::collections::BTreeMap;
use std::path::Path;

use leaf_core::id::CommandId;
use leaf_journal::{FILE, Journal, OpenError, StoreError};
use redb::{Database, TableDefinition};
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{Test, assert_whole, caller, command, event, open, run, step};

pub(crate) const TESTS: &[Test] = &[
    ("a_flipped_byte_gives_an_error_or_all_of_the_data", flipped),
    (
        "a_flipped_byte_after_a_crash_gives_an_error_or_a_history_that_only_ends_earlier",
        flipped_after_a_crash,
    ),
    (
        "a_file_that_was_cut_off_gives_an_error_or_all_of_the_data",
        cut_off,
    ),
    (
        "a_file_of_a_newer_version_is_refused_and_both_versions_are_named",
        newer,
    ),
    ("a_deleted_file_is_made_anew_and_says_so", deleted),
    (
        "a_file_of_another_kind_is_damaged_and_the_error_says_what_to_do",
        another_kind,
    ),
];

const EVENTS: u64 = 300;

/// Opens a journal in a directory, with some history.
fn filled(directory: &Path) -> Journal {
    let (journal, _) = open(directory).expect("opens");
    run(async {
        for n in 1..=EVENTS {
            journal.commit(step(n)).await.expect("durable");
        }
    });
    journal
}

/// Returns the bytes of a journal that was closed as it should be, and its entries.
fn sample() -> (Vec<u8>, BTreeMap<String, Value>) {
    let directory = tempdir().expect("a directory");
    drop(filled(directory.path()));
    let bytes = std::fs::read(directory.path().join(FILE)).expect("a file");
    let (_, opened) = open(directory.path()).expect("opens");
    (bytes, opened.entries)
}

/// Opens a changed file; returns whether that gave an error. What can be read must be right and all there.
fn refused(directory: &Path, entries: &BTreeMap<String, Value>) -> bool {
    let (journal, opened) = match open(directory) {
        Ok(opened) => opened,
        Err(error) => {
            let text = error.to_string();
            assert!(
                matches!(error, OpenError::Damaged { .. } | OpenError::Newer { .. }),
                "{error:?}"
            );
            assert!(text.contains("move the file away"), "{text}");
            return true;
        }
    };
    assert_eq!(opened.held.last_sequence, EVENTS);
    assert_eq!(&opened.entries, entries);
    assert_eq!(opened.unfinished.len(), 15);
    for n in (10..=EVENTS).step_by(10) {
        let id = CommandId::new(format!("c-{n}")).expect("an id");
        let found = journal.command(&caller(), &id).expect("readable");
        assert_eq!(found, Some(command(n, n.is_multiple_of(20))));
    }
    assert_eq!(assert_whole(&journal), EVENTS);
    false
}

fn flipped() {
    let (bytes, entries) = sample();
    let directory = tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    // All of the header that is in use, and then places all over the pages that are.
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("not empty");
    let places = (0..400).chain((400..used).step_by(used / 600));
    let (mut errors, mut tried) = (0, 0);
    for (round, place) in places.enumerate() {
        let mut changed = bytes.clone();
        changed[place] ^= [0x01, 0x80, 0xff][round % 3];
        std::fs::write(&path, &changed).expect("written");
        errors += usize::from(refused(directory.path(), &entries));
        tried += 1;
    }
    assert!(
        errors > tried / 20,
        "only {errors} of {tried} were noticed: were they in use at all?"
    );
}

/// After a crash the store may go back by one transaction where its last one is damaged: the stream is ahead then,
/// and the leaf imports. What is left must fit together all the same.
fn flipped_after_a_crash() {
    let crashed = tempdir().expect("a directory");
    let journal = filled(crashed.path());
    // The file as a crash would leave it: not closed.
    let bytes = std::fs::read(crashed.path().join(FILE)).expect("a file");
    drop(journal);
    let directory = tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("not empty");
    let places = (0..320).step_by(2).chain((4096..used).step_by(used / 150));
    let (mut whole, mut shorter) = (0, 0);
    for (round, place) in places.enumerate() {
        let mut changed = bytes.clone();
        changed[place] ^= [0x01, 0x80, 0xff][round % 3];
        std::fs::write(&path, &changed).expect("written");
        match open(directory.path()) {
            Ok((journal, opened)) => {
                let last = opened.held.last_sequence;
                assert!(
                    last == EVENTS || last == EVENTS - 1,
                    "{last} after a flip at {place}"
                );
                assert_eq!(opened.entries["n"], last);
                assert_eq!(assert_whole(&journal), last);
                whole += usize::from(last == EVENTS);
                shorter += usize::from(last < EVENTS);
            }
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}"),
        }
    }
    assert!(
        whole > 0,
        "no place was out of use, {shorter} gave a shorter history"
    );
}

fn cut_off() {
    let (bytes, entries) = sample();
    let directory = tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    let whole = bytes.len();
    for length in [
        0,
        1,
        9,
        63,
        64,
        320,
        4095,
        4096,
        8192,
        whole / 3,
        whole / 2,
        whole - 4096,
        whole - 1,
    ] {
        std::fs::write(&path, &bytes[..length]).expect("written");
        assert!(refused(directory.path(), &entries), "cut to {length} of {whole}");
    }
}

fn newer() {
    let directory = tempdir().expect("a directory");
    drop(open(directory.path()).expect("opens"));
    let database = Database::open(directory.path().join(FILE)).expect("opens");
    let transaction = database.begin_write().expect("begins");
    {
        let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
        let mut meta = transaction.open_table(meta).expect("a table");
        // Format 2, sealed as every version seals it: the table's number, the key's length, the key, the fields.
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[0]);
        hasher.update(&6u64.to_le_bytes());
        hasher.update(b"format");
        hasher.update(&2u64.to_le_bytes());
        let record = [&2u64.to_le_bytes()[..], &hasher.finalize().to_le_bytes()[..]].concat();
        meta.insert("format", record.as_slice()).expect("inserts");
        meta.insert("head", &b"what version 2 has here"[..])
            .expect("inserts");
    }
    transaction.commit().expect("commits");
    drop(database);
    let error = open(directory.path()).expect_err("newer");
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
}

fn deleted() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    run(journal.commit(step(1))).expect("durable");
    drop(journal);
    std::fs::remove_file(directory.path().join(FILE)).expect("removed");
    let (journal, opened) = open(directory.path()).expect("opens");
    assert!(opened.created);
    assert_eq!((opened.held.last_sequence, opened.entries.len()), (0, 0));
    run(journal.commit(step(1))).expect("durable");
    assert_eq!(journal.read(1, 1).expect("readable"), [event(1)]);
}

fn another_kind() {
    let directory = tempdir().expect("a directory");
    std::fs::write(directory.path().join(FILE), "a text\n".repeat(1000)).expect("written");
    let error = open(directory.path()).expect_err("no journal");
    assert!(
        matches!(
            &error,
            OpenError::Damaged {
                source: StoreError::Store(_) | StoreError::Damaged { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("imports what its stream holds"),
        "{error}"
    );
}
