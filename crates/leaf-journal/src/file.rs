//! The file: its tables, the changes of one transaction, and verified reads.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use leaf_core::event::EventRecord;
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::signed::Marks;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};
use serde_json::Value;

use crate::change::Change;
use crate::encode::{self, DecodeError, FORMAT, Head, StoredMarks};
use leaf_core::command::CommandRecord;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const COMMANDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("commands");
/// The signers of commands, by the command's key. An older program does not know this table, and leaves it as it is.
const SIGNERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("signers");

/// How many bytes of events are verified when the file is opened, the newest first; older ones are verified when they
/// are read. Takes about half a second on a small machine.
const VERIFY_BYTES: usize = 128 << 20;

/// The size in bytes below which a file is not compacted.
const SHRINK_BYTES: u64 = 16 << 20;

/// An error of the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not read or write its file.
    #[error("the store can't read or write its file")]
    Store(#[source] Box<redb::Error>),
    /// The database panicked on its file.
    #[error("the store failed on its own file: {0}")]
    Panicked(String),
    /// A record is damaged.
    #[error("{record} is damaged: {why}")]
    Damaged {
        /// The record, such as `event 17`.
        record: String,
        /// The damage.
        why: String,
    },
    /// A newer program wrote the file.
    #[error("it has format {found}, this program reads up to {FORMAT}")]
    Newer {
        /// The file's format.
        found: u64,
    },
}

impl StoreError {
    /// Whether the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        let Self::Store(error) = self else { return false };
        matches!(&**error, redb::Error::Io(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether the database can't be used any more and must be reopened.
    pub(crate) fn is_of_a_dead_database(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(**error, redb::Error::PreviousIo | redb::Error::DatabaseClosed))
    }

    /// Whether the file is damaged, as opposed to an error of the operating system.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            // The database reports a truncated or foreign file as one of these.
            Self::Store(error) => match &**error {
                redb::Error::Io(error) => matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
                ),
                redb::Error::DatabaseAlreadyOpen => false,
                _ => true,
            },
            Self::Panicked(_) | Self::Damaged { .. } => true,
            Self::Newer { .. } => false,
        }
    }

    fn damaged(record: impl Into<String>, why: &DecodeError) -> Self {
        Self::Damaged {
            record: record.into(),
            why: why.to_string(),
        }
    }

    fn inconsistent(record: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged {
            record: record.into(),
            why: why.into(),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// Runs code that uses the database, and turns a panic on a damaged file into an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "no reason given".to_owned());
        Err(StoreError::Panicked(text))
    })
}

/// Creates the file with its tables, atomically.
pub(crate) fn create(path: &Path, leaf: &LeafName, epoch: u64) -> Result<(), StoreError> {
    let beside = path.with_extension("redb.new");
    let io = |error: io::Error| StoreError::from(redb::Error::Io(error));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    guarded(|| {
        let database = Database::builder().set_cache_size(1 << 20).create(&beside)?;
        let head = Head {
            leaf: leaf.clone(),
            epoch,
            transactions: 0,
            first_sequence: 1,
            last_sequence: 0,
            entries: 0,
            commands: 0,
        };
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", encode::encode_format(FORMAT).as_slice())?;
            write_head(&mut meta, &head, Marks::default())?;
            transaction.open_table(EVENTS)?;
            transaction.open_table(ENTRIES)?;
            transaction.open_table(COMMANDS)?;
            transaction.open_table(SIGNERS)?;
        }
        transaction.commit()?;
        Ok(())
    })?;
    std::fs::rename(&beside, path).map_err(io)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

/// Opens the file, which must exist.
pub(crate) fn open(path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    guarded(|| Ok(Database::builder().set_cache_size(cache_bytes).open(path)?))
}

/// Closes the file. A damaged one is left unchanged.
pub(crate) fn close(database: Database) {
    let closed = guarded(|| {
        drop(database);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "the journal was not closed cleanly");
    }
}

/// The contents of the file without its events.
pub(crate) struct Contents {
    pub head: Head,
    /// What it remembers of the time.
    pub marks: Marks,
    pub entries: BTreeMap<String, Value>,
    pub unfinished: Vec<CommandRecord>,
    /// The size of all records in bytes, if all of them were read.
    pub record_bytes: Option<u64>,
}

/// Reads and verifies everything but the events; of these it verifies at least the newest, in bounded time.
pub(crate) fn load(database: &Database) -> Result<Contents, StoreError> {
    guarded(|| {
        let transaction = database.begin_read()?;
        let head = read_head(&transaction)?;
        let marks = read_marks(&transaction, &head)?;

        let table = transaction.open_table(ENTRIES)?;
        let mut entries = BTreeMap::new();
        let mut bytes = 0;
        for row in table.iter()? {
            let (key, value) = row?;
            let key = key.value();
            let entry = encode::decode_entry(key, value.value())
                .map_err(|e| StoreError::damaged(format!("the state's entry {key:?}"), &e))?;
            bytes += value.value().len();
            entries.insert(key.to_owned(), entry);
        }
        check_count("entries", entries.len() as u64, table.len()?, head.entries)?;

        let table = transaction.open_table(COMMANDS)?;
        let signers = signers(&transaction)?;
        let mut unfinished = Vec::new();
        let mut count = 0;
        let mut previous = String::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let key = key.value();
            let record = || format!("the command {key:?}");
            let mut command =
                encode::decode_command(key, value.value()).map_err(|e| StoreError::damaged(record(), &e))?;
            if key <= previous.as_str() {
                return Err(StoreError::inconsistent(record(), "it is out of order"));
            }
            previous.clear();
            previous.push_str(key);
            count += 1;
            bytes += value.value().len();
            if command.outcome.is_none() {
                command.signer = signer(signers.as_ref(), key)?;
                unfinished.push(command);
            }
        }
        check_count("commands", count, table.len()?, head.commands)?;
        unfinished.sort_by_key(|command| command.accepted_at);

        let events = verify_events(&transaction, &head)?;
        Ok(Contents {
            head,
            marks,
            entries,
            unfinished,
            record_bytes: events.map(|events| (events + bytes) as u64),
        })
    })
}

/// Compacts the file if most of it is empty, as after a long time without the stream.
pub(crate) fn shrink(
    database: &mut Database,
    path: &Path,
    record_bytes: Option<u64>,
) -> Result<(), StoreError> {
    let Some(records) = record_bytes else {
        return Ok(());
    };
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if size < SHRINK_BYTES || size / 4 < records {
        return Ok(());
    }
    guarded(|| {
        database.compact()?;
        Ok(())
    })?;
    let now = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    tracing::info!(before = size, now, "compacted the journal's file");
    Ok(())
}

fn check_count(what: &str, found: u64, table: u64, head: u64) -> Result<(), StoreError> {
    if found == head && table == head {
        return Ok(());
    }
    Err(StoreError::inconsistent(
        format!("the table of {what}"),
        format!("it has {found} of {head}"),
    ))
}

/// Returns the size of the events in bytes, if all of them were read.
fn verify_events(transaction: &ReadTransaction, head: &Head) -> Result<Option<usize>, StoreError> {
    let events = transaction.open_table(EVENTS)?;
    let held = (head.last_sequence + 1)
        .checked_sub(head.first_sequence)
        .ok_or_else(|| {
            StoreError::inconsistent("the head record", "its sequence numbers are out of order")
        })?;
    if events.len()? != held {
        return Err(StoreError::inconsistent(
            "the table of events",
            format!("it has {} of {held}", events.len()?),
        ));
    }
    let mut bytes = 0;
    let mut expected = head.last_sequence;
    for row in events.iter()?.rev() {
        let (sequence, value) = row?;
        check_sequence(sequence.value(), expected)?;
        encode::verify_event(expected, value.value())
            .map_err(|e| StoreError::damaged(format!("event {expected}"), &e))?;
        bytes += value.value().len();
        if bytes > VERIFY_BYTES {
            tracing::info!(
                from = expected,
                through = head.last_sequence,
                "a long journal: older events are verified when they are read"
            );
            return Ok(None);
        }
        expected -= 1;
    }
    check_sequence(head.first_sequence, expected + 1)?;
    Ok(Some(bytes))
}

fn check_sequence(found: u64, expected: u64) -> Result<(), StoreError> {
    if found == expected {
        return Ok(());
    }
    Err(StoreError::inconsistent(
        format!("event {expected}"),
        format!("event {found} is in its place"),
    ))
}

fn read_head(transaction: &ReadTransaction) -> Result<Head, StoreError> {
    let meta = transaction.open_table(META)?;
    let value = |key: &'static str| {
        meta.get(key)?
            .ok_or_else(|| StoreError::inconsistent(format!("the {key} record"), "it is missing"))
    };
    let version = encode::decode_format(value("format")?.value())
        .map_err(|e| StoreError::damaged("the format record", &e))?;
    if version > FORMAT {
        return Err(StoreError::Newer { found: version });
    }
    encode::decode_head(value("head")?.value()).map_err(|e| StoreError::damaged("the head record", &e))
}

/// Reads what the journal remembers of the time. What an older program did with signed commands is not known.
fn read_marks(transaction: &ReadTransaction, head: &Head) -> Result<Marks, StoreError> {
    let meta = transaction.open_table(META)?;
    let Some(value) = meta.get("marks")? else {
        return Ok(Marks::default());
    };
    let stored =
        encode::decode_marks(value.value()).map_err(|e| StoreError::damaged("the record of marks", &e))?;
    let mut marks = stored.marks;
    if stored.transactions != head.transactions {
        marks.floor = None;
    }
    Ok(marks)
}

fn write_head(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    head: &Head,
    marks: Marks,
) -> Result<(), StoreError> {
    let marks = StoredMarks {
        marks,
        transactions: head.transactions,
    };
    meta.insert("head", encode::encode_head(head).as_slice())?;
    meta.insert("marks", encode::encode_marks(marks).as_slice())?;
    Ok(())
}

type Signers = redb::ReadOnlyTable<&'static str, &'static [u8]>;

/// Returns the table of signers, which a file of an older program does not have.
fn signers(transaction: &ReadTransaction) -> Result<Option<Signers>, StoreError> {
    match transaction.open_table(SIGNERS) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn signer(signers: Option<&Signers>, key: &str) -> Result<Option<String>, StoreError> {
    let Some(signers) = signers else { return Ok(None) };
    let Some(value) = signers.get(key)? else {
        return Ok(None);
    };
    let signer = encode::decode_signer(key, value.value());
    let signer = signer.map_err(|e| StoreError::damaged(format!("the signer of the command {key:?}"), &e))?;
    Ok(Some(signer))
}

/// Reads the head record.
pub(crate) fn head(database: &Database) -> Result<Head, StoreError> {
    guarded(|| read_head(&database.begin_read()?))
}

/// Applies changes in one transaction, which is durable when this returns, and returns the new head. The changes are
/// checked against `head` already; `next` has the sequence numbers after them, and `marks` what the journal then remembers of the time.
pub(crate) fn write<'a>(
    database: &Database,
    next: &Head,
    marks: Marks,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<Head, StoreError> {
    guarded(|| {
        let transaction = database.begin_write()?;
        let mut head = next.clone();
        {
            let mut tables = Tables {
                events: transaction.open_table(EVENTS)?,
                entries: transaction.open_table(ENTRIES)?,
                commands: transaction.open_table(COMMANDS)?,
                signers: transaction.open_table(SIGNERS)?,
            };
            // Only the last value of an entry is written.
            let mut entries: BTreeMap<&str, &Option<Bytes>> = BTreeMap::new();
            for change in changes {
                match change {
                    Change::Commit(batch) => {
                        entries.extend(batch.entries.iter().map(|(key, entry)| (key.as_str(), entry)));
                    }
                    // It replaces all entries.
                    Change::Import(_) => entries.clear(),
                    Change::ForgetEvents { .. } | Change::ForgetCommands { .. } | Change::Mark { .. } => {}
                }
                tables.apply(change)?;
            }
            tables.put_entries(&entries)?;
            head.entries = tables.entries.len()?;
            head.commands = tables.commands.len()?;
            let mut meta = transaction.open_table(META)?;
            write_head(&mut meta, &head, marks)?;
        }
        transaction.commit()?;
        Ok(head)
    })
}

struct Tables<'t> {
    events: redb::Table<'t, u64, &'static [u8]>,
    entries: redb::Table<'t, &'static str, &'static [u8]>,
    commands: redb::Table<'t, &'static str, &'static [u8]>,
    signers: redb::Table<'t, &'static str, &'static [u8]>,
}

impl Tables<'_> {
    /// Applies a change, except for the entries of a commit.
    fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Commit(batch) => {
                self.add_events(&batch.events)?;
                for command in &batch.commands {
                    let key = encode::command_key(&command.caller, &command.id);
                    self.commands
                        .insert(key.as_str(), encode::encode_command(command).as_slice())?;
                    match &command.signer {
                        Some(signer) => {
                            let value = encode::encode_signer(&key, signer);
                            self.signers.insert(key.as_str(), value.as_slice())?;
                        }
                        // An older program may have forgotten a signed command, and left its signer.
                        None if !self.signers.is_empty()? => drop(self.signers.remove(key.as_str())?),
                        None => {}
                    }
                }
            }
            Change::ForgetEvents { through } => self.events.retain_in(..=*through, |_, _| false)?,
            Change::Mark { .. } => {}
            Change::ForgetCommands { before, .. } => {
                self.commands.retain(|key, value| {
                    // A record that can't be read stays, so that a look-up reports it.
                    encode::decode_command(key, value)
                        .map_or(true, |c| c.outcome.is_none() || c.accepted_at >= *before)
                })?;
                let mut failed = None;
                let commands = &self.commands;
                self.signers.retain(|key, _| match commands.get(key) {
                    Ok(command) => command.is_some(),
                    Err(error) => {
                        failed = Some(error);
                        true
                    }
                })?;
                if let Some(error) = failed {
                    return Err(error.into());
                }
            }
            Change::Import(import) => {
                self.events.retain(|_, _| false)?;
                self.add_events(&import.events)?;
                self.entries.retain(|_, _| false)?;
                for (key, entry) in &import.entries {
                    let json = serde_json::to_vec(entry).expect("a JSON value has string keys only");
                    self.entries
                        .insert(key.as_str(), encode::encode_entry(key, &json).as_slice())?;
                }
            }
        }
        Ok(())
    }

    fn put_entries(&mut self, entries: &BTreeMap<&str, &Option<Bytes>>) -> Result<(), StoreError> {
        for (key, entry) in entries {
            match entry {
                Some(json) => {
                    self.entries
                        .insert(*key, encode::encode_entry(key, json).as_slice())?;
                }
                None => {
                    self.entries.remove(*key)?;
                }
            }
        }
        Ok(())
    }

    fn add_events(&mut self, events: &[EventRecord]) -> Result<(), StoreError> {
        for event in events {
            self.events
                .insert(event.sequence, encode::encode_event(event).as_slice())?;
        }
        Ok(())
    }
}

/// The result of reading at a sequence number.
pub(crate) enum Found {
    /// Events in order from there on; empty if it is after the last.
    Events(Vec<EventRecord>),
    /// The event is not held any more; the oldest one that is.
    Forgotten { first_sequence: u64 },
}

/// Reads events from a sequence number on, at least one if there is one, until their bodies and headers have
/// `max_bytes`.
pub(crate) fn read(database: &Database, from: u64, max_bytes: usize) -> Result<Found, StoreError> {
    guarded(|| {
        let transaction = database.begin_read()?;
        let head = read_head(&transaction)?;
        if from < head.first_sequence {
            return Ok(Found::Forgotten {
                first_sequence: head.first_sequence,
            });
        }
        let table = transaction.open_table(EVENTS)?;
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut expected = from;
        for row in table.range(from..=head.last_sequence.max(from))? {
            let (sequence, value) = row?;
            check_sequence(sequence.value(), expected)?;
            let value = value.value();
            bytes += value.len();
            if bytes > max_bytes && !events.is_empty() {
                return Ok(Found::Events(events));
            }
            let event = encode::decode_event(expected, value)
                .map_err(|e| StoreError::damaged(format!("event {expected}"), &e))?;
            events.push(event);
            expected += 1;
        }
        if expected <= head.last_sequence {
            return Err(StoreError::inconsistent(
                format!("event {expected}"),
                "it is missing",
            ));
        }
        Ok(Found::Events(events))
    })
}

/// Reads one command.
pub(crate) fn command(
    database: &Database,
    caller: &Caller,
    id: &CommandId,
) -> Result<Option<CommandRecord>, StoreError> {
    guarded(|| {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(COMMANDS)?;
        let key = encode::command_key(caller, id);
        let Some(value) = table.get(key.as_str())? else {
            return Ok(None);
        };
        let mut command = encode::decode_command(&key, value.value())
            .map_err(|e| StoreError::damaged(format!("the command {key:?}"), &e))?;
        command.signer = signer(signers(&transaction)?.as_ref(), &key)?;
        Ok(Some(command))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_commands_are_known_is_not_known_once_an_older_program_wrote() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("journal.redb");
        let leaf = LeafName::new("edge-1").expect("a leaf");
        create(&path, &leaf, 1).expect("created");
        let database = open(&path, 1 << 20).expect("opened");
        let contents = load(&database).expect("loaded");
        assert_eq!(contents.marks, Marks::default());
        let time = jiff::Timestamp::from_second(20).expect("a time");
        let marks = Marks {
            floor: Some(time),
            seen: Some(time),
        };
        let mut next = contents.head;
        next.transactions += 1;
        write(&database, &next, marks, std::iter::empty()).expect("written");
        assert_eq!(load(&database).expect("loaded").marks, marks);
        // What a program does that knows of no marks.
        next.transactions += 1;
        let transaction = database.begin_write().expect("a transaction");
        let head = encode::encode_head(&next);
        let mut meta = transaction.open_table(META).expect("a table");
        meta.insert("head", head.as_slice()).expect("inserted");
        drop(meta);
        transaction.commit().expect("committed");
        let found = load(&database).expect("loaded").marks;
        assert_eq!(found, Marks { floor: None, ..marks });
    }
}
