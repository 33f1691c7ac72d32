//! What must hold whatever dies: the leaf, its server, the disk, its journal, its stream.

#[path = "durability/company.rs"]
mod company;
#[path = "durability/disk.rs"]
mod disk;
#[path = "durability/fence.rs"]
mod fence;
#[path = "durability/homecoming.rs"]
mod homecoming;
#[path = "durability/journal.rs"]
mod journal;
#[path = "durability/kills.rs"]
mod kills;
#[path = "durability/load.rs"]
mod load;
#[path = "durability/long_cut.rs"]
mod long_cut;
#[path = "durability/newer.rs"]
mod newer;
#[path = "durability/partitions.rs"]
mod partitions;
#[path = "durability/sizes.rs"]
mod sizes;
#[path = "durability/stream.rs"]
mod stream;

use crate::support::{Host, Need, TestLeaf};
use libtest_mimic::Trial;

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let nix: &[Need] = &[Need::Nix];
    let nix_and_root: &[Need] = &[Need::Nix, Need::Root];
    let mut trials = vec![
        host.trial(
            "a stopped leaf records that in its last event and leaves no process",
            &[],
            stops,
        ),
        host.trial(
            "after 20 kills of nats-server under load each event is in the stream once and in order, and a replay gives the present state",
            nix,
            kills::the_server,
        ),
        host.trial(
            "after 50 random kills of leafd under load everything it answered is kept, each event once and in order, and a replay gives the present state",
            nix,
            kills::the_leaf,
        ),
        host.trial(
            "with less than the reserve free, commands are refused, queries answered, and the leaf continues by itself",
            nix_and_root,
            disk::below_the_reserve,
        ),
        host.trial(
            "with a completely full disk nothing is lost, the reason is reported, and the leaf continues by itself",
            nix_and_root,
            disk::to_the_last_byte,
        ),
        host.trial(
            "a leaf with a full disk can be stopped, and continues when there is room",
            nix_and_root,
            disk::stopped_on_a_full_disk,
        ),
        host.trial(
            "a truncated journal is refused with instructions, and restored from the stream",
            nix,
            journal::cut_off,
        ),
        host.trial(
            "a journal with a flipped byte is refused with instructions, and restored from the stream",
            nix,
            journal::flipped,
        ),
        host.trial(
            "a journal of a newer format is refused with instructions, and restored from the stream",
            nix,
            journal::newer,
        ),
        host.trial(
            "entries written by a newer leafd are kept unchanged, shown, passed on and not acted on",
            &[],
            newer::kept_shown_and_left_alone,
        ),
        host.trial(
            "an event that only a newer leafd can read is kept, with its aggregate",
            &[],
            newer::an_event_is_kept_with_what_it_is_about,
        ),
        host.trial(
            "an event kept by an older leafd is added to the state by one that can read it",
            &[],
            newer::an_event_that_was_kept_is_read_later,
        ),
        host.trial(
            "an older leafd continues with this one's journal, and this one after it",
            &[Need::OldLeafd],
            newer::to_an_older_program_and_back,
        ),
        host.trial(
            "a deleted journal is imported from the stream, and continues with the next sequence number",
            nix,
            journal::deleted,
        ),
        host.trial(
            "a journal deleted with unpublished events is imported, and the loss is reported",
            nix,
            journal::deleted_with_unpublished_events,
        ),
        host.trial(
            "an older copy of the journal imports the rest from the stream",
            nix,
            journal::set_back,
        ),
        host.trial(
            "a stream deleted while the leaf is busy is filled again from the journal",
            nix,
            stream::deleted_while_running,
        ),
        host.trial(
            "a stream deleted while the leaf is idle is filled again from the journal",
            nix,
            stream::deleted_while_at_rest,
        ),
        host.trial(
            "a stream deleted while the leaf is stopped is filled again from the journal",
            nix,
            stream::deleted_while_stopped,
        ),
        host.trial(
            "a stream deleted after the journal dropped its beginning begins later, with a snapshot to replay from",
            nix,
            stream::deleted_after_the_journal_let_go,
        ),
        host.trial(
            "a different event under one of the journal's sequence numbers is refused and named",
            &[],
            stream::another_event_under_our_number,
        ),
        host.trial(
            "a foreign message amid events under way is named, also after a restart",
            &[],
            fence::amid_events_under_way,
        ),
        host.trial(
            "a foreign message amid events that the journal still has is named before an import",
            &[],
            fence::before_an_import,
        ),
        host.trial(
            "a publisher that is ended with events under way is followed by one that continues",
            &[],
            fence::own_events_are_no_reason_to_stop,
        ),
        host.trial(
            "a longer history that diverges from the journal's is refused and named",
            &[],
            stream::another_history_that_is_longer,
        ),
        host.trial(
            "an event of another history is not imported",
            &[],
            stream::what_is_not_of_this_history,
        ),
        host.trial(
            "a second leafd for the same directory is refused, with the holder's name",
            &[],
            company::the_same_directory,
        ),
        host.trial(
            "a second leafd of the same name is refused, with the holder's name, until that one has ended",
            &[],
            company::the_same_name,
        ),
        host.trial(
            "a leaf whose lease the server refuses is not ready, says why, and is ready once it has the lease",
            &[],
            company::without_a_lease,
        ),
        host.trial(
            "a leaf that started without a connection ends when the server refuses its lease, and then waits for it",
            &[],
            company::a_lease_that_is_refused_later,
        ),
        host.trial(
            "a leaf whose server accepts messages of 4 KiB publishes its snapshots and answers with its lists",
            &[],
            sizes::of_four_kib,
        ),
        host.trial(
            "a leaf whose server accepts messages of 64 KiB publishes its snapshots and answers with its lists",
            &[],
            sizes::of_64_kib,
        ),
        host.trial(
            "a leaf with a history starts without a server, and publishes once it is reachable",
            &[],
            company::without_a_server,
        ),
        host.trial(
            "a new leaf without a server waits, can be stopped, and begins once it is reachable",
            &[],
            company::a_new_leaf_without_a_server,
        ),
        host.trial(
            "a password in nats.url is neither in the log nor in the status that systemd shows",
            &[],
            company::a_password_in_the_address,
        ),
        host.trial(
            "a settings file that can't be used is refused without a password that it holds",
            &[],
            company::a_password_in_an_unusable_file,
        ),
        host.trial(
            "a server without room for the stream of events is told by its size, and the leaf is neither ready nor listed",
            &[],
            company::no_room_for_the_stream,
        ),
        host.trial(
            "a wrong JetStream domain is named with the setting to check",
            &[],
            company::a_wrong_domain,
        ),
        host.trial(
            "a foreign first message in the stream of a new leaf is named, with what to do",
            &[],
            stream::a_foreign_first_message,
        ),
        host.trial(
            "a leaf on an external server without a signing key says at its start and in its report that it runs no containers",
            &[],
            company::no_containers,
        ),
        host.trial(
            "an older image of a leaf's disk gets the rest of its events from the hub and goes on",
            &[],
            homecoming::an_older_image,
        ),
        host.trial(
            "an older image that was started without the hub ends once the hub is there, and says what to do",
            &[],
            homecoming::an_older_image_without_the_hub,
        ),
        host.trial(
            "a leaf that lost its disk waits for the hub and gets its whole history back",
            &[],
            homecoming::a_lost_disk,
        ),
        host.trial(
            "of two instances of one name at the ends of a cut connection one stops when it is mended",
            &[],
            homecoming::two_at_the_ends_of_a_cut_wire,
        ),
        host.trial(
            "a leaf without its hub starts after five seconds, works, and shows the hub's absence",
            &[],
            homecoming::without_the_hub,
        ),
        host.trial(
            "a hub that was restored from last week is no reason for a leaf to do anything",
            &[],
            homecoming::a_hub_of_last_week,
        ),
        host.trial(
            "a running leaf ends when the hub has another event under one of its numbers",
            &[],
            homecoming::other_events_while_it_runs,
        ),
        host.trial(
            "a hub agent that answers with garbage, falls silent or has foreign events harms no leaf",
            &[],
            homecoming::an_agent_that_is_none,
        ),
        host.trial(
            "a leaf whose name is held at the hub is not ready, says by whom, and publishes nothing",
            &[],
            homecoming::a_name_that_is_held,
        ),
        host.trial(
            "a leaf that was killed twice while its hub was away takes over the claim that the hub knows",
            &[],
            homecoming::killed_twice_behind_a_cut_wire,
        ),
        host.trial(
            "a leaf that is stopped gives its claim at the hub back, and its successor need not wait",
            &[],
            homecoming::a_clean_stop_releases_the_name,
        ),
        host.trial(
            "a real hub agent gives an older image and a new disk their events, and its copy goes on",
            &[Need::HubAgent],
            homecoming::an_older_image_with_the_real_agent,
        ),
        host.trial(
            "a real hub agent keeps its copy unharmed by an older image that was started without it",
            &[Need::HubAgent],
            homecoming::an_older_image_without_the_real_agent,
        ),
        host.trial(
            "a leaf goes on while nobody reads its notifications",
            &[],
            company::notifications_that_nobody_reads,
        ),
        host.trial(
            "at SIGTERM under load accepted commands are answered, the last events published, and no server is left",
            nix,
            company::the_end,
        ),
    ];
    trials.extend(partitions::trials(host));
    trials.push(long_cut::trial(host));
    trials
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
