//! A full disk: nothing is lost or done twice, and no operator is needed.

use std::io::Write as _;
use std::path::Path;
use std::task::Poll;

use leaf_journal::{CommitError, Journal, JournalHealth, ReadError, Receipt};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::{TempDir, tempdir};

use crate::support::{Test, assert_whole, open, run, step};

pub(crate) const TESTS: &[Test] = &[
    (
        "on_a_full_disk_commits_wait_and_go_on_when_there_is_room",
        wait_for_room,
    ),
    (
        "closing_on_a_full_disk_gives_up_what_is_queued_and_keeps_what_was_durable",
        closed_while_full,
    ),
];

/// A disk of 8 MiB; unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let directory = tempdir().expect("a directory");
        mount(
            "tmpfs",
            directory.path(),
            "tmpfs",
            MountFlags::empty(),
            c"size=8m",
        )
        .expect("mounts");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("ballast")).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("unmounts");
    }
}

/// Commits until there is no room, and returns the receipts of what waits.
async fn until_full(journal: &Journal, next: &mut u64) -> Vec<Receipt> {
    let mut health = journal.health();
    loop {
        let receipts: Vec<_> = (*next..*next + 10).map(|n| journal.commit(step(n))).collect();
        *next += 10;
        let mut receipts = receipts.into_iter();
        while let Some(mut receipt) = receipts.next() {
            tokio::select! {
                biased;
                result = &mut receipt => result.expect("durable"),
                full = health.wait_for(|h| matches!(h, JournalHealth::DiskFull { .. })) => {
                    drop(full.expect("open"));
                    return std::iter::once(receipt).chain(receipts).collect();
                }
            }
        }
    }
}

async fn is_pending(receipt: &mut Receipt) -> bool {
    std::future::poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *receipt).poll(context).is_pending()))
        .await
}

fn wait_for_room() {
    let disk = Disk::new();
    let (journal, _) = open(disk.path()).expect("opens");
    let mut next = 1;
    // Twice: the file that was reopened has to take it as well.
    for _ in 0..2 {
        run(async {
            for _ in 0..50 {
                journal.commit(step(next)).await.expect("durable");
                next += 1;
            }
            disk.fill();
            let mut waiting = until_full(&journal, &mut next).await;
            let durable = journal.last_sequence();
            for _ in 0..500 {
                waiting.push(journal.commit(step(next)));
                next += 1;
            }
            assert!(journal.queued_bytes() > 0);
            // What is durable can be read, as soon as the file is open again.
            loop {
                match journal.read(durable, 1 << 20) {
                    Ok(events) => {
                        assert_eq!(events.len(), 1);
                        break;
                    }
                    Err(ReadError::Unavailable) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error:?}"),
                }
            }
            for receipt in &mut waiting {
                assert!(is_pending(receipt).await);
            }
            disk.make_room();
            for receipt in waiting {
                receipt.await.expect("durable after all");
            }
            let mut health = journal.health();
            health
                .wait_for(|health| *health == JournalHealth::Ok)
                .await
                .expect("open");
        });
        assert_eq!(journal.last_sequence(), next - 1);
        assert_eq!(assert_whole(&journal), next - 1);
        assert_eq!(journal.queued_bytes(), 0);
    }
    drop(journal);
    let (journal, opened) = open(disk.path()).expect("opens");
    assert_eq!(opened.entries["n"], next - 1);
    assert_eq!(assert_whole(&journal), next - 1);
    drop(journal);
}

fn closed_while_full() {
    let disk = Disk::new();
    let (journal, _) = open(disk.path()).expect("opens");
    let mut next = 1;
    disk.fill();
    run(async {
        let waiting = until_full(&journal, &mut next).await;
        journal.close().await;
        for receipt in waiting {
            let result = receipt.await;
            assert!(
                matches!(result, Err(CommitError::DiskFull | CommitError::Closed)),
                "{result:?}"
            );
        }
    });
    let durable = journal.last_sequence();
    let (journal, _) = open(disk.path()).expect("opens on the full disk");
    assert_eq!(assert_whole(&journal), durable);
    disk.make_room();
    run(journal.commit(step(durable + 1))).expect("durable");
    drop(journal);
}
