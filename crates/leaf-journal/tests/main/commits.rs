//! What a commit promises.

use jiff::Timestamp;
use leaf_core::event::EventRecord;
use leaf_core::id::{CommandId, LeafName};
use leaf_journal::{Batch, CommitError, Held, Import, Journal, JournalHealth, OpenError, Options, ReadError};
use serde_json::json;
use tempfile::tempdir;

use crate::support::{
    EPOCH, Test, assert_whole, caller, command, event, event_of, file_bytes, open, options, run, step,
};

pub(crate) const TESTS: &[Test] = &[
    ("what_was_committed_is_there_after_reopening", reopened),
    ("a_batch_that_leaves_a_number_out_is_refused_whole", contiguity),
    ("many_commits_share_few_fsyncs", group_commit),
    ("a_second_opener_is_refused_and_told_who_holds_it", second_opener),
    (
        "events_and_commands_that_are_let_go_of_are_gone_and_the_rest_stays",
        forgetting,
    ),
    (
        "an_empty_journal_takes_over_what_the_stream_has",
        import_into_empty,
    ),
    ("an_import_never_overwrites_what_the_stream_lacks", import_refused),
    (
        "closing_makes_what_is_queued_durable_and_refuses_the_rest",
        closing,
    ),
    (
        "a_file_that_is_mostly_empty_gives_room_back_when_it_is_opened",
        shrinking,
    ),
    ("a_journal_of_another_leaf_is_not_taken", other_leaf),
];

fn reopened() {
    let directory = tempdir().expect("a directory");
    let (journal, opened) = open(directory.path()).expect("opens");
    assert!(opened.created);
    assert_eq!(
        opened.held,
        Held {
            epoch: EPOCH,
            first_sequence: 1,
            last_sequence: 0
        }
    );
    assert_eq!(journal.read(1, 100).expect("empty"), []);
    let mut committed = journal.committed();
    run(async {
        for n in 1..=100 {
            journal.commit(step(n)).await.expect("durable");
            assert_eq!(journal.last_sequence(), n);
        }
        let gone = vec![("device.3".to_owned(), None)];
        journal
            .commit(Batch {
                entries: gone,
                ..Batch::default()
            })
            .await
            .expect("durable");
    });
    assert_eq!(committed.borrow_and_update().last_sequence, 100);
    assert!(journal.free_bytes().expect("statvfs") > 0);
    assert!(file_bytes(directory.path()) > 30_000);
    drop(journal);

    let other = Options {
        epoch_if_new: 7,
        ..options()
    };
    let (journal, opened) = Journal::open(directory.path(), &other).expect("opens");
    assert!(!opened.created);
    assert_eq!(
        opened.held,
        Held {
            epoch: EPOCH,
            first_sequence: 1,
            last_sequence: 100
        }
    );
    assert_eq!(opened.entries.len(), 7);
    assert_eq!(opened.entries["n"], json!(100));
    assert!(!opened.entries.contains_key("device.3"));
    let unfinished: Vec<_> = [10, 30, 50, 70, 90]
        .into_iter()
        .map(|n| command(n, false))
        .collect();
    assert_eq!(opened.unfinished, unfinished);
    let get = |n: u64| {
        journal
            .command(&caller(), &CommandId::new(format!("c-{n}")).expect("an id"))
            .expect("readable")
    };
    assert_eq!(get(20), Some(command(20, true)));
    assert_eq!(get(21), None);
    assert_eq!(assert_whole(&journal), 100);
    assert_eq!(journal.read(99, 1).expect("one at least"), [event(99)]);
    assert_eq!(journal.read(101, 1).expect("none after the last"), []);
    // An outcome replaces the command that waited for it.
    run(journal.commit(Batch {
        commands: vec![command(30, true)],
        ..Batch::default()
    }))
    .expect("durable");
    assert_eq!(get(30), Some(command(30, true)));
}

fn contiguity() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    run(async {
        journal.commit(step(1)).await.expect("durable");
        let gap = Batch {
            events: vec![event(2), event(4)],
            ..step(2)
        };
        // Queued at once, so that they are of one group: only what fits is written.
        let receipts = [
            journal.commit(gap),
            journal.commit(step(1)),
            journal.commit(step(2)),
            journal.commit(step(4)),
        ];
        let [gap, again, fits, after] = receipts;
        assert!(matches!(
            gap.await,
            Err(CommitError::NotContiguous {
                expected: 3,
                found: 4
            })
        ));
        assert!(matches!(
            again.await,
            Err(CommitError::NotContiguous {
                expected: 2,
                found: 1
            })
        ));
        fits.await.expect("durable");
        assert!(matches!(
            after.await,
            Err(CommitError::NotContiguous {
                expected: 3,
                found: 4
            })
        ));
        let stranger = Batch {
            events: vec![event_of(EPOCH + 1, 3)],
            ..Batch::default()
        };
        assert!(matches!(
            journal.commit(stranger).await,
            Err(CommitError::WrongEpoch { .. })
        ));
    });
    assert_eq!(assert_whole(&journal), 2);
    assert_eq!(*journal.health().borrow(), JournalHealth::Ok);
}

fn group_commit() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    let before = journal.transactions();
    let receipts: Vec<_> = (1..=5000).map(|n| journal.commit(step(n))).collect();
    run(async {
        for receipt in receipts {
            receipt.await.expect("durable");
        }
    });
    let transactions = journal.transactions() - before;
    assert!(transactions <= 500, "{transactions} fsyncs for 5000 commits");
    assert_eq!(assert_whole(&journal), 5000);
    assert_eq!(journal.queued_bytes(), 0);
}

fn second_opener() {
    let directory = tempdir().expect("a directory");
    let first = Options {
        holder: "instance 0199-aaaa".to_owned(),
        ..options()
    };
    let (journal, _) = Journal::open(directory.path(), &first).expect("opens");
    let error = open(directory.path()).expect_err("held");
    assert!(matches!(error, OpenError::Lock(_)));
    let text = error.to_string();
    let pid = format!("process {}", std::process::id());
    assert!(
        text.contains(&pid) && text.contains("instance 0199-aaaa"),
        "{text}"
    );
    drop(journal);
    open(directory.path()).expect("free again");
}

fn forgetting() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    run(async {
        for n in 1..=100 {
            // Only the last is waited for: they are in order.
            let receipt = journal.commit(step(n));
            if n == 100 {
                receipt.await.expect("durable");
            }
        }
        journal.forget_events(60).await.expect("durable");
        journal.forget_events(40).await.expect("nothing to do");
        let before = Timestamp::from_second(1_760_000_000 + 70).expect("in range");
        journal.forget_commands(before, None).await.expect("durable");
    });
    assert!(matches!(
        journal.read(60, 100),
        Err(ReadError::Forgotten {
            from: 60,
            first_sequence: 61
        })
    ));
    assert_eq!(assert_whole(&journal), 40);
    drop(journal);
    let (journal, opened) = open(directory.path()).expect("opens");
    assert_eq!(opened.held.first_sequence, 61);
    // Those without an outcome are still owed one.
    assert_eq!(opened.unfinished.len(), 5);
    let id = |n: u64| CommandId::new(format!("c-{n}")).expect("an id");
    assert_eq!(journal.command(&caller(), &id(60)).expect("readable"), None);
    assert_eq!(
        journal.command(&caller(), &id(80)).expect("readable"),
        Some(command(80, true))
    );
    run(async {
        journal.forget_events(u64::MAX).await.expect("durable");
        assert_eq!((journal.first_sequence(), journal.last_sequence()), (101, 100));
        journal.commit(step(101)).await.expect("goes on");
    });
    assert_eq!(assert_whole(&journal), 1);
}

fn import_into_empty() {
    let directory = tempdir().expect("a directory");
    let newer = Options {
        epoch_if_new: EPOCH + 5,
        ..options()
    };
    let (journal, _) = Journal::open(directory.path(), &newer).expect("opens");
    let entries = [("n".to_owned(), json!(50))].into();
    let import = Import {
        epoch: EPOCH,
        last_sequence: 50,
        events: (41..=50).map(event).collect(),
        entries,
    };
    run(async {
        let short = Import {
            last_sequence: 51,
            ..import.clone()
        };
        assert!(matches!(
            journal.import(short).await,
            Err(CommitError::NotContiguous { .. })
        ));
        journal.import(import).await.expect("durable");
        journal.commit(step(51)).await.expect("goes on");
        // The stream is ahead, and surely has it on its disk.
        let ahead = Import {
            epoch: EPOCH,
            last_sequence: 60,
            ..Import::default()
        };
        journal.import(ahead).await.expect("durable");
        journal.commit(step(61)).await.expect("goes on");
    });
    drop(journal);
    let (journal, opened) = open(directory.path()).expect("opens");
    assert_eq!(
        opened.held,
        Held {
            epoch: EPOCH,
            first_sequence: 61,
            last_sequence: 61
        }
    );
    assert_eq!(opened.entries["n"], json!(61));
    assert_eq!(assert_whole(&journal), 1);
}

fn import_refused() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    run(async {
        for n in 1..=3 {
            journal.commit(step(n)).await.expect("durable");
        }
        for (epoch, last_sequence) in [(EPOCH, 2), (EPOCH + 1, 9), (EPOCH, 0)] {
            let import = Import {
                epoch,
                last_sequence,
                ..Import::default()
            };
            let result = journal.import(import).await;
            assert!(
                matches!(result, Err(CommitError::NotAhead { last_sequence: 3, .. })),
                "{result:?}"
            );
        }
    });
    assert_eq!(assert_whole(&journal), 3);
}

fn shrinking() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    let large = |n: u64| Batch {
        events: vec![EventRecord {
            body: vec![b'x'; 1 << 20],
            ..event(n)
        }],
        ..Batch::default()
    };
    run(async {
        let receipts: Vec<_> = (1..=20).map(|n| journal.commit(large(n))).collect();
        for receipt in receipts {
            receipt.await.expect("durable");
        }
        for n in 21..=40 {
            journal.commit(step(n)).await.expect("durable");
        }
        journal.forget_events(20).await.expect("durable");
    });
    let before = file_bytes(directory.path());
    assert!(before > 20 << 20, "{before}");
    drop(journal);
    let (journal, _) = open(directory.path()).expect("opens");
    let after = file_bytes(directory.path());
    assert!(after < before / 4, "{after} of {before}");
    assert_eq!(assert_whole(&journal), 20);
    run(journal.commit(step(41))).expect("goes on");
}

fn closing() {
    let directory = tempdir().expect("a directory");
    let (journal, _) = open(directory.path()).expect("opens");
    let other = journal.clone();
    run(async {
        let receipts: Vec<_> = (1..=200).map(|n| journal.commit(step(n))).collect();
        journal.close().await;
        for receipt in receipts {
            receipt.await.expect("queued before the end");
        }
        assert!(matches!(other.commit(step(201)).await, Err(CommitError::Closed)));
        assert!(matches!(other.read(1, 1), Err(ReadError::Unavailable)));
    });
    let (journal, _) = open(directory.path()).expect("free, although handles are left");
    assert_eq!(assert_whole(&journal), 200);
}

fn other_leaf() {
    let directory = tempdir().expect("a directory");
    drop(open(directory.path()).expect("opens"));
    let other = Options {
        leaf: LeafName::new("edge-2").expect("a name"),
        ..options()
    };
    let error = Journal::open(directory.path(), &other).expect_err("another's");
    assert!(matches!(error, OpenError::OtherLeaf { .. }));
    assert!(
        error.to_string().contains("is of the leaf edge-1, not of edge-2"),
        "{error}"
    );
}
