//! Prints what a commit costs: `cargo bench -p leaf-journal [-- DIRECTORY [CACHE_MIB]]` (a directory on the disk
//! to be measured).
#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Instant;

use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_journal::{Batch, FILE, Journal, Options};

fn event(sequence: u64) -> EventRecord {
    let header = |name: &'static str, value: String| (name, value);
    EventRecord {
        sequence,
        subject: "leaf.v1.evt.edge-1.device.usb-046d-c52b-8f3a.changed".to_owned(),
        headers: [
            header("ce-id", format!("edge-1/1760000000000/{sequence}")),
            header("ce-sequence", format!("{sequence:020}")),
            header("ce-source", "urn:cim-leaf:edge-1".to_owned()),
            header("ce-specversion", "1.0".to_owned()),
            header("ce-subject", "usb-046d-c52b-8f3a".to_owned()),
            header("ce-time", "2026-11-20T16:18:47.123456789Z".to_owned()),
            header("ce-type", "cim.leaf.device.changed.v1".to_owned()),
        ]
        .into_iter()
        .collect(),
        body: vec![b'x'; 300],
    }
}

fn batch(first: u64, count: u64) -> Batch {
    Batch {
        events: (first..first + count).map(event).collect(),
        ..Batch::default()
    }
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or("VmRSS unknown")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let parent = arguments.next();
    let cache_mib: usize = arguments
        .next()
        .map_or(8, |text| text.parse().expect("a number of MiB"));
    let directory = match &parent {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
    .expect("a directory");
    let options = Options {
        leaf: LeafName::new("edge-1").expect("a name"),
        epoch_if_new: 1_760_000_000_000,
        cache_bytes: cache_mib << 20,
        holder: "bench".to_owned(),
    };
    let (journal, _) = Journal::open(directory.path(), &options).expect("opens");
    let mut next = 1;
    println!("cache of {cache_mib} MiB, {}", resident());

    for count in [1, 100] {
        let mut times = Vec::new();
        for _ in 0..300 {
            let batch = batch(next, count);
            next += count;
            let start = Instant::now();
            journal.commit(batch).await.expect("durable");
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "commit of {count:>3} events: p50 {:?}, p99 {:?}",
            times[150], times[297]
        );
    }

    // As the loop does it: one event a batch, a bounded number in flight.
    for (in_flight, total) in [(64, 50_000), (1024, 200_000)] {
        let before = journal.transactions();
        let start = Instant::now();
        let mut waiting = std::collections::VecDeque::new();
        for _ in 0..total {
            if waiting.len() == in_flight {
                let receipt: leaf_journal::Receipt = waiting.pop_front().expect("some wait");
                receipt.await.expect("durable");
            }
            waiting.push_back(journal.commit(batch(next, 1)));
            next += 1;
        }
        for receipt in waiting {
            receipt.await.expect("durable");
        }
        let taken = start.elapsed();
        println!(
            "{total} single events, {in_flight} in flight: {:.0}/s, {} fsyncs, {}",
            f64::from(total) / taken.as_secs_f64(),
            journal.transactions() - before,
            resident()
        );
    }

    let file_bytes = || {
        std::fs::metadata(directory.path().join(FILE))
            .expect("a file")
            .len()
    };
    let start = Instant::now();
    let mut from = journal.first_sequence();
    while from <= journal.last_sequence() {
        from += journal.read(from, 1 << 20).expect("readable").len() as u64;
    }
    println!("read {} events: {:?}, {}", from - 1, start.elapsed(), resident());
    println!("file: {} MiB", file_bytes() >> 20);
    drop(journal);
    let start = Instant::now();
    let (journal, _) = Journal::open(directory.path(), &options).expect("opens");
    println!("open and verify: {:?}, {}", start.elapsed(), resident());
    let start = Instant::now();
    journal
        .forget_events(journal.last_sequence() - 100)
        .await
        .expect("durable");
    println!(
        "let go of all but 100: {:?}, file: {} MiB",
        start.elapsed(),
        file_bytes() >> 20
    );
}
