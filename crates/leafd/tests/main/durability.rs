//! What must hold whatever dies: the leaf, its server, the disk, its journal, its stream.

#[path = "durability/company.rs"]
mod company;
#[path = "durability/disk.rs"]
mod disk;
#[path = "durability/journal.rs"]
mod journal;
#[path = "durability/kills.rs"]
mod kills;
#[path = "durability/load.rs"]
mod load;
#[path = "durability/newer.rs"]
mod newer;
#[path = "durability/stream.rs"]
mod stream;

use crate::support::{Host, Need, TestLeaf};
use libtest_mimic::Trial;

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let nix: &[Need] = &[Need::Nix];
    let nix_and_root: &[Need] = &[Need::Nix, Need::Root];
    vec![
        host.trial(
            "a leaf that is stopped says so in its last event and leaves no process",
            &[],
            stops,
        ),
        host.trial(
            "nats-server killed 20 times under load leaves each event once and in order, and a replay gives the state that is shown",
            nix,
            kills::the_server,
        ),
        host.trial(
            "leafd killed 50 times at random under load keeps all that it answered, each event once and in order, and a replay gives the state that is shown",
            nix,
            kills::the_leaf,
        ),
        host.trial(
            "a disk with less than the reserve refuses commands, answers questions, and goes on by itself",
            nix_and_root,
            disk::below_the_reserve,
        ),
        host.trial(
            "a disk that is full to the last byte loses nothing, says why, and goes on by itself",
            nix_and_root,
            disk::to_the_last_byte,
        ),
        host.trial(
            "a leaf whose disk is full can be stopped, and goes on when there is room",
            nix_and_root,
            disk::stopped_on_a_full_disk,
        ),
        host.trial(
            "a journal that was cut off is refused with what to do, and the stream gives it back",
            nix,
            journal::cut_off,
        ),
        host.trial(
            "a journal with a flipped byte is refused with what to do, and the stream gives it back",
            nix,
            journal::flipped,
        ),
        host.trial(
            "a journal of a newer version is refused with what to do, and the stream gives it back",
            nix,
            journal::newer,
        ),
        host.trial(
            "what a newer leafd wrote is kept as it is, shown, passed on and not acted on",
            &[],
            newer::kept_shown_and_left_alone,
        ),
        host.trial(
            "an event that only a newer leafd can read is kept with what it is about",
            &[],
            newer::an_event_is_kept_with_what_it_is_about,
        ),
        host.trial(
            "an event that an older leafd kept is added to the state by one that can read it",
            &[],
            newer::an_event_that_was_kept_is_read_later,
        ),
        host.trial(
            "an older leafd goes on with what this one wrote, and this one after it",
            &[Need::OldLeafd],
            newer::to_an_older_program_and_back,
        ),
        host.trial(
            "a deleted journal is imported from the stream, and goes on with the next number",
            nix,
            journal::deleted,
        ),
        host.trial(
            "a journal deleted with events that were not published is imported, and what is lost is said",
            nix,
            journal::deleted_with_unpublished_events,
        ),
        host.trial(
            "an older copy of the journal takes the rest over from the stream",
            nix,
            journal::set_back,
        ),
        host.trial(
            "a stream deleted while the leaf works is filled again from the journal",
            nix,
            stream::deleted_while_running,
        ),
        host.trial(
            "a stream deleted while the leaf rests is filled again from the journal",
            nix,
            stream::deleted_while_at_rest,
        ),
        host.trial(
            "a stream deleted while the leaf is stopped is filled again from the journal",
            nix,
            stream::deleted_while_stopped,
        ),
        host.trial(
            "a stream deleted after the journal let go of its beginning begins later, with a snapshot to replay from",
            nix,
            stream::deleted_after_the_journal_let_go,
        ),
        host.trial(
            "another event under a number of the journal is refused and named",
            &[],
            stream::another_event_under_our_number,
        ),
        host.trial(
            "a longer history that parts from the journal's is refused and named",
            &[],
            stream::another_history_that_is_longer,
        ),
        host.trial(
            "an event of another history is not taken over",
            &[],
            stream::what_is_not_of_this_history,
        ),
        host.trial(
            "a second leafd for the same directory is refused and told who holds it",
            &[],
            company::the_same_directory,
        ),
        host.trial(
            "a second leafd of the same name is refused and told who holds it, until that one has ended",
            &[],
            company::the_same_name,
        ),
        host.trial(
            "a leaf with a history starts without a server, and publishes when there is one",
            &[],
            company::without_a_server,
        ),
        host.trial(
            "a new leaf without a server waits, can be stopped, and begins when there is one",
            &[],
            company::a_new_leaf_without_a_server,
        ),
        host.trial(
            "SIGTERM under load answers what was accepted, publishes the last events and leaves no server",
            nix,
            company::the_end,
        ),
    ]
}

async fn stops() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let shown = leaf.show().await?;
    anyhow::ensure!(shown.name == leaf.name, "{shown:?}");
    let status = leaf.stop().await?;
    anyhow::ensure!(status.success(), "{status}: {}", leaf.log());
    anyhow::ensure!(leaf.processes().is_empty(), "{:?}", leaf.processes());
    leaf.start_again().await?;
    let events = leaf.events().await?;
    anyhow::ensure!(
        events
            .iter()
            .any(|e| e.kind() == Some("cim.leaf.leaf.stopped.v1"))
    );
    Ok(())
}
