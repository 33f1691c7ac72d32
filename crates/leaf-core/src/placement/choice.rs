//! The client's side of placement: the order in which leaves are asked for offers, and which of them gets the job.

use sha2::{Digest as _, Sha256};

use super::JobKey;
use super::offer::{Offer, Verdict};
use crate::id::LeafName;

/// The number of leaves that are asked at once.
pub const ASKED_AT_ONCE: usize = 8;
/// The maximum number of leaves that are asked.
pub const MOST_ASKED: usize = 32;

/// Sorts leaves into the order in which they are asked about this job: by rendezvous, so that the same job meets the same leaf
/// first, whoever asks, and different jobs spread evenly.
pub fn sort_by_rendezvous<T>(key: &JobKey, leaves: &mut [T], name: impl Fn(&T) -> &LeafName) {
    leaves.sort_by_cached_key(|leaf| std::cmp::Reverse(weight(key, name(leaf))));
}

/// The first 8 bytes of the SHA-256 over the key, a line feed and the name, and the name for equals.
fn weight(key: &JobKey, leaf: &LeafName) -> (u64, LeafName) {
    let hash = Sha256::digest(format!("{key}\n{leaf}"));
    let first: [u8; 8] = hash[..8].try_into().expect("a SHA-256 has 32 bytes");
    (u64::from_be_bytes(first), leaf.clone())
}

/// Returns the indices of the offers that may get the job at once, in the order in which they are tried: those that work on it, then
/// those with room.
#[must_use]
pub fn ready(offers: &[Option<Offer>]) -> Vec<usize> {
    let with = |verdict| {
        let of = move |(index, offer): (usize, &Option<Offer>)| {
            offer
                .as_ref()
                .is_some_and(|offer| offer.verdict == verdict)
                .then_some(index)
        };
        offers.iter().enumerate().filter_map(of)
    };
    with(Verdict::WorksOnIt).chain(with(Verdict::Room)).collect()
}

/// Returns the indices of the offers at which the job would be queued, the best first: the fewest open jobs for each that runs at
/// once; of equals, the first in the order; strained leaves last. Those that had room and then refused count among them.
#[must_use]
pub fn queueing(offers: &[Option<Offer>]) -> Vec<usize> {
    let load = |(index, offer): (usize, &Option<Offer>)| {
        let offer = offer.as_ref()?;
        let is_strained = match offer.verdict {
            Verdict::Waits | Verdict::Room | Verdict::WorksOnIt => false,
            Verdict::Strained => true,
            Verdict::Never | Verdict::Unknown => return None,
        };
        let open = offer.running.saturating_add(offer.queued).saturating_mul(1000);
        Some((is_strained, open / offer.max_jobs.max(1), index))
    };
    let mut loads: Vec<(bool, u64, usize)> = offers.iter().enumerate().filter_map(load).collect();
    loads.sort_unstable();
    loads.into_iter().map(|(.., index)| index).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::job::Installable;

    fn key(of: usize) -> JobKey {
        JobKey::of_build([&Installable::Flake {
            reference: format!("a#p{of}"),
        }])
    }

    fn leaves(number: usize) -> Vec<LeafName> {
        let name = |n| LeafName::new(format!("edge-{n}")).expect("a name");
        (0..number).map(name).collect()
    }

    #[test]
    fn jobs_spread_evenly_and_each_meets_its_leaves_in_one_order() {
        let mut first: BTreeMap<LeafName, usize> = BTreeMap::new();
        for job in 0..1000 {
            let (mut forwards, mut backwards) = (leaves(10), leaves(10));
            backwards.reverse();
            sort_by_rendezvous(&key(job), &mut forwards, |leaf| leaf);
            sort_by_rendezvous(&key(job), &mut backwards, |leaf| leaf);
            assert_eq!(forwards, backwards);
            *first.entry(forwards.remove(0)).or_default() += 1;
        }
        assert_eq!(first.len(), 10);
        assert!(first.values().all(|count| (60..150).contains(count)), "{first:?}");
    }

    #[test]
    fn a_leaf_that_goes_moves_only_the_jobs_that_it_was_first_for() {
        let gone = LeafName::new("edge-3").expect("a name");
        for job in 0..200 {
            let (mut all, mut fewer) = (leaves(10), leaves(10));
            fewer.retain(|leaf| *leaf != gone);
            sort_by_rendezvous(&key(job), &mut all, |leaf| leaf);
            sort_by_rendezvous(&key(job), &mut fewer, |leaf| leaf);
            all.retain(|leaf| *leaf != gone);
            assert_eq!(all, fewer);
        }
    }

    #[test]
    fn clients_of_all_versions_ask_in_the_same_order() {
        // A change of this order would have two versions of leafctl build the same thing on two leaves.
        let mut order = leaves(5);
        sort_by_rendezvous(&key(1), &mut order, |leaf| leaf);
        let order: Vec<&str> = order.iter().map(LeafName::as_str).collect();
        assert_eq!(order, ["edge-3", "edge-1", "edge-4", "edge-2", "edge-0"]);
    }

    #[test]
    fn whoever_works_on_it_comes_first_then_those_with_room_then_the_least_loaded() {
        let offer = |verdict, running, queued, max_jobs| {
            Some(Offer {
                verdict,
                why: None,
                running,
                queued,
                max_jobs,
                features_free: [].into(),
                pressure: None,
                works: false,
            })
        };
        let offers = [
            None,
            offer(Verdict::Waits, 2, 6, 2),
            offer(Verdict::Room, 1, 0, 2),
            offer(Verdict::Never, 0, 0, 2),
            offer(Verdict::WorksOnIt, 4, 4, 4),
            offer(Verdict::Waits, 8, 1, 8),
            offer(Verdict::Unknown, 0, 0, 2),
            offer(Verdict::Room, 0, 0, 0),
            offer(Verdict::Strained, 0, 0, 9),
        ];
        assert_eq!(ready(&offers), [4, 2, 7]);
        assert_eq!(queueing(&offers), [7, 2, 5, 4, 1, 8]);
    }
}
