//! The journal: damaged, of a newer version, gone, or an older one.

use anyhow::{Context as _, ensure};
use leaf_core::event::{Event, Fact, LeafStopped};
use leaf_core::id::InstanceId;
use leaf_core::state::State;
use leaf_journal::{Batch, Journal, Opened, Options};
use redb::{Database, TableDefinition};

use super::load;
use crate::support::{TestLeaf, until};

/// Opens the journal of a leaf that does not run.
pub(super) async fn open(leaf: &TestLeaf) -> anyhow::Result<Journal> {
    Ok(open_with_state(leaf).await?.0)
}

/// Opens the journal of a leaf that does not run, with what it holds.
pub(super) async fn open_with_state(leaf: &TestLeaf) -> anyhow::Result<(Journal, Opened)> {
    let options = Options {
        leaf: leaf.name.clone(),
        epoch_if_new: 1,
        cache_bytes: 1 << 20,
        holder: "a test".to_owned(),
    };
    let directory = leaf.state_dir.clone();
    Ok(tokio::task::spawn_blocking(move || Journal::open(&directory, &options)).await??)
}

/// Adds events that nobody published to the journal of a leaf that does not run; returns the last number.
pub(super) async fn add_unpublished(leaf: &TestLeaf, events: u64) -> anyhow::Result<u64> {
    let journal = open(leaf).await?;
    let first = journal.last_sequence() + 1;
    let events = (first..first + events).map(|sequence| {
        let event = Event {
            sequence,
            time: jiff::Timestamp::now(),
            causation: None,
            correlation: Some("unpublished".to_owned()),
            fact: Fact::from(LeafStopped {
                instance: InstanceId(uuid::Uuid::nil()),
                reason: "a test".to_owned(),
            }),
        };
        event.to_record(&leaf.name, journal.epoch())
    });
    let batch = Batch {
        events: events.collect(),
        ..Batch::default()
    };
    journal.commit(batch).await?;
    let last = journal.last_sequence();
    journal.close().await;
    Ok(last)
}

/// A stopped leaf with some history, all of it published, and the state that it showed.
async fn stopped_leaf() -> anyhow::Result<(TestLeaf, State)> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    load::work(&mut leaf).await?;
    let status = leaf.stop().await?;
    ensure!(status.success(), "{status}");
    // What it said last is in its journal, too.
    let journal = open(&leaf).await?;
    let mut records = Vec::new();
    while (records.len() as u64) < journal.last_sequence() {
        records.extend(journal.read(records.len() as u64 + 1, 1 << 20)?);
    }
    journal.close().await;
    let state = TestLeaf::replay(&records)?;
    Ok((leaf, state))
}

/// Makes sure that a started leaf went on from this state: its history has it as a beginning, without a gap.
async fn goes_on_from(leaf: &mut TestLeaf, before: &State) -> anyhow::Result<()> {
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    let until_then = usize::try_from(before.sequence)?;
    ensure!(
        events.len() > until_then,
        "{} events, {until_then} before",
        events.len()
    );
    ensure!(
        TestLeaf::replay(&events[..until_then])? == *before,
        "the history is another one"
    );
    ensure!(
        events[until_then].kind() == Some("cim.leaf.leaf.started.v1"),
        "{:?} comes next",
        events[until_then].kind()
    );
    load::check_shown(leaf, &TestLeaf::replay(&events)?).await
}

pub(super) async fn cut_off() -> anyhow::Result<()> {
    damaged(|bytes| bytes.truncate(bytes.len() / 2)).await
}

pub(super) async fn flipped() -> anyhow::Result<()> {
    damaged(|bytes| {
        let name = b"\"reason\":\"SIGTERM\"";
        let place = bytes.windows(name.len()).rposition(|part| part == name);
        bytes[place.expect("the last event says so") + 11] ^= 0x01;
    })
    .await
}

/// It is refused; moved away as the error says, the leaf goes on with what the stream has.
async fn damaged(damage: fn(&mut Vec<u8>)) -> anyhow::Result<()> {
    let (mut leaf, before) = stopped_leaf().await?;
    let file = leaf.journal_file();
    let mut bytes = std::fs::read(&file)?;
    damage(&mut bytes);
    std::fs::write(&file, &bytes)?;
    let says = [
        "the journal",
        &file.display().to_string(),
        "is damaged",
        "move the file away and start again",
    ];
    refused_until_it_is_moved_away(&mut leaf, &says, &before).await
}

/// The leaf refuses its journal with these words; moved away as they say, it goes on with what the stream has.
async fn refused_until_it_is_moved_away(
    leaf: &mut TestLeaf,
    says: &[&str],
    before: &State,
) -> anyhow::Result<()> {
    leaf.launch_again()?;
    leaf.refuses(says).await?;
    let file = leaf.journal_file();
    std::fs::rename(&file, file.with_extension("away"))?;
    leaf.start_again().await?;
    goes_on_from(leaf, before).await
}

pub(super) async fn newer() -> anyhow::Result<()> {
    let (mut leaf, before) = stopped_leaf().await?;
    let file = leaf.journal_file();
    let database = Database::open(&file)?;
    let transaction = database.begin_write()?;
    {
        let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
        let mut meta = transaction.open_table(meta)?;
        // Format 9, sealed as every version seals it: the table's number, the key's length, the key, the fields.
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[0]);
        hasher.update(&6u64.to_le_bytes());
        hasher.update(b"format");
        hasher.update(&9u64.to_le_bytes());
        let record = [&9u64.to_le_bytes()[..], &hasher.finalize().to_le_bytes()[..]].concat();
        meta.insert("format", record.as_slice())?;
        meta.insert("head", &b"what version 9 has here"[..])?;
    }
    transaction.commit()?;
    drop(database);
    let says = ["has format 9", "start the newer leafd", "or move the file away"];
    refused_until_it_is_moved_away(&mut leaf, &says, &before).await
}

pub(super) async fn deleted() -> anyhow::Result<()> {
    let (leaf, before) = stopped_leaf().await?;
    goes_on_without_its_journal(leaf, &before, "importing the stream's events into the journal").await
}

/// The journal is deleted: the leaf goes on with what the stream has, and logs this.
async fn goes_on_without_its_journal(mut leaf: TestLeaf, before: &State, says: &str) -> anyhow::Result<()> {
    std::fs::remove_file(leaf.journal_file())?;
    leaf.start_again().await?;
    leaf.logged(says).await?;
    goes_on_from(&mut leaf, before).await
}

pub(super) async fn deleted_with_unpublished_events() -> anyhow::Result<()> {
    let (leaf, before) = stopped_leaf().await?;
    add_unpublished(&leaf, 3).await?;
    goes_on_without_its_journal(
        leaf,
        &before,
        "if the journal was lost, unpublished events are lost",
    )
    .await
}

pub(super) async fn set_back() -> anyhow::Result<()> {
    let (mut leaf, _) = stopped_leaf().await?;
    let file = leaf.journal_file();
    let old = leaf.scratch().join("journal.old");
    std::fs::copy(&file, &old)?;
    leaf.start_again().await?;
    load::work(&mut leaf).await?;
    leaf.published().await?;
    leaf.stop().await?;
    let ended = open(&leaf).await?;
    let last = ended.last_sequence();
    ended.close().await;
    std::fs::copy(&old, &file)?;
    leaf.start_again().await?;
    leaf.logged("importing the stream's events into the journal")
        .await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    let next = events.get(usize::try_from(last)?).context("it goes on")?;
    ensure!(
        next.kind() == Some("cim.leaf.leaf.started.v1"),
        "{:?} comes next",
        next.kind()
    );
    load::check_shown(&mut leaf, &TestLeaf::replay(&events)?).await?;
    // And the journal has it for good.
    leaf.restart().await?;
    until("it goes on", async || Ok(Some(leaf.show().await?))).await?;
    leaf.published().await?;
    leaf.complete_events(1).await.map(drop)
}
